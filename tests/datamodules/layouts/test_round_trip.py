"""One synthetic lab in each layout becomes the same table: people, sessions, contents of images, clinical values."""

import csv
import json
import zlib

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the library's own idiom

from datamodules.cohort import check_table, read_cohort
from datamodules.inspection import inspect_image
from datamodules.layouts import table_file
from datamodules.new_table import make_table
from datamodules.verify import manifest_path, verify_cohort, write_manifest
from datamodules.voxels import Limits

SHAPE = (7, 8, 9)
# participant, session -> kinds of images. p4 has no T1, p3 no FLAIR; p5 stands in the clinical table alone.
LAB = {
    ("p1", 1): ("t1w", "flair"),
    ("p1", 2): ("t1w", "flair"),
    ("p2", 1): ("t1w", "flair"),
    ("p3", 1): ("t1w",),
    ("p4", 1): ("flair",),
    ("p6", 1): ("t1w", "flair"),
}
SITES = {"p1": "north", "p2": "north", "p3": "south", "p4": "south", "p6": "south"}
# p6 has images and no clinical values.
CLINICAL = {("p1", 1): (40, "F", 70.5), ("p1", 2): (40, "F", 72.25), ("p2", 1): (31, "M", 80), ("p3", 1): (55, "F", "")}
CLINICAL |= {("p4", 1): ("", "M", 61), ("p5", 1): (20, "M", 90)}
EXTRA = "a second scan"  # of p2, which no table may have


def picture(who, session, kind):
    seed = zlib.crc32(f"{who}{session}{kind}".encode())
    image = sitk.GetImageFromArray(np.random.default_rng(seed).integers(0, 900, SHAPE[::-1]).astype(np.int16))
    image.SetSpacing((2.0, 3.0, 1.5))
    image.SetOrigin((10.0, -20.0, 30.0))
    return image


def save(path, who, session, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".NII.GZ"):  # a suffix that ITK does not write
        lower = path.with_name(path.name.lower())
        save(lower, who, session, kind)
        lower.rename(path)
    else:
        sitk.WriteImage(picture(who, session, kind), path)


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])


def scans():
    return [(who, session, kind) for (who, session), kinds in LAB.items() for kind in kinds]


def clinical(path, name, session):
    header = ["participant_id", "session_id", "site", "age", "sex", "weight"]
    rows = [[name(who), session(when), SITES.get(who, "n/a"), *values] for (who, when), values in CLINICAL.items()]
    if path.parent.name != "bonbid":
        write_table(path, header, rows)
    else:
        write_table(path, header, [*rows, [name("p6"), "", SITES["p6"], "", "", ""]])
    return path


def bids(folder):
    suffix = {"t1w": "T1w", "flair": "FLAIR"}
    for who, session, kind in scans():
        stem = f"sub-{who}/ses-{session}/anat/sub-{who}_ses-{session}"
        save(folder / f"{stem}_{suffix[kind]}.nii.gz", who, session, kind)
    save(folder / "sub-p2/ses-1/anat/sub-p2_ses-1_run-2_T1w.nii.gz", EXTRA, 1, "t1w")
    save(folder / "sub-p3/ses-1/anat/sub-p3_ses-1_T1w.nii", "p3", 1, "t1w")
    save(folder / "derivatives/strip/sub-p2/ses-1/anat/sub-p2_ses-1_desc-brain_T1w.nii.gz", EXTRA, 1, "t1w")
    people = {who: values for (who, _), values in CLINICAL.items()}
    rows = [[f"sub-{who}", SITES.get(who, "n/a"), age or "n/a", sex] for who, (age, sex, _) in people.items()]
    write_table(
        folder / "participants.tsv", ["participant_id", "site", "age", "sex"], [*rows, ["sub-p6", "south", "n/a", ""]]
    )
    for who in SITES:
        known = [[f"ses-{when}", values[2]] for (name, when), values in CLINICAL.items() if name == who]
        if known:
            write_table(folder / f"sub-{who}/sub-{who}_sessions.tsv", ["session_id", "weight"], known)
    return {}


def nnunet(folder):
    for who, session, kind in scans():
        channel = {"t1w": 0, "flair": 1}[kind]
        part = "Ts" if who == "p6" else "Tr"
        save(folder / f"images{part}/sub-{who}_ses-{session}_{channel:04}.nii.gz", who, session, kind)
    save(folder / "imagesTr/sub-p2_ses-1_0000.nii", EXTRA, 1, "t1w")
    content = {"channel_names": {"0": "T1w", "1": "FLAIR"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    return {"participants": clinical(folder / "clinical.csv", lambda who: f"sub-{who}", lambda when: f"ses-{when}")}


def monai(folder):
    entries = []
    for (who, session), kinds in LAB.items():
        paths = {kind: f"all scans/{who}-{session} {kind}.nii.gz" for kind in kinds}
        for kind, path in paths.items():
            save(folder / path, who, session, kind)
        entries.append({"subject_id": who, "session_id": str(session), **paths})
    save(folder / "all scans/again.nii.gz", EXTRA, 1, "t1w")
    entries.append({"subject_id": "p2", "session_id": "1", "t1w": "./all scans/again.nii.gz"})
    (folder / "datalist.json").write_text(json.dumps({"training": entries[:4], "testing": entries[4:]}))
    return {"participants": clinical(folder / "clinical.tsv", str, str)}


def pattern(folder):
    for who, session, kind in scans():
        suffix = "NII.GZ" if who == "p1" else "nii.gz"
        save(folder / f"{SITES[who]}/scans of {who}/ses {session}_{kind.upper()}.{suffix}", who, session, kind)
    save(folder / "north/scans of p2/copy of ses 1_T1W.nii.gz", EXTRA, 1, "t1w")
    save(folder / "north/scans of p2/ses 1_T1W_run-2.nii.gz", EXTRA, 1, "t1w")
    (folder / "south" / "loop").symlink_to(folder)
    (folder / "south" / "scans of p3" / "ses 2_T1W.nii.gz").symlink_to("/etc/passwd")
    patterns = ["{site}/scans of {participant_id}/ses {session_id}_{image}[_run-{run}].nii.gz"]
    return {"patterns": patterns, "participants": clinical(folder / "clinical.csv", str, str)}


def bonbid(folder):
    names = {"t1w": "1ADC_ss/{}-ADC_ss.mha", "flair": "2Z_ADC/Zmap_{}-ADC_smooth2mm_clipped10.mha"}
    for who, session, kind in scans():
        save(folder / names[kind].format(f"{who}-VISIT_{session:02}"), who, session, kind)
    save(folder / "1ADC_ss/p2-VISIT_01-ADC_ss (copy).mha", EXTRA, 1, "t1w")
    clinical(folder / "clinical.csv", str, lambda when: f"VISIT_{when:02}")
    return {}


def brainiac(folder):
    rows = []
    for who, session in LAB:
        if "t1w" in LAB[who, session]:
            save(folder / f"{who}_2020010{session}.nii.gz", who, session, "t1w")
        values = CLINICAL.get((who, session), ("", "", ""))
        rows.append([who, f"2020010{session}", SITES[who], *values])
    save(folder / "p2_20200101 copy.nii.gz", EXTRA, 1, "t1w")
    write_table(folder / "labels.csv", ["pat_id", "scandate", "site", "age", "sex", "weight"], rows)
    return {}


LAYOUTS = {"bids": bids, "nnunet": nnunet, "monai": monai, "pattern": pattern, "bonbid": bonbid, "brainiac": brainiac}
COLUMNS = {
    "bonbid": {"t1w": "adc", "flair": "zadc"},
    "brainiac": {"t1w": "image"},
}


def contents(cohort, columns):
    """Return what a cohort holds in a form that no layout has a part in."""
    rows = {}
    for row in cohort.frame.to_dict("records"):
        who, when = row["participant_id"].removeprefix("sub-"), int(row["session_id"][-1])
        paths = {kind: cohort.root / row[name] for kind, name in columns.items() if row.get(name)}
        hashes = {kind: inspect_image(path, cohort.root, Limits()).facts.voxel_sha256 for kind, path in paths.items()}
        numbers = [None if np.isnan(row[name]) else row[name] for name in ("age", "weight")]
        rows[who, when] = {"site": row["site"], "images": hashes, "values": [*numbers, row["sex"]]}
    return rows


def expected(folder, columns):
    rows = {}
    for (who, session), kinds in LAB.items():
        images = {}
        for kind in set(kinds) & set(columns):
            save(folder / f"{kind}.mha", who, session, kind)
            images[kind] = inspect_image(folder / f"{kind}.mha", folder, Limits()).facts.voxel_sha256
        age, sex, weight = CLINICAL.get((who, session), ("", "", ""))
        values = [age or None, weight or None, sex]
        if images:
            rows[who, session] = {"site": SITES[who], "images": images, "values": values}
    return rows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_becomes_the_same_table(tmp_path, layout):
    folder = tmp_path / layout
    folder.mkdir()
    options = LAYOUTS[layout](folder)
    columns = COLUMNS.get(layout, {"t1w": "t1w", "flair": "flair"})
    if layout in ("nnunet", "monai"):  # neither knows sites but from the clinical table, where p6 has no row
        with (folder / ("clinical.csv" if layout == "nnunet" else "clinical.tsv")).open("a") as stream:
            stream.write("sub-p6,,south,,,\n" if layout == "nnunet" else "p6\t\tsouth\t\t\t\n")
    made = make_table(folder, layout=layout, **options)
    made.write()
    cohort = read_cohort(made.table)
    assert contents(cohort, columns) == expected(tmp_path, columns)
    assert cohort.frame["dataset"].unique().tolist() == [layout]
    assert verify_cohort(made.table).ok, verify_cohort(made.table).problems
    lacking = {columns[kind]: [who] for kind, who in (("t1w", "p4"), ("flair", "p3")) if kind in columns}
    gaps = {name: [who.removeprefix("sub-")[:2] for who in people] for name, people in made.gaps.items()}
    assert gaps == (lacking if layout != "brainiac" else {})
    left_out = [remark.what for remark in made.raw.remarks if remark.left_out]
    taken = {cell for row in made.raw.cells for cell in row}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.suffix.lower() in IMAGES}
    told = {path for path in files if any(path == what or path.startswith(f"{what}/") for what in left_out)}
    assert files - taken == told, "every image is in the table or left out with a reason"
    assert any("p5" in what for what in left_out) is (layout != "brainiac")  # whose table lists images alone


IMAGES = {".gz", ".nii", ".mha"}


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "pattern"])
def test_a_folder_used_as_a_table_has_the_same_rows(tmp_path, layout):
    folder = tmp_path / layout
    folder.mkdir()
    LAYOUTS[layout](folder)
    made = make_table(folder)
    assert made.layout == layout
    cohort, _ = check_table(folder)
    columns = [name for name in made.raw.columns if name in cohort.frame.columns and name != "dataset"]
    assert [name for name in columns if name in COLUMNS.get(layout, {"t1w": "t1w"}).values()]
    there = {row[0:2]: row for row in zip(*(made.raw.values(name) for name in columns), strict=True)}
    files = [column.name for column in made.raw.described if column.kind == "path" and column.name in columns]
    for row in cohort.frame.to_dict("records"):
        key = tuple(row[name] for name in columns[:2])
        if layout == "brainiac" and key not in there:
            continue  # the table names an image that is not there, which is for verify to say
        assert [row[name] for name in files] == [dict(zip(columns, there[key], strict=True))[name] for name in files]


STRICT = {  # what is wrong with the lab where nobody reads what was left out
    "bids": {"missing_file"},
    "nnunet": {"missing_value"},
    "monai": set(),
    "bonbid": {"missing_file", "missing_value", "bad_identifier"},
    "brainiac": {"missing_file"},
}


@pytest.mark.parametrize("layout", STRICT)
def test_verify_takes_a_folder_of_each_layout(tmp_path, layout):
    folder = tmp_path / layout
    folder.mkdir()
    LAYOUTS[layout](folder)
    verification = verify_cohort(folder)
    assert {problem.code for problem in verification.problems} == STRICT[layout]
    assert verification.cohort.layout == layout
    assert write_manifest(verification) == manifest_path(table_file(folder))


def test_bids2table_finds_what_a_plain_listing_finds(tmp_path):
    folder = tmp_path / "study.v2 [final]"  # neither of which bids2table can read by itself
    folder.mkdir()
    bids(folder)
    made = make_table(folder, layout="bids")
    for name, suffix in (("t1w", "T1w"), ("flair", "FLAIR")):
        listed = [path.relative_to(folder).as_posix() for path in folder.glob(f"sub-*/ses-*/anat/*_{suffix}.nii*")]
        told = {remark.what for remark in made.raw.remarks}
        assert sorted(filter(None, made.raw.values(name))) == sorted(set(listed) - told)
    assert made.raw.values("dataset")[0] == "study.v2-final"

"""The folders of BONBID-HIE become a cohort: who, when, where, which maps, and what is wrong with them."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the library's own idiom

from datamodules.bonbid import site_of
from datamodules.cohort import CohortError, check_table, read_cohort, schema_path
from datamodules.hie_outcome import HIEOutcomeDataModule
from datamodules.layouts import table_file
from datamodules.preprocessing import Preprocessing
from datamodules.verify import check_manifest, manifest_path, verify_cohort, write_manifest

SHAPE = (7, 8, 9)
SPACING = (1.5, 1.25, 2.0)
ORIGIN = (-30.0, 12.0, 5.0)
DIRECTION = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)  # not the axes of the scanner
NAMES = {
    "1ADC_ss": "{}-ADC_ss.mha",
    "2Z_ADC": "Zmap_{}-ADC_smooth2mm_clipped10.mha",
    "3LABEL": "{}_lesion.mha",
}
VISITS = ("MGHNICU_010-VISIT_01", "MGHNICU_010-VISIT_02", "MGHNICU_011-VISIT_01", "BCHNICU_003-VISIT_01")


def write_map(path, values, *, origin=ORIGIN):
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose()))
    image.SetSpacing(SPACING)
    image.SetOrigin(origin)
    image.SetDirection(DIRECTION)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True)


def maps_of(seed):
    generator = np.random.default_rng(seed)
    inside = np.zeros(SHAPE, bool)
    inside[1:-1, 1:-1, 1:-1] = True
    label = np.zeros(SHAPE, np.uint8)
    label.flat[:seed] = 1 + seed % 2  # as many voxels as the seed says; some tools write 2
    return {
        "1ADC_ss": np.where(inside, generator.integers(400, 2000, SHAPE), 0).astype(np.int16),
        "2Z_ADC": np.where(inside, generator.uniform(-10, 10, SHAPE), 0).astype(np.float32),
        "3LABEL": label,
    }


@pytest.fixture
def folder(tmp_path):
    for seed, visit in enumerate(VISITS):
        for kind, values in maps_of(seed).items():
            write_map(map_path(tmp_path / "BONBID2023_Train", kind, visit), values)
    return tmp_path / "BONBID2023_Train"


def map_path(folder, kind, visit):
    return folder / kind / NAMES[kind].format(visit)


def found(table):
    return [(p.row, p.participant_id, p.column, p.code) for p in verify_cohort(table).problems]


def test_a_visit_is_a_row_with_its_site_maps_and_lesion_volume(folder):
    cohort = read_cohort(folder)
    columns = ["participant_id", "session_id", "site", "dataset", "image_id", "row"]
    assert cohort.frame[columns].to_numpy().tolist() == [
        ["BCHNICU_003", "VISIT_01", "BCH", "BONBID2023_Train", "BONBID2023_Train/BCHNICU_003/VISIT_01", 1],
        ["MGHNICU_010", "VISIT_01", "MGH", "BONBID2023_Train", "BONBID2023_Train/MGHNICU_010/VISIT_01", 2],
        ["MGHNICU_010", "VISIT_02", "MGH", "BONBID2023_Train", "BONBID2023_Train/MGHNICU_010/VISIT_02", 3],
        ["MGHNICU_011", "VISIT_01", "MGH", "BONBID2023_Train", "BONBID2023_Train/MGHNICU_011/VISIT_01", 4],
    ]
    assert cohort.frame["zadc"][3] == "2Z_ADC/Zmap_MGHNICU_011-VISIT_01-ADC_smooth2mm_clipped10.mha"
    assert cohort.frame["lesion_ml"].tolist() == pytest.approx([voxels * 3.75 / 1000 for voxels in (3, 0, 1, 2)])
    roles = {column.name: (column.role, column.grid) for column in cohort.schema.columns if column.kind == "path"}
    assert roles == {"adc": ("image", "adc"), "zadc": ("image", "adc"), "lesion": ("mask", "adc")}
    assert cohort.schema.column("adc").scale == 0.001
    assert [site_of(name) for name in ("ABNICU_1", "Ward_1", "NICU_1", "7")] == ["AB", "Ward", "NICU", ""]


@pytest.mark.parametrize("clinical", [None, "clinical.csv", "clinical.tsv"])
def test_verify_writes_a_manifest_that_holds_for_the_folder_and_what_is_in_it(folder, clinical):
    if clinical:
        (folder / clinical).write_text("participant_id,outcome\nMGHNICU_010,1\n")
    verification = verify_cohort(folder)
    assert verification.ok, verification.problems  # an empty lesion map is no fault
    assert len(verification.files) == 12
    manifest = write_manifest(verification)
    assert manifest == folder / f"{clinical or '1ADC_ss'}.manifest.json" == manifest_path(table_file(folder))
    for table in (folder, folder / (clinical or "1ADC_ss")):  # what a message names can be given too
        check_manifest(read_cohort(table))
    (folder / "1ADC_ss" / "MGHNICU_012-VISIT_01-ADC_ss.mha").write_bytes(b"new")
    with pytest.raises(CohortError, match=r"row \d, participant MGHNICU_012, column zadc"):
        check_manifest(read_cohort(folder))


def test_a_visit_that_is_gone_is_noticed(folder):
    write_manifest(verify_cohort(folder))
    for kind in NAMES:
        map_path(folder, kind, VISITS[3]).unlink()
    with pytest.raises(CohortError, match="was changed after it was verified"):
        check_manifest(read_cohort(folder))


def test_a_sidecar_takes_the_place_of_the_guess(folder):
    sidecar = schema_path(table_file(folder))
    sidecar.write_text(read_cohort(folder).schema.to_json())
    schema = read_cohort(folder).schema
    assert not schema.guessed
    assert (schema.column("adc").scale, schema.column("lesion").may_be_empty) == (0.001, True)


def test_the_clinical_table_is_joined_by_participant_visit_or_file(folder):
    text = "file\tsite\toutcome\tbirth_weight\tsex\nMGHNICU_010\t\t1\t3100\tF\n"
    text += "BCHNICU_003-VISIT_01-ADC_ss.mha\tChildrens\t\tn/a\tM\n"
    (folder / "clinical.tsv").write_text(text)
    cohort = read_cohort(folder)
    frame = cohort.frame[["row", "site", "outcome", "birth_weight", "sex"]].astype(object)
    assert frame.where(frame.notna(), None).to_numpy().tolist() == [
        [2, "Childrens", None, None, "M"],
        [1, "MGH", 1.0, 3100.0, "F"],
        [1, "MGH", 1.0, 3100.0, "F"],
        [3, "MGH", None, None, ""],  # not in the table: numbered on from its end
    ]
    assert "file" not in cohort.frame
    assert (cohort.schema.column("outcome").role, cohort.schema.column("birth_weight").role) == ("target", "covariate")
    (folder / "clinical.tsv").unlink()
    (folder / "clinical.csv").write_text("participant_id,session_id,age\nMGHNICU_010,VISIT_02,5\nMGHNICU_011,,\n")
    ages = read_cohort(folder).frame["age"].tolist()
    assert (ages[2], np.isnan(ages).tolist()) == (5, [True, True, False, True])


def test_everything_wrong_comes_at_once(folder):
    map_path(folder, "2Z_ADC", VISITS[3]).unlink()
    map_path(folder, "3LABEL", VISITS[0]).unlink()
    map_path(folder, "1ADC_ss", VISITS[2]).unlink()
    (folder / "1ADC_ss" / "MGHNICU_012.mha").write_bytes(b"?")
    write_map(map_path(folder, "3LABEL", VISITS[1]), maps_of(1)["3LABEL"], origin=(-30.0, 12.0, 5.5))
    lines = ["participant_id,outcome,adc", "MGHNICU_999,1,", "MGHNICU_010,x,", "BCHNICU_003,2,", "MGHNICU_010,0,"]
    (folder / "clinical.csv").write_text("\n".join(lines) + "\n")
    assert sorted(found(folder), key=str) == sorted(
        [
            (None, None, "adc", "bad_identifier"),  # 1ADC_ss/MGHNICU_012.mha
            (None, None, "adc", "bad_identifier"),  # a clinical column of the layout's name
            (1, "MGHNICU_999", "participant_id", "missing_file"),
            (4, "MGHNICU_010", "participant_id", "duplicate_row"),
            (3, "BCHNICU_003", "zadc", "missing_value"),
            (3, "BCHNICU_003", "outcome", "out_of_range"),
            (2, "MGHNICU_010", "lesion", "missing_value"),
            (2, "MGHNICU_010", "lesion", "grid_mismatch"),
            (2, "MGHNICU_010", "outcome", "not_a_number"),
            (2, "MGHNICU_010", "outcome", "not_a_number"),  # once per visit
            (5, "MGHNICU_011", "adc", "missing_value"),
        ],
        key=str,
    )


def test_a_damaged_label_has_no_volume_and_is_named(folder):
    path = map_path(folder, "3LABEL", VISITS[2])
    path.write_bytes(path.read_bytes()[:-20])
    assert np.isnan(read_cohort(folder).frame["lesion_ml"][3])
    assert [problem[:3] for problem in found(folder)] == [(4, "MGHNICU_011", "lesion")]


def test_folders_of_another_release_and_absent_ones(folder):
    (folder / "2Z_ADC").rename(folder / "2ZMAP")
    for file in (folder / "3LABEL").iterdir():
        file.unlink()
    (folder / "3LABEL").rmdir()
    frame = read_cohort(folder).frame
    assert frame["zadc"].str.startswith("2ZMAP/Zmap_").all()
    assert not {"lesion", "lesion_ml"}.intersection(frame)


def test_what_cannot_be_joined_or_read_is_said(folder):
    (folder / "clinical.csv").write_text("who,outcome\nA1,1\n")
    assert [(p.code, "participant_id" in p.message) for p in check_table(folder)[1]] == [("missing_column", True)]
    (folder / "clinical.tsv").write_text("participant_id\n")
    assert "Keep one" in check_table(folder)[1][0].message
    (folder / "clinical.csv").unlink()
    (folder / "clinical.tsv").unlink()
    for kind in NAMES:
        for file in (folder / kind).iterdir():
            file.unlink()
    assert [problem.code for problem in check_table(folder)[1]] == ["empty_table"]


def test_the_folder_becomes_batches_with_adc_in_1e_3_mm2_per_s(folder):
    (folder / "clinical.csv").write_text("participant_id,outcome\nMGHNICU_010,1\nMGHNICU_011,0\nBCHNICU_003,\n")
    write_manifest(verify_cohort(folder))
    as_stored = Preprocessing(spacing=None, shape=(9, 9, 9), centre="image", normalisation="none")
    data = HIEOutcomeDataModule(table=folder, covariates=["lesion_ml"], preprocessing=as_stored, batch_size=4)
    data.prepare_data()
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert batch["session_id"] == ["VISIT_01", "VISIT_01", "VISIT_02", "VISIT_01"]
    for image, seed in zip(batch["image"].float().numpy(), (3, 0, 1, 2), strict=True):
        adc, zadc = (maps_of(seed)[kind] for kind in ("1ADC_ss", "2Z_ADC"))
        assert image[0].max() == pytest.approx(adc.max() / 1000, rel=1e-3)
        assert image[0].sum() == pytest.approx(adc.sum() / 1000, rel=1e-3)
        assert image[1].min() == pytest.approx(zadc.min(), rel=1e-3)
    assert batch["covariates"][:, 0].tolist() == pytest.approx([voxels * 3.75 / 1000 for voxels in (3, 0, 1, 2)])
    assert batch["target"]["outcome"].isnan().tolist() == [True, False, False, False]
    adc = data.to_native(batch["image"][0, 0].float().numpy(), data.samples[0])
    np.testing.assert_allclose(adc, maps_of(3)["1ADC_ss"] / 1000, atol=1e-3)
    data = HIEOutcomeDataModule(table=folder, val_fraction=0, test_fraction=0.5)
    data.assign_splits()
    assert len({sample.split for sample in data.samples if sample.participant_id == "MGHNICU_010"}) == 1

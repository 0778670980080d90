"""`fontanel verify`: what it prints where, what it writes, and its exit code."""

import json
import shutil

import pandas as pd
import pytest

from datamodules.cohort import read_cohort, schema_path
from datamodules.verify import check_manifest, manifest_path
from experiments.cli import main


@pytest.fixture
def table(tiny_cohort, tmp_path):
    """An unverified cohort that a test may damage."""
    shutil.copytree(tiny_cohort.parent, tmp_path / "tiny")
    table = tmp_path / "tiny" / tiny_cohort.name
    manifest_path(table).unlink()
    return table


def test_a_clean_cohort_gets_its_manifest(table, capsys):
    assert main(["verify", str(table)]) == 0
    out, err = capsys.readouterr()
    assert "30 rows, 30 participants, 30 files, no problems" in out
    assert str(manifest_path(table)) in out
    assert "was guessed: participant_id (id), site (site), t1w (image), age (target)" in err
    assert check_manifest(read_cohort(table)).problems == ()


def test_json_is_all_that_standard_output_holds(table, capsys):
    assert main(["verify", str(table), "--json", "--num-workers", "2"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"ok": True, "problems": []}
    assert "guessed" in err


def test_every_problem_is_printed_at_once_and_recorded(table, capsys):
    (table.parent / "images/sub-02_T1w.nii.gz").write_bytes(b"garbage")
    (table.parent / "images/sub-03_T1w.nii.gz").unlink()
    table.write_text(table.read_text().replace("images/sub-05", "../images/sub-05").replace("sub-06\t", "sub 06\t"))
    assert main(["verify", str(table)]) == 1
    out = capsys.readouterr().out
    assert "4 problems" in out
    for part in (
        "row 3, participant sub-02, column t1w: images/sub-02_T1w.nii.gz: ",
        "row 4, participant sub-03, column t1w: images/sub-03_T1w.nii.gz: There is no such file. Correct the path",
        "row 6, participant sub-05, column t1w: '../images/sub-05_T1w.nii.gz' leads out of the cohort's folder",
        "row 7, participant sub 06, column participant_id: ",
    ):
        assert part in out
    assert len(json.loads(manifest_path(table).read_text())["problems"]) == 4
    assert main(["verify", str(table), "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [
        (problem["row"], problem["participant_id"], problem["column"], problem["code"]) for problem in problems
    ] == [
        (3, "sub-02", "t1w", "corrupt_gzip"),
        (4, "sub-03", "t1w", "missing_file"),
        (6, "sub-05", "t1w", "path_escape"),
        (7, "sub 06", "participant_id", "bad_identifier"),
    ]
    assert all(set(problem) == {"row", "participant_id", "column", "code", "message"} for problem in problems)


def test_a_table_that_is_not_there(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "gone.tsv"), "--json"]) == 1
    out, err = capsys.readouterr()
    assert [problem["code"] for problem in json.loads(out)["problems"]] == ["missing_file"]
    assert "Traceback" not in err
    assert main(["verify", str(tmp_path / "gone.tsv")]) == 1
    assert "missing_file" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_schema_is_written_once_for_the_user_to_edit(table, capsys):
    assert main(["verify", str(table), "--write-schema"]) == 0
    out, err = capsys.readouterr()
    assert f"wrote {schema_path(table)}" in err
    assert "guessed" not in err
    assert "no problems" in out
    sidecar = json.loads(schema_path(table).read_text())
    sidecar["columns"]["age"]["maximum"] = 30
    schema_path(table).write_text(json.dumps(sidecar))
    assert main(["verify", str(table), "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert {problem["code"] for problem in problems} == {"out_of_range"}
    assert len(problems) == (read_cohort_ages(table) > 30).sum()
    assert main(["verify", str(table), "--write-schema"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert json.loads(schema_path(table).read_text()) == sidecar


def read_cohort_ages(table):
    return pd.read_csv(table, sep="\t")["age"]


def test_images_may_lie_in_another_folder(table, tmp_path, capsys):
    elsewhere = tmp_path / "tables" / "cohort.tsv"
    elsewhere.parent.mkdir()
    shutil.move(table, elsewhere)
    assert main(["verify", str(elsewhere), "--json"]) == 1
    assert {problem["code"] for problem in json.loads(capsys.readouterr().out)["problems"]} == {"missing_file"}
    assert main(["verify", str(elsewhere), "--root", str(table.parent), "--json"]) == 0
    assert manifest_path(elsewhere).is_file()


def test_what_a_folder_of_bids_leaves_out_is_told(table, tmp_path, capsys):
    for name in ("sub-1_run-1_T1w", "sub-1_run-2_T1w", "sub-1_dseg"):
        (tmp_path / "ds/sub-1/anat").mkdir(parents=True, exist_ok=True)
        shutil.copy(table.parent / "images/sub-00_T1w.nii.gz", tmp_path / f"ds/sub-1/anat/{name}.nii.gz")
    assert main(["verify", str(tmp_path / "ds")]) == 0
    out, err = capsys.readouterr()
    assert "1 rows, 1 participants, 1 files, no problems" in out
    assert "was read as bids.\nLeft out:\n  1: a map of labels: sub-1/anat/sub-1_dseg.nii.gz\n  1: another scan" in err


def test_wrong_usage(table, capsys):
    assert main(["verify"]) == 2
    assert main(["verify", str(table), "--num-workers", "two"]) == 2
    assert main(["verify", str(table), "--num-workers", "-1"]) == 1
    assert "num-workers" in capsys.readouterr().err


def test_ten_real_scans_pass_with_their_masks_and_a_swap_is_found(test_data, tmp_path, capsys):
    folder = test_data / "ixi10"
    people = pd.read_csv(folder / "lists/IXI_demog_n10.csv")
    frame = pd.DataFrame({"participant_id": people["MRID"], "site": "HH", "age": people["Age"], "sex": people["Sex"]})
    frame["t1w"] = "nifti/" + people["MRID"] + "-T1_ds.nii.gz"
    frame["mask"] = "dlmuse/" + people["MRID"] + "-T1_ds_DLMUSE.nii.gz"
    table = tmp_path / "ixi.csv"
    frame.to_csv(table, index=False)
    assert main(["verify", str(table), "--root", str(folder)]) == 0
    assert "10 rows, 10 participants, 20 files, no problems" in capsys.readouterr().out
    facts = check_manifest(read_cohort(table, root=folder)).files["nifti/IXI012-HH-1211-T1_ds.nii.gz"]
    assert (facts.shape, facts.spacing, facts.orientation, facts.dtype) == (
        (120, 120, 90),
        (2.0, 2.0, 2.0),
        "PSR",
        "uint8",
    )
    frame.loc[4, "t1w"] = frame.loc[2, "t1w"]
    frame.to_csv(table, index=False)
    assert main(["verify", str(table), "--root", str(folder), "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    # The scans have a grid each, so somebody else's scan does not fit the mask either.
    assert {(problem["row"], problem["code"]) for problem in problems} == {
        (5, "duplicate_content"),
        (5, "grid_mismatch"),
    }
    assert "IXI033-HH-1259 has the same scan as IXI014-HH-1236 (row 3" in problems[0]["message"]

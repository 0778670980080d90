"""`fontanel table`: the command line, what it says, where it writes, and what it refuses."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from datamodules.cohort import participant_keys, read_cohort
from datamodules.selection import read_cohorts
from experiments.cli import main

PATTERN = "{site}/{participant_id}_T1w.nii.gz"


@pytest.fixture
def lab(tmp_path):
    folder = tmp_path / "my lab"
    names = ["north/p1_T1w", "north/p2_T1w", "south/p 3_T1w", "south/José_T1w", "north/p2_run-2_T1w", "north/other"]
    for seed, name in enumerate(names):
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = np.random.default_rng(seed).integers(0, 900, (7, 8, 9)).astype(np.int16)
        nib.save(nib.Nifti1Image(data, np.diag([2, -2, 2, 1.0])), path)
    (tmp_path / "clinical.csv").write_text("subject;age\np 3;40\np1;50\np9;60\nJosé;30\n", encoding="utf-8")
    return folder


def test_the_command_of_the_readme(lab, tmp_path, capsys):
    words = ["table", str(lab), "--layout", "pattern", PATTERN, "--participants", str(tmp_path / "clinical.csv")]
    assert main(words) == 0
    out = capsys.readouterr().out
    for part in (
        "read as pattern (as you said)",
        "5 participants, 5 sessions (the rows); sites: north 3, south 2.",
        "  t1w: 5\n",
        "Other columns: age.",
        "1: does not match the pattern: north/other.nii.gz",
        "1: is in clinical.csv, but has no images: p9",
        "2: has images, but no row in clinical.csv; its columns are empty: p2, p2_run-2",
        "is it another scan of the same person?: p2_run-2 beside p2",
        "'p 3' -> p-3",
        f"fontanel verify '{lab}/cohort.tsv'\n",
        f"fontanel preview '{lab}/cohort.tsv'\n",
    ):
        assert part in out, part
    frame = read_cohort(lab / "cohort.tsv").frame.set_index("participant_id")
    assert frame["age"].dropna().to_dict() == {"José": 30, "p-3": 40, "p1": 50}
    assert frame["dataset"].unique().tolist() == ["my-lab"]
    assert main(["verify", str(lab / "cohort.tsv")]) == 0
    assert main(words) == 1
    assert "--force" in capsys.readouterr().err
    (lab / "cohort.tsv").write_text("mine")
    assert main([*words, "--force", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["participants"], printed["images"], printed["root"]) == (5, {"t1w": 5}, None)
    assert {"what": "north/other.nii.gz", "reason": "does not match the pattern"} in printed["left_out"]


def test_runs_are_told_apart_by_a_pattern_that_says_so(lab, capsys):
    assert main(["table", str(lab), "--layout", "pattern", "{site}/{participant_id}[_run-{run}]_T1w.nii.gz"]) == 0
    out = capsys.readouterr().out
    assert "4 participants" in out
    assert "another scan of an image that the session has; the first by name is taken: north/p2_run-2" in out
    assert "north/p2_T1w.nii.gz" in read_cohort(lab / "cohort.tsv").frame["t1w"].tolist()


def test_a_table_elsewhere_names_its_root_and_one_above_does_not(lab, tmp_path, capsys):
    (tmp_path / "tables").mkdir()
    elsewhere, above = tmp_path / "tables" / "lab.tsv", tmp_path / "lab.tsv"
    assert main(["table", str(lab), "--layout", "pattern", PATTERN, "-o", str(elsewhere)]) == 0
    assert f"fontanel verify {elsewhere} --root '{lab}'" in capsys.readouterr().out
    assert main(["verify", str(elsewhere), "--root", str(lab)]) == 0
    assert main(["table", str(lab), "--layout", "pattern", PATTERN, "-o", str(above), "--dataset", "x"]) == 0
    assert "--root" not in capsys.readouterr().out
    assert read_cohort(above).frame["t1w"][0].startswith("my lab/")
    assert main(["verify", str(above)]) == 0


def test_a_recognised_layout_is_said_and_an_unknown_one_is_explained(lab, tmp_path, capsys):
    assert main(["table", str(lab)]) == 1
    error = capsys.readouterr().err
    assert "--layout pattern" in error
    assert "north/other.nii.gz" in error
    (tmp_path / "ds" / "sub-1" / "anat").mkdir(parents=True)
    shutil.copy(lab / "north/p1_T1w.nii.gz", tmp_path / "ds" / "sub-1" / "anat" / "sub-1_T1w.nii.gz")
    assert main(["table", str(tmp_path / "ds")]) == 0
    assert "was read as bids (recognised; another with --layout)" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "ds" / "cohort.tsv")]) == 0
    assert main(["table", str(lab), "--layout", "nnunet"]) == 1
    assert "is not nnU-Net" in capsys.readouterr().err
    assert main(["table", str(tmp_path / "gone")]) == 1
    assert "There is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layout", "pattern"], "needs a pattern"),
        (["--layout", "bids", "DIR"], "write DIR before --layout"),
        (["--layout", "dicom"], "there is no layout 'dicom'"),
    ],
)
def test_wrong_usage(lab, capsys, words, message):
    assert main(["table", str(lab), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{site}_T1w.nii.gz", "it has no {participant_id}"),
        ("{participant_id}[_T1w.nii.gz", "brackets"),
        ("{participant id}.nii.gz", "is no field"),
        ("{participant_id}_T9w.nii.gz", "No file in"),
    ],
)
def test_a_pattern_that_cannot_be_used_says_why(lab, capsys, pattern, message):
    assert main(["table", str(lab), "--layout", "pattern", pattern]) == 1
    assert message in capsys.readouterr().err
    assert not (lab / "cohort.tsv").exists()


def test_one_name_at_two_sites_is_refused(lab, capsys):
    shutil.copy(lab / "north/p1_T1w.nii.gz", lab / "south/p1_T1w.nii.gz")
    assert main(["table", str(lab), "--layout", "pattern", PATTERN]) == 1
    assert "p1 is at north and at south" in capsys.readouterr().err
    for site in ("north", "south"):
        words = ["table", str(lab / site), "--layout", "pattern", "{participant_id}_T1w.nii.gz"]
        assert main([*words, "-o", str(lab / f"{site}.tsv"), "--dataset", site]) == 0
    cohorts = read_cohorts([lab / "north.tsv", lab / "south.tsv"], None, "brain-age")
    assert {"north/p1", "south/p1"} <= {key for cohort in cohorts for key in participant_keys(cohort.frame)}


def test_a_clinical_table_of_other_people_is_refused(lab, tmp_path, capsys):
    (tmp_path / "others.csv").write_text("participant_id,age\nx1,3\nx2,4\n")
    words = ["table", str(lab), "--layout", "pattern", PATTERN, "--participants"]
    assert main([*words, str(tmp_path / "others.csv")]) == 1
    assert "names nobody who has images" in capsys.readouterr().err
    (tmp_path / "twice.csv").write_text("participant_id,age\np1,3\np1,4\n")
    assert main([*words, str(tmp_path / "twice.csv")]) == 1
    assert "duplicate_row" in capsys.readouterr().err
    assert not (lab / "cohort.tsv").exists()

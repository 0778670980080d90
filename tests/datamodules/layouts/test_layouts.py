"""TSV, CSV, BIDS folders and the table of BrainIAC become the same frame."""

import pytest

from datamodules.cohort import check_table, read_cohort


@pytest.mark.parametrize("mark", ["\t", ",", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_header_tells_the_separator(tmp_path, mark, end):
    table = tmp_path / "cohort.csv"
    lines = [mark.join(cells) for cells in (["participant_id", "t1w", "age", "note"], ["p1", "1.nii.gz", "3", '"a b"'])]
    table.write_text("\ufeff" + end.join([lines[0], "", lines[1] + mark]) + end, encoding="utf-8", newline="")
    frame = read_cohort(table).frame
    assert frame[["participant_id", "t1w", "age", "note", "row"]].iloc[0].tolist() == ["p1", "1.nii.gz", 3.0, "a b", 1]


def write_bids(folder, *images, rows="sub-01\t30\nsub-02\tn/a\n"):
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).touch()
    (folder / "participants.tsv").write_text(f"participant_id\tage\n{rows}")


def test_a_bids_folder_gives_a_row_per_session(tmp_path):
    folder = tmp_path / "ds000001"
    write_bids(
        folder,
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_run-1_T1w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_run-2_T1w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_T2w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii",
        "sub-02/anat/sub-02_T1w.json",
        rows="sub-01\t30\n02\t31\n",
    )
    for table in (folder, folder / "participants.tsv"):
        cohort = read_cohort(table)
        assert cohort.root == folder
        assert cohort.dataset == "ds000001"
        assert cohort.frame[["participant_id", "session_id", "row"]].to_numpy().tolist() == [
            ["sub-01", "ses-a", 1],
            ["sub-01", "ses-b", 1],
            ["sub-02", "", 2],
        ]
        assert cohort.frame["t1w"].iloc[2] == "sub-02/anat/sub-02_T1w.nii"
        assert cohort.frame["t2w"].tolist() == ["", "sub-01/ses-b/anat/sub-01_ses-b_T2w.nii.gz", ""]
        assert [remark.what for remark in cohort.remarks] == ["sub-01/ses-b/anat/sub-01_ses-b_run-2_T1w.nii.gz"]
        assert cohort.frame["image_id"].is_unique


def test_a_bids_participant_without_image_is_a_problem_where_the_folder_is_the_table(tmp_path):
    write_bids(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", rows="sub-01\t30\nsub-02\t3\n../sub-01\t4\n")
    cohort, problems = check_table(tmp_path)
    assert cohort.frame["t1w"].tolist() == ["sub-01/anat/sub-01_T1w.nii.gz"]
    assert {(problem.row, problem.code) for problem in problems} == {(2, "missing_file"), (3, "missing_file")}


def test_rows_of_participants_tsv_that_name_a_session_are_of_that_session(tmp_path):
    for session in ("a", "b", "c"):
        image = tmp_path / f"sub-01/ses-{session}/anat/sub-01_ses-{session}_T1w.nii.gz"
        image.parent.mkdir(parents=True)
        image.touch()
    (tmp_path / "participants.tsv").write_text("participant_id\tsession_id\tage\nsub-01\tses-a\t4\nsub-01\tc\t5\n")
    frame = read_cohort(tmp_path).frame
    assert frame["session_id"].tolist() == ["ses-a", "ses-b", "ses-c"]
    assert frame["age"].fillna(-1).tolist() == [4, -1, 5]


def test_the_table_of_brainiac_finds_its_images(tmp_path):
    table = tmp_path / "brainiac.csv"
    table.write_text("pat_id,scandate,label\nA1,20200101,1\nA1,20210101,0\n")
    cohort = read_cohort(table)
    assert cohort.frame[["participant_id", "session_id", "label", "image"]].to_numpy().tolist() == [
        ["A1", "20200101", 1.0, "A1_20200101.nii.gz"],
        ["A1", "20210101", 0.0, "A1_20210101.nii.gz"],
    ]
    assert [column.name for column in cohort.schema.of_role("target")] == ["label"]


def test_a_folder_without_participants_says_so(tmp_path):
    assert check_table(tmp_path)[1][0].code == "missing_file"
    assert "participants.tsv" in check_table(tmp_path)[1][0].message


def test_an_escaping_participant_of_brainiac_is_refused(tmp_path):
    table = tmp_path / "brainiac.csv"
    table.write_text("pat_id,scandate,label\n../x/A1,20200101,1\n")
    assert {problem.code for problem in check_table(table)[1]} == {"bad_identifier", "path_escape"}

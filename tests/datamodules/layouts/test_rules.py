"""What each layout takes, leaves out and says: repeated scans, kinds of images, names, links, and odd lists."""

import json
import os

import pytest

from datamodules.cohort import check_table
from datamodules.new_table import make_table
from datamodules.problems import CohortError


def touch(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()


def left_out(made):
    return {remark.what: remark.reason.partition(";")[0] for remark in made.raw.remarks if remark.left_out}


def cells(made, name):
    return dict(zip(made.raw.values("participant_id"), made.raw.values(name), strict=True))


def test_bids_kinds_of_images_and_the_order_of_repeats(tmp_path):
    touch(
        tmp_path,
        "sub-1/anat/sub-1_acq-fast_run-1_T1w.nii.gz",
        "sub-1/anat/sub-1_run-10_T1w.nii.gz",
        "sub-1/anat/sub-1_run-2_T1w.nii.gz",
        "sub-1/anat/sub-1_ce-gad_T1w.nii.gz",
        "sub-1/anat/sub-1_inv-1_MP2RAGE.nii.gz",
        "sub-1/anat/sub-1_inv-2_MP2RAGE.nii.gz",
        "sub-1/anat/sub-1_T2w.NII.GZ",
        "sub-1/dwi/sub-1_ADC.nii.gz",
        "sub-1/dwi/sub-1_dwi.nii.gz",
        "sub-1/dwi/sub-1_dwi.bval",
        "sub-1/func/sub-1_task-rest_bold.nii.gz",
        "sub-1/anat/sub-2_FLAIR.nii.gz",
        "sub-1/ses-a/anat/sub-1_ses-b_FLAIR.nii.gz",
        "sub-1/anat/notes.nii.gz",
        "sub-a_b/anat/sub-a_b_T1w.nii.gz",
        "derivatives/x/sub-1/anat/sub-1_T1w.nii.gz",
        ".heudiconv/sub-1_T1w.nii.gz",
    )
    made = make_table(tmp_path)
    assert made.images == {"t1w": 1, "adc": 1, "mp2rage_inv_1": 1, "mp2rage_inv_2": 1, "t1w_ce_gad": 1, "t2w": 1}
    assert cells(made, "t1w") == {"sub-1": "sub-1/anat/sub-1_run-2_T1w.nii.gz"}
    assert left_out(made) == {
        "derivatives": "not raw data",
        "sub-1/anat/sub-1_acq-fast_run-1_T1w.nii.gz": "another scan of an image that the session has",
        "sub-1/anat/sub-1_run-10_T1w.nii.gz": "another scan of an image that the session has",
        "sub-1/dwi/sub-1_dwi.nii.gz": "a series of diffusion images",
        "sub-1/func/sub-1_task-rest_bold.nii.gz": "a file of func",
        "sub-1/anat/sub-2_FLAIR.nii.gz": "the name is of another participant or session than the folder",
        "sub-1/ses-a/anat/sub-1_ses-b_FLAIR.nii.gz": "the name is of another participant or session than the folder",
        "sub-1/anat/notes.nii.gz": "not where the layout has images",
        "sub-a_b/anat/sub-a_b_T1w.nii.gz": "not where the layout has images",
    }
    assert [problem.code for problem in check_table(tmp_path)[1]] == ["bad_identifier"] * 2


def test_the_first_scan_by_name_counts_numbers_as_numbers(tmp_path):
    touch(tmp_path, "p1/t1_10.nii.gz", "p1/t1_2.nii.gz", "p1/t1_2.nii")
    made = make_table(
        tmp_path, layout="pattern", patterns=["t1:{participant_id}/*.nii.gz", "t1:{participant_id}/*.nii"]
    )
    assert cells(made, "t1") == {"p1": "p1/t1_2.nii"}
    assert left_out(made) == {
        "p1/t1_2.nii.gz": "the same image once more, in another file format",
        "p1/t1_10.nii.gz": "another scan of an image that the session has",
    }


def test_what_a_session_knows_counts_more_than_what_the_participant_does(tmp_path):
    touch(tmp_path, "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii", "sub-1/ses-b/anat/sub-1_ses-b_T1w.nii")
    touch(tmp_path, "sub-2/anat/sub-2_T1w.nii")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsite_id\n1\t30\tx\nsub-2\t40\ty\n")
    (tmp_path / "sub-1" / "sub-1_sessions.tsv").write_text("session_id\tage\nses-a\tn/a\nb\t31\n")
    made = make_table(tmp_path)
    assert (made.raw.values("age"), made.raw.values("site")) == (["30", "31", "40"], ["x", "x", "y"])
    (tmp_path / "more.csv").write_text("subject,session_id,iq\n1,ses-b,99\n2,whenever,98\n")
    assert make_table(tmp_path, participants=tmp_path / "more.csv").raw.values("iq") == ["", "99", "98"]


def test_links_within_the_folder_are_followed_and_others_are_not(tmp_path):
    """DataLad keeps every file as a link into .git/annex; one that was not fetched leads nowhere."""
    folder = tmp_path / "ds"
    touch(folder, ".git/annex/a.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz")
    touch(tmp_path, "secret.nii.gz", "elsewhere/anat/sub-5_T1w.nii.gz")
    for who, target in (("1", ".git/annex/a.nii.gz"), ("3", ".git/annex/gone.nii.gz"), ("4", "../secret.nii.gz")):
        (folder / f"sub-{who}" / "anat").mkdir(parents=True)
        link = folder / f"sub-{who}" / "anat" / f"sub-{who}_T1w.nii.gz"
        link.symlink_to(os.path.relpath(folder / target, link.parent))
    (folder / "sub-5").symlink_to(tmp_path / "elsewhere")
    made = make_table(folder, layout="bids")
    assert made.raw.values("participant_id") == ["sub-1", "sub-2"]
    reasons = left_out(made)
    assert reasons["sub-3/anat/sub-3_T1w.nii.gz"] == "named, but not there"
    for who in ("4", "5"):
        assert reasons[f"sub-{who}/anat/sub-{who}_T1w.nii.gz"].startswith("an absolute path, or a link")


def test_odd_names_of_files(tmp_path):
    # José with one character, and with an accent that follows its letter, as macOS writes it: one person.
    touch(tmp_path, "Jose\u0301/t1 (2).NII", "José/flair.nii.gz", "p 2/t1 (2).NII.GZ", "p3/ t1 (2).nii.gz")
    touch(tmp_path, "p4/t1 (2).nii.gz ", "p6\n/t1 (2).nii.gz")
    (tmp_path / os.fsdecode(b"p5\xff")).mkdir()
    touch(tmp_path, os.fsdecode(b"p5\xff/t1 (2).nii.gz"))
    made = make_table(
        tmp_path,
        layout="pattern",
        patterns=["{participant_id}/t1 (2).nii", "{participant_id}/t1 (2).nii.gz", "{participant_id}/flair.nii.gz"],
    )
    made.write()
    assert cells(made, "t1_2") == {"José": "Jose\u0301/t1 (2).NII", "p-2": "p 2/t1 (2).NII.GZ"}
    assert cells(made, "flair") == {"José": "José/flair.nii.gz", "p-2": ""}
    assert left_out(made) == {
        "p3/ t1 (2).nii.gz": "does not match the pattern",
        "p5?/t1 (2).nii.gz": "the name cannot stand in a table (not UTF-8, a control character, or a space at an end)",
        "p6?/t1 (2).nii.gz": "the name cannot stand in a table (not UTF-8, a control character, or a space at an end)",
    }
    touch(tmp_path, "p-2/flair.nii.gz")
    with pytest.raises(CohortError, match="both become 'p-2'"):
        make_table(tmp_path, layout="pattern", patterns=["{participant_id}/flair.nii.gz", "{participant_id}/*.nii.gz"])


def test_patterns_of_folders_fields_and_repeats_of_a_field(tmp_path):
    touch(tmp_path, "3T/p1/p1_MR/IM1", "3T/p1/p1_MR/IM2", "1.5T/p2/p2_MR/IM1", "1.5T/p3/p2_MR/IM1", "1.5T/p3/p3_CT/IM1")
    made = make_table(tmp_path, layout="pattern", patterns=["{field}/{participant_id}/{participant_id}_MR"])
    named = make_table(tmp_path, layout="pattern", patterns=["T1:*/{participant_id}/{participant_id}_MR"])
    assert cells(named, "t1") == cells(made, "mr")
    assert cells(made, "mr") == {"p1": "3T/p1/p1_MR", "p2": "1.5T/p2/p2_MR"}
    assert cells(made, "field") == {"p1": "3T", "p2": "1.5T"}
    made.write()
    assert made.schema.column("mr").role == "image"
    assert {problem.code for problem in check_table(made.table)[1]} == set()


def test_nnunet_channels_old_and_listed(tmp_path):
    touch(
        tmp_path, "imagesTr/a 1_0000.nii.gz", "imagesTr/a 1_0001.nii.gz", "imagesTr/b_0002.nii.gz", "imagesTr/c.nii.gz"
    )
    touch(tmp_path, "labelsTr/a 1.nii.gz", "imagesTs/d_0000.nii.gz", "extra/x.mha", "extra/y.mha", "extra/z.mha")
    (tmp_path / "dataset.json").write_text(
        '{"modality": {"0": "MR", "1": "MR"}, "labels": {"0": "air", "1": "lesion"}}'
    )
    made = make_table(tmp_path)
    assert made.layout == "nnunet"
    assert made.images == {"mr_0": 2, "mr_1": 1, "label": 1}
    assert cells(made, "split") == {"a-1": "train", "d": "test"}
    assert made.gaps == {"mr_1": ["d"], "label": ["d"]}
    label = made.schema.column("label")
    assert (label.role, label.grid, label.description) == ("target", "mr_0", "0: air, 1: lesion")
    assert set(left_out(made)) == {"imagesTr/b_0002.nii.gz", "imagesTr/c.nii.gz", *(f"extra/{n}.mha" for n in "xyz")}
    listed = {"q": {"images": [str(tmp_path / "extra/x.mha"), "extra/y.mha"], "label": "../z.mha"}}
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}, "dataset": listed}))
    made = make_table(tmp_path)
    assert (cells(made, "t1"), cells(made, "t2")) == ({"q": "extra/x.mha"}, {"q": "extra/y.mha"})
    assert left_out(made)["../z.mha"] == "an absolute path, or a link or '..' out of the folder"


def test_datalists(tmp_path):
    touch(tmp_path, "i/sub-1_ses-a.nii.gz", "i/2.nii.gz", "i/3.nii.gz", "l/3.nii.gz")
    (tmp_path / "data.json").write_text(
        json.dumps(
            {
                "training": [{"image": ["i/sub-1_ses-a.nii.gz", "i/2.nii.gz"], "label": 1, "fold": 0}, {"label": 3}],
                "validation": [{"image": "i/3.nii.gz", "label": "l/3.nii.gz"}],
                "testing": ["./i/4.nii.gz", "/etc/passwd", "i/3.nii.gz"],
            }
        )
    )
    for place in (tmp_path, tmp_path / "data.json"):
        made = make_table(place, output=tmp_path / "c.tsv")
        assert made.layout == "monai"
        assert cells(made, "image_0") == {"sub-1": "i/sub-1_ses-a.nii.gz", "3": ""}
        assert cells(made, "image") == {"sub-1": "", "3": "i/3.nii.gz"}
        assert cells(made, "split") == {"sub-1": "train", "3": "val"}
        assert left_out(made) == {
            "{'label': 3}": "an entry without the path of an image",
            "i/4.nii.gz": "named, but not there",
            "/etc/passwd": "an absolute path, or a link or '..' out of the folder",
        }
        assert any("in two of the lists" in remark.reason for remark in made.raw.remarks)
    codes = {problem.code for problem in check_table(tmp_path / "data.json")[1]}
    assert codes == {"path_escape"}  # used as a table itself, what it names is for verify to look for


def test_two_datalists_and_two_clinical_tables_are_refused(tmp_path):
    touch(tmp_path, "1.nii.gz", "sub-1/anat/sub-1_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-1\t3\n")
    (tmp_path / "more.csv").write_text("id,age\n1,4\n")
    with pytest.raises(CohortError, match=r"participants.tsv and more.csv both have age"):
        make_table(tmp_path, participants=tmp_path / "more.csv")
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text('{"training": ["1.nii.gz"]}')
    with pytest.raises(CohortError, match="is not a datalist of MONAI"):
        make_table(tmp_path, layout="monai")
    assert make_table(tmp_path / "a.json").raw.values("image") == ["1.nii.gz"]


def test_a_folder_that_is_the_table_is_another_table_when_an_image_comes(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz")
    before = check_table(tmp_path)[0].sha256
    assert check_table(tmp_path)[0].sha256 == before
    touch(tmp_path, "sub-2/anat/sub-2_T1w.nii.gz")
    assert check_table(tmp_path)[0].sha256 != before

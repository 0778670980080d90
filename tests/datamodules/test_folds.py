"""The folds file, and splits that are refused."""

import json

import pandas as pd
import pytest

from datamodules.splits import Split, SplitError, holdout_split

PARTS = {"train": {"n": ("d/a", "d/b"), "s": ("d/b", "d/c")}, "test": {"n": ("d/e",)}}


def cohort(*rows):
    return pd.DataFrame(rows, columns=["dataset", "participant_id", "site", "family"])


TEN = cohort(*[("d", f"p{number}", "ns"[number % 2], f"f{number // 2}") for number in range(10)])


def test_a_folds_file_gives_the_split_back(tmp_path):
    split = Split("holdout", 3, PARTS)
    split.write(tmp_path / "folds.json")
    assert Split.read(tmp_path / "folds.json") == split
    content = json.loads((tmp_path / "folds.json").read_text())
    assert set(content) == {"format", "protocol", "seed", "parts", "hash"}
    assert content["hash"] == split.hash
    assert Split("holdout", 3, dict(reversed(PARTS.items()))).hash == split.hash
    assert Split("holdout", 4, PARTS).hash != split.hash


def test_somebody_scanned_at_two_sites_counts_once():
    split = Split("holdout", 0, PARTS)
    assert split.keys("train") == ("d/a", "d/b", "d/c")
    assert split.keys("val") == ()
    assert [split.part_of(key) for key in ("d/b", "d/e", "x")] == ["train", "test", None]
    with pytest.raises(SplitError, match="d/e is in train and in test"):
        Split("holdout", 0, {"train": {"n": ("d/e",)}, "test": {"s": ("d/e",)}})


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("d/e", "d/f", "changed"),
        ('"seed": 3', '"seed": 4', "changed"),
        ("d/e", "d/a", "in train and in test"),
        ('"hash"', '"hush"', "not a folds file"),
        ("{", "[", "not a folds file"),
    ],
)
def test_a_changed_folds_file_is_refused(tmp_path, old, new, word):
    path = tmp_path / "folds.json"
    Split("holdout", 3, PARTS).write(path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(SplitError, match=word):
        Split.read(path)


def test_a_folds_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SplitError, match="no folds file"):
        Split.read(tmp_path / "folds.json")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"target": "age"}, "no column age"),
        ({"group": "anatomy"}, "no column anatomy"),
        ({"held_out_sites": ("x",)}, "no site x to hold out; it has n, s"),
        ({"held_out_sites": ("n", "s")}, "Every site is held out"),
        ({"fractions": {"train": 0.5, "val": 0.4}}, "add up to 1"),
        ({"fractions": {"train": 1.5, "val": -0.5}}, "from 0 to 1"),
        ({"fractions": {"val": 0.5, "test": 0.5}}, "train"),
        ({"fractions": {"train": 0.5, "external": 0.5}}, "external"),
        ({"fractions": {"train": 0.98, "test": 0.02}}, "Nobody is left for test"),
        ({"group": "dataset"}, "ties the participants into 1 groups"),
        ({"held_out_sites": ("n",), "group": "family"}, "Nobody is left for train"),
    ],
)
def test_what_cannot_be_split_is_refused_with_a_reason(options, word):
    with pytest.raises(SplitError, match=word):
        holdout_split(TEN, **{"target": None, "seed": 0, **options})


def test_an_empty_cohort_is_refused():
    with pytest.raises(SplitError, match="no rows"):
        holdout_split(TEN.iloc[:0], target=None, seed=0)


def test_this_split_is_the_one_of_every_machine_and_version():
    split = holdout_split(TEN, target=None, seed=0, fractions={"train": 0.6, "val": 0.2, "test": 0.2})
    assert split.keys("test") == ("d/p4", "d/p7")

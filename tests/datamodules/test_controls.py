"""Targets given to others of the same part: nothing but the targets changes, and it depends on the seed alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datamodules.brain_age import BrainAgeDataModule
from datamodules.cache import ImageFiles
from datamodules.controls import permute_targets
from datamodules.dataset import Sample


def sample(participant, split, session="", **targets):
    files = ImageFiles((Path(f"{participant}{session}.nii"),))
    name = f"d/{participant}/{session}"
    return Sample(participant, session, name, "d", "site", split, files, {k: float(v) for k, v in targets.items()})


PEOPLE = [sample(f"p{n}", ("train", "val", "test", "external")[n % 4], age=n, score=-n) for n in range(80)]


def ages(samples, split):
    return [s.targets["age"] for s in samples if s.split == split]


def test_each_part_keeps_its_targets_and_gives_them_to_others():
    shuffled = permute_targets(PEOPLE, ("train", "val"), seed=0)
    for part in ("train", "val"):
        assert sorted(ages(shuffled, part)) == sorted(ages(PEOPLE, part))
        assert abs(np.corrcoef(ages(shuffled, part), ages(PEOPLE, part))[0, 1]) < 0.6
    for part in ("test", "external"):
        assert ages(shuffled, part) == ages(PEOPLE, part)
    assert all(s.targets["score"] == -s.targets["age"] for s in shuffled)  # the targets of one person move together
    assert [replace(s, targets={}) for s in shuffled] == [replace(s, targets={}) for s in PEOPLE]
    assert PEOPLE[4].targets == {"age": 4.0, "score": -4.0}


def test_it_depends_on_the_seed_and_not_on_the_order():
    once, again, other = (permute_targets(PEOPLE, ("train",), seed) for seed in (0, 0, 1))
    assert once == again != other
    backwards = permute_targets(PEOPLE[::-1], ("train",), seed=0)
    assert backwards[::-1] == once


def test_every_giver_is_as_likely():
    four = [sample(name, "train", age=number) for number, name in enumerate("abcd")]
    given = np.zeros((4, 4))
    for seed in range(600):
        for taker, age in enumerate(ages(permute_targets(four, ("train",), seed), "train")):
            given[taker, int(age)] += 1
    assert (abs(given - 150) < 5 * np.sqrt(600 * 3 / 16)).all()


def test_sessions_stay_together_and_what_is_missing_stays_missing():
    people = [sample(name, "train", s, age=10 * index + int(s)) for index, name in enumerate("abcdef") for s in "12"]
    people += [sample("g", "train", age=100), sample("h", "train", age=np.nan)]
    moved = 0
    for seed in range(20):
        shuffled = permute_targets(people, ("train",), seed)
        assert np.isnan(shuffled[-1].targets["age"])
        assert np.isfinite(ages(shuffled[:-1], "train")).all()
        for first, second in zip(shuffled[0:12:2], shuffled[1:12:2], strict=True):
            pair = first.targets["age"], second.targets["age"]
            assert pair == (100, 100) or (pair[1] - pair[0] == 1 and pair[0] % 10 == 1)
            moved += pair[0] != 10 * "abcdef".index(first.participant_id) + 1
    assert moved > 60


def test_a_data_module_trains_on_them_and_says_so(tiny_cohort, tmp_path):
    plain, control = (BrainAgeDataModule(table=tiny_cohort, permute_targets=wrong) for wrong in (False, True))
    for data in (plain, control):
        data.assign_splits()
    assert control.cohort_facts()["permuted_targets"] is True
    assert plain.cohort_facts()["permuted_targets"] is False
    truth, told = (data.frame(["age"]).set_index("participant_id") for data in (plain, control))
    assert truth.loc[truth["split"] == "test", "age"].equals(told.loc[told["split"] == "test", "age"])
    for part in ("train", "val"):
        before, after = (frame.loc[frame["split"] == part, "age"] for frame in (truth, told))
        assert sorted(before) == sorted(after)
        assert not before.equals(after)
    assert control.target_values("age").sum() == pytest.approx(float(plain.target_values("age").sum()))
    assert [s.split for s in plain.samples] == [s.split for s in control.samples]
    plain.split.write(tmp_path / "folds.json")
    new = BrainAgeDataModule(table=tiny_cohort, permute_targets=True, split_file=tmp_path / "folds.json")
    new.labels_required = False
    new.setup("predict")
    assert new.samples == plain.samples  # a prediction shows what is true

"""Properties that every split has, whatever the cohort."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.cohort import participant_key
from datamodules.splits import SplitError, holdout_split


def keys_of(frame):
    return [participant_key(*pair) for pair in zip(frame["dataset"], frame["participant_id"], strict=True)]


@st.composite
def cohorts(draw, families=False):
    """Rows of participants with one to three sessions, sometimes at two sites, sometimes without an age."""
    count = draw(st.integers(12, 60))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))  # drawing each cell would take seconds
    numbers = generator.integers(0, count + 1, generator.integers(count, 2 * count))
    sites = generator.choice(["north", "south", "west", "tiny"], count + 1, p=[0.4, 0.3, 0.27, 0.03])
    travels = set(generator.integers(0, count, 3).tolist())
    ages = np.where(generator.uniform(size=count + 1) < 0.1, np.nan, generator.uniform(0, 97, count + 1))
    rows = [
        {
            "dataset": "ab"[number % 2],
            "participant_id": f"p{number // 2}",  # the same name in two datasets is two people
            "site": "south" if number in travels and index % 2 else sites[number],
            "age": ages[number] + index % 2,
            "family": str(number // 3) if families and number % 5 else "",
        }
        for index, number in enumerate([*range(count), *numbers.tolist()])
    ]
    return pd.DataFrame(rows)


def split_or_none(frame, **options):
    try:
        return holdout_split(frame, **{"target": "age", "seed": 1, **options})
    except SplitError as error:
        assert "Nobody is left" in str(error) or "Every site" in str(error)  # noqa: PT017 - some draws are too small
        return None


@settings(max_examples=60, deadline=None)
@given(cohorts(), st.integers(0, 5), st.sampled_from([(), ("west",), ("tiny", "south")]))
def test_parts_share_nobody_and_follow_the_sites(frame, seed, held_out):
    held_out = tuple(site for site in held_out if site in set(frame["site"]))
    split = split_or_none(frame, seed=seed, held_out_sites=held_out)
    if split is None:
        return
    keys = keys_of(frame)
    everyone = [key for part in split.parts for key in split.keys(part)]
    assert sorted(everyone) == sorted(set(keys))  # each participant once, so every session on one side
    parts = pd.Series([split.part_of(key) for key in keys])
    for part in ("val", "test"):
        assert set(frame["site"][parts == part]) <= set(frame["site"][parts == "train"])
    at_held_out = frame["site"].isin(held_out)
    assert set(parts[at_held_out]) <= {"external"}
    travellers = {key for key, out in zip(keys, at_held_out, strict=True) if out}
    assert set(split.keys("external")) == travellers
    for part, sites in split.parts.items():
        for site, members in sites.items():
            assert {(key, site) for key in members} <= set(zip(keys, frame["site"], strict=True)), part


@settings(max_examples=40, deadline=None)
@given(cohorts(families=True), st.randoms(use_true_random=False), st.sampled_from([None, "family"]))
def test_the_same_seed_gives_the_same_split_in_any_order_of_rows(frame, random, group):
    order = list(range(len(frame)))
    random.shuffle(order)
    first, second = split_or_none(frame, group=group), split_or_none(frame.iloc[order], group=group)
    assert first == second
    assert first is None or first.hash == second.hash


@settings(max_examples=40, deadline=None)
@given(cohorts(families=True), st.sampled_from([(), ("west",)]))
def test_a_group_stays_on_one_side(frame, held_out):
    held_out = tuple(site for site in held_out if site in set(frame["site"]))
    split = split_or_none(frame, group="family", held_out_sites=held_out)
    if split is None:
        return
    parts = pd.Series([split.part_of(key) for key in keys_of(frame)], index=frame.index)
    named = frame["family"] != ""
    assert (parts[named].groupby(frame["family"][named]).nunique() == 1).all()


def cohort(num_participants=400, seed=0):
    generator = np.random.default_rng(seed)
    age = generator.uniform(0, 97, num_participants)
    names = [f"p{number}" for number in range(num_participants)]
    sites = np.array(["north", "south"])[(generator.uniform(size=num_participants) < 0.3).astype(int)]
    return pd.DataFrame(
        {"dataset": "d", "participant_id": names, "site": sites, "age": age, "sex": np.where(age % 2 < 0.6, "F", "M")}
    )


@pytest.mark.parametrize("seed", range(5))
def test_shares_and_ages_are_even_within_each_site(seed):
    frame = cohort()
    split = holdout_split(frame, target="age", seed=seed)
    frame["part"] = [split.part_of(key) for key in keys_of(frame)]
    for _, rows in frame.groupby("site"):
        bins = pd.qcut(rows["age"], 4, labels=False)
        for part, share in {"train": 0.7, "val": 0.15, "test": 0.15}.items():
            counts = (rows["part"] == part).groupby(bins).agg(["sum", "size"])
            assert (abs(counts["sum"] - share * counts["size"]) <= 3).all()  # without balance 4 to 8, over 30 seeds
    for part, share in {"train": 280, "val": 60, "test": 60}.items():
        assert abs(len(split.keys(part)) - share) <= 1


def test_classes_are_even_too():
    frame = cohort()
    split = holdout_split(frame, target="sex", seed=0, fractions={"train": 0.5, "test": 0.5})
    test = np.array([split.part_of(key) == "test" for key in keys_of(frame)])
    for _, rows in frame.groupby(["site", "sex"]):
        assert abs(test[rows.index].sum() - len(rows) / 2) <= 1.5


def test_shares_count_participants_and_not_groups():
    frame = cohort().assign(family=lambda rows: np.minimum(np.arange(len(rows)) // 4, 60))  # one of 160, the rest of 4
    split = holdout_split(frame, target=None, group="family", seed=0, fractions={"train": 0.5, "test": 0.5})
    assert abs(len(split.keys("train")) - 200) <= 4


def test_seeds_differ_and_everybody_is_tested_by_some():
    frame = cohort(60)
    splits = [holdout_split(frame, target="age", seed=seed) for seed in range(60)]
    assert len({split.hash for split in splits}) == 60
    assert {key for split in splits for key in split.keys("test")} == set(keys_of(frame))

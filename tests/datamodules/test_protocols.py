"""Cross-validation protocols: who is trained on for whom, whatever the cohort looks like."""

import itertools
import tempfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.protocols import MATCHED, PROTOCOLS, UNUSED, Design, plan_cells, subsample
from datamodules.splits import Split, SplitError

SITES = ("north", "south", "west")
EVALUATED = ("test", "external")


def cohort(sizes, positives=0.4, sessions=1):
    rows = [
        {"dataset": "d", "participant_id": f"{site}{number:03d}", "site": site, "outcome": number < positives * size}
        for site, size in sizes.items()
        for number in range(size)
        for _ in range(sessions)
    ]
    return pd.DataFrame(rows).astype({"outcome": float})


@st.composite
def cohorts(draw):
    """Tables of two or three sites with both classes in each, some participants scanned twice or at two sites."""
    sites = SITES[: draw(st.integers(2, 3))]
    frame = cohort({site: draw(st.integers(24, 32)) for site in sites}, draw(st.floats(0.4, 0.6)))
    again = frame.sample(draw(st.integers(0, 3)), random_state=draw(st.integers(0, 99)))
    moved = again.assign(site=draw(st.sampled_from(sites)))
    return pd.concat([frame, again, moved]).sample(frac=1, random_state=draw(st.integers(0, 99)), ignore_index=True)


@st.composite
def designs(draw, protocols=PROTOCOLS):
    protocol = draw(st.sampled_from(protocols))
    return Design(
        protocol,
        num_folds=draw(st.integers(2, 3)),
        num_repeats=draw(st.integers(1, 2)),
        val_fraction=0.2,
        external_sites=("south",) if protocol == "external" else (),
        match_train_size=protocol in MATCHED and draw(st.booleans()),
        seed=draw(st.integers(0, 5)),
    )


def whom(cell):
    return {key for part in EVALUATED for key in cell.split.keys(part)}


def homes(frame):
    sites = frame.groupby("participant_id")["site"].agg(lambda values: set(values))
    return {f"d/{name}": found for name, found in sites.items()}


QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(cohorts(), designs())
def test_nobody_is_on_two_sides_and_everybody_is_tested_once_per_repeat(frame, design):
    cells = plan_cells(frame, design, "outcome")
    everybody = {f"d/{name}" for name in frame["participant_id"]}
    for cell in cells:
        named = [key for part in cell.split.parts for key in cell.split.keys(part)]
        assert sorted(named) == sorted(everybody)
        assert cell.split.keys("train")
        assert cell.split.keys("val")
    for repeat in range(design.num_repeats):
        count = Counter(key for cell in cells if cell.repeat == repeat for key in whom(cell))
        assert set(count.values()) == {1}
        if design.protocol != "external":
            assert set(count) == everybody
    assert len({(cell.repeat, cell.fold) for cell in cells}) == len(cells)


@QUICK
@given(cohorts(), designs())
def test_the_order_of_the_rows_does_not_matter_and_a_cell_survives_its_file(frame, design):
    cells = plan_cells(frame, design, "outcome")
    shuffled = frame.sample(frac=1, random_state=7, ignore_index=True)
    assert plan_cells(shuffled, design, "outcome") == cells
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folds.json"
        cells[0].split.write(path)
        assert Split.read(path) == cells[0].split


@QUICK
@given(cohorts(), st.integers(2, 3), st.booleans(), st.integers(0, 5))
def test_a_fold_is_the_test_set_of_same_multi_and_cross_site_alike(frame, num_folds, matched, seed):
    where = homes(frame)
    plans = {
        name: plan_cells(
            frame, Design(name, num_folds, match_train_size=matched, val_fraction=0.2, seed=seed), "outcome"
        )
        for name in MATCHED
    }
    same, multi, cross = ({cell.fold: cell for cell in plans[name]} for name in MATCHED)
    assert {fold: whom(cell) for fold, cell in same.items()} == {fold: whom(cell) for fold, cell in multi.items()}
    for site, cell in cross.items():
        folds = [whom(same[fold]) for fold in same if fold.startswith(site + ".")]
        assert set.union(*folds) == whom(cell)
        trained = {key for part in ("train", "val") for key in cell.split.keys(part)}
        assert not any(site in where[key] for key in trained)
        assert not cell.split.keys("test")
    for fold, cell in same.items():
        assert all(where[key] == {fold.partition(".")[0]} for part in ("train", "val") for key in cell.split.keys(part))
        larger = {key for part in ("train", "val") for key in multi[fold].split.keys(part)}
        if not matched:
            assert {key for part in ("train", "val") for key in cell.split.keys(part)} <= larger


def test_matched_trainings_have_equally_many_of_each_class():
    frame = cohort({"north": 40, "south": 22, "west": 30})
    outcome = {f"d/{row.participant_id}": row.outcome for row in frame.itertuples()}
    found = {
        name: {
            cell.fold.partition(".")[0]: Counter(outcome[k] for part in ("train", "val") for k in cell.split.keys(part))
            for cell in plan_cells(frame, Design(name, 4, match_train_size=True), "outcome")
        }
        for name in MATCHED
    }
    assert found["same-site"] == found["multi-site"] == found["cross-site"]


def test_folds_are_balanced_over_the_outcome_within_each_site():
    frame = cohort({"north": 42, "south": 33})
    outcome = {f"d/{row.participant_id}": row.outcome for row in frame.itertuples()}
    cells = plan_cells(frame, Design("k-fold", 5), "outcome")
    for site in ("north", "south"):
        for value in (0.0, 1.0):
            counts = [sum(key.startswith(f"d/{site}") and outcome[key] == value for key in whom(c)) for c in cells]
            assert max(counts) - min(counts) <= 1


def test_repeats_draw_other_folds_and_cross_site_another_validation_part():
    frame = cohort({"north": 30, "south": 30})
    first, second = plan_cells(frame, Design("k-fold", 3, num_repeats=2), "outcome")[::3]
    assert whom(first) != whom(second)
    north = [c for c in plan_cells(frame, Design("cross-site", 3, num_repeats=2), "outcome") if c.fold == "north"]
    assert whom(north[0]) == whom(north[1])
    assert north[0].split.keys("val") != north[1].split.keys("val")


def test_a_group_stays_on_one_side():
    frame = cohort({"north": 24, "south": 24})
    frame["family"] = [f"f{number // 2}" for number in range(len(frame))]
    tied = {f"d/{row.participant_id}": row.family for row in frame.itertuples()}
    for protocol in ("same-site", "multi-site", "cross-site", "k-fold"):
        for cell in plan_cells(frame, Design(protocol, 3, group="family"), "outcome"):
            sides = [{tied[key] for key in cell.split.keys(part)} for part in cell.split.parts if part != UNUSED]
            assert not any(one & other for one, other in itertools.combinations(sides, 2))


def test_a_smaller_share_of_labels_is_part_of_a_larger_one():
    frame = cohort({"north": 40, "south": 40})
    split = plan_cells(frame, Design("k-fold", 4), "outcome")[0].split
    shares = [subsample(split, frame, "outcome", fraction, 0) for fraction in (0.1, 0.25, 0.5, 1.0)]
    for small, large in itertools.pairwise(shares):
        assert set(small.keys("train")) < set(large.keys("train"))
        assert small.keys("test") == split.keys("test")
    assert shares[-1].keys("train") == split.keys("train")
    outcome = {f"d/{row.participant_id}": row.outcome for row in frame.itertuples()}
    assert {outcome[key] for key in shares[0].keys("train")} == {0.0, 1.0}


def test_a_training_uses_at_most_so_many_of_a_site():
    frame = cohort({"north": 40, "south": 30, "west": 9})
    for cell in plan_cells(frame, Design("cross-site", 2, max_train_per_site=10), "outcome"):
        used = Counter(key[2:6] for part in ("train", "val") for key in cell.split.keys(part))
        assert max(used.values()) == 10
        assert len(whom(cell)) == {"north": 40, "south": 30, "west": 9}[cell.fold]


@pytest.mark.parametrize(
    ("design", "message"),
    [
        ({"protocol": "leave-one-out"}, "There are: same-site"),
        ({"protocol": "external"}, "external_sites"),
        ({"protocol": "k-fold", "external_sites": ("north",)}, "Only the protocol external"),
        ({"protocol": "k-fold", "match_train_size": True}, "match_train_size compares"),
        ({"protocol": "external", "external_sites": ("moon",)}, "no site moon"),
        ({"protocol": "same-site", "num_folds": 40}, "too few for 40"),
        ({"protocol": "k-fold", "num_folds": 1}, "at least 2 folds"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(design, message):
    with pytest.raises(SplitError, match=message):
        plan_cells(cohort({"north": 20, "south": 20}), Design(**design), "outcome")


def test_a_cohort_of_one_site_and_a_training_of_one_class_are_refused():
    with pytest.raises(SplitError, match="needs two sites"):
        plan_cells(cohort({"north": 20}), Design("cross-site"), "outcome")
    frame = cohort({"north": 20, "south": 20})
    frame.loc[frame["site"] == "south", "outcome"] = 0.0
    with pytest.raises(SplitError, match="only the class 0"):
        plan_cells(frame, Design("cross-site", 2), "outcome")

import math

import numpy as np
import pandas as pd
import pytest

from evaluation.estimate import Estimate
from evaluation.resampled import bootstrap_p, ensemble_rows, interval, resample, run_names, usable_parts


def mean_of(rows):
    """Make the weighted mean of the predictions a statistic."""
    values = rows["prediction"].to_numpy()
    return lambda weights: {"mean": weights @ values / weights.sum(axis=1)}


def rows_of(table, sites="A", targets=0.0):
    """Turn predictions (participants, runs) into scored rows."""
    num_participants, num_runs = np.shape(table)
    people = [f"p{number:03}" for number in range(num_participants)]
    frame = pd.DataFrame(
        {"participant": np.repeat(people, num_runs), "run": np.tile(range(num_runs), num_participants)}
    )
    frame = frame.assign(prediction=np.ravel(table), repeat=0, seed=frame["run"], fold="0", dataset="d", session_id="")
    frame["participant_id"] = frame["participant"]
    frame["site"] = np.repeat(np.resize(list(sites), num_participants), num_runs)
    return frame.assign(target=np.repeat(np.resize(targets, num_participants), num_runs), baseline=np.nan)


@pytest.fixture
def effects():
    """Predictions of 30 participants in 6 runs: both have an effect, and so has their combination."""
    generator = np.random.default_rng(51)
    return generator.normal(0, 1, (30, 1)) + generator.normal(0, 0.5, (1, 6)) + generator.normal(0, 0.8, (30, 6))


def test_variance_of_a_mean_is_that_of_the_two_way_bootstrap(effects):
    found = resample([rows_of(effects)], mean_of, stratify=False, num_replicates=20_000)[0]["mean"]
    person, run = effects.mean(axis=1) - effects.mean(), effects.mean(axis=0) - effects.mean()
    rest = effects - person[:, None] - run - effects.mean()
    expected = (person**2).sum() / 30**2 + (run**2).sum() / 6**2 + (rest**2).sum() / (30 * 6) ** 2
    assert found.point[0] == pytest.approx(effects.mean())
    assert found.standard_error == pytest.approx(math.sqrt(expected), rel=0.02)
    assert found.spread == pytest.approx(effects.mean(axis=0).std(ddof=1))
    alone = resample([rows_of(effects[:, :1])], mean_of, stratify=False, num_replicates=20_000)[0]["mean"]
    assert alone.standard_error == pytest.approx(effects[:, 0].std() / math.sqrt(30), rel=0.02)
    assert math.isnan(alone.spread)


def test_each_class_of_each_site_is_drawn_within_itself():
    seen = []

    def statistic_of(rows):
        groups = rows.groupby(["site", "target"]).indices
        return lambda weights: seen.append({key: set(weights[:, at].sum(axis=1)) for key, at in groups.items()}) or {}

    rows = rows_of(np.zeros((40, 1)), sites="AAB", targets=[1.0, 0.0, 0.0, 0.0, 1.0])
    sizes = {key: {len(group)} for key, group in rows.groupby(["site", "target"])}
    resample([rows], statistic_of, stratify=True, num_replicates=200)
    assert all(drawn == sizes for drawn in seen)
    seen.clear()
    resample([rows], statistic_of, stratify=False, num_replicates=200)
    assert len(seen[1]["A", 1.0]) > 3
    assert {key: sum(size for (site, _), (size,) in sizes.items() if site == key) for key in "AB"} == {"A": 27, "B": 13}


def test_a_class_of_one_participant_is_not_kept_in_every_draw():
    rows = rows_of(np.arange(10.0)[:, None], targets=[1.0] + [0.0] * 9)

    def of_event(rows):
        return lambda weights: {"drawn": weights[:, 0]}

    drawn = resample([rows], of_event, stratify=True, num_replicates=4000)[0]["drawn"].replicates
    assert (drawn == 0).mean() == pytest.approx(0.9**10, abs=0.03)
    assert usable_parts(rows, [resample([rows], mean_of, stratify=True)[0]["mean"]], stratify=True) == [""]
    by_site = resample([rows], mean_of, by="site", stratify=True)[0]["mean"]
    assert usable_parts(rows, [by_site], stratify=True) == []
    assert usable_parts(rows, [by_site], stratify=False) == ["A"]


def test_sites_are_parts_whose_plain_mean_is_taken(effects):
    rows = rows_of(effects, sites="AAAB")
    found = resample([rows], mean_of, by="site", stratify=False, num_replicates=50)[0]["mean"]
    means = rows.groupby("site")["prediction"].mean()
    assert found.parts == ("A", "B")
    assert found.point == pytest.approx(means)
    assert found.mean().point[0] == pytest.approx(means.mean())
    assert found.mean().replicates[:, 0] == pytest.approx(found.replicates.mean(axis=1))
    assert found.part("B").estimate.estimate == pytest.approx(means["B"])
    assert not found.mean([]).estimate.defined


def test_arms_share_draws_of_participants_and_of_equal_runs(effects):
    first, second = rows_of(effects), rows_of(effects + 3).sample(frac=1, random_state=1)
    a, b = (arm["mean"] for arm in resample([first, second], mean_of, stratify=False, num_replicates=300))
    assert b.minus(a).replicates == pytest.approx(np.full((300, 1), 3.0))
    other = second.assign(seed=second["seed"] + 10)
    a, c = (arm["mean"] for arm in resample([first, other], mean_of, stratify=False, num_replicates=300))
    assert c.minus(a).standard_error > 0.1


def test_result_is_indifferent_to_chunks_and_heeds_the_seed(effects, monkeypatch):
    def replicates(seed):
        return resample([rows_of(effects)], mean_of, stratify=False, num_replicates=70, seed=seed)[0]["mean"].replicates

    whole = replicates(4)
    assert not np.allclose(whole, replicates(5))
    monkeypatch.setattr("evaluation.resampled.CHUNK_CELLS", 300)
    assert replicates(4) == pytest.approx(whole)


def test_a_run_that_was_not_drawn_does_not_count_even_if_undefined(effects):
    effects[:, 0] = np.nan
    found = resample([rows_of(effects)], mean_of, stratify=False, num_replicates=2000)[0]["mean"]
    assert np.isfinite(found.replicates).mean() == pytest.approx((5 / 6) ** 6, abs=0.04)
    assert not found.estimate.defined


def test_p_value_belongs_to_the_interval():
    draws = np.random.default_rng(52).normal(1.0, 0.5, 1999)
    p = bootstrap_p(draws)
    assert p == 2 * ((draws <= 0).sum() + 1) / 2000
    assert interval(1.0, draws, 1 - p).low == pytest.approx(0, abs=0.02)
    assert bootstrap_p(-draws) == p
    assert bootstrap_p(np.ones(99)) == 0.02
    assert math.isnan(bootstrap_p(np.array([])))
    assert interval(math.nan, draws).low is None
    assert interval(2.0, np.r_[np.full(9, 1.0), math.nan]) == Estimate(2.0, 1.0, 1.0)
    assert bootstrap_p(np.r_[np.ones(8), math.nan, math.nan]) != bootstrap_p(np.ones(8))


def test_runs_are_named_by_fold_only_where_folds_are_runs():
    runs = pd.DataFrame({"run": [1, 0, 0], "repeat": 0, "seed": [7, 3, 3], "fold": ["x", "x", "y"]})
    assert run_names(runs) == ["repeat 0, seed 3", "repeat 0, seed 7"]
    folds = pd.DataFrame({"run": [0, 1], "repeat": 2, "seed": 3, "fold": ["x", "y"]})
    assert run_names(folds) == ["repeat 2, seed 3, fold x", "repeat 2, seed 3, fold y"]


def test_ensemble_averages_predictions_and_thresholds_over_runs(effects):
    rows = rows_of(effects, sites="AB").assign(threshold=lambda table: table["run"] / 10)
    mean = ensemble_rows(rows.sample(frac=1, random_state=2))
    assert mean["prediction"].to_numpy() == pytest.approx(effects.mean(axis=1))
    assert mean["threshold"].to_numpy() == pytest.approx(np.full(30, 0.25))
    assert mean["site"].tolist() == ["A", "B"] * 15
    assert set(mean["run"]) == {0}

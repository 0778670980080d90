"""Power and its parts against cohorts put through the test that a cross-validation reports with."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from evaluation.gain import gains
from evaluation.paired import paired_test, statistics
from evaluation.power import Comparison
from evaluation.power_models import MODELS, covariance_of_events
from evaluation.resampled import resample

NUM_COHORTS = 1000
POINTS = 0.03


def comparison(metric, value, gain, sites, **more):
    return Comparison(MODELS[metric], value, gain, sites, **more)


def predictions(plan, metric, rng):
    """Return the predictions (arms, runs, participants) of a cohort that is as the plan says, and its targets."""
    if plan.model.task == "binary":
        target = np.concatenate([np.repeat([1.0, 0.0], site) for site in plan.sites])
    else:
        target = np.concatenate([np.linspace(20, 80, *site) for site in plan.sites])
    size, between, within = len(target), plan.correlation, plan.same_arm
    common, found = rng.standard_normal(size), []
    for value in (plan.value, plan.better):
        own, run = rng.standard_normal(size), rng.standard_normal((plan.num_runs, size))
        score = math.sqrt(between) * common + math.sqrt(within - between) * own + math.sqrt(1 - within) * run
        if metric == "auroc":
            score = stats.norm.cdf((score + math.sqrt(2) * stats.norm.ppf(value) * target) / 3)
        elif metric == "accuracy":
            score = stats.norm.cdf(score + stats.norm.ppf(value) * (2 * target - 1))
        else:
            score = target + score * value * math.sqrt(math.pi / 2)
        found.append(score)
    return np.stack(found), target


def rows_of(plan, scores, target):
    """Return rows (reference, arm) as `scored_rows` gives them."""
    runs, size = scores.shape[1:]
    site = np.repeat([f"site-{number}" for number in range(len(plan.sites))], [sum(site) for site in plan.sites])
    table = pd.DataFrame(
        {
            "participant": np.tile([f"/p{number:04d}" for number in range(size)], runs),
            "site": np.tile(site, runs),
            "target": np.tile(target, runs),
            **{name: np.repeat(np.arange(runs), size) for name in ("run", "seed")},
            "repeat": 0,
            "fold": np.tile(site, runs),
            "baseline": np.nan,
            "threshold": 0.5,
        }
    )
    return [table.assign(prediction=score.ravel()) for score in scores]


def simulate(plan, metric, num_replicates, num_cohorts=NUM_COHORTS, seed=1):
    """Return the test of the gain of many cohorts; they share the draws of the bootstrap, which saves its time."""
    rng = np.random.default_rng(seed)
    rows = [row for _ in range(num_cohorts) for row in rows_of(plan, *predictions(plan, metric, rng))]
    stratify = plan.model.task == "binary"
    of_run = statistics(plan.model.task, [metric])
    found = resample(rows, of_run, by="site", stratify=stratify, num_replicates=num_replicates, seed=seed)
    means = [one[metric].mean() for one in found]
    sides = list(zip(means[::2], means[1::2], strict=True))
    sign = 1 if plan.model.larger_is_better else -1
    tests = [paired_test(a, b) for a, b in sides]
    return pd.DataFrame(
        {
            "gain": [sign * test.difference for test in tests],
            "told": [min(sign * test.low, sign * test.high) > 0 for test in tests],
            "error": [b.minus(a).standard_error for a, b in sides],
            "spread": [a.spread for a, _ in sides],
            "low": [a.estimate.low for a, _ in sides],
            "high": [a.estimate.high for a, _ in sides],
        }
    )


SETTINGS = {
    "one site": ("auroc", 0.75, 0.06, ((73, 83),), {}),
    "three seeds at two sites": ("auroc", 0.75, 0.06, ((37, 41), (36, 42)), {"num_runs": 3}),
    "few events": ("auroc", 0.8, 0.08, ((16, 64),), {"correlation": 0.8}),
    "large": ("auroc", 0.7, 0.05, ((150, 150),), {"correlation": 0.4}),
    "five seeds at four sites": (
        "auroc",
        0.75,
        0.07,
        ((20, 20),) * 4,
        {"num_runs": 5, "correlation": 0.5, "run_correlation": 0.6},
    ),
    "near perfect": ("auroc", 0.9, 0.06, ((30, 30),), {"correlation": 0.7}),
    "error": ("mae", 7.7, 0.8, ((156,),), {}),
    "small error": ("mae", 7.7, 2.0, ((40,),), {}),
    "error of three seeds": ("mae", 7.7, 1.2, ((30,), (50,)), {"num_runs": 3, "correlation": 0.8}),
    "accuracy": ("accuracy", 0.7, 0.08, ((40, 60),), {}),
}
QUICK = ("near perfect",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SETTINGS]
)
def test_power_agrees_with_a_thousand_cohorts(name):
    metric, value, gain, sites, more = SETTINGS[name]
    plan = comparison(metric, value, gain, sites, **more)
    found = simulate(plan, metric, num_replicates=250 if name in QUICK else 1000)
    deviation, error = plan.errors()
    assert plan.power() == pytest.approx(found["told"].mean(), abs=POINTS)
    assert deviation == pytest.approx(found["gain"].std(), rel=0.08)
    assert error == pytest.approx(found["error"].mean(), rel=0.05)
    assert plan.interval() == pytest.approx((found["low"].mean(), found["high"].mean()), abs=0.03 * value)
    if plan.num_runs > 1:
        assert plan.spread_of_runs() == pytest.approx(math.sqrt((found["spread"] ** 2).mean()), rel=0.08)


def test_the_error_of_a_mean_error_agrees_with_cohorts():
    plan = comparison("mae", 7.7, 1.2, ((30,), (50,)), num_runs=3, correlation=0.8)
    found = simulate(plan, "mae", num_replicates=200, num_cohorts=100)
    assert plan.errors()[0] == pytest.approx(found["gain"].std(), rel=0.2)
    assert plan.errors()[1] == pytest.approx(found["error"].mean(), rel=0.05)


def test_the_simulated_test_is_the_one_that_gains_reports():
    plan = comparison("auroc", 0.75, 0.06, ((20, 20), (15, 25)), num_runs=2)
    rows = rows_of(plan, *predictions(plan, "auroc", np.random.default_rng(1)))
    table = pd.concat([row.assign(arm=arm) for arm, row in zip(("scratch", "tuned"), rows, strict=True)])
    table = table.assign(participant_id=table["participant"].str.removeprefix("/"), protocol="cross-site")
    table = table.assign(train_sites="not " + table["site"]).drop(columns=["participant", "run"])
    reported = gains(table, task="binary", metric="auroc", num_replicates=200, seed=1)[0]
    (simulated,) = simulate(plan, "auroc", 200, num_cohorts=1).to_dict("records")
    assert reported.gain.estimate == pytest.approx(simulated["gain"])
    assert reported.value.estimate - reported.reference_value.estimate == pytest.approx(simulated["gain"])
    assert reported.detectable == pytest.approx(2.8 * simulated["error"], rel=0.02)


def test_the_gain_and_the_participants_that_are_named_have_the_power_they_are_named_for():
    plan = comparison("auroc", 0.75, 0.06, ((73, 83),))
    detectable, needed = plan.detectable_gain(), plan.needed_participants()
    assert replace(plan, gain=detectable).power() == pytest.approx(0.8, abs=0.01)
    assert plan.with_participants(needed).power() == pytest.approx(0.8, abs=0.01)
    assert needed > plan.num_participants
    assert replace(plan, gain=0.0).needed_participants() is None


def test_a_perfect_arm_is_the_largest_gain_there_is():
    assert comparison("auroc", 0.97, 0.01, ((10, 10),)).detectable_gain() is None
    near = comparison("auroc", 0.9, 0.06, ((30, 30),), correlation=0.7)
    assert near.detectable_gain() == pytest.approx(0.077, abs=0.01)


def test_power_without_a_gain_is_half_the_level():
    assert comparison("auroc", 0.75, 0.0, ((500, 500),)).power() == pytest.approx(0.025, abs=0.001)
    assert comparison("mae", 5.0, 0.0, ((40,),)).power() == pytest.approx(0.025, abs=0.01)


def test_holm_costs_power():
    plan = comparison("mae", 7.7, 1.5, ((200,),), num_comparisons=4)
    assert plan.power_after_holm() < plan.power() - 0.05


def test_the_error_of_one_arm_is_hanleys_and_of_two_alike_is_none():
    low, high = comparison("auroc", 0.5, 0.0, ((50, 50),)).interval()
    exact = math.sqrt((100 + 1) / (12 * 50 * 50))  # Mann and Whitney's, without information
    assert stats.norm.ppf(0.975) * exact == pytest.approx((high - low) / 2, rel=0.06)
    same = comparison("mae", 5.0, 0.0, ((50,),), correlation=1.0)
    assert same.errors() == (0.0, 0.0)


def test_the_covariance_of_two_events_is_that_of_the_bivariate_normal():
    a, b, r = 0.7, 0.85, 0.6
    limits = stats.norm.ppf([a, b])
    together = stats.multivariate_normal(cov=[[1, r], [r, 1]]).cdf(limits)
    assert covariance_of_events(a, b, r) == pytest.approx(together - a * b, abs=1e-5)
    assert covariance_of_events(a, a, 1.0) == pytest.approx(a * (1 - a))

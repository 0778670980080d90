import math
import time

import numpy as np
import pytest
from scipy import stats

from evaluation.estimate import Estimate, as_json, bootstrap


def mean_of(values):
    return lambda weights: {"mean": weights @ values / weights.sum(axis=1)}


def test_interval_is_the_normal_one_for_a_mean():
    values = np.random.default_rng(1).normal(10, 4, 400)
    result = bootstrap(mean_of(values), np.arange(400))["mean"]
    low, high = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert result.estimate == pytest.approx(values.mean())
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.05)


def test_rows_of_a_participant_enter_together():
    participants = np.repeat(np.arange(50), 8)
    values = np.repeat(np.random.default_rng(2).normal(size=50), 8)
    together = bootstrap(mean_of(values), participants)["mean"]
    apart = bootstrap(mean_of(values), np.arange(400))["mean"]
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(np.sqrt(8), rel=0.1)


def test_interval_is_reproducible_and_indifferent_to_row_order_and_chunks(monkeypatch):
    generator = np.random.default_rng(3)
    participants, values = generator.integers(0, 30, 90).astype(str), generator.normal(size=90)
    first = bootstrap(mean_of(values), participants, seed=7)["mean"]
    order = generator.permutation(90)
    shuffled = bootstrap(mean_of(values[order]), participants[order], seed=7)["mean"]
    monkeypatch.setattr("evaluation.estimate.MAX_CELLS", 1000)
    chunked = bootstrap(mean_of(values), participants, seed=7)["mean"]
    for other in (shuffled, chunked):
        assert (other.low, other.high) == pytest.approx((first.low, first.high), rel=1e-12)
    assert bootstrap(mean_of(values), participants, seed=8)["mean"].low != first.low


def test_each_replicate_draws_as_many_participants_as_there_are():
    totals = []

    def statistic(weights):
        totals.append(weights.sum(axis=1))
        return {"total": weights.sum(axis=1)}

    bootstrap(statistic, np.arange(12), num_replicates=50)
    assert len(np.concatenate(totals[1:])) == 50
    assert set(np.concatenate(totals)) == {12.0}


def test_difference_inside_one_statistic_is_paired():
    generator = np.random.default_rng(4)
    hard = generator.gamma(2, 5, 200)
    first, second = hard, hard - 0.5 + generator.normal(0, 0.1, 200)

    def statistic(weights):
        total = weights.sum(axis=1)
        return {"first": weights @ first / total, "gain": weights @ (first - second) / total}

    result = bootstrap(statistic, np.arange(200))
    assert result["gain"].high - result["gain"].low < 0.1 * (result["first"].high - result["first"].low)
    assert result["gain"].low_above(0.4)
    assert not result["gain"].low_above(0.5)


@pytest.mark.parametrize(
    ("groups", "options"),
    [(["a", "a", "a"], {}), (["a", "b", "c"], {"num_replicates": 0}), (["a", "b", "c"], {"min_groups": 5})],
)
def test_no_interval_where_nothing_varies_or_none_was_asked_for(groups, options):
    assert bootstrap(mean_of(np.array([1.0, 2.0, 6.0])), groups, **options)["mean"] == Estimate(3.0)


@pytest.mark.parametrize(("share_undefined", "has_interval"), [(0.05, True), (0.5, False)])
def test_few_undefined_replicates_are_left_out_and_many_refuse_the_interval(share_undefined, has_interval):
    def statistic(weights):
        values = weights @ np.arange(20.0) / weights.sum(axis=1)
        values[: int(share_undefined * len(values))] = math.nan
        return {"value": values}

    result = bootstrap(statistic, np.arange(20))["value"]
    assert result.defined
    assert (result.low is not None) is has_interval


def test_undefined_estimate_is_null_in_json():
    undefined = bootstrap(lambda weights: {"r": np.full(len(weights), math.nan)}, np.arange(9))["r"]
    assert not undefined.defined
    assert not undefined.low_above(-1)
    assert as_json({"r": undefined}, 9) == {
        "metrics": {"r": {"estimate": None, "low": None, "high": None}},
        "num_participants": 9,
    }


def test_two_thousand_replicates_are_quick():
    values = np.random.default_rng(5).normal(size=500)
    start = time.process_time()
    bootstrap(mean_of(values), np.arange(500))
    assert time.process_time() - start < 1


def test_strata_keep_their_sizes_in_every_replicate(monkeypatch):
    stratum = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1.0])
    groups = np.array(list("aabcdeeff"))  # nobody changes the stratum, though d..f are few

    def statistic(weights):
        assert set(weights @ (groups == "e") + weights @ (groups == "f")) == {4.0}
        assert np.ptp(weights[:, 0] + weights[:, 2:5].sum(axis=1)) == 0
        return {"first": weights[:, 0]}

    first = bootstrap(statistic, groups, strata=stratum, seed=5)["first"]
    assert (first.low, first.high) == (0.0, 3.0)  # of four groups, drawn four times: binomial quantiles
    monkeypatch.setattr("evaluation.estimate.MAX_CELLS", 100)
    assert bootstrap(statistic, groups, strata=stratum, seed=5)["first"] == first


def test_a_participant_is_in_the_highest_stratum_of_its_rows():
    seen = []
    bootstrap(
        lambda weights: {"none": seen.append(weights) or weights[:, 0]},
        ["a", "a", "b", "c"],
        strata=[0.0, 1.0, 0.0, 0.0],
        num_replicates=40,
    )
    assert (np.concatenate(seen)[:, 0] == 1).all()  # alone in its stratum, a is drawn once each time


def test_inflated_values_are_centred_on_the_estimate():
    values = np.random.default_rng(6).normal(size=(50, 12))

    def statistic(weights):
        largest = np.abs(weights @ values / weights.sum(axis=1, keepdims=True)).max(axis=1)
        return {"largest": largest, "centred": largest}

    found = bootstrap(statistic, np.arange(50), centred=["centred"])
    plain, centred = found["largest"], found["centred"]
    assert centred.estimate == plain.estimate
    assert centred.low < centred.estimate < centred.high
    assert plain.low + plain.high > centred.low + centred.high
    assert centred.high - centred.low == pytest.approx(plain.high - plain.low)
    assert bootstrap(lambda weights: {"zero": weights[:, 0] - 1}, range(9), centred=["zero"])["zero"].low == 0

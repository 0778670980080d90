import math
import time

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from sklearn import metrics as reference

from evaluation.regression import POINT_METRICS, mae_by_age_bin, nice_edges, point_estimates, regression_metrics


@pytest.fixture
def ages():
    generator = np.random.default_rng(11)
    target = generator.uniform(5, 90, 500).round()  # ties, as in whole years
    return target, (45 + 0.6 * (target - 45) + generator.normal(0, 6, 500)).round()


def test_estimates_agree_with_other_implementations(ages):
    target, prediction = ages
    slope = sm.OLS(prediction - target, sm.add_constant(target)).fit().params[1]
    expected = {
        "mae": reference.mean_absolute_error(target, prediction),
        "median_ae": reference.median_absolute_error(target, prediction),
        "rmse": reference.root_mean_squared_error(target, prediction),
        "r2": reference.r2_score(target, prediction),
        "pearson_r": stats.pearsonr(target, prediction).statistic,
        "spearman_r": stats.spearmanr(target, prediction).statistic,
        "mean_bias": np.mean(prediction - target),
        "bias_slope": slope,
        "mae_predict_mean": np.mean(np.abs(target - target.mean())),
        "mae_gain": np.mean(np.abs(target - target.mean())) - reference.mean_absolute_error(target, prediction),
    }
    found = regression_metrics(target, prediction, num_replicates=0)
    assert {name: value.estimate for name, value in found.items()} == pytest.approx(expected, rel=1e-10)
    assert point_estimates(target, prediction) == pytest.approx(
        {name: expected[name] for name in POINT_METRICS}, rel=1e-10
    )


def test_each_replicate_is_the_metric_of_the_resampled_rows(ages):
    target, prediction = ages[0][:40], ages[1][:40]
    drawn = np.random.default_rng(0).integers(0, 40, size=(200, 40))  # the draw of seed 0
    again = [regression_metrics(target[rows], prediction[rows], num_replicates=0) for rows in drawn]
    found = regression_metrics(target, prediction, num_replicates=200, seed=0)
    for name, value in found.items():
        low, high = np.quantile([one[name].estimate for one in again], [0.025, 0.975])
        assert (value.low, value.high) == pytest.approx((low, high), rel=1e-9), name


def test_interval_of_r_is_near_fisher(ages):
    generator = np.random.default_rng(12)
    target = generator.normal(size=600)
    prediction = 0.5 * target + generator.normal(size=600)
    found = regression_metrics(target, prediction)["pearson_r"]
    expected = stats.pearsonr(target, prediction).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.02)


def test_intervals_of_five_hundred_participants_take_less_than_a_second(ages):
    start = time.process_time()
    regression_metrics(*ages)
    assert time.process_time() - start < 1


def test_baseline_fitted_on_training_rows_is_the_null_model():
    found = regression_metrics([10.0, 20.0, 60.0], [12.0, 18.0, 50.0], baseline=[40.0, 40.0, 40.0])
    assert found["mae_predict_mean"].estimate == pytest.approx((30 + 20 + 20) / 3)
    assert found["mae_gain"].estimate == pytest.approx((30 + 20 + 20) / 3 - 14 / 3)


def test_metric_is_computed_per_run_and_then_averaged():
    target = np.tile([1.0, 2.0, 3.0, 4.0], 2)
    prediction = np.array([1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0])  # r is 1, then -1; the pooled r would be 0 too
    found = regression_metrics(target, prediction, run=np.repeat([0, 1], 4), num_replicates=0)
    assert found["pearson_r"].estimate == pytest.approx(0)
    assert found["rmse"].estimate == pytest.approx((0 + math.sqrt(5)) / 2)  # pooled: sqrt(2.5)


def test_runs_share_the_resampled_participants(ages):
    target, prediction = ages[0][:60], ages[1][:60]
    once = regression_metrics(target, prediction, participant_id=np.arange(60))
    twice = regression_metrics(
        np.tile(target, 2), np.tile(prediction, 2), participant_id=np.tile(np.arange(60), 2), run=np.repeat([0, 1], 60)
    )
    for name in once:
        assert (twice[name].low, twice[name].high) == pytest.approx((once[name].low, once[name].high)), name


@pytest.mark.parametrize("values", [[0.0], [40.1], [1e8 / 3], [0.3, 0.1 + 0.2]])  # the last two differ by rounding
def test_constant_predictions_have_no_correlation(values):
    target, prediction = np.linspace(20, 80, 30), np.resize(values, 30)
    found = regression_metrics(target, prediction)
    for name in ("pearson_r", "spearman_r"):
        assert not found[name].defined
        assert found[name].low is None
    assert found["bias_slope"].estimate == pytest.approx(-1)
    assert math.isnan(point_estimates(target, prediction)["pearson_r"])


@pytest.mark.parametrize(("errors", "median"), [([1, 3], 2), ([5, 1, 2], 2), ([4, 0, 1, 3], 2), ([7], 7)])
def test_median_is_the_middle_or_the_mean_of_the_two_middles(errors, median):
    found = regression_metrics(np.zeros(len(errors)), errors, num_replicates=0)
    assert found["median_ae"].estimate == median


def test_constant_target_leaves_only_errors():
    found = regression_metrics(np.full(6, 40.0), np.arange(6.0))
    assert [name for name, value in found.items() if not value.defined] == [
        "r2",
        "pearson_r",
        "spearman_r",
        "bias_slope",
    ]


def test_point_estimates_leave_out_missing_targets_and_survive_none():
    assert point_estimates([1.0, math.nan, 3.0], [2.0, 9.0, 3.0])["mae"] == 0.5
    assert all(math.isnan(value) for value in point_estimates([math.nan], [1.0]).values())
    assert math.isnan(point_estimates([1.0, 2.0], [math.nan, 2.0])["mae"])


def test_bins_hold_everyone_once_and_few_get_no_interval():
    target = np.array([0.0, 5.0, 9.9, 10.0, 12.0, 13.0, 14.0, 15.0, 30.0])
    bins = mae_by_age_bin(target, target + 2, edges=[0, 10, 20, 30])
    assert bins["num_participants"].tolist() == [3, 5, 1]
    assert bins["mae"].tolist() == pytest.approx([2, 2, 2])
    assert bins["mae_low"].isna().tolist() == [True, False, True]
    assert bins["mean_bias"].tolist() == pytest.approx([2, 2, 2])


@pytest.mark.parametrize("target", [[0.1, 1.9], [18, 85], [7, 7], [-3, 4], [2000, 4100], [0, 1e6]])
def test_edges_cover_the_target_in_at_most_eight_bins(target):
    edges = nice_edges(target)
    assert 1 <= len(edges) - 1 <= 8
    assert edges[0] <= min(target)
    assert edges[-1] >= max(target)

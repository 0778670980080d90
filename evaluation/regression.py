"""Metrics of a continuous outcome (age) as functions of row weights: one code for the estimate and its bootstrap."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from evaluation.design import Design
from evaluation.estimate import NUM_REPLICATES, Estimate, FloatArray, Statistic, bootstrap

POINT_METRICS = ("mae", "rmse", "r2", "pearson_r", "mean_bias", "bias_slope")
WEEKS_PER_YEAR = 365.25 / 7
PRIMARY = "mae"
INFANT_YEARS = 2.0  # below this age errors are given in weeks too
MIN_BIN_PARTICIPANTS = 5  # an interval from fewer would promise more than it holds
BIN_WIDTHS = (1 / 12, 0.25, 0.5, 1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Args:
        label: Its name for a reader.
        in_unit: Whether it is in the unit of the target.
        digits: Decimals that a report shows.
        larger_is_better: Whether a larger value is a better model; None where that is not so simple.
    """

    label: str
    in_unit: bool
    digits: int = 2
    larger_is_better: bool | None = None


METRICS: Mapping[str, Metric] = {
    "mae": Metric("Mean absolute error", in_unit=True, larger_is_better=False),
    "median_ae": Metric("Median absolute error", in_unit=True, larger_is_better=False),
    "rmse": Metric("Root mean squared error", in_unit=True, larger_is_better=False),
    "r2": Metric("R², variance explained", in_unit=False, digits=3, larger_is_better=True),
    "pearson_r": Metric("Pearson r", in_unit=False, digits=3, larger_is_better=True),
    "spearman_r": Metric("Spearman r", in_unit=False, digits=3, larger_is_better=True),
    "mean_bias": Metric("Mean bias, prediction minus target", in_unit=True),
    "bias_slope": Metric("Slope of the bias on the target", in_unit=False, digits=3),
    "mae_predict_mean": Metric("MAE of predicting the mean", in_unit=True),
    "mae_gain": Metric("Gain in MAE over predicting the mean", in_unit=True, larger_is_better=True),
    "mae_weeks_under_2y": Metric("MAE under 2 years of age, in weeks", in_unit=False, digits=1, larger_is_better=False),
}


def point_estimates(target: ArrayLike, prediction: ArrayLike) -> dict[str, float]:
    """Compute the metrics that a training watches, without intervals.

    Args:
        target: (N,) true values; rows where it is NaN are left out.
        prediction: (N,) predictions in the unit of the target.

    Returns:
        `mae`, `rmse`, `r2`, `pearson_r`, `mean_bias` and `bias_slope`; NaN where undefined.

    >>> point_estimates([1.0, 2.0, 3.0], [1.5, 2.0, 2.5])["bias_slope"]
    -0.5
    >>> point_estimates([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])["pearson_r"]
    nan
    """
    true, predicted = np.asarray(target, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    known = ~np.isnan(true)
    values = _moments(true[known], predicted[known], np.ones((1, int(known.sum()))))
    return {name: float(values[name][0]) for name in POINT_METRICS}


def regression_metrics(
    target: ArrayLike,
    prediction: ArrayLike,
    *,
    participant_id: ArrayLike | None = None,
    run: ArrayLike | None = None,
    baseline: ArrayLike | None = None,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
    min_participants: int = 2,
) -> dict[str, Estimate]:
    """Compute every metric of a continuous outcome with its interval.

    Args:
        target: (N,) true values, none missing; one row per participant, session and run.
        prediction: (N,) predictions in the unit of the target.
        participant_id: (N,) whose row it is; participants are resampled with all their rows. Each row one by default.
        run: (N,) label of the model (repeat x seed). A metric is computed per run, then averaged; one run by default.
        baseline: (N,) predictions of the null model fitted on training rows; by default the mean of the targets here,
            taken anew in each replicate.
        num_replicates: Bootstrap replicates; 0 gives no intervals.
        seed: Seed of the bootstrap.
        min_participants: Fewest participants for which intervals are given.

    Returns:
        Estimates by name: `mae`, `median_ae`, `rmse`, `r2`, `pearson_r`, `spearman_r`, `mean_bias` (prediction -
        target), `bias_slope` (slope of prediction - target on target), `mae_predict_mean` and `mae_gain`
        (`mae_predict_mean` - `mae`, positive is better, with the interval of the paired difference).

    >>> metrics = regression_metrics([10.0, 20.0, 30.0, 40.0], [12.0, 19.0, 30.0, 37.0], num_replicates=0)
    >>> metrics["mae"].estimate, metrics["mae_predict_mean"].estimate, metrics["mae_gain"].estimate
    (1.5, 10.0, 8.5)
    """
    true, predicted = np.asarray(target, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    null = None if baseline is None else np.asarray(baseline, dtype=np.float64)
    runs = _rows_of_runs(run, len(true))

    def mean_over_runs(weights: FloatArray) -> dict[str, FloatArray]:
        """Average the metrics over the runs."""
        per_run = [
            _all_metrics(true[rows], predicted[rows], None if null is None else null[rows], weights[:, rows])
            for rows in runs
        ]
        return {name: np.mean([values[name] for values in per_run], axis=0) for name in per_run[0]}

    groups = np.arange(len(true)) if participant_id is None else participant_id
    return bootstrap(mean_over_runs, groups, num_replicates=num_replicates, seed=seed, min_groups=min_participants)


def statistic(rows: pd.DataFrame, names: Collection[str] | None = None, design: Design | None = None) -> Statistic:
    """Return the metrics of one run as a function of row weights, for estimates and bootstraps of any kind.

    Args:
        rows: Rows of one run, as `scored_rows` gives them: `target`, `prediction`, `baseline`.
        names: The metrics wanted; by default all that `regression_metrics` gives.
        design: Design of the study; it changes nothing where the outcome is continuous.

    >>> rows = pd.DataFrame({"target": [1.0, 2.0, 6.0], "prediction": [1.0, 3.0, 4.0], "baseline": 3.0})
    >>> statistic(rows, ["mae"])(np.ones((1, 3)))["mae"]
    array([1.])
    """
    true, predicted, null = (rows[name].to_numpy(np.float64) for name in ("target", "prediction", "baseline"))

    def values(weights: FloatArray) -> dict[str, FloatArray]:
        """Compute the metrics of each replicate."""
        found = _all_metrics(true, predicted, None if np.isnan(null).any() else null, weights)
        return {name: value for name, value in found.items() if names is None or name in names}

    return values


def mae_by_age_bin(
    target: ArrayLike,
    prediction: ArrayLike,
    *,
    participant_id: ArrayLike | None = None,
    run: ArrayLike | None = None,
    edges: Sequence[float] | None = None,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute error and bias inside bins of the target.

    Args:
        target: (N,) true values.
        prediction: (N,) predictions in the unit of the target.
        participant_id: (N,) whose row it is.
        run: (N,) label of the model.
        edges: Increasing bin edges, the last bin closed on the right; round numbers by default.
        num_replicates: Bootstrap replicates.
        seed: Seed of the bootstrap.

    Returns:
        One row per bin that holds a participant: `start`, `stop`, `num_participants`, `mae`, `mae_low`, `mae_high`,
        `mean_bias`, `mean_bias_low`, `mean_bias_high`; no interval under five participants.

    >>> mae_by_age_bin([1.0, 2.0, 12.0], [1.0, 4.0, 13.0], edges=[0, 10, 20])[["start", "num_participants", "mae"]]
       start  num_participants  mae
    0    0.0                 2  1.0
    1   10.0                 1  1.0
    """
    true, predicted = np.asarray(target, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    limits = np.asarray(nice_edges(true) if edges is None else edges, dtype=np.float64)
    people = np.arange(len(true)) if participant_id is None else np.asarray(participant_id)
    labels = np.zeros(len(true)) if run is None else np.asarray(run)
    number = np.searchsorted(limits, true, side="right") - 1
    number[true == limits[-1]] = len(limits) - 2
    bins: list[dict[str, float]] = []
    for index in range(len(limits) - 1):
        rows = number == index
        if not rows.any():
            continue
        metrics = regression_metrics(
            true[rows],
            predicted[rows],
            participant_id=people[rows],
            run=labels[rows],
            num_replicates=num_replicates,
            seed=seed,
            min_participants=MIN_BIN_PARTICIPANTS,
        )
        entry = {"start": limits[index], "stop": limits[index + 1], "num_participants": len(np.unique(people[rows]))}
        bins.append(entry | _columns(metrics, "mae", "mean_bias"))
    return pd.DataFrame(bins)


def nice_edges(target: ArrayLike, max_bins: int = 8) -> list[float]:
    """Return round bin edges that cover the target.

    >>> nice_edges([6.0, 34.0, 88.0])
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    values = np.asarray(target, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    for width in (*BIN_WIDTHS, (high - low) / max_bins * 1.25):
        first, last = np.floor(low / width), np.floor(high / width) + 1
        if last - first <= max_bins:
            return [float(step * width) for step in np.arange(first, last + 1)]
    return [low, high]


def _columns(metrics: Mapping[str, Estimate], *names: str) -> dict[str, float]:
    """Return the estimates and their intervals as flat numbers, NaN where there is no interval."""
    flat: dict[str, float] = {}
    for name in names:
        value = metrics[name]
        flat[name] = value.estimate
        flat[f"{name}_low"] = float("nan") if value.low is None else value.low
        flat[f"{name}_high"] = float("nan") if value.high is None else value.high
    return flat


def _rows_of_runs(run: ArrayLike | None, num_rows: int) -> list[np.ndarray]:
    if run is None:
        return [np.arange(num_rows)]
    labels = np.asarray(run)
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _all_metrics(
    target: FloatArray, prediction: FloatArray, baseline: FloatArray | None, weights: FloatArray
) -> dict[str, FloatArray]:
    """Return every metric of one run (replicates,) in the order in which they are shown."""
    moments = _moments(target, prediction, weights)
    null = _null_error(target, baseline, weights)
    return {
        "mae": moments["mae"],
        "median_ae": _weighted_median(np.abs(prediction - target), weights),
        "rmse": moments["rmse"],
        "r2": moments["r2"],
        "pearson_r": moments["pearson_r"],
        "spearman_r": _spearman(target, prediction, weights),
        "mean_bias": moments["mean_bias"],
        "bias_slope": moments["bias_slope"],
        "mae_predict_mean": null,
        "mae_gain": null - moments["mae"],
    }


def _moments(target: FloatArray, prediction: FloatArray, weights: FloatArray) -> dict[str, FloatArray]:
    """Return the metrics that weighted sums of products give, one matrix product for all replicates."""
    true, predicted, error = _centred(target), _centred(prediction), prediction - target
    with np.errstate(all="ignore"):
        products = np.stack(
            [np.abs(error), error, error**2, true, true**2, predicted, predicted**2, true * predicted], axis=1
        )
        means = weights @ products / weights.sum(axis=1, keepdims=True)
        absolute, bias, squared, t, tt, p, pp, tp = means.T
        variance_t, variance_p, covariance = _variance(t, tt), _variance(p, pp), tp - t * p
        return {
            "mae": absolute,
            "rmse": np.sqrt(squared),
            "r2": 1 - squared / variance_t,
            "pearson_r": np.clip(covariance / np.sqrt(variance_t * variance_p), -1, 1),
            "mean_bias": bias,
            "bias_slope": covariance / variance_t - 1,
        }


def _centred(values: FloatArray) -> FloatArray:
    """Subtract the mean, exactly zero where the values differ by rounding only."""
    if len(values) == 0 or np.ptp(values) <= 1e-13 * np.abs(values).max():
        return np.zeros_like(values)
    centred: FloatArray = values - values.mean()
    return centred


def _variance(mean: FloatArray, mean_of_squares: FloatArray) -> FloatArray:
    """Return the variance, NaN where the replicate holds one value only."""
    variance: FloatArray = mean_of_squares - mean**2
    variance[~(variance > 1e-12 * mean_of_squares)] = np.nan
    return variance


def _null_error(target: FloatArray, baseline: FloatArray | None, weights: FloatArray) -> FloatArray:
    """Return the mean absolute error of the null model."""
    total = weights.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        if baseline is None:
            distance = np.abs(target - (weights @ target / total)[:, None])
        else:
            distance = np.abs(target - baseline)[None]
        error: FloatArray = (weights * distance).sum(axis=1) / total
    return error


def _weighted_median(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the median of values that occur as often as their weights say."""
    if len(values) == 0:
        return np.full(len(weights), np.nan)
    order = np.argsort(values)
    ordered, below = values[order], np.cumsum(weights[:, order], axis=1)
    total = below[:, -1]
    first = np.argmax(below > np.floor((total - 1) / 2)[:, None], axis=1)
    second = np.argmax(below > np.ceil((total - 1) / 2)[:, None], axis=1)
    return np.where(total > 0, (ordered[first] + ordered[second]) / 2, np.nan)


def _spearman(target: FloatArray, prediction: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the rank correlation of values that occur as often as their weights say, ties at their mean rank."""
    true, predicted = _centred_ranks(_centred(target), weights), _centred_ranks(_centred(prediction), weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = np.einsum("rn,rn,rn->r", weights, true, predicted)
        spread = np.einsum("rn,rn->r", weights, true**2) * np.einsum("rn,rn->r", weights, predicted**2)
        correlation: FloatArray = np.where(spread > 0, covariance / np.sqrt(spread), np.nan)
    return correlation.clip(-1, 1)


def _centred_ranks(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Return mid-ranks less their mean (replicates, rows)."""
    if len(values) == 0:
        return np.zeros_like(weights)
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) > 0])
    per_value = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks: FloatArray = np.cumsum(per_value, axis=1) - per_value / 2 - per_value.sum(axis=1, keepdims=True) / 2
    place = np.empty(len(values), dtype=np.intp)
    place[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))
    return ranks[:, place]

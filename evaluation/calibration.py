"""Whether predicted risks are the risks observed, as functions of row weights, and how to recalibrate them."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import expit

from evaluation.estimate import FloatArray
from evaluation.operating_point import apply_temperature, fit_temperature, log_odds, wilson

NUM_BINS = 10
SPAN = 2 / 3  # of Cleveland's lowess, as in R
NUM_SUPPORT = 40  # places where the smooth curve is computed; straight lines between them
MAX_ITERATIONS = 40
MAX_LOG_ODDS = 40.0


@dataclass(frozen=True)
class HosmerLemeshow:
    """The legacy test of calibration in groups of risk: it depends on the grouping and says nothing about the size.

    Args:
        statistic: Chi-squared; NaN where an expected count is zero.
        degrees_of_freedom: Number of groups, less two on the rows that the model was fitted on.
        p_value: From the chi-squared distribution.
        groups: One row per group: `num_rows`, `observed`, `expected` (events).
    """

    statistic: float
    degrees_of_freedom: int
    p_value: float
    groups: pd.DataFrame

    @property
    def defined(self) -> bool:
        """Whether every group expects some events and some without."""
        return math.isfinite(self.statistic)


@dataclass(frozen=True)
class Platt:
    """A logistic recalibration of log odds.

    Args:
        intercept: Added to the log odds after the slope.
        slope: What the log odds are multiplied by.
    """

    intercept: float
    slope: float

    def apply(self, probability: ArrayLike) -> FloatArray:
        """Return recalibrated probabilities (N,)."""
        recalibrated: FloatArray = expit(self.intercept + self.slope * log_odds(probability))
        return recalibrated


def weighted_intercept(target: FloatArray, probability: FloatArray, weights: FloatArray) -> FloatArray:
    """Compute calibration-in-the-large: the intercept of a logistic model with the log odds as offset.

    Args:
        target: (N,) 0 or 1.
        probability: (N,) predicted P(y = 1).
        weights: (R, N) weight of each row in each replicate.

    Returns:
        (R,) intercepts, 0 where events are as many as expected, above 0 where there are more; NaN where a class is
        missing.

    >>> weighted_intercept(np.array([0.0, 1.0]), np.array([0.2, 0.2]), np.ones((1, 2))).round(4)  # log(4)
    array([1.3863])
    """
    offset, events = log_odds(probability), weights @ target
    defined = (events > 0) & (events < weights.sum(axis=1))
    intercept = np.zeros(len(weights))
    if len(weights) > 1:  # from the solution of all rows, replicates need few steps
        intercept += np.nan_to_num(weighted_intercept(target, probability, np.ones((1, len(target)))))
    low, high = np.full(len(weights), -MAX_LOG_ODDS), np.full(len(weights), MAX_LOG_ODDS)
    active = np.flatnonzero(defined)
    for _ in range(2 * MAX_ITERATIONS):
        if not len(active):
            break
        own, start = weights if len(active) == len(weights) else weights[active], intercept[active]
        risk = _risk(start[:, None] + offset)
        expected = own * risk
        excess = events[active] - expected.sum(axis=1)
        slope = expected.sum(axis=1) - np.einsum("rn,rn->r", expected, risk)
        low[active], high[active] = np.where(excess > 0, start, low[active]), np.where(excess > 0, high[active], start)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = start + excess / slope
        done = np.abs(step - start) < 1e-9
        inside = done | ((step > low[active]) & (step < high[active]))  # Newton's step, or halves where it runs away
        intercept[active] = np.where(inside, step, (low[active] + high[active]) / 2)
        active = active[~done]
    return np.where(defined, intercept, np.nan)


def weighted_slope(target: FloatArray, probability: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Fit a logistic model of the outcome on the log odds, for many weightings at once.

    Args:
        target: (N,) 0 or 1.
        probability: (N,) predicted P(y = 1).
        weights: (R, N) weight of each row in each replicate.

    Returns:
        (R,) intercepts and (R,) slopes. The slope is the calibration slope: below 1 where predictions are too extreme.
        NaN where a class is missing, all predictions are equal, or the log odds separate the classes.

    References:
        Cox DR. Biometrika 1958;45:562-565. doi:10.1093/biomet/45.3-4.562
    """
    odds = log_odds(probability)
    if len(odds) == 0 or np.ptp(odds) <= 1e-12 * np.abs(odds).max():
        return np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    start = np.array([0.0, 0.0])
    if len(weights) > 1:  # from the solution of all rows, replicates need few steps
        whole = _newton(target, odds, np.ones((1, len(odds))), start)[0]
        start = whole if np.isfinite(whole).all() else start
    found = _newton(target, odds, weights, start)
    return found[:, 0], found[:, 1]


def _newton(target: FloatArray, odds: FloatArray, weights: FloatArray, start: FloatArray) -> FloatArray:
    """Return intercept and slope (R, 2) by Newton's method, NaN where it does not arrive."""
    coefficients, result = np.tile(start, (len(weights), 1)), np.full((len(weights), 2), np.nan)
    events = weights @ target
    active = np.flatnonzero((events > 0) & (events < weights.sum(axis=1)))
    features = np.stack([np.ones_like(odds), odds], axis=1)
    products = np.stack([np.ones_like(odds), odds, odds**2], axis=1)
    for _ in range(MAX_ITERATIONS):
        if not len(active):
            break
        own = weights if len(active) == len(weights) else weights[active]
        risk = _risk(coefficients[active] @ features.T)
        expected = own * risk
        gradient = own @ (target[:, None] * features) - expected @ features
        a, b, c = (expected @ products - (expected * risk) @ products).T
        determinant = a * c - b**2
        with np.errstate(all="ignore"):
            step = np.stack(
                [
                    (c * gradient[:, 0] - b * gradient[:, 1]) / determinant,
                    (a * gradient[:, 1] - b * gradient[:, 0]) / determinant,
                ],
                axis=1,
            )
            coefficients[active] += step
            done = np.abs(step).max(axis=1) < 1e-8
        result[active[done]] = coefficients[active[done]]
        lost = ~np.isfinite(step).all(axis=1) | (determinant <= 1e-12 * a * c)
        active = active[~(done | lost)]
    return result


def weighted_ece(
    target: FloatArray, probability: FloatArray, weights: FloatArray, num_bins: int = NUM_BINS
) -> tuple[FloatArray, FloatArray]:
    """Compute the expected and the maximum calibration error.

    Bins are of equal width from 0 to 1, each with its left edge and without its right one, the last with both.

    Args:
        target: (N,) 0 or 1.
        probability: (N,) predicted P(y = 1).
        weights: (R, N) weight of each row in each replicate.
        num_bins: Number of bins.

    Returns:
        (R,) mean over rows, and (R,) maximum over bins that hold a row, of the distance between mean prediction and
        share of events in the bin.

    References:
        Naeini MP, Cooper GF, Hauskrecht M. AAAI 2015. doi:10.1609/aaai.v29i1.9602

    >>> p, y = np.array([0.25, 0.25, 0.55, 0.75, 0.75]), np.array([0.0, 0, 1, 1, 1])
    >>> [float(value[0].round(4)) for value in weighted_ece(y, p, np.ones((1, 5)), num_bins=2)]
    [0.29, 0.3167]
    """
    bins = np.eye(num_bins)[_bin_of(probability, num_bins)]
    excess, rows = np.abs(weights @ (bins * (probability - target)[:, None])), weights @ bins
    distance = np.divide(excess, rows, out=np.zeros_like(rows), where=rows > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return excess.sum(axis=1) / rows.sum(axis=1), np.where(rows.sum(axis=1) > 0, distance.max(axis=1), np.nan)


def weighted_ici(target: FloatArray, probability: FloatArray, weights: FloatArray) -> FloatArray:
    """Compute the integrated calibration index: the mean distance between predictions and their smooth curve.

    Args:
        target: (N,) 0 or 1.
        probability: (N,) predicted P(y = 1).
        weights: (R, N) weight of each row in each replicate; each replicate takes about a millisecond.

    Returns:
        (R,) indices; NaN where a class is missing.

    References:
        Austin PC, Steyerberg EW. Statistics in Medicine 2019;38:4051-4065. doi:10.1002/sim.8281
    """
    result = np.full(len(weights), np.nan)
    support = _Support.of(probability)
    for index, own in enumerate(weights):
        if 0 < own @ target < own.sum():
            observed = support.smooth(probability, target, own, SPAN)
            distance = np.abs(probability - np.interp(probability, support.places, observed))
            result[index] = own @ distance / own.sum()
    return result


def smooth_curve(
    target: ArrayLike, probability: ArrayLike, weights: ArrayLike | None = None, span: float = SPAN
) -> tuple[FloatArray, FloatArray]:
    """Smooth the outcome over the prediction by lowess: local lines, tricube weights, no robustness iterations.

    Robustness iterations would treat the rarer class as outliers.

    Args:
        target: (N,) 0 or 1.
        probability: (N,) predicted P(y = 1).
        weights: (N,) weight of each row; one by default.
        span: Share of the rows that each local line is fitted to.

    Returns:
        Predictions (at most 40 of their quantiles, ascending) and the smoothed share of events there, cut at 0 and 1.

    References:
        Cleveland WS. Journal of the American Statistical Association 1979;74:829-836.
        doi:10.1080/01621459.1979.10481038
    """
    true, predicted = np.asarray(target, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    own = np.ones(len(true)) if weights is None else np.asarray(weights, dtype=np.float64)
    support = _Support.of(predicted)
    return support.places, support.smooth(predicted, true, own, span)


@dataclass(frozen=True)
class _Support:
    """The places (G,) of a smooth curve, and how far each row is from each: the same for all replicates."""

    places: FloatArray
    distance: FloatArray
    order: NDArray[np.intp]

    @classmethod
    def of(cls, x: FloatArray) -> "_Support":
        places = np.unique(np.quantile(x, np.linspace(0, 1, NUM_SUPPORT), method="nearest"))
        distance = np.abs(places[:, None] - x)
        return cls(places, distance, np.argsort(distance, axis=1))

    def smooth(self, x: FloatArray, y: FloatArray, weights: FloatArray, span: float) -> FloatArray:
        """Return the value at each place of the line fitted to the nearest rows, cut at 0 and 1."""
        needed = max(np.floor(span * weights.sum() + 1e-10), 1)
        last = np.argmax(np.cumsum(weights[self.order], axis=1) >= needed - 1e-9, axis=1)
        nearest = self.order[np.arange(len(last)), last]
        # A little further than the farthest of them, or rows that are all equally far would have no weight.
        radius = 1.001 * self.distance[np.arange(len(last)), nearest][:, None]
        tied = np.where(self.distance > 0, 1.0, 0.0)  # all the rows needed stand at the place itself
        scaled = np.divide(self.distance, radius, out=tied, where=radius > 0)
        np.minimum(scaled, 1, out=scaled)
        kernel = weights * (1 - scaled * scaled * scaled) ** 3
        total = kernel.sum(axis=1)
        mean_x, mean_y, mean_xx, mean_xy = (kernel @ np.stack([x, y, x * x, x * y], axis=1) / total[:, None]).T
        variance = mean_xx - mean_x**2
        flat = variance <= 1e-9 * np.ptp(x) ** 2
        slope = np.where(flat, 0, (mean_xy - mean_x * mean_y) / np.where(flat, 1, variance))
        smoothed: FloatArray = np.clip(mean_y + slope * (self.places - mean_x), 0, 1)
        return smoothed


def reliability_table(target: ArrayLike, probability: ArrayLike, num_bins: int = NUM_BINS) -> pd.DataFrame:
    """Compare predictions and outcomes inside the bins of the expected calibration error.

    Args:
        target: (N,) 0 or 1.
        probability: (N,) predicted P(y = 1).
        num_bins: Number of bins of equal width.

    Returns:
        One row per bin that holds a row: `start`, `stop`, `num_rows`, `predicted` (mean), `observed` (share of events)
        with Wilson's `observed_low` and `observed_high`.
    """
    frame = pd.DataFrame({"target": np.asarray(target, float), "predicted": np.asarray(probability, float)})
    groups = frame.groupby(_bin_of(frame["predicted"].to_numpy(), num_bins))
    events, rows = groups["target"].sum(), groups.size()
    intervals = [wilson(float(one), int(many)) for one, many in zip(events, rows, strict=True)]
    return pd.DataFrame(
        {
            "start": rows.index.to_numpy() / num_bins,
            "stop": (rows.index.to_numpy() + 1) / num_bins,
            "num_rows": rows.to_numpy(),
            "predicted": groups["predicted"].mean().to_numpy(),
            "observed": (events / rows).to_numpy(),
            "observed_low": [low for low, _ in intervals],
            "observed_high": [high for _, high in intervals],
        }
    )


def hosmer_lemeshow(
    target: ArrayLike,
    probability: ArrayLike,
    rows: Literal["development", "external"] = "external",
    num_groups: int = 10,
) -> HosmerLemeshow:
    """Compute the Hosmer-Lemeshow test (legacy) in groups of risk.

    Groups are `np.array_split` of the rows in stable order of prediction: sizes differ by one at most, and equal
    predictions may fall into different groups. Other rules give other numbers.

    Args:
        target: (N,) 0 or 1.
        probability: (N,) predicted P(y = 1).
        rows: Whether the model was fitted on these rows (two degrees of freedom less) or on others.
        num_groups: Number of groups.

    References:
        Hosmer DW, Lemeshow S. Communications in Statistics 1980;9:1043-1069. doi:10.1080/03610928008827941
    """
    true, predicted = np.asarray(target, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    parts = np.array_split(np.argsort(predicted, kind="stable"), num_groups)
    groups = pd.DataFrame(
        {
            "num_rows": [len(part) for part in parts],
            "observed": [true[part].sum() for part in parts],
            "expected": [predicted[part].sum() for part in parts],
        }
    )
    variance = groups["expected"] * (1 - groups["expected"] / groups["num_rows"].clip(lower=1))
    difference = (groups["observed"] - groups["expected"]) ** 2
    statistic = float((difference / variance).sum()) if (variance > 0).all() else float("nan")
    degrees = num_groups - 2 if rows == "development" else num_groups
    return HosmerLemeshow(statistic, degrees, float(stats.chi2.sf(statistic, degrees)), groups)


def fit_platt(target: ArrayLike, probability: ArrayLike) -> Platt:
    """Fit a logistic recalibration: intercept and slope on the log odds, without Platt's smoothed targets.

    Args:
        target: (N,) 0 or 1, of rows that will not be evaluated.
        probability: (N,) predicted P(y = 1).

    Returns:
        The recalibration; one that changes nothing where the fit does not exist (a class missing, classes separated).

    References:
        Platt J. Advances in Large Margin Classifiers, MIT Press 1999:61-74.
    """
    true = np.asarray(target, dtype=np.float64)
    intercept, slope = weighted_slope(true, np.asarray(probability, dtype=np.float64), np.ones((1, len(true))))
    return Platt(float(intercept[0]), float(slope[0])) if np.isfinite(slope[0]) else Platt(0.0, 1.0)


def recalibration_table(
    target: ArrayLike, probability: ArrayLike, fit_target: ArrayLike, fit_probability: ArrayLike
) -> pd.DataFrame:
    """Compare calibration before and after recalibrations fitted on other rows.

    Args:
        target: (N,) 0 or 1, rows to evaluate.
        probability: (N,) their predicted P(y = 1), before any recalibration.
        fit_target: (M,) 0 or 1, validation rows.
        fit_probability: (M,) their predicted P(y = 1).

    Returns:
        Rows `before`, `temperature` and `platt`; columns `brier`, `calibration_in_the_large`, `calibration_slope`,
        `ici`, `ece`, `mce`.
    """
    raw = np.asarray(probability, dtype=np.float64)
    predictions = {
        "before": raw,
        "temperature": apply_temperature(raw, fit_temperature(fit_target, fit_probability)),
        "platt": fit_platt(fit_target, fit_probability).apply(raw),
    }
    true = np.asarray(target, dtype=np.float64)
    return pd.DataFrame({name: _summary(true, one) for name, one in predictions.items()}).T


def _summary(target: FloatArray, probability: FloatArray) -> dict[str, float]:
    weights = np.ones((1, len(target)))
    ece, mce = weighted_ece(target, probability, weights)
    return {
        "brier": float(np.mean((probability - target) ** 2)),
        "calibration_in_the_large": float(weighted_intercept(target, probability, weights)[0]),
        "calibration_slope": float(weighted_slope(target, probability, weights)[1][0]),
        "ici": float(weighted_ici(target, probability, weights)[0]),
        "ece": float(ece[0]),
        "mce": float(mce[0]),
    }


def _bin_of(probability: FloatArray, num_bins: int) -> NDArray[np.intp]:
    """Return the bin of each row. Edges are compared, not multiplied: 0.3 * 10 rounds below 3 for some."""
    edges = np.arange(1, num_bins) / num_bins
    bins: NDArray[np.intp] = np.searchsorted(edges, probability, side="right")
    return bins


def _risk(odds: FloatArray) -> FloatArray:
    """Turn log odds into risks in place, twice as fast as `expit`."""
    with np.errstate(over="ignore"):
        np.exp(np.negative(odds, out=odds), out=odds)
    odds += 1
    return np.reciprocal(odds, out=odds)

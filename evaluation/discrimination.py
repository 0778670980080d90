"""How well scores rank participants with the outcome above those without: ROC areas and average precision."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import expit, logit

from evaluation.estimate import CONFIDENCE, FloatArray, PairedTest


@dataclass(frozen=True)
class Auc:
    """An area under the ROC curve with DeLong's variance.

    Args:
        auc: The area; NaN where a class is missing.
        variance: Its variance; NaN where a class has fewer than two participants.
        low: Lower end of the interval; None where the variance is zero or undefined.
        high: Upper end of the interval; None where there is none.
    """

    auc: float
    variance: float
    low: float | None
    high: float | None


def auroc(target: ArrayLike, score: ArrayLike) -> float:
    """Compute the area under the ROC curve, ties counting half.

    Args:
        target: (N,) 0 or 1.
        score: (N,) higher where 1 is more likely.

    Returns:
        The area; NaN where a class is missing.

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    true, scores = _arrays(target, score)
    return float(weighted_auroc(true, scores, np.ones((1, len(true))))[0])


def weighted_auroc(target: ArrayLike, score: ArrayLike, weights: FloatArray) -> FloatArray:
    """Compute the area under the ROC curve for many weightings of the same rows.

    Args:
        target: (N,) 0 or 1.
        score: (N,) higher where 1 is more likely.
        weights: (R, N) weight of each row in each replicate.

    Returns:
        (R,) areas, NaN where a class has no weight.

    >>> weighted_auroc([0, 0, 1], [0.1, 0.9, 0.5], np.array([[1.0, 1.0, 1.0], [3.0, 1.0, 1.0]]))
    array([0.5 , 0.75])
    """
    positive, negative = _weights_of_levels(*_arrays(target, score), weights)
    return _area(positive, negative)


def weighted_ranking(target: ArrayLike, score: ArrayLike, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compute the area under the ROC curve and the average precision for many weightings of the same rows.

    Args:
        target: (N,) 0 or 1.
        score: (N,) higher where 1 is more likely.
        weights: (R, N) weight of each row in each replicate.

    Returns:
        (R,) areas and (R,) average precisions (the step function, tied scores as one step), NaN where undefined.
    """
    positive, negative = _weights_of_levels(*_arrays(target, score), weights)
    true_positive = np.cumsum(positive[:, ::-1], axis=1)
    called = true_positive + np.cumsum(negative[:, ::-1], axis=1)
    precision = np.divide(true_positive, called, out=np.zeros_like(called), where=called > 0)
    with np.errstate(invalid="ignore"):
        average = np.einsum("rl,rl->r", precision, positive[:, ::-1]) / positive.sum(axis=1)
    return _area(positive, negative), average


def delong(
    target: ArrayLike,
    score: ArrayLike,
    confidence: float = CONFIDENCE,
    scale: Literal["logit", "plain"] = "logit",
) -> Auc:
    """Compute the area under the ROC curve with DeLong's variance.

    Args:
        target: (N,) 0 or 1, one row per participant.
        score: (N,) higher where 1 is more likely.
        confidence: Coverage of the interval.
        scale: Scale on which the interval is symmetric: the log odds of the area, so that it stays between 0 and 1, or
            the area itself (cut at 0 and 1).

    References:
        DeLong ER, DeLong DM, Clarke-Pearson DL. Biometrics 1988;44:837-845. doi:10.2307/2531595
        Sun X, Xu W. IEEE Signal Processing Letters 2014;21:1389-1393. doi:10.1109/LSP.2014.2337313

    >>> result = delong([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.6, 0.5, 0.7, 0.9])
    >>> round(result.auc, 4), round(result.variance, 4)
    (0.8889, 0.0247)
    """
    true, scores = _arrays(target, score)
    areas, covariance = _delong(true, scores[None])
    auc, variance = float(areas[0]), float(covariance[0, 0])
    if not variance > 0:
        return Auc(auc, variance, None, None)
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt(variance)
    if scale == "plain":
        return Auc(auc, variance, max(0.0, auc - reach), min(1.0, auc + reach))
    reach /= auc * (1 - auc)
    return Auc(auc, variance, float(expit(logit(auc) - reach)), float(expit(logit(auc) + reach)))


def delong_paired(
    target: ArrayLike, score_a: ArrayLike, score_b: ArrayLike, confidence: float = CONFIDENCE
) -> PairedTest:
    """Test whether two fixed models rank the same participants equally well.

    Args:
        target: (N,) 0 or 1, one row per participant.
        score_a: (N,) scores of model A.
        score_b: (N,) scores of model B.
        confidence: Coverage of the interval of B - A.

    Returns:
        The difference with an interval and a p-value from the normal distribution.

    References:
        DeLong ER, DeLong DM, Clarke-Pearson DL. Biometrics 1988;44:837-845. doi:10.2307/2531595
    """
    true, first = _arrays(target, score_a)
    areas, covariance = _delong(true, np.stack([first, np.asarray(score_b, dtype=np.float64)]))
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    variance = variance if variance > 1e-15 else 0.0  # equal rankings: what is left is rounding
    return _test(float(areas[1] - areas[0]), variance, math.inf, confidence, "DeLong, paired")


def delong_unpaired(
    target_a: ArrayLike,
    score_a: ArrayLike,
    target_b: ArrayLike,
    score_b: ArrayLike,
    confidence: float = CONFIDENCE,
) -> PairedTest:
    """Test whether scores rank two separate groups of participants equally well.

    Args:
        target_a: (N,) 0 or 1, one row per participant of group A.
        score_a: (N,) their scores.
        target_b: (M,) 0 or 1, one row per participant of group B.
        score_b: (M,) their scores.
        confidence: Coverage of the interval of B - A.

    Returns:
        The difference with an interval and a p-value from Student's t, degrees of freedom as Welch's.

    References:
        Robin X, Turck N, Hainard A, et al. BMC Bioinformatics 2011;12:77. doi:10.1186/1471-2105-12-77
    """
    first, second = _arrays(target_a, score_a), _arrays(target_b, score_b)
    areas_a, covariance_a = _delong(first[0], first[1][None])
    areas_b, covariance_b = _delong(second[0], second[1][None])
    a, b = float(covariance_a[0, 0]), float(covariance_b[0, 0])
    spread = a**2 / (len(first[0]) - 1) + b**2 / (len(second[0]) - 1)
    degrees = (a + b) ** 2 / spread if spread > 0 else math.nan
    return _test(float(areas_b[0] - areas_a[0]), a + b, degrees, confidence, "DeLong, unpaired")


def _arrays(target: ArrayLike, score: ArrayLike) -> tuple[FloatArray, FloatArray]:
    return np.asarray(target, dtype=np.float64), np.asarray(score, dtype=np.float64)


def _weights_of_levels(target: FloatArray, score: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Sum the weights of both classes over rows of equal score: (R, levels) each, scores ascending."""
    if len(score) == 0:
        return np.zeros((len(weights), 0)), np.zeros((len(weights), 0))
    order = np.argsort(score, kind="stable")
    ordered, is_positive = weights[:, order], target[order] == 1
    positive, negative = ordered * is_positive, ordered * ~is_positive
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    if len(starts) == len(score):
        return positive, negative
    return np.add.reduceat(positive, starts, axis=1), np.add.reduceat(negative, starts, axis=1)


def _area(positive: FloatArray, negative: FloatArray) -> FloatArray:
    """Return the share of pairs in which the participant with the outcome scores higher, ties half."""
    below = np.cumsum(negative, axis=1) - negative / 2
    with np.errstate(invalid="ignore"):
        area: FloatArray = np.einsum("rl,rl->r", positive, below) / (positive.sum(axis=1) * negative.sum(axis=1))
    return area


def _delong(target: FloatArray, scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the areas (K,) of K models and their covariance (K, K) from mid-ranks."""
    positive = target == 1
    m, n = int(positive.sum()), int((~positive).sum())
    if m == 0 or n == 0:
        return np.full(len(scores), np.nan), np.full((len(scores), len(scores)), np.nan)
    together = stats.rankdata(scores, axis=1)
    above = (together[:, positive] - stats.rankdata(scores[:, positive], axis=1)) / n
    below = 1 - (together[:, ~positive] - stats.rankdata(scores[:, ~positive], axis=1)) / m
    return above.mean(axis=1), _covariance_of_mean(above) + _covariance_of_mean(below)


def _covariance_of_mean(placements: FloatArray) -> FloatArray:
    """Return the covariance (K, K) of the means of K rows of placements, NaN for a single column."""
    num_models, num_columns = placements.shape
    if num_columns < 2:
        return np.full((num_models, num_models), np.nan)
    covariance: NDArray[np.float64] = np.atleast_2d(np.cov(placements)) / num_columns
    return covariance


def _test(difference: float, variance: float, degrees: float, confidence: float, name: str) -> PairedTest:
    if not variance > 0:
        # Two rankings without any variance between them do not differ, or differ beyond what DeLong can say.
        return PairedTest(difference, None, None, 1.0 if difference == 0 else math.nan, name)
    law = stats.norm() if math.isinf(degrees) else stats.t(degrees)
    error = math.sqrt(variance)
    reach, p_value = float(law.ppf((1 + confidence) / 2)) * error, float(2 * law.sf(abs(difference) / error))
    return PairedTest(difference, difference - reach, difference + reach, p_value, name)

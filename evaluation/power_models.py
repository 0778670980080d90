"""How the metrics of two models vary together on the same participants, under the simplest model of each metric.

A planned study has no scores yet, so each metric has a model of them: for an area under the ROC curve, scores that are
normal in both classes; for an error in the target's unit, normal errors; for shares of right decisions, decisions cut
from normal scores. What two models make of the same participant correlates, and that correlation is an argument.

References:
    Hanley JA, McNeil BJ. Radiology 1982;143:29-36. doi:10.1148/radiology.143.1.7063747
    Hanley JA, McNeil BJ. Radiology 1983;148:839-843. doi:10.1148/radiology.148.3.6878708
    Obuchowski NA, McClish DK. Statistics in Medicine 1997;16:1529-1542.
        doi:10.1002/(SICI)1097-0258(19970715)16:13<1529::AID-SIM565>3.0.CO;2-H
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from typing_extensions import override

from evaluation.estimate import FloatArray

EVENTS, OTHERS = 0, 1  # places of the classes in the counts of a site: with the outcome, and without
NUM_NODES = 64  # of the quadrature; 1e-9 for correlations up to 0.999
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(NUM_NODES)
_HALF_NORMAL = math.sqrt(2 / math.pi)  # mean of the absolute value of a standard normal number


class ScoreModel(ABC):
    """What a metric's variance rests on: a mean over all combinations of one participant of each class."""

    task = "binary"
    larger_is_better = True

    @abstractmethod
    def shared(
        self, a: float, b: float, correlation: float, classes: Collection[int], counts: Sequence[float]
    ) -> float:
        """Return the covariance of two models' terms of the mean that have the participants of some classes in common.

        Args:
            a: Expected metric of one model.
            b: Expected metric of the other.
            correlation: Correlation of their scores within a class; 1 for one and the same model.
            classes: Which classes' participants the terms have in common; at least one.
            counts: Participants of each class at the site.
        """

    @abstractmethod
    def terms(self, noise: FloatArray, value: float, counts: Sequence[int]) -> tuple[FloatArray, list[FloatArray]]:
        """Return the metric of drawn scores, and what each participant adds to it.

        Args:
            noise: (..., N) standard normal numbers, one for each participant, class by class.
            value: Expected metric.
            counts: Participants of each class.

        Returns:
            (...) metrics, and for each class (..., n) terms whose mean, less that of all cohorts, adds to the metric.
        """

    def pairs(self, noise: FloatArray, value: float, weights: Sequence[FloatArray]) -> FloatArray:
        """Return (...) sums over all pairs of participants of two classes of the pair's term and of both weights.

        Args:
            noise: As of `terms`.
            value: Expected metric.
            weights: For each class (..., n) weights of its participants.
        """
        return np.zeros(noise.shape[:-1])

    def can_be(self, value: float) -> bool:
        """Whether the metric of a model better than nothing may be this."""
        return 0 < value < 1


class RankingModel(ScoreModel):
    """The area under the ROC curve of scores that are normal in both classes, with one variance."""

    @override
    def shared(
        self, a: float, b: float, correlation: float, classes: Collection[int], counts: Sequence[float]
    ) -> float:
        return covariance_of_events(a, b, correlation if len(classes) == 2 else correlation / 2)

    @override
    def terms(self, noise: FloatArray, value: float, counts: Sequence[int]) -> tuple[FloatArray, list[FloatArray]]:
        scores, events = _separated(noise, value, counts[EVENTS]), counts[EVENTS]
        order = scores.argsort(axis=-1)
        is_event = order < events
        passed = np.where(is_event, (~is_event).cumsum(axis=-1), is_event.cumsum(axis=-1))  # of the other class
        lower = np.empty(scores.shape)
        np.put_along_axis(lower, order, passed, axis=-1)
        below = lower[..., :events] / counts[OTHERS]
        above = 1 - lower[..., events:] / events
        return below.mean(axis=-1), [below, above]

    @override
    def pairs(self, noise: FloatArray, value: float, weights: Sequence[FloatArray]) -> FloatArray:
        events = weights[EVENTS].shape[-1]
        order = _separated(noise, value, events).argsort(axis=-1)
        is_event = order < events
        ranked = np.take_along_axis(np.broadcast_to(np.concatenate(weights, axis=-1), noise.shape), order, axis=-1)
        total: FloatArray = (ranked * is_event * (ranked * ~is_event).cumsum(axis=-1)).sum(axis=-1)
        return total

    @override
    def can_be(self, value: float) -> bool:
        return 0.5 <= value < 1


@dataclass(frozen=True)
class DecisionModel(ScoreModel):
    """A share of right decisions; those of a class are right equally often in both where both count.

    Args:
        weighting: How the classes enter: in proportion to their participants, alike, or one of them alone.
    """

    weighting: str

    @override
    def shared(
        self, a: float, b: float, correlation: float, classes: Collection[int], counts: Sequence[float]
    ) -> float:
        weights = self._weights(counts)
        return covariance_of_events(a, b, correlation) * sum(weights[one] ** 2 for one in classes)

    @override
    def terms(self, noise: FloatArray, value: float, counts: Sequence[int]) -> tuple[FloatArray, list[FloatArray]]:
        events, weights = counts[EVENTS], self._weights(counts)
        right = (noise < ndtri(value)).astype(np.float64)
        found = [weights[EVENTS] * right[..., :events], weights[OTHERS] * right[..., events:]]
        return found[EVENTS].mean(axis=-1) + found[OTHERS].mean(axis=-1), found

    def _weights(self, counts: Sequence[float]) -> tuple[float, float]:
        fixed = {"events": (1.0, 0.0), "others": (0.0, 1.0), "alike": (0.5, 0.5)}
        whole = sum(counts)
        return fixed.get(self.weighting, (counts[EVENTS] / whole, counts[OTHERS] / whole))


@dataclass(frozen=True)
class ErrorModel(ScoreModel):
    """The mean absolute error of normal errors without bias.

    Args:
        spread: Standard deviation of the absolute errors of one model, as a multiple of their mean; that of normal
            errors by default.
    """

    spread: float = math.sqrt(math.pi / 2 - 1)
    task = "regression"
    larger_is_better = False

    @override
    def shared(
        self, a: float, b: float, correlation: float, classes: Collection[int], counts: Sequence[float]
    ) -> float:
        r = min(correlation, 1.0)
        alike = (math.sqrt(1 - r * r) + r * math.asin(r) - 1) / (math.pi / 2 - 1)  # correlation of absolute values
        return alike * self.spread**2 * a * b

    @override
    def terms(self, noise: FloatArray, value: float, counts: Sequence[int]) -> tuple[FloatArray, list[FloatArray]]:
        errors = value * (1 + self.spread * (np.abs(noise) - _HALF_NORMAL) / math.sqrt(1 - _HALF_NORMAL**2))
        return errors.mean(axis=-1), [errors]

    @override
    def can_be(self, value: float) -> bool:
        return value > 0


MODELS: Mapping[str, ScoreModel] = {
    "auroc": RankingModel(),
    "accuracy": DecisionModel("whole"),
    "balanced_accuracy": DecisionModel("alike"),
    "sensitivity": DecisionModel("events"),
    "specificity": DecisionModel("others"),
    "mae": ErrorModel(),
}


def covariance_of_events(a: float, b: float, correlation: float) -> float:
    """Return the covariance of "the first is above its limit" and "the second is", of two correlated normal numbers.

    It is the integral of the bivariate normal density over the correlation, from none to this one.

    Args:
        a: Probability of the first event.
        b: Probability of the second.
        correlation: Correlation of the two numbers, from 0 to 1.

    References:
        Plackett RL. Biometrika 1954;41:351-360. doi:10.1093/biomet/41.3-4.351

    >>> round(covariance_of_events(0.5, 0.5, 1.0), 9), round(covariance_of_events(0.7, 0.7, 1.0), 9)
    (0.25, 0.21)
    >>> covariance_of_events(0.7, 0.8, 0.0)
    0.0
    """
    h, k = float(ndtri(a)), float(ndtri(b))
    end = math.asin(min(correlation, 1.0))
    sine = np.sin(end * (_NODES + 1) / 2)
    # (h^2 - 2 h k s + k^2) / (1 - s^2), written so that it stays finite where s is 1 and h is k
    exponent = (h - k) ** 2 / (2 * (1 - sine**2)) + h * k / (1 + sine)
    return float(end / 2 * (_WEIGHTS @ np.exp(-exponent)) / (2 * math.pi))


def _separated(noise: FloatArray, value: float, num_events: int) -> FloatArray:
    """Return scores by which participants with the outcome, the first ones, rank above the others as they should."""
    scores = noise.copy()
    scores[..., :num_events] += math.sqrt(2) * float(ndtri(value))
    return scores

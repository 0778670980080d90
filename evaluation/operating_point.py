"""Where a probability becomes a decision, and how good the decisions are.

Temperature and threshold are fitted on validation rows, never on test rows.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from evaluation.estimate import CONFIDENCE, FloatArray

DEFAULT_THRESHOLD = 0.5
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
EPSILON = 1e-7  # what single precision tells from 0 and 1
NUM_SPREAD_REPLICATES = 200  # enough for the spread of a threshold

Rule = Literal["youden", "sensitivity"]


@dataclass(frozen=True)
class OperatingPoint:
    """A temperature and a threshold with its spread.

    Args:
        threshold: A probability after the temperature from which on the decision is 1.
        temperature: What the log odds are divided by.
        fold_thresholds: The threshold that each fold alone would have given (folds that hold both classes).
        threshold_sd: Standard deviation of the threshold over bootstrap replicates.
        threshold_low: Their 2.5th percentile.
        threshold_high: Their 97.5th percentile.
        num_rows: Number of rows it was fitted on.
    """

    threshold: float
    temperature: float
    fold_thresholds: tuple[float, ...]
    threshold_sd: float
    threshold_low: float
    threshold_high: float
    num_rows: int


@dataclass(frozen=True)
class Confusion:
    """How many decisions were right and wrong.

    Args:
        true_positives: Decision 1, outcome 1.
        false_positives: Decision 1, outcome 0.
        false_negatives: Decision 0, outcome 1.
        true_negatives: Decision 0, outcome 0.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int


def confusion(target: ArrayLike, decision: ArrayLike) -> Confusion:
    """Count decisions.

    Args:
        target: (N,) 0 or 1.
        decision: (N,) 0 or 1.

    >>> confusion([1, 1, 0, 0], [1, 0, 0, 0])
    Confusion(true_positives=1, false_positives=0, false_negatives=1, true_negatives=2)
    """
    true, called = np.asarray(target, dtype=bool), np.asarray(decision, dtype=bool)
    cells = (true & called, ~true & called, true & ~called, ~true & ~called)
    return Confusion(*(int(cell.sum()) for cell in cells))


def weighted_decisions(target: FloatArray, decision: FloatArray, weights: FloatArray) -> dict[str, FloatArray]:
    """Compute the metrics of decisions for many weightings of the same rows.

    Args:
        target: (N,) 0 or 1.
        decision: (N,) 0 or 1.
        weights: (R, N) weight of each row in each replicate.

    Returns:
        (R,) each of `balanced_accuracy`, `accuracy`, `f1`, `mcc`, `sensitivity`, `specificity`, `ppv`, `npv`; NaN where
        nothing stands below the fraction line.

    References:
        Matthews BW. Biochimica et Biophysica Acta 1975;405:442-451. doi:10.1016/0005-2795(75)90109-9
    """
    cells = np.stack(
        [target * decision, (1 - target) * decision, target * (1 - decision), (1 - target) * (1 - decision)], axis=1
    )
    tp, fp, fn, tn = (weights @ cells).T
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        return {
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
            "f1": 2 * tp / (2 * tp + fp + fn),
            "mcc": (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
            "sensitivity": sensitivity,
            "specificity": specificity,
            "ppv": tp / (tp + fp),
            "npv": tn / (tn + fn),
        }


def wilson(successes: float, total: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion.

    References:
        Wilson EB. Journal of the American Statistical Association 1927;22:209-212. doi:10.2307/2276774

    >>> [round(end, 4) for end in wilson(81, 263)]
    [0.2553, 0.3662]
    """
    z = float(stats.norm.ppf((1 + confidence) / 2))
    centre = (successes + z**2 / 2) / (total + z**2)
    reach = z / (total + z**2) * float(np.sqrt(successes * (1 - successes / total) + z**2 / 4))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def log_odds(probability: ArrayLike) -> FloatArray:
    """Return log odds; probabilities nearer to 0 and 1 than single precision tells are taken for its last step."""
    odds: FloatArray = logit(np.clip(np.asarray(probability, dtype=np.float64), EPSILON, 1 - EPSILON))
    return odds


def fit_temperature(target: ArrayLike, probability: ArrayLike, prior_sd: float = np.inf) -> float:
    """Find the temperature that makes probabilities most likely.

    Args:
        target: (N,) 0 or 1.
        probability: (N,) P(y = 1) before the temperature.
        prior_sd: Standard deviation of the logarithm of the temperature around 0, as a Gaussian prior. A dozen rows
            that a model happens to separate would otherwise turn every probability into 0 or 1; hundreds outweigh it.

    Returns:
        The temperature, at most 20 and at least 0.05; 1 where a class is missing.

    References:
        Guo C, Pleiss G, Sun Y, Weinberger KQ. ICML 2017. arXiv:1706.04599

    >>> round(fit_temperature([0, 0, 1, 0, 1, 1, 1, 0], [0.1] * 4 + [0.9] * 4), 3)
    2.0
    >>> separated = [0, 0, 1, 1], [0.4, 0.4, 0.6, 0.6]
    >>> round(fit_temperature(*separated), 3), round(fit_temperature(*separated, prior_sd=0.5), 3)
    (0.05, 0.831)
    """
    true, odds = np.asarray(target, dtype=np.float64), log_odds(probability)
    if not _both_classes(true):
        return 1.0
    sign = 2 * true - 1

    def loss(log_temperature: float) -> float:
        """Return the negative log likelihood, less the logarithm of the prior."""
        unlikely = float(np.logaddexp(0, -sign * odds * np.exp(-log_temperature)).sum())
        return unlikely + 0.5 * (log_temperature / prior_sd) ** 2

    limits = (float(np.log(MIN_TEMPERATURE)), float(np.log(MAX_TEMPERATURE)))
    found = float(minimize_scalar(loss, bounds=limits, method="bounded", options={"xatol": 1e-9}).x)
    best = min((found, *limits), key=loss)  # a bounded search never quite reaches its bounds
    return float(np.clip(np.exp(best), MIN_TEMPERATURE, MAX_TEMPERATURE))


def apply_temperature(probability: ArrayLike, temperature: float) -> FloatArray:
    """Divide the log odds of probabilities by a temperature.

    Args:
        probability: Any shape, P(y = 1).
        temperature: Positive; 1 changes nothing.

    >>> apply_temperature([0.1, 0.5, 0.9], 2.0).round(3)
    array([0.25, 0.5 , 0.75])
    """
    if temperature == 1:
        return np.array(probability, dtype=np.float64)
    cooled: FloatArray = expit(log_odds(probability) / temperature)
    return cooled


def choose_threshold(
    target: ArrayLike, probability: ArrayLike, rule: Rule = "youden", sensitivity: float = 0.9
) -> float:
    """Choose the probability from which on the decision is 1.

    Args:
        target: (N,) 0 or 1.
        probability: (N,) P(y = 1) after the temperature.
        rule: `youden` for the largest sensitivity + specificity, of equally good ones that nearest to 0.5;
            `sensitivity` for the largest specificity at a sensitivity of at least `sensitivity`.
        sensitivity: The sensitivity that the second rule asks for.

    Returns:
        The middle between two neighbouring probabilities, so that nobody stands on the threshold (under the second
        rule, where all must be called, the middle between 0 and the lowest); 0.5 where a class is missing or all
        probabilities are equal.

    References:
        Youden WJ. Cancer 1950;3:32-35. doi:10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3

    >>> choose_threshold([0, 0, 1, 0, 1, 1], [0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
    0.6
    >>> choose_threshold([0, 0, 1, 0, 1, 1], [0.1, 0.2, 0.3, 0.5, 0.7, 0.9], rule="sensitivity")
    0.25
    """
    true, scores = np.asarray(target, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    levels, level_of_row = np.unique(scores, return_inverse=True)
    if not _both_classes(true) or len(levels) < 2:
        return DEFAULT_THRESHOLD
    missed = np.cumsum(np.bincount(level_of_row, weights=true))[:-1]
    spared = np.cumsum(np.bincount(level_of_row, weights=1 - true))[:-1]
    middles = (levels[:-1] + levels[1:]) / 2
    middles = np.where(middles > levels[:-1], middles, levels[1:])  # neighbouring floats have no middle
    caught = 1 - missed / true.sum()
    if rule == "sensitivity":
        allowed = middles[caught >= sensitivity - 1e-12]
        return float(allowed[-1] if len(allowed) else levels[0] / 2)
    gain = caught + spared / (1 - true).sum()
    best = middles[gain >= gain.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - DEFAULT_THRESHOLD))])


def pooled_operating_point(
    target: ArrayLike,
    probability: ArrayLike,
    fold: ArrayLike,
    rule: Rule = "youden",
    sensitivity: float = 0.9,
    *,
    num_replicates: int = NUM_SPREAD_REPLICATES,
    seed: int = 0,
) -> OperatingPoint:
    """Fit a temperature, then a threshold, on the pooled out-of-fold scores of inner folds.

    One small validation part is too noisy to choose a threshold; all inner folds together are less so.

    Args:
        target: (N,) 0 or 1, one row per participant.
        probability: (N,) P(y = 1) before the temperature, from the model that did not see the participant.
        fold: (N,) inner fold of each row.
        rule: As in `choose_threshold`.
        sensitivity: As in `choose_threshold`.
        num_replicates: Bootstrap replicates (temperature and threshold fitted anew, classes resampled apart) behind
            the spread of the threshold.
        seed: Seed of the bootstrap.
    """
    true, raw, folds = np.asarray(target, dtype=np.float64), np.asarray(probability, dtype=np.float64), np.asarray(fold)
    temperature = fit_temperature(true, raw)
    cooled = apply_temperature(raw, temperature)
    members = [np.flatnonzero(folds == name) for name in np.unique(folds)]
    own = [choose_threshold(true[one], cooled[one], rule, sensitivity) for one in members if _both_classes(true[one])]
    drawn = [_threshold(true[rows], raw[rows], rule, sensitivity) for rows in _draws(true, num_replicates, seed)]
    low, high = np.quantile(drawn, [0.025, 0.975]) if drawn else (np.nan, np.nan)
    return OperatingPoint(
        threshold=choose_threshold(true, cooled, rule, sensitivity),
        temperature=temperature,
        fold_thresholds=tuple(own),
        threshold_sd=float(np.std(drawn, ddof=1)) if len(drawn) > 1 else float("nan"),
        threshold_low=float(low),
        threshold_high=float(high),
        num_rows=len(true),
    )


def _threshold(target: FloatArray, probability: FloatArray, rule: Rule, sensitivity: float) -> float:
    cooled = apply_temperature(probability, fit_temperature(target, probability))
    return choose_threshold(target, cooled, rule, sensitivity)


def _draws(target: FloatArray, num_replicates: int, seed: int) -> list[NDArray[np.intp]]:
    """Return rows drawn with replacement inside each class."""
    generator = np.random.default_rng(seed)
    classes = [rows for label in (0, 1) if len(rows := np.flatnonzero(target == label))]
    return [np.concatenate([generator.choice(rows, len(rows)) for rows in classes]) for _ in range(num_replicates)]


def _both_classes(target: FloatArray) -> bool:
    return bool((target == 1).any() and (target == 0).any())

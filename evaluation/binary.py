"""Metrics of a binary outcome as functions of row weights: one code for the estimate and its bootstrap."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from evaluation.calibration import weighted_ece, weighted_ici, weighted_intercept, weighted_slope
from evaluation.design import Design, DesignError
from evaluation.discrimination import delong, weighted_auroc, weighted_ranking
from evaluation.estimate import Estimate, FloatArray, Statistic, bootstrap
from evaluation.operating_point import DEFAULT_THRESHOLD, weighted_decisions, wilson
from evaluation.regression import Metric

PRIMARY = "auroc"
METRICS: Mapping[str, Metric] = {
    name: Metric(label, in_unit=False, digits=3, larger_is_better=better)
    for name, label, better in (
        ("auroc", "Area under the ROC curve", True),
        ("auprc", "Average precision", True),
        ("balanced_accuracy", "Balanced accuracy", True),
        ("accuracy", "Accuracy", True),
        ("f1", "F1 score", True),
        ("mcc", "Matthews correlation", True),
        ("sensitivity", "Sensitivity", True),
        ("specificity", "Specificity", True),
        ("ppv", "Positive predictive value", True),
        ("npv", "Negative predictive value", True),
        ("brier", "Brier score", False),
        ("scaled_brier", "Scaled Brier score", True),
        ("prevalence", "Prevalence", None),
        ("oe_ratio", "Observed / expected events", None),
        ("calibration_in_the_large", "Calibration-in-the-large", None),
        ("calibration_slope", "Calibration slope", None),
        ("ici", "Integrated calibration index", False),
        ("ece", "Expected calibration error", False),
        ("mce", "Maximum calibration error", False),
    )
}
SLOW = ("ici",)  # a smooth curve for every replicate: given where it is asked for by name
QUICK = tuple(name for name in METRICS if name not in SLOW)
MAX_SLOW_REPLICATES = 200
DISTANCES = ("ici", "ece", "mce")  # resampling adds to them what chance adds to any distance
PROPORTIONS = ("accuracy", "sensitivity", "specificity", "ppv", "npv", "prevalence")
NEEDS_PREVALENCE = (
    *("ppv", "npv", "brier", "scaled_brier", "prevalence", "oe_ratio", "calibration_in_the_large", "ici", "ece", "mce"),
)

Part = Callable[[FloatArray, FloatArray, FloatArray, FloatArray], Mapping[str, FloatArray]]
"""From target, prediction, decision (N,) and weights (R, N) to named values (R,)."""


def decisions(rows: pd.DataFrame) -> FloatArray:
    """Return decisions 0 or 1 (N,): whether the prediction reaches the threshold, which is 0.5 where there is none."""
    limit = rows["threshold"] if "threshold" in rows else pd.Series(np.nan, index=rows.index)
    reached = rows["prediction"] >= limit.fillna(DEFAULT_THRESHOLD)
    return np.asarray(reached, dtype=np.float64)


def statistic(rows: pd.DataFrame, names: Collection[str] | None = None, design: Design | None = None) -> Statistic:
    """Return the metrics of one run as a function of row weights, for estimates and bootstraps of any kind.

    Args:
        rows: Rows of one run, as `scored_rows` gives them: `target`, `prediction` and, where there is one, `threshold`.
        names: The metrics wanted; by default all but `ici`, which takes a millisecond for each replicate. Only what is
            wanted is computed.
        design: Design of the study; by default a cohort. Rows are re-weighted to its prevalence, and what a
            case-control study cannot give without one is NaN.

    >>> rows = pd.DataFrame({"target": [0.0, 0.0, 1.0], "prediction": [0.1, 0.6, 0.8]})
    >>> {name: float(value[0]) for name, value in statistic(rows, ["ppv", "auroc"])(np.ones((1, 3))).items()}
    {'auroc': 1.0, 'ppv': 0.5}
    """
    plan = design or Design()
    true, predicted = rows["target"].to_numpy(np.float64), rows["prediction"].to_numpy(np.float64)
    decided = decisions(rows)
    wanted = [name for name in METRICS if name in (QUICK if names is None else names)]
    refused = () if plan.knows_risks else NEEDS_PREVALENCE
    parts = [part for part, given in _PARTS.items() if any(name in given for name in wanted if name not in refused)]
    if _area_and_precision in parts and "auprc" not in wanted:
        parts[parts.index(_area_and_precision)] = _area

    def values(weights: FloatArray) -> dict[str, FloatArray]:
        """Compute the metrics of each replicate."""
        found: dict[str, FloatArray] = {name: np.full(len(weights), np.nan) for name in refused}
        own = plan.reweight(true, weights)
        for part in parts:
            found |= {name: value for name, value in part(true, predicted, decided, own).items() if name not in refused}
        return {name: found[name] for name in wanted}

    return values


def assess_binary(
    rows: pd.DataFrame, *, num_replicates: int, seed: int, unit: str | None = None, design: Design | None = None
) -> dict[str, Estimate]:
    """Compute the metrics of a binary outcome with their intervals, each metric per run and then averaged.

    Participants are resampled with all their rows, those with and without the outcome apart, so that bootstrap
    intervals hold at the prevalence given; those of `ici`, `ece` and `mce` are centred on the estimate, because
    resampling inflates them. Where one model scored each participant once, the area under the ROC curve has DeLong's
    interval (on the log odds of the area) and proportions have Wilson's.

    Args:
        rows: As `scored_rows` gives them.
        num_replicates: Bootstrap replicates; 0 gives no intervals. The integrated calibration index takes at most 200.
        seed: Seed of the bootstrap.
        unit: A binary outcome has none.
        design: Design of the study; by default a cohort.

    Raises:
        DesignError: A unit is given.
    """
    if unit:
        raise DesignError(f"A binary outcome has no unit, and '{unit}' was given. Leave it out.")
    plan = design or Design()
    metrics: dict[str, Estimate] = {}
    for names, replicates in ((QUICK, num_replicates), (SLOW, min(num_replicates, MAX_SLOW_REPLICATES))):
        metrics |= bootstrap(
            _mean_over_runs(rows, names, plan),
            rows["participant"],
            strata=rows["target"],
            centred=DISTANCES,
            num_replicates=replicates,
            seed=seed,
        )
    metrics["prevalence"] = Estimate(metrics["prevalence"].estimate)  # resampled inside classes, it never varies
    if num_replicates and rows["run"].nunique() == 1 and rows["participant"].is_unique:
        metrics |= _exact_intervals(rows, metrics, plan)
    return {name: metrics[name] for name in METRICS}


def _mean_over_runs(rows: pd.DataFrame, names: Sequence[str], design: Design) -> Statistic:
    labels = rows["run"].to_numpy()
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    statistics = [statistic(rows.iloc[own], names, design) for own in members]

    def values(weights: FloatArray) -> dict[str, FloatArray]:
        """Average the metrics over the runs."""
        per_run = [one(weights[:, own]) for one, own in zip(statistics, members, strict=True)]
        return {name: np.mean([found[name] for found in per_run], axis=0) for name in names}

    return values


def _exact_intervals(rows: pd.DataFrame, metrics: Mapping[str, Estimate], design: Design) -> dict[str, Estimate]:
    """Return DeLong's interval and Wilson's where rows are independent; not of proportions that were re-weighted."""
    true, decided = rows["target"].to_numpy(np.float64), decisions(rows)
    area = delong(true, rows["prediction"])
    found = {"auroc": Estimate(metrics["auroc"].estimate, area.low, area.high, interval="DeLong")}
    totals = {
        "accuracy": len(true),
        "sensitivity": true.sum(),
        "specificity": (1 - true).sum(),
        "ppv": decided.sum(),
        "npv": (1 - decided).sum(),
        "prevalence": len(true),
    }
    of_sample = design == Design()
    for name in PROPORTIONS:
        share = metrics[name].estimate
        if np.isfinite(share) and (of_sample or name in ("sensitivity", "specificity")):
            low, high = wilson(share * float(totals[name]), float(totals[name]))
            found[name] = Estimate(share, low, high, interval="Wilson")
    return found


def _area(true: FloatArray, predicted: FloatArray, decided: FloatArray, weights: FloatArray) -> dict[str, FloatArray]:
    return {"auroc": weighted_auroc(true, predicted, weights)}


def _area_and_precision(
    true: FloatArray, predicted: FloatArray, decided: FloatArray, weights: FloatArray
) -> dict[str, FloatArray]:
    area, precision = weighted_ranking(true, predicted, weights)
    return {"auroc": area, "auprc": precision}


def _decisions(
    true: FloatArray, predicted: FloatArray, decided: FloatArray, weights: FloatArray
) -> dict[str, FloatArray]:
    return weighted_decisions(true, decided, weights)


def _risks(true: FloatArray, predicted: FloatArray, decided: FloatArray, weights: FloatArray) -> dict[str, FloatArray]:
    products = np.stack([(predicted - true) ** 2, true, predicted], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        brier, observed, expected = (weights @ products / weights.sum(axis=1, keepdims=True)).T
        uninformed = observed * (1 - observed)
        return {
            "brier": brier,
            "scaled_brier": np.where(uninformed > 0, 1 - brier / uninformed, np.nan),
            "prevalence": observed,
            "oe_ratio": np.where(expected > 0, observed / expected, np.nan),
        }


def _in_the_large(
    true: FloatArray, predicted: FloatArray, decided: FloatArray, weights: FloatArray
) -> dict[str, FloatArray]:
    return {"calibration_in_the_large": weighted_intercept(true, predicted, weights)}


def _slope(true: FloatArray, predicted: FloatArray, decided: FloatArray, weights: FloatArray) -> dict[str, FloatArray]:
    return {"calibration_slope": weighted_slope(true, predicted, weights)[1]}


def _index(true: FloatArray, predicted: FloatArray, decided: FloatArray, weights: FloatArray) -> dict[str, FloatArray]:
    return {"ici": weighted_ici(true, predicted, weights)}


def _bins(true: FloatArray, predicted: FloatArray, decided: FloatArray, weights: FloatArray) -> dict[str, FloatArray]:
    expected, largest = weighted_ece(true, predicted, weights)
    return {"ece": expected, "mce": largest}


_PARTS: Mapping[Part, Collection[str]] = {
    _area_and_precision: ("auroc", "auprc"),
    _decisions: ("balanced_accuracy", "accuracy", "f1", "mcc", "sensitivity", "specificity", "ppv", "npv"),
    _risks: ("brier", "scaled_brier", "prevalence", "oe_ratio"),
    _in_the_large: ("calibration_in_the_large",),
    _slope: ("calibration_slope",),
    _index: ("ici",),
    _bins: ("ece", "mce"),
}

"""What decisions at a threshold are worth: net benefit of a model against treating everybody or nobody."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from evaluation.design import Design
from evaluation.estimate import NUM_REPLICATES, FloatArray, bootstrap

THRESHOLDS: Sequence[float] = tuple(step / 100 for step in range(1, 100))


def net_benefit(
    target: ArrayLike, prediction: ArrayLike, thresholds: ArrayLike, prevalence: float | None = None
) -> FloatArray:
    """Compute TP / N - FP / N * t / (1 - t) at each threshold t, decision 1 from t on.

    Args:
        target: (N,) 0 or 1.
        prediction: (N,) predicted P(y = 1), or the decisions 0 and 1 of a test.
        thresholds: (T,) between 0 and 1, both excluded.
        prevalence: Share of events in the population meant; by default that of the rows.

    Returns:
        (T,) net benefits in events per participant.

    References:
        Vickers AJ, Elkin EB. Medical Decision Making 2006;26:565-574. doi:10.1177/0272989X06295361

    >>> net_benefit([1, 0, 0, 0], [0.9, 0.6, 0.1, 0.1], [0.2, 0.5]).round(4)
    array([0.1875, 0.    ])
    """
    true, predicted = np.asarray(target, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    design = Design(prevalence=prevalence)
    benefit = _net_benefit(true, predicted, _checked(thresholds), design.reweight(true, np.ones((1, len(true)))))
    return benefit.reshape(-1)


def decision_curve(
    target: ArrayLike,
    prediction: ArrayLike,
    *,
    participant_id: ArrayLike | None = None,
    run: ArrayLike | None = None,
    thresholds: ArrayLike = THRESHOLDS,
    design: Design | None = None,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute a decision curve with its bootstrap band.

    Args:
        target: (N,) 0 or 1.
        prediction: (N,) predicted P(y = 1).
        participant_id: (N,) whose row it is; participants are resampled with all their rows, those with and without the
            outcome apart. Each row one by default.
        run: (N,) label of the model; net benefit is computed per run, then averaged. One run by default.
        thresholds: (T,) between 0 and 1, both excluded.
        design: Design of the study; by default a cohort.
        num_replicates: Bootstrap replicates; 0 gives no band.
        seed: Seed of the bootstrap.

    Returns:
        One row per threshold: `threshold`, `net_benefit`, `net_benefit_low`, `net_benefit_high` (95 %, pointwise, at
        the prevalence given; NaN without a band), `treat_all`, `treat_none`, and `interventions_avoided` per 100
        participants compared with treating all, at equal net benefit.

    Raises:
        DesignError: The design is case-control and no prevalence is stated.
    """
    plan = design or Design()
    plan.require_risks("a decision curve")
    true, predicted = np.asarray(target, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    limits = _checked(thresholds)
    labels = np.zeros(len(true)) if run is None else np.asarray(run)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def curve(predictions: FloatArray, weights: FloatArray) -> FloatArray:
        """Average the net benefit (R, T) over the runs."""
        per_run = [
            _net_benefit(true[rows], predictions[rows], limits, plan.reweight(true[rows], weights[:, rows]))
            for rows in members
        ]
        averaged: FloatArray = np.mean(per_run, axis=0)
        return averaged

    def statistic(weights: FloatArray) -> dict[str, FloatArray]:
        """Name the net benefit of each threshold."""
        return {str(index): column for index, column in enumerate(curve(predicted, weights).T)}

    groups = np.arange(len(true)) if participant_id is None else participant_id
    values = list(bootstrap(statistic, groups, strata=true, num_replicates=num_replicates, seed=seed).values())
    table = pd.DataFrame({"threshold": limits, "net_benefit": [value.estimate for value in values]})
    for end in ("low", "high"):
        table[f"net_benefit_{end}"] = np.array([getattr(value, end) for value in values], dtype=np.float64)
    table["treat_all"] = curve(np.ones_like(predicted), np.ones((1, len(true))))[0]
    table["treat_none"] = 0.0
    odds = limits / (1 - limits)
    table["interventions_avoided"] = 100 * (table["net_benefit"] - table["treat_all"]) / odds
    return table


def _net_benefit(target: FloatArray, prediction: FloatArray, thresholds: FloatArray, weights: FloatArray) -> FloatArray:
    """Return net benefits (R, T) of one run."""
    called = prediction[:, None] >= thresholds
    value = called * (target[:, None] - (1 - target)[:, None] * thresholds / (1 - thresholds))
    with np.errstate(divide="ignore", invalid="ignore"):
        benefit: FloatArray = weights @ value / weights.sum(axis=1, keepdims=True)
    return benefit


def _checked(thresholds: ArrayLike) -> FloatArray:
    limits = np.asarray(thresholds, dtype=np.float64)
    if not ((limits > 0) & (limits < 1)).all():
        raise ValueError("The thresholds of a decision curve have to lie between 0 and 1, both excluded.")
    return limits

"""Curves of a binary outcome over several runs and sites, each with its band, as tables that a figure draws."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from evaluation.estimate import Estimate, FloatArray, Statistic, bootstrap
from evaluation.operating_point import log_odds
from evaluation.predictions import UNIT

GRID = np.linspace(0, 1, 101)
NUM_PLACES = 40
SPAN = 2 / 3  # of Cleveland's lowess
NUM_REPLICATES = 200  # a band on paper is no finer than that
EDGE = 0.01  # share of the predictions at either end where a smooth curve is not drawn


def weighted_roc(target: FloatArray, score: FloatArray, weights: FloatArray, grid: FloatArray = GRID) -> FloatArray:
    """Compute the ROC curve for many weightings of the same rows, straight lines across tied scores.

    Args:
        target: (N,) 0 or 1.
        score: (N,) higher where 1 is more likely.
        weights: (R, N) weight of each row in each replicate.
        grid: (G,) shares of false positives, ascending.

    Returns:
        (R, G) shares of true positives, NaN where a class has no weight.

    >>> weighted_roc(np.array([0.0, 1, 0, 1]), np.array([0.1, 0.4, 0.6, 0.9]), np.ones((1, 4)), np.array([0, 0.5, 1]))
    array([[0.5, 1. , 1. ]])
    """
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])
    own = weights[:, order]
    true_positive = np.cumsum(own * target[order], axis=1)[:, last]
    false_positive = np.cumsum(own * (1 - target[order]), axis=1)[:, last]
    curves = np.full((len(weights), len(grid)), np.nan)
    for number, (hits, alarms) in enumerate(zip(true_positive, false_positive, strict=True)):
        if hits[-1] > 0 and alarms[-1] > 0:
            x, y = np.r_[0, alarms] / alarms[-1], np.r_[0, hits] / hits[-1]
            # At a vertical step the upper end counts: np.interp takes the last of equal places.
            curves[number] = np.interp(grid, x, y)
    return curves


def roc_table(
    rows: pd.DataFrame, *, by_site: bool = False, num_replicates: int = NUM_REPLICATES, seed: int = 0
) -> pd.DataFrame:
    """Average the ROC curve vertically over the runs.

    Args:
        rows: Rows of one arm, as `scored_rows` gives them.
        by_site: Average over the sites of each run as well: for sites that were scored by models of their own.
        num_replicates: Bootstrap replicates over participants, within site and class; 0 gives no band.
        seed: Seed of the bootstrap.

    Returns:
        Columns `x` (share of false positives), `y` (share of true positives), `low`, `high`; empty where no run and
        site holds both classes.
    """
    target, score = rows["target"].to_numpy(np.float64), rows["prediction"].to_numpy(np.float64)
    groups = rows.groupby(["run", "site"] if by_site else ["run"], sort=True).indices.values()
    cells = [own for own in groups if 0 < target[own].mean() < 1]
    if not cells:
        return _table(np.empty(0), [])

    def values(weights: FloatArray) -> dict[str, FloatArray]:
        """Average the curves of the cells."""
        curves = np.mean([weighted_roc(target[own], score[own], weights[:, own]) for own in cells], axis=0)
        return {str(number): column for number, column in enumerate(curves.T)}

    table = _table(GRID, list(_bootstrap(rows, values, num_replicates, seed)))
    origin = pd.DataFrame(0.0, index=[0], columns=table.columns)
    return pd.concat([origin, table], ignore_index=True)  # a curve begins where nobody is called


def calibration_table(
    rows: pd.DataFrame, *, column: str = "prediction", num_replicates: int = NUM_REPLICATES, seed: int = 0
) -> pd.DataFrame:
    """Smooth the outcome over the predicted risk, all runs together, by local lines (lowess without robustness).

    The neighbourhoods are those of all rows, in every replicate: what is resampled is who is in them. The ends of the
    range, where 1 % of the predictions lie, are left out.

    Args:
        rows: Rows of one arm, as `scored_rows` gives them.
        column: The predicted risk.
        num_replicates: Bootstrap replicates over participants, within site and class; 0 gives no band.
        seed: Seed of the bootstrap.

    Returns:
        Columns `x` (predicted risk), `y` (share of events), `low`, `high`.

    References:
        Austin PC, Steyerberg EW. Statistics in Medicine 2014;33:517-535. doi:10.1002/sim.5941
    """
    target, risk = rows["target"].to_numpy(np.float64), rows[column].to_numpy(np.float64)
    places = np.unique(np.quantile(risk, np.linspace(0, 1, NUM_PLACES), method="nearest"))
    kernel = _kernel(places, risk)
    centred = risk - places[:, None]
    moments = [kernel, kernel * centred, kernel * centred**2, kernel * target, kernel * centred * target]

    def values(weights: FloatArray) -> dict[str, FloatArray]:
        """Return the height of each local line at its own place."""
        total, x, xx, y, xy = (weights @ moment.T for moment in moments)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean_x, mean_y = x / total, y / total
            variance = xx / total - mean_x**2
            flat = variance <= 1e-9 * np.ptp(risk) ** 2
            slope = np.where(flat, 0, (xy / total - mean_x * mean_y) / np.where(flat, 1, variance))
        heights = np.clip(mean_y - slope * mean_x, 0, 1)
        return {str(number): column for number, column in enumerate(heights.T)}

    low, high = np.quantile(risk, [EDGE, 1 - EDGE])
    table = _table(places, list(_bootstrap(rows, values, num_replicates, seed)))
    return table[table["x"].between(low, high)].reset_index(drop=True)


def ranked_by_confident_error(rows: pd.DataFrame) -> pd.DataFrame:
    """Return participants by how sure the model was of the wrong outcome, runs averaged on the log odds.

    Args:
        rows: As `scored_rows` gives them.

    Returns:
        One row per participant and session: who it is, `target`, `prediction`, `error` (distance of the predicted risk
        from the outcome), `num_runs` and `num_wrong` (runs whose decision is wrong), the largest error first.
    """
    keys = ["participant", *UNIT, "site"]
    limit = rows["threshold"].fillna(0.5) if "threshold" in rows else 0.5
    marked = rows.assign(
        odds=log_odds(rows["prediction"]), wrong=(rows["prediction"] >= limit) != (rows["target"] == 1)
    )
    groups = marked.groupby(keys, sort=True)
    table = groups.agg(target=("target", "first"), odds=("odds", "mean"), num_wrong=("wrong", "sum")).reset_index()
    table["num_runs"] = groups.size().to_numpy()
    table["prediction"] = 1 / (1 + np.exp(-table.pop("odds")))
    table["error"] = (table["prediction"] - table["target"]).abs()
    return table.sort_values("error", ascending=False, kind="stable", ignore_index=True)


def _kernel(places: FloatArray, risk: FloatArray) -> FloatArray:
    """Return the tricube weight (G, N) of each row at each place: the nearest two thirds of the rows count."""
    distance = np.abs(places[:, None] - risk)
    needed = max(int(np.floor(SPAN * len(risk) + 1e-10)), 1)
    # A little further than the farthest of them, as `evaluation.calibration` does.
    radius = 1.001 * np.partition(distance, needed - 1, axis=1)[:, needed - 1 : needed]
    tied = np.where(distance > 0, 1.0, 0.0)  # all the rows needed stand at the place itself
    scaled = np.minimum(np.divide(distance, radius, out=tied, where=radius > 0), 1)
    kernel: FloatArray = (1 - scaled**3) ** 3
    return kernel


def _bootstrap(rows: pd.DataFrame, values: Statistic, num_replicates: int, seed: int) -> Sequence[Estimate]:
    """Return estimates with bands; participants are drawn with all their rows, within site and class."""
    strata = rows.groupby(["site", "target"], sort=True).ngroup()
    found = bootstrap(values, rows["participant"], strata=strata, num_replicates=num_replicates, seed=seed)
    return list(found.values())


def _table(x: FloatArray, values: Sequence[Estimate]) -> pd.DataFrame:
    ends = {"y": [v.estimate for v in values], "low": [v.low for v in values], "high": [v.high for v in values]}
    return pd.DataFrame({"x": x, **{name: np.array(one, dtype=np.float64) for name, one in ends.items()}})

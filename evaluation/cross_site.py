"""How a model does at each site: the matrix of training and test sites, pooling over sites, and subgroups."""

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from evaluation.estimate import CONFIDENCE, NUM_REPLICATES, Estimate
from evaluation.paired import known_task, require_metrics, scored_by_several_models, statistics
from evaluation.parts import HELD_OUT_OR_UNSAID
from evaluation.prediction_checks import as_numbers, listed
from evaluation.predictions import UNIT, PredictionsError, normalise_predictions, scored_rows
from evaluation.random_effects import METHODS, HeterogeneityMethod, RandomEffects, random_effects
from evaluation.resampled import Resampled, resample, usable_parts
from evaluation.tasks import primary_of
from evaluation.wording import interval_text, join_words, number_text

CALIBRATION = {"binary": ("oe_ratio", "calibration_slope"), "regression": ("mean_bias", "bias_slope")}
MIN_POOLED = 3  # sites: with two, the variance between them is anybody's guess
MIN_EVENTS = 10  # and as many without the event; fewer say too little about a subgroup
MIN_PARTICIPANTS = 5  # an interval from fewer would promise more than it holds
MAX_LEVELS = 12  # of a column of numbers that is not cut into bins
TOO_FEW = "too few"
MISSING = "missing"  # level of participants without a value, or outside the bins


@dataclass(frozen=True)
class Pooled:
    """An AUC over several sites.

    Args:
        sites: One row per site: `site`, `num_participants`, `num_events`, `estimate`, `low`, `high`, `standard_error`.
        effects: Random effects of the log odds of the AUC by method; empty where nothing may be pooled.
        text: The result in words, or why there is none.
    """

    sites: pd.DataFrame
    effects: Mapping[HeterogeneityMethod, RandomEffects]
    text: str

    def auc(self, method: HeterogeneityMethod = "DerSimonian-Laird") -> Estimate | None:
        """Return the pooled AUC with its interval, None where nothing may be pooled."""
        found = self.effects.get(method)
        if found is None:
            return None
        return Estimate(float(expit(found.mean)), float(expit(found.low)), float(expit(found.high)))

    def prediction(self, method: HeterogeneityMethod = "DerSimonian-Laird") -> tuple[float, float] | None:
        """Return the interval in which the AUC of a new site lies, None where nothing may be pooled."""
        found = self.effects.get(method)
        return None if found is None else (float(expit(found.prediction_low)), float(expit(found.prediction_high)))


def site_matrix(
    frame: pd.DataFrame,
    *,
    task: str | None = None,
    metric: str | None = None,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute a metric and the calibration for every pair of training sites and test site.

    Args:
        frame: A predictions table of one protocol, arm and output; of its splits, `test` and `external` count.
        task: A name in `evaluation.tasks.TASKS`; told from the table by default.
        metric: The metric; the task's primary one by default.
        num_replicates: Replicates of the two-way bootstrap over participants and runs.
        seed: Its seed.

    Returns:
        One row per `train_sites`, `split` and `test_site`: `num_participants`, `num_events` (missing for a regression),
        `num_runs`, `metric`, `estimate`, `low`, `high`; then `oe_ratio` and `calibration_slope` of a binary outcome, or
        `mean_bias` and `bias_slope` of a regression, each with `_low` and `_high`.

    Raises:
        PredictionsError: The table has problems, mixes arms, outputs or protocols, or has no held-out rows.
    """
    table = normalise_predictions(frame)
    held_out = table[table["split"].isin(HELD_OUT_OR_UNSAID) & table["target"].notna()]
    if held_out.empty:
        raise PredictionsError([f"no row with a target is held out; its splits are {listed(set(table['split']))}."])
    task, name = _metric(task, metric, held_out)
    found: list[dict[str, object]] = []
    for (train_sites, split), group in held_out.groupby(["train_sites", "split"], sort=True):
        rows = scored_rows(group)
        values = _resample(rows, task, [name, *CALIBRATION[task]], "site", num_replicates, seed)
        for site, own in rows.groupby("site", sort=True):
            cell: dict[str, object] = {"train_sites": train_sites, "split": split, "test_site": site}
            cell |= _counts(own, task) | {"num_runs": own["run"].nunique(), "metric": name}
            cell |= _shown(values[name], str(site), own)
            for other in CALIBRATION[task]:
                shown = _shown(values[other], str(site), own)
                cell |= {other: shown["estimate"], f"{other}_low": shown["low"], f"{other}_high": shown["high"]}
            found.append(cell)
    return _numbers(pd.DataFrame(found))


def pool_sites(
    frame: pd.DataFrame, *, num_replicates: int = NUM_REPLICATES, seed: int = 0, confidence: float = CONFIDENCE
) -> Pooled:
    """Pool the AUC of the sites of a table by random effects on its log odds.

    The AUC of a site is the mean over its runs, and its standard error that of the two-way bootstrap over participants
    and runs, carried over to the log odds by the delta method.

    Args:
        frame: A predictions table of one protocol, arm, output and split, of a binary outcome.
        num_replicates: Replicates of the bootstrap.
        seed: Its seed.
        confidence: Coverage of the intervals.

    Raises:
        PredictionsError: The table has problems or mixes what may not be mixed.

    References:
        Snell KIE, Ensor J, Debray TPA, et al. Stat Methods Med Res 2018;27:3505-3522. doi:10.1177/0962280217705678
    """
    rows = scored_rows(normalise_predictions(frame))
    known_task("binary", rows)
    values = _resample(rows, "binary", ["auroc"], "site", num_replicates, seed)["auroc"]
    usable = usable_parts(rows, [values], stratify=True)
    found = []
    for site, own in rows.groupby("site", sort=True):
        error = values.part(str(site)).standard_error if site in usable else math.nan
        found.append(
            {"site": site} | _counts(own, "binary") | _shown(values, str(site), own) | {"standard_error": error}
        )
    sites = _numbers(pd.DataFrame(found))
    effects, text = _pool(sites, confidence)
    return Pooled(sites, effects, text)


def subgroups(
    frame: pd.DataFrame,
    columns: Sequence[str],
    *,
    bins: Mapping[str, Sequence[float]] | None = None,
    task: str | None = None,
    metric: str | None = None,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute a metric inside subgroups of the participants.

    Args:
        frame: A predictions table of one protocol, arm, output and split, with the columns of the subgroups.
        columns: Columns that make subgroups: `sex`, `site`, `age`, `day_of_life`, ...
        bins: Increasing edges for columns of numbers; a bin holds its lower edge, the last one both.
        task: A name in `evaluation.tasks.TASKS`; told from the table by default.
        metric: The metric; the task's primary one by default.
        num_replicates: Replicates of the two-way bootstrap over participants and runs.
        seed: Its seed.

    Returns:
        One row per column and level: `column`, `level`, `num_participants`, `num_events`, `metric`, `estimate`, `low`,
        `high`, `note`; participants without a value are the level "missing". Under ten participants with or without the
        event (ten in all of a regression) there is no value, and the note is "too few".

    Raises:
        PredictionsError: The table has problems, a column is missing, differs within a session, or needs bins.
    """
    table = normalise_predictions(frame)
    rows = scored_rows(table)
    task, name = _metric(task, metric, rows)
    units = pd.MultiIndex.from_frame(rows[list(UNIT)])
    found: list[dict[str, object]] = []
    for column in columns:
        levels = _levels(table, column, (bins or {}).get(column))
        code_of_row = levels.cat.codes.reindex(units).to_numpy()
        for code in sorted(set(code_of_row), key=lambda code: (code < 0, code)):
            own = rows[code_of_row == code]
            level = MISSING if code < 0 else levels.cat.categories[int(code)]
            row: dict[str, object] = {"column": column, "level": str(level)} | _counts(own, task)
            row |= {"metric": name, "estimate": None, "low": None, "high": None, "note": TOO_FEW}
            if _enough(own, task):
                by: Literal["site"] | None = "site" if scored_by_several_models(own) else None
                values = _resample(own, task, [name], by, num_replicates, seed)[name]
                mean = values.mean(usable_parts(own, [values], stratify=task == "binary"))
                row |= mean.estimate.as_dict() | {"note": "mean over sites" if by else ""}
            found.append(row)
    return _numbers(pd.DataFrame(found))


def _pool(sites: pd.DataFrame, confidence: float) -> tuple[dict[HeterogeneityMethod, RandomEffects], str]:
    """Return the random effects of the sites by method, and the result in words."""
    scored = sites[sites["estimate"].notna() & sites["standard_error"].notna()]
    missing = sorted(set(sites["site"]) - set(scored["site"]))
    left_out = f" Left out, for too few participants of a class: {join_words(missing)}." if missing else ""
    if len(scored) < MIN_POOLED:
        each = [f"{site['site']} {interval_text(_estimate(site), 3)}" for site in scored.to_dict("records")]
        given = f"AUC: {join_words(each)}. " if each else ""
        return {}, f"{given}No pooled value: it needs >= {MIN_POOLED} sites, and there are {len(scored)}.{left_out}"
    auc, error = scored["estimate"].to_numpy(np.float64), scored["standard_error"].to_numpy(np.float64)
    perfect = scored["site"][(auc <= 0) | (auc >= 1) | (error <= 0)]
    if len(perfect):
        return {}, (
            f"No pooled value: the AUC of {join_words(list(perfect))} is 0 or 1, or does not vary; such a value has no "
            f"log odds to pool.{left_out}"
        )
    effects = {
        method: random_effects(logit(auc), (error / (auc * (1 - auc))) ** 2, method, confidence=confidence)
        for method in METHODS
    }
    lines = []
    for method, found in effects.items():
        numbers = [found.mean, found.low, found.high, found.prediction_low, found.prediction_high]
        mean, low, high, new_low, new_high = (number_text(float(expit(number)), 3) for number in numbers)
        lines.append(
            f"{method}: AUC {mean} ({low} to {high}, Hartung-Knapp); a new site {new_low} to {new_high}; "
            f"tau2 {number_text(found.tau2, 3)}, I2 {number_text(100 * found.i2, 0)} %."
        )
    return effects, f"Random effects over {len(scored)} sites. {' '.join(lines)}{left_out}"


def _metric(task: str | None, metric: str | None, rows: pd.DataFrame) -> tuple[str, str]:
    task = known_task(task, rows)
    name = metric or primary_of(task)
    require_metrics(task, [name])
    return task, name


def _resample(
    rows: pd.DataFrame, task: str, metrics: Sequence[str], by: Literal["site"] | None, num_replicates: int, seed: int
) -> dict[str, Resampled]:
    stratify = task == "binary"
    of_run = statistics(task, metrics)
    return resample([rows], of_run, by=by, stratify=stratify, num_replicates=num_replicates, seed=seed)[0]


def _shown(values: Resampled, site: str, rows: pd.DataFrame) -> dict[str, float | None]:
    """Return the estimate of a site, with an interval from five participants on."""
    value = values.part(site).estimate
    enough = rows["participant"].nunique() >= MIN_PARTICIPANTS
    return (value if enough else Estimate(value.estimate)).as_dict()


def _estimate(site: Mapping[Hashable, float]) -> Estimate:
    low, high = (None if math.isnan(site[end]) else site[end] for end in ("low", "high"))
    return Estimate(site["estimate"], low, high)


def _counts(rows: pd.DataFrame, task: str) -> dict[str, object]:
    people = rows.groupby("participant")["target"].max()
    return {"num_participants": len(people), "num_events": int(people.sum()) if task == "binary" else None}


def _enough(rows: pd.DataFrame, task: str) -> bool:
    people = rows.groupby("participant")["target"].max()
    counts = [int((people == 1).sum()), int((people == 0).sum())] if task == "binary" else [len(people)]
    return min(counts) >= MIN_EVENTS


def _levels(table: pd.DataFrame, column: str, edges: Sequence[float] | None) -> pd.Series:
    """Return the level of each participant and session as a category, in order."""
    if column not in table:
        raise PredictionsError([f"it has no column '{column}'. Add it, one value per participant and session."])
    units = table.groupby(list(UNIT), sort=True)[column]
    if (differing := units.nunique() > 1).any():
        shown = ["/".join(filter(None, map(str, unit))) for unit in differing.index[differing]]
        raise PredictionsError([f"the column '{column}' differs within a participant and session: {listed(shown)}."])
    values = units.first()
    if edges is not None:
        return _binned(values, edges)
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > MAX_LEVELS:
        raise PredictionsError([f"the column '{column}' has {values.nunique()} different numbers. Give it bins."])
    return values.where(values != "").astype("category")


def _binned(values: pd.Series, edges: Sequence[float]) -> pd.Series:
    limits = np.asarray(edges, dtype=np.float64)
    parsed, problems = as_numbers(values)
    if problems:
        raise PredictionsError(problems)
    numbers = parsed.to_numpy(np.float64)
    place = np.searchsorted(limits, numbers, side="right") - 1
    place[numbers == limits[-1]] = len(limits) - 2
    outside = np.isnan(numbers) | (numbers < limits[0]) | (numbers > limits[-1])
    labels = pd.Index([f"{low:g} to {high:g}" for low, high in itertools.pairwise(limits)])
    return pd.Series(
        pd.Categorical.from_codes(np.where(outside, -1, place).astype(np.intp), labels), index=values.index
    )


def _numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Turn columns of numbers and None into numbers and NaN."""
    ends = ("estimate", "low", "high", "error", "ratio", "slope", "bias", "events")
    return table.astype({name: float for name in table.columns if name.endswith(ends)})

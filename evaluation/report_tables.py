"""The tables of the report, as text a reader sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from evaluation.assessment import Assessment, assess
from evaluation.estimate import Estimate
from evaluation.gap_correction import CORRECTED_LABEL, CORRECTIONS, GapCorrectionError
from evaluation.predictions import KEY, PredictionsError
from evaluation.regression import METRICS, regression_metrics
from evaluation.wording import count_text, interval_text, number_text, with_unit

SPLITS = {
    "test": "Test: held-out participants",
    "external": "External: held-out sites",
    "val": "Validation: chose the model",
    "train": "Training: no measure of performance",
    "": "All rows",
}
HELD_OUT = ("test", "external", "")
MIN_SITE_PARTICIPANTS = 5
RESULTS = ("mae", "mae_predict_mean", "mae_gain", "r2", "mean_bias", "bias_slope")
NUM_WORST = 10
MAX_LISTED = 8  # items of a list that a table of facts shows


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Args:
        caption: What it shows.
        columns: Heads of the columns.
        rows: Cells, the first of each row its head; a row of one cell is the head of the rows below it. A second line
            of a cell is its interval.
        num_text: Number of leading columns that hold text; the others hold numbers.
        note: What a reader must know to read it.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_text: int = 1
    note: str = ""


@dataclass(frozen=True)
class Part:
    """One arm, output and split of the predictions.

    Args:
        label: What tells it from the other parts.
        short: The same, shorter.
        model: What tells its model from the others, empty where there is one.
        split: Its split.
        output: Its output.
        assessment: Its metrics.
        sites: Metrics by site, where it has several.
    """

    label: str
    short: str
    model: str
    split: str
    output: str
    assessment: Assessment
    sites: Mapping[str, Assessment]

    @property
    def held_out(self) -> bool:
        """Whether the model has not seen these participants in any way."""
        return self.split in HELD_OUT


def parts_of(frame: pd.DataFrame, *, unit: str | None, num_replicates: int, seed: int) -> list[Part]:
    """Assess every protocol, arm, output and split that has targets; held-out ones first.

    Args:
        frame: A normalised predictions table.
        unit: Unit of the target; that of the contract by default.
        num_replicates: Bootstrap replicates.
        seed: Seed of the bootstrap.

    Raises:
        PredictionsError: No row has a target.
    """
    known = frame[frame["target"].notna()]
    if known.empty:
        raise PredictionsError(["no row has a target, so there is nothing to report. Fill the column 'target'."])
    shared = known.duplicated([name for name in KEY if name != "train_sites"]).any()
    columns = ["protocol", "arm", *(["train_sites"] if shared else []), "output", "split"]
    telling = [name for name in columns if name != "split" and known[name].nunique() > 1]
    parts = []
    for values, _ in known.groupby(columns, sort=True):
        chosen = dict(zip(columns, values, strict=True))
        rows = frame[(frame[columns] == pd.Series(chosen)).all(axis=1)]
        of = partial(assess, unit=unit, num_replicates=num_replicates, seed=seed)
        whole = of(rows)
        names = sorted(whole.rows["site"].unique())
        sites = {site: of(rows[rows["site"] == site]) for site in names} if len(names) > 1 else {}
        split = str(chosen["split"])
        model = ", ".join(f"{name} {chosen[name]}" for name in telling)
        label = ", ".join(filter(None, [SPLITS.get(split, split), model]))
        short = ", ".join(filter(None, [SPLITS.get(split, split).partition(":")[0], model]))
        parts.append(Part(label, short, model, split, str(chosen["output"]), whole, sites))
    order = list(SPLITS)
    return sorted(parts, key=lambda part: order.index(part.split) if part.split in order else len(order))


def results_table(parts: Sequence[Part]) -> Table:
    """Return the main results: each part, and each of its sites."""
    first = parts[0].assessment
    rows: list[list[str]] = []
    for part in parts:
        rows.append([part.label])
        for name, assessment in {_all_sites(part): part.assessment, **part.sites}.items():
            rows.append([name, f"{assessment.num_participants}", *(_shown(assessment, key) for key in RESULTS)])
    names = [with_unit(name, first.unit) for name in ("MAE", "MAE, predict the mean", "Gain in MAE", "Mean bias")]
    columns = ["Site", "n", *names[:3], "R²", names[3], "Bias slope"]
    note = (
        f"n: participants. Second lines: 95 % intervals, {first.num_replicates:,} bootstrap replicates over "
        f"participants, from {MIN_SITE_PARTICIPANTS} participants on. "
        f"Predict the mean: {first.null_model_text}. Gain: its MAE less the model's, paired; positive is better. "
        "Bias: prediction less target; bias slope: its slope on the target, 0 without bias, "
        f"{number_text(-1, 0)} for a constant prediction."
    )
    return Table("Results by part and site.", columns, rows, 1, note)


def metrics_table(parts: Sequence[Part]) -> Table:
    """Return every metric of the parts side by side."""
    first = parts[0].assessment
    names = [name for name in METRICS if any(name in part.assessment.metrics for part in parts)]
    rows = [
        [
            with_unit(METRICS[name].label, first.unit if METRICS[name].in_unit else None),
            name,
            *(_with_digits(part.assessment, name) for part in parts),
        ]
        for name in names
    ]
    columns = ["Metric", "Name", *(f"{part.short} (n = {part.assessment.num_participants})" for part in parts)]
    between = [
        f"{part.short}: {part.assessment.num_runs} models, standard deviation of their MAE "
        f"{number_text(part.assessment.between_runs('mae'))}."
        for part in parts
        if part.assessment.num_runs > 1
    ]
    return Table("All metrics with 95 % intervals.", columns, rows, 2, " ".join(between))


def published_table(published: Sequence[Mapping[str, Any]], part: Part, cohort: str) -> Table | None:
    """Return published figures beside the measured ones, None without any."""
    if not published:
        return None
    rows = []
    for entry in published:
        name = str(entry["metric"])
        value = entry.get("value", entry.get("published"))
        text = f"{value} {entry['unit']}" if entry.get("unit") else str(value)
        doi = f"doi:{entry['doi']}" if entry.get("doi") else ""
        source = ", ".join(str(words) for words in (entry.get("source"), entry.get("cohort"), doi) if words)
        measured, metric = part.assessment.metrics.get(name), METRICS.get(name)
        unit = f" {part.assessment.unit}" if metric and metric.in_unit and part.assessment.unit else ""
        here = "not measured" if measured is None else f"{interval_text(measured)}{unit}"
        rows.append([metric.label if metric else name, source, text, here])
    note = "The cohorts differ: the columns stand side by side for orientation and are no comparison of methods."
    columns = ["Metric", "Source", "Published", f"Measured on {cohort}"]
    return Table("Published beside measured.", columns, rows, 2, note)


def correction_table(part: Part, controls: Part | None) -> Table | None:
    """Return the errors after the corrections of the brain-age gap, None where they cannot be fitted.

    Args:
        part: The part that is corrected.
        controls: Held-out rows that the corrections are fitted on.
    """
    if controls is None:
        return None
    fitted, rows = controls.assessment.rows, part.assessment.rows
    shown = [
        [
            "none",
            "",
            interval_text(part.assessment.metrics["mae"]),
            interval_text(part.assessment.metrics["bias_slope"]),
        ]
    ]
    try:
        for name, fit in CORRECTIONS.items():
            correction = fit(fitted["target"], fitted["prediction"])
            corrected = regression_metrics(
                rows["target"],
                correction.apply(rows["target"], rows["prediction"]),
                participant_id=rows["participant"],
                run=rows["run"],
                num_replicates=part.assessment.num_replicates,
                seed=part.assessment.seed,
            )
            line = f"slope {number_text(correction.slope, 3)}, intercept {number_text(correction.intercept)}"
            shown.append([name, line, interval_text(corrected["mae"]), interval_text(corrected["bias_slope"])])
    except GapCorrectionError:
        return None
    note = (
        f"Fitted on {count_text(controls.assessment.num_participants, 'participant')} of the part "
        f"“{controls.label}”, taken as controls. A correction uses the true age of the participant it corrects, so a "
        "useless model comes out accurate as well: use corrected gaps to compare groups, never to compare models."
    )
    unit = part.assessment.unit
    columns = ["Correction", "Fitted line", with_unit("MAE", unit), "Bias slope"]
    return Table(f"Brain-age gap, {CORRECTED_LABEL}.", columns, shown, 2, note)


def worst_table(parts: Sequence[Part]) -> Table:
    """Return the participants with the largest errors of the given parts."""
    rows = pd.concat(
        [mean_over_runs(part.assessment.rows).assign(part=part.short) for part in parts], ignore_index=True
    )
    rows = rows.assign(error=rows["prediction"] - rows["target"])
    worst = rows.loc[rows["error"].abs().sort_values(ascending=False, kind="stable").index].head(NUM_WORST)
    optional = [name for name in ("dataset", "session_id") if (rows[name] != "").any()]
    several = ["part"] if len(parts) > 1 else []
    titles = {"dataset": "Dataset", "session_id": "Session", "part": "Part"}
    cells = [
        [row["participant_id"], *(row[name] for name in optional), row["site"], *(row[name] for name in several)]
        + [number_text(row[name], 1) for name in ("target", "prediction", "error")]
        for row in worst.to_dict("records")
    ]
    unit = parts[0].assessment.unit
    columns = ["Participant", *(titles[name] for name in optional), "Site", *(titles[name] for name in several)]
    columns += [with_unit(name, unit) for name in ("True", "Predicted", "Error")]
    note = "Look at these images first: wrong ages, wrong orientation and motion are found here."
    return Table(f"Largest errors: {len(cells)} of {len(rows)}.", columns, cells, len(columns) - 3, note)


def mean_over_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """Average predictions over runs, for pictures and lists only: no metric is computed from it."""
    keys = ["dataset", "participant_id", "session_id", "site", "participant"]
    return rows.groupby(keys, sort=True)[["target", "prediction"]].mean().reset_index()


def sites_frame(parts: Sequence[Part]) -> pd.DataFrame:
    """Return error and null error by site of the given parts, for the figure."""
    records = []
    for part in parts:
        for site, assessment in (part.sites or {_all_sites(part): part.assessment}).items():
            mae, enough = assessment.metrics["mae"], assessment.num_participants >= MIN_SITE_PARTICIPANTS
            records.append(
                {
                    "site": f"{site} (external)" if part.split == "external" else site,
                    "num_participants": assessment.num_participants,
                    "mae": mae.estimate,
                    "mae_low": mae.low if enough and mae.low is not None else np.nan,
                    "mae_high": mae.high if enough and mae.high is not None else np.nan,
                    "mae_predict_mean": assessment.metrics["mae_predict_mean"].estimate,
                }
            )
    return pd.DataFrame(records)


def facts_table(caption: str, facts: Mapping[str, Any]) -> Table:
    """Return nested facts as dotted names and values."""
    return Table(caption, ["Fact", "Value"], _flat(facts), 2)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    rows: list[list[str]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value[:MAX_LISTED]):
                rows += _flat(item if isinstance(item, Mapping) else {"value": item}, f"{prefix}{name}.{number}.")
        elif isinstance(value, list) and value:
            more = f" and {len(value) - MAX_LISTED} more" if len(value) > MAX_LISTED else ""
            rows.append([f"{prefix}{name}", ", ".join(map(str, value[:MAX_LISTED])) + more])
        elif value is not None and value != []:
            rows.append([f"{prefix}{name}", str(value)])
    return rows


def _with_digits(assessment: Assessment, name: str) -> str:
    value = assessment.metrics.get(name)
    return "" if value is None else interval_text(value, METRICS[name].digits)


def _shown(assessment: Assessment, name: str) -> str:
    """Return an estimate with its interval, without where too few participants carry it."""
    value = assessment.metrics[name]
    if assessment.num_participants < MIN_SITE_PARTICIPANTS:
        return interval_text(Estimate(value.estimate))
    return interval_text(value).replace(" (", "\n").removesuffix(")")


def _all_sites(part: Part) -> str:
    return "all sites" if part.sites else str(part.assessment.rows["site"].iloc[0])

"""The tables of the report of one run, as text a reader sees; those of a binary outcome are in `binary`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from evaluation.assessment import Assessment
from evaluation.disclosure import top_coded_text
from evaluation.estimate import Estimate
from evaluation.gap_correction import CORRECTED_LABEL, CORRECTIONS, GapCorrectionError
from evaluation.regression import regression_metrics
from evaluation.report.page import Table
from evaluation.report.parts import MIN_SITE_PARTICIPANTS, Part, all_sites, drawn, mean_over_runs, site_label
from evaluation.tasks import metrics_of, primary_of
from evaluation.wording import interval_text, number_text, people_text, size_text, with_unit

RESULTS = ("mae", "mae_predict_mean", "mae_gain", "r2", "mean_bias", "bias_slope")
NUM_WORST = 10


def results_table(parts: Sequence[Part]) -> Table:
    """Return the main results: each part, and each of its sites."""
    first = parts[0].assessment
    rows: list[list[str]] = []
    for part in parts:
        rows.append([part.label])
        for site, assessment in {"": part.assessment, **part.sites}.items():
            values = [_shown(assessment, key) if part.shows(site) else "" for key in RESULTS]
            rows.append([site or all_sites(part), str(part.counts["n", site]), *values])
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
    """Return every metric of the parts side by side.

    Args:
        parts: Parts of one kind of outcome.
    """
    first = parts[0].assessment
    shown, primary = metrics_of(first.task), primary_of(first.task)
    names = [name for name in shown if any(name in part.assessment.metrics for part in parts)]
    rows = [
        [
            with_unit(shown[name].label, first.unit if shown[name].in_unit else None),
            name,
            *(_with_digits(part.assessment, name) for part in parts),
        ]
        for name in names
    ]
    columns = ["Metric", "Name", *(f"{part.short} ({size_text(part.size)})" for part in parts)]
    label = "AUROC" if primary == "auroc" else primary.upper()
    between = [
        f"{part.short}: {part.assessment.num_runs} models, standard deviation of their {label} "
        f"{number_text(part.assessment.between_runs(primary), shown[primary].digits)}."
        for part in parts
        if part.assessment.num_runs > 1
    ]
    return Table("All metrics with 95 % intervals.", columns, rows, 2, " ".join(between))


def published_table(published: Sequence[Mapping[str, Any]], part: Part, cohort: str) -> Table | None:
    """Return published figures beside the measured ones, None without any."""
    if not published:
        return None
    shown = metrics_of(part.task)
    rows = []
    for entry in published:
        name = str(entry["metric"])
        measured, metric = part.assessment.metrics.get(name), shown.get(name)
        unit = f" {part.assessment.unit}" if metric and metric.in_unit and part.assessment.unit else ""
        digits = metric.digits if metric else 2
        here = "not measured" if measured is None else f"{interval_text(measured, digits)}{unit}"
        rows.append([metric.label if metric else name, source_text(entry), published_text(entry), here])
    note = "The cohorts differ: the columns stand side by side for orientation and are no comparison of methods."
    columns = ["Metric", "Source", "Published", f"Measured on {cohort}"]
    return Table("Published beside measured.", columns, rows, 2, note)


def published_text(entry: Mapping[str, Any]) -> str:
    """Return a published value with its unit."""
    value = entry.get("value", entry.get("published"))
    return f"{value} {entry['unit']}" if entry.get("unit") else str(value)


def source_text(entry: Mapping[str, Any]) -> str:
    """Return who published a value, on which cohort, and where it can be read."""
    doi = f"doi:{entry['doi']}" if entry.get("doi") else ""
    return ", ".join(str(words) for words in (entry.get("source"), entry.get("cohort"), doi) if words)


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
        f"Fitted on {people_text(controls.size)} of the part "
        f"“{controls.label}”, taken as controls. A correction uses the true age of the participant it corrects, so a "
        "useless model comes out accurate as well: use corrected gaps to compare groups, never to compare models."
    )
    unit = part.assessment.unit
    columns = ["Correction", "Fitted line", with_unit("MAE", unit), "Bias slope"]
    return Table(f"Brain-age gap, {CORRECTED_LABEL}.", columns, shown, 2, note)


def worst_table(parts: Sequence[Part]) -> Table:
    """Return the participants with the largest errors of the given parts."""
    rows = pd.concat(
        [drawn(part, mean_over_runs(part.assessment.rows)).assign(part=part.short) for part in parts],
        ignore_index=True,
    )
    rows = rows.assign(error=rows["prediction"] - rows["target"])
    worst = rows.loc[rows["error"].abs().sort_values(ascending=False, kind="stable").index].head(NUM_WORST)
    optional = [name for name in ("dataset", "session_id") if (rows[name] != "").any()]
    several = ["part"] if len(parts) > 1 else []
    titles = {"dataset": "Dataset", "session_id": "Session", "part": "Part"}
    cells = [
        [
            *(row[name] for name in ("participant_id", *optional, "site", *several)),
            *_values(row, parts[0].oldest),
        ]
        for row in worst.to_dict("records")
    ]
    unit = parts[0].assessment.unit
    columns = ["Participant", *(titles[name] for name in optional), "Site", *(titles[name] for name in several)]
    columns += [with_unit(name, unit) for name in ("True", "Predicted", "Error")]
    note = "Look at these images first: wrong ages, wrong orientation and motion are found here."
    return Table(f"Largest errors: {len(cells)} of {len(rows)}.", columns, cells, len(columns) - 3, note)


def sites_frame(parts: Sequence[Part]) -> pd.DataFrame:
    """Return error and null error by site of the given parts, for the figure."""
    records = []
    for part in parts:
        for site, assessment in (part.shown_sites or {"": part.assessment}).items():
            mae, enough = assessment.metrics["mae"], assessment.num_participants >= MIN_SITE_PARTICIPANTS
            records.append(
                {
                    "site": site_label(part, site),
                    "num_participants": part.counts["n", site],
                    "mae": mae.estimate,
                    "mae_low": mae.low if enough and mae.low is not None else np.nan,
                    "mae_high": mae.high if enough and mae.high is not None else np.nan,
                    "mae_predict_mean": assessment.metrics["mae_predict_mean"].estimate,
                }
            )
    return pd.DataFrame(records)


def _values(row: Mapping[Any, Any], oldest: float) -> list[str]:
    """Return target, prediction and error; no error from which an age could be computed that is not told."""
    target, prediction = (top_coded_text(row[name], oldest) for name in ("target", "prediction"))
    return [target, prediction, "" if target.endswith("+") else number_text(row["error"], 1)]


def _with_digits(assessment: Assessment, name: str) -> str:
    value = assessment.metrics.get(name)
    return "" if value is None else interval_text(value, metrics_of(assessment.task)[name].digits)


def _shown(assessment: Assessment, name: str) -> str:
    """Return an estimate with its interval, without where too few participants carry it."""
    value = assessment.metrics[name]
    if assessment.num_participants < MIN_SITE_PARTICIPANTS:
        return interval_text(Estimate(value.estimate))
    return interval_text(value).replace(" (", "\n").removesuffix(")")

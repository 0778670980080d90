"""The figures of the report of one run: those of a continuous outcome, and the course of the training."""

from collections.abc import Sequence

import pandas as pd

from evaluation.figures import regression as figures
from evaluation.regression import mae_by_age_bin
from evaluation.report.page import Picture, picture
from evaluation.report.parts import Part, drawn, mean_over_runs
from evaluation.report.sharing import bin_edges, limit_text, shown_bins, top_coded_rows
from evaluation.report.tables import sites_frame
from evaluation.wording import count_text, interval_text, with_unit

MAX_HALF_SITES = 5  # more need the whole width


def pictures(parts: Sequence[Part]) -> list[Picture]:
    """Return the figures of a continuous outcome, two in a row: points of each part, bins of each part, and sites."""
    found = [one for part in parts for one in _points(part)]
    found += [one for part in parts for one in _bins(part)]
    return [*found, _sites(parts, fills_row=len(found) % 2 == 0)]


def _points(part: Part) -> list[Picture]:
    assessment = part.assessment
    whole = mean_over_runs(assessment.rows)
    rows = top_coded_rows(part, drawn(part, whole))
    name, unit = part.output or "target", assessment.unit
    slope = assessment.metrics["bias_slope"]
    error = f"{with_unit('mean absolute error', unit)} {interval_text(assessment.metrics['mae'])}"
    averaged = f", mean over {assessment.num_runs} runs" if assessment.num_runs > 1 else ""
    points = f"One point per participant and session ({len(rows)}){averaged}.{limit_text(part)}"
    return [
        picture(
            figures.predicted_vs_target(rows, name=name, unit=unit),
            f"Scatter plot of predicted against true {name}; {error}",
            f"Predicted against true {name}. {part.label}. {points} Dashed: identity.",
        ),
        picture(
            figures.error_vs_target(rows, name=name, unit=unit, slope=slope, fitted_on=whole),
            f"Scatter plot of the error against true {name}; slope of the regression line {interval_text(slope)}",
            f"Error against true {name}, with the regression line. {part.label}. {points}",
        ),
    ]


def _bins(part: Part) -> list[Picture]:
    assessment = part.assessment
    rows, name, unit = assessment.rows, part.output or "target", assessment.unit
    bins = mae_by_age_bin(
        rows["target"],
        rows["prediction"],
        participant_id=rows["participant"],
        run=rows["run"],
        edges=bin_edges(part),
        num_replicates=assessment.num_replicates,
        seed=assessment.seed,
    )
    bins = shown_bins(part, bins)
    if bins["mae"].isna().all():  # a shared page, and few in every bin
        return []
    listed = "; ".join(f"{row['label']}: {row['mae']:.2f}" for row in bins.dropna(subset="mae").to_dict("records"))
    shown = picture(
        figures.error_by_bin(bins, labels=list(bins["label"]), name=name, unit=unit),
        f"Mean absolute error in {count_text(len(bins), 'bin')} of true {name}: {listed}",
        f"Mean absolute error by {name}, with 95 % intervals from 5 participants on. {part.label}.",
    )
    return [shown]


def _sites(parts: Sequence[Part], *, fills_row: bool) -> Picture:
    sites = sites_frame(parts)
    full = fills_row or len(sites) > MAX_HALF_SITES
    listed = "; ".join(f"{row['site']}: {row['mae']:.2f}" for row in sites.to_dict("records"))
    return picture(
        figures.error_by_site(sites, unit=parts[0].assessment.unit, width=8.8 if full else 4.3),
        f"Mean absolute error by site: {listed}",
        "Mean absolute error by site, with 95 % intervals from 5 participants on, beside predicting the mean.",
        "full" if full else "half",
    )


def training_picture(history: pd.DataFrame | None, unit: str | None) -> list[Picture]:
    """Return the course of the training, nothing where it is not known."""
    if history is None or not figures.has_learning_curve(history):
        return []
    keys = ", ".join(sorted(history["key"].unique()))
    curve = figures.learning_curve(history, unit=unit)
    return [picture(curve, f"Learning curves of {keys}", "Course of the training.", "full")]

"""One self-contained report.html from a predictions table and what is known about its run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from evaluation import figures
from evaluation.predictions import normalise_predictions
from evaluation.regression import mae_by_age_bin
from evaluation.report_cohort import cohort_name, flow_of, split_table
from evaluation.report_context import ReportContext
from evaluation.report_tables import (
    Part,
    Table,
    correction_table,
    facts_table,
    mean_over_runs,
    metrics_table,
    parts_of,
    published_table,
    results_table,
    sites_frame,
    worst_table,
)
from evaluation.report_text import answer, checklist, methods
from evaluation.wording import count_text, interval_text, with_unit

__all__ = ["ReportContext", "render_report"]

MAX_HALF_SITES = 5  # more need the whole width
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Args:
        address: The figure as a data address.
        alternative: What it shows, for those who do not see it.
        caption: What it shows and what to look for.
        width: `half` or `full` of the text.
    """

    address: str
    alternative: str
    caption: str
    width: str = "half"


def render_report(predictions: pd.DataFrame, context: ReportContext) -> str:
    """Return the report as one HTML page that needs no network.

    Args:
        predictions: A predictions table; several arms, outputs and splits are reported side by side. The first held-out
            part decides the answer.
        context: What is known about the run.

    Raises:
        PredictionsError: The table has problems, or no row has a target.
    """
    frame = normalise_predictions(predictions)
    parts = parts_of(frame, unit=context.unit, num_replicates=context.num_replicates, seed=context.seed)
    first = parts[0]
    held_out = [part for part in parts if part.held_out and _same_model(part, first)] or [first]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        context=context,
        question=context.question or f"How closely does the model predict {first.output or 'the target'}?",
        answer=answer(first, next((part for part in held_out[1:] if part.split == "external"), None)),
        flow=flow_of(context.cohort, parts),
        split_table=split_table(context.cohort, parts, first.assessment.unit),
        results=results_table(parts),
        published=published_table(context.published, first, cohort_name(context.cohort, parts)),
        metrics=metrics_table(held_out),
        pictures=_pictures(held_out, context),
        correction=correction_table(first, _controls(parts, first)),
        worst=worst_table(held_out),
        methods=methods(first, parts, context),
        checklist=checklist(first, parts, context),
        cohort=_facts("Provenance of the cohort.", {k: v for k, v in (context.cohort or {}).items() if k != "counts"}),
        environment=_facts("Software and machine.", context.environment),
    )


def _same_model(part: Part, other: Part) -> bool:
    """Whether two parts differ in nothing but the split."""
    mine, theirs = part.assessment.rows.iloc[0], other.assessment.rows.iloc[0]
    return all(mine[name] == theirs[name] for name in ("protocol", "arm", "output"))


def _controls(parts: Sequence[Part], first: Part) -> Part | None:
    """Return the validation part of the same model: held out from the weights, and not the part that is reported."""
    return next(
        (part for part in parts if part.split == "val" and first.split != "val" and _same_model(part, first)), None
    )


def _facts(caption: str, facts: Mapping[str, Any] | None) -> Table | None:
    return facts_table(caption, facts) if facts else None


def _pictures(parts: Sequence[Part], context: ReportContext) -> list[Picture]:
    """Return the figures, two in a row: points of each part, bins of each part, sites, and the training."""
    pictures = [picture for part in parts for picture in _points(part)]
    pictures += [_bins(part) for part in parts]
    sites = _sites(parts, fills_row=len(pictures) % 2 == 0)
    return [*pictures, sites, *_curve(context, parts[0].assessment.unit)]


def _points(part: Part) -> list[Picture]:
    assessment = part.assessment
    rows = mean_over_runs(assessment.rows)
    name, unit = part.output or "target", assessment.unit
    slope = assessment.metrics["bias_slope"]
    error = f"{with_unit('mean absolute error', unit)} {interval_text(assessment.metrics['mae'])}"
    averaged = f", mean over {assessment.num_runs} runs" if assessment.num_runs > 1 else ""
    points = f"One point per participant and session ({len(rows)}){averaged}."
    return [
        Picture(
            _address(figures.predicted_vs_target(rows, name=name, unit=unit)),
            f"Scatter plot of predicted against true {name}; {error}",
            f"Predicted against true {name}. {part.label}. {points} Dashed: identity.",
        ),
        Picture(
            _address(figures.error_vs_target(rows, name=name, unit=unit, slope=slope)),
            f"Scatter plot of the error against true {name}; slope of the regression line {interval_text(slope)}",
            f"Error against true {name}, with the regression line. {part.label}. {points}",
        ),
    ]


def _bins(part: Part) -> Picture:
    assessment = part.assessment
    rows, name, unit = assessment.rows, part.output or "target", assessment.unit
    bins = mae_by_age_bin(
        rows["target"],
        rows["prediction"],
        participant_id=rows["participant"],
        run=rows["run"],
        num_replicates=assessment.num_replicates,
        seed=assessment.seed,
    )
    listed = "; ".join(f"{row['start']:g} to {row['stop']:g}: {row['mae']:.2f}" for row in bins.to_dict("records"))
    return Picture(
        _address(figures.error_by_bin(bins, name=name, unit=unit)),
        f"Mean absolute error in {count_text(len(bins), 'bin')} of true {name}: {listed}",
        f"Mean absolute error by {name}, with 95 % intervals from 5 participants on. {part.label}.",
    )


def _sites(parts: Sequence[Part], *, fills_row: bool) -> Picture:
    sites = sites_frame(parts)
    full = fills_row or len(sites) > MAX_HALF_SITES
    listed = "; ".join(f"{row['site']}: {row['mae']:.2f}" for row in sites.to_dict("records"))
    return Picture(
        _address(figures.error_by_site(sites, unit=parts[0].assessment.unit, width=8.8 if full else 4.3)),
        f"Mean absolute error by site: {listed}",
        "Mean absolute error by site, with 95 % intervals from 5 participants on, beside predicting the mean.",
        "full" if full else "half",
    )


def _curve(context: ReportContext, unit: str | None) -> list[Picture]:
    if context.history is None or not figures.has_learning_curve(context.history):
        return []
    keys = ", ".join(sorted(context.history["key"].unique()))
    curve = figures.learning_curve(context.history, unit=unit)
    return [Picture(_address(curve), f"Learning curves of {keys}", "Course of the training.", "full")]


def _address(figure: Figure) -> str:
    return figures.svg_data_uri(figure)

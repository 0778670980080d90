"""One self-contained report.html from a predictions table and what is known about its run."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import pandas as pd

from evaluation.predictions import normalise_predictions
from evaluation.report import binary
from evaluation.report.cohort import cohort_name, flow_of, split_table
from evaluation.report.context import ReportContext
from evaluation.report.page import Table, optional_facts, render_page
from evaluation.report.parts import Part, parts_of
from evaluation.report.pictures import pictures, training_picture
from evaluation.report.sharing import footer, notices, shared_parts
from evaluation.report.tables import correction_table, metrics_table, published_table, results_table, worst_table
from evaluation.report.text import answer, checklist, methods

__all__ = ["ReportContext", "render_report"]


def render_report(predictions: pd.DataFrame, context: ReportContext) -> str:
    """Return the report of one run as one HTML page that needs no network.

    Args:
        predictions: A predictions table; several arms, outputs and splits are reported side by side. The first held-out
            part decides the answer.
        context: What is known about the run.

    Raises:
        PredictionsError: The table has problems, or no row has a target.
    """
    frame = normalise_predictions(predictions)
    parts = parts_of(
        frame,
        unit=context.unit,
        num_replicates=context.num_replicates,
        seed=context.seed,
        design=context.design,
        tasks=context.tasks,
    )
    if context.sharing is not None:
        parts = shared_parts(parts, context.sharing)
    first = parts[0]
    held_out = [part for part in parts if part.held_out and _same_model(part, first)] or [first]
    is_binary = first.task == "binary"
    # The cohort's own counts differ from those scored by few: on a shared page only the latter are shown.
    counted = context.cohort if context.sharing is None else _without_counts(context.cohort)
    figures = binary.pictures(held_out) if is_binary else pictures(held_out)
    return render_page(
        "report.html.j2",
        context=context,
        footer=footer(context.sharing),
        protocol_name=context.protocol,
        question=context.question
        or f"How {'well' if is_binary else 'closely'} does the model predict {_outcome(first)}?",
        answer=answer(first, next((part for part in held_out[1:] if part.split == "external"), None)),
        notices=notices(context.sharing),
        flow=flow_of(counted, parts),
        split_table=split_table(counted, parts, first.assessment.unit),
        results=_by_task(parts),
        published=published_table(context.published, first, cohort_name(context.cohort, parts)),
        metrics=metrics_table(held_out),
        pictures=[*figures, *training_picture(context.history, first.assessment.unit)],
        refusal=binary.refusal(first) if is_binary else "",
        correction=None if is_binary else correction_table(first, _controls(parts, first)),
        worst=binary.worst_table(held_out) if is_binary else worst_table(held_out),
        methods=methods(first, parts, context),
        checklist=checklist(first, parts, context),
        cohort=optional_facts("Provenance of the cohort.", _without_counts(context.cohort)),
        environment=optional_facts("Software and machine.", context.environment),
    )


def _outcome(part: Part) -> str:
    return {"": "the target", "outcome": "the outcome"}.get(part.output, part.output)


def _by_task(parts: Sequence[Part]) -> list[Table]:
    """Return the main results, one table for each kind of outcome."""
    ordered = sorted(parts, key=lambda part: part.task != parts[0].task)
    tables = {"binary": binary.results_table, "regression": results_table}
    return [tables[task](list(own)) for task, own in groupby(ordered, key=lambda part: part.task)]


def _same_model(part: Part, other: Part) -> bool:
    """Whether two parts differ in nothing but the split."""
    mine, theirs = part.assessment.rows.iloc[0], other.assessment.rows.iloc[0]
    return all(mine[name] == theirs[name] for name in ("protocol", "arm", "output"))


def _controls(parts: Sequence[Part], first: Part) -> Part | None:
    """Return the validation part of the same model: held out from the weights, and not the part that is reported."""
    return next(
        (part for part in parts if part.split == "val" and first.split != "val" and _same_model(part, first)), None
    )


def _without_counts(cohort: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (cohort or {}).items() if name != "counts"}

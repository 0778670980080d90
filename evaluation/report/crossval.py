"""One self-contained report.html of a cross-validation: does the transfer help, where, and by how much."""

import pandas as pd

from evaluation.report.context import CrossvalContext
from evaluation.report.crossval_figures import (
    efficiency_picture,
    forest_picture,
    heat_map_picture,
    model_pictures,
    refusal,
)
from evaluation.report.crossval_records import findings_table, ledger_table, lock_table, published_beside
from evaluation.report.crossval_sharing import shared_characteristics
from evaluation.report.crossval_tables import (
    arms_table,
    arms_words,
    corrected_table,
    ensemble_table,
    flow,
    matrix_table,
    secondary_table,
    sites_table,
    sizes_table,
    subgroup_table,
)
from evaluation.report.crossval_text import answer, beside, checklist, methods, protocol_sentences, question
from evaluation.report.page import Table, optional_facts, render_page
from evaluation.report.participants import Characteristic, characteristics_table
from evaluation.report.results import CrossvalResults, results_of
from evaluation.report.sharing import notices
from evaluation.wording import join_words

__all__ = ["CrossvalContext", "render_crossval"]


def render_crossval(predictions: pd.DataFrame, context: CrossvalContext) -> str:
    """Return the report of a cross-validation as one HTML page that needs no network.

    Args:
        predictions: The table of all arms: one protocol and output; of its splits, `test` and `external` count.
        context: What is known beside the numbers. Gains that it holds are not computed again.

    Raises:
        PredictionsError: The table has problems, its arms score different participants, or nobody was held out.
    """
    results = results_of(predictions, context)
    hidden = {"counts"} if context.sharing is None else {"counts", "participants", "images", "without_target"}
    cohort = {key: value for key, value in (context.cohort or {}).items() if key not in hidden}
    return render_page(
        "crossval.html.j2",
        context=context,
        notices=notices(context.sharing),
        protocol_name=results.protocol,
        question=question(results),
        answer=answer(results),
        beside=beside(results),
        flow=flow(results),
        characteristics=_shown(results),
        protocol=protocol_sentences(results),
        sizes=sizes_table(results),
        lock=lock_table(results),
        forest=forest_picture(results),
        arms=arms_table(results),
        arm_words=arms_words(results),
        sites=sites_table(results),
        ensemble=ensemble_table(results),
        corrected=corrected_table(results),
        secondary=secondary_table(results),
        models=model_pictures(results),
        refusal=refusal(results),
        heat_map=heat_map_picture(results),
        matrix=matrix_table(results),
        pooling=_pooling(results),
        efficiency=efficiency_picture(results),
        subgroups=subgroup_table(results),
        published=published_beside(results, _cohort_name(results)),
        ledger=ledger_table(results),
        findings=findings_table(results),
        methods=methods(results),
        checklist=checklist(results),
        cohort=optional_facts("Provenance of the cohort.", cohort),
        environment=optional_facts("Software and machine.", context.environment),
    )


def _characteristics(results: CrossvalResults) -> Table:
    """Return what the predictions alone say about the participants."""
    people = results.rows.drop_duplicates("participant").rename(columns={"target": results.output})
    unit = results.context.unit if results.task == "regression" else None
    return characteristics_table(people, [Characteristic(results.output, unit=unit)])


def _shown(results: CrossvalResults) -> Table:
    """Return who took part, as the page may say it."""
    table = results.context.characteristics or _characteristics(results)
    return shared_characteristics(table, results.counts, results.output) if results.shared else table


def _cohort_name(results: CrossvalResults) -> str:
    names = [
        str(table.get("dataset") or table.get("name")) for table in (results.context.cohort or {}).get("tables", [])
    ]
    return join_words(names or sorted(set(results.rows["dataset"]) - {""})) or "this table"


def _pooling(results: CrossvalResults) -> list[str]:
    """Return the pooled area of each arm in words, or why there is none."""
    if not all(map(results.shows, results.sites)):
        return ["The sites are not pooled here: of some, counts and metrics are hidden."]
    texts = {arm: pooled.text for arm, pooled in results.pooled.items()}
    if len(set(texts.values())) == 1:
        return [next(iter(texts.values()))]
    return [f"{arm}: {text}" for arm, text in texts.items()]

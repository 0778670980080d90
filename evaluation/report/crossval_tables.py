"""The tables of the report of a cross-validation, as text a reader sees."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from evaluation.cross_site import CALIBRATION
from evaluation.disclosure import Count
from evaluation.estimate import Estimate
from evaluation.report.arms import KINDS, Arm, gain_of
from evaluation.report.crossval_sharing import range_text
from evaluation.report.page import Box, Flow, Table
from evaluation.report.results import CrossvalResults
from evaluation.tasks import metrics_of
from evaluation.wording import (
    capitalised,
    count_text,
    interval_text,
    join_words,
    number_text,
    p_text,
    people_text,
    share_text,
    with_unit,
)

MAX_SITE_COLUMNS = 4
TRAINED = {"train": "trained on", "val": "validated on"}


def flow(results: CrossvalResults) -> Flow:
    """Return the flow of participants: the cohort, and each test site with what its models were trained on."""
    cohort, cells = results.context.cohort or {}, results.context.cells
    boxes = []
    for site in results.sites:
        size = results.counts["n", site]
        events = share_text(results.counts["events", site], size) if results.task == "binary" else ""
        lines = [f"{events} with the outcome"] if events else []
        if cells is not None:
            lines += [
                f"{words} {range_text(_sizes(cells, site, part), shared=results.shared)}"
                for part, words in TRAINED.items()
                if len(_sizes(cells, site, part))
            ]
        boxes.append(Box(f"Tested: {site}", people_text(size), lines))
    everybody: Count = int(cohort.get("participants") or results.num_participants + results.num_missing)
    if results.shared:
        everybody = results.size  # the others would follow from those that were not scored
    lines = [count_text(int(cohort["images"]), "image")] if cohort.get("images") and not results.shared else []
    lines.append(count_text(int(cohort.get("sites") or len(results.sites)), "site"))
    lines.append(f"outcome not known: {results.missing}")
    if "verified" in cohort:
        lines.append("every file verified" if cohort["verified"] else "files not verified")
    return Flow(Box("Scored" if results.shared else "Cohort", people_text(everybody), lines), boxes)


def sizes_table(results: CrossvalResults) -> Table | None:
    """Return how many participants trained, chose and tested the models of each test site."""
    cells = results.context.cells
    if cells is None:
        return None
    rows = []
    for site in results.sites:
        held_out = _of_site(cells, site)
        sizes = [range_text(_sizes(cells, site, part), shared=results.shared) for part in ("train", "val")]
        tested = held_out.groupby(["repeat", "fold"])["participants"].sum()
        rows.append([site, f"{len(tested)}", *sizes, range_text(tested, shared=results.shared)])
    columns = ["Test site", "Test sets", "Training", "Validation", "Test"]
    note = "Participants of one training; a range where trainings differ. A test set is one fold of one repeat."
    return Table("Size of the trainings.", columns, rows, 1, note)


def arms_table(results: CrossvalResults) -> Table:
    """Return the arms with their values, the spread between runs, gains, p-values and what could be detected."""
    digits, label = _digits(results), _head(results)
    rows: list[list[str]] = []
    kind = None
    for arm in results.arms:
        if arm.kind != kind:
            kind = arm.kind
            rows.append([KINDS[arm.kind]])
        value, spread = _primary(results, arm)
        cells = [arm.name, _two_lines(value, digits), "" if np.isnan(spread) else number_text(spread, digits)]
        whole = results.whole(arm)
        if whole is None or arm is results.reference:
            rows.append([*cells, "", "", "", ""])
            continue
        detectable = "" if np.isnan(whole.detectable) else number_text(whole.detectable, digits)
        gain = _two_lines(whole.gain, digits, signed=True)
        rows.append([*cells, gain, p_text(whole.p_value), p_text(whole.p_holm), detectable])
    columns = ["Arm", label, "SD between runs", "Gain", "p", "p (Holm)", "Smallest detectable gain"]
    few = "" if any(not np.isnan(_primary(results, arm)[1]) for arm in results.arms) else " It needs three seeds."
    note = (
        f"{'Mean over sites. ' if len(results.sites) > 1 else ''}Second lines: 95 % intervals. Gain: paired difference "
        f"to {results.reference.name}, positive is better. SD between runs: of repeats and seeds.{few} Smallest "
        f"detectable gain: found four times in five.{_left_out(results)}"
    )
    return Table(f"Primary result: {results.metric_name()} of a single model.", columns, rows, 1, note)


def sites_table(results: CrossvalResults) -> Table | None:
    """Return the primary metric and the gain of every arm at each site; None where there is one site."""
    if len(results.sites) < 2:
        return None
    digits = _digits(results)
    shown = results.sites[:MAX_SITE_COLUMNS]
    rows: list[list[str]] = []
    for arm in results.arms:
        cells = [arm.name]
        for site in shown:
            if not results.shows(site):
                cells += ["", ""]
                continue
            gain = gain_of(results.gains, arm.name, site)
            value = results.scores[results.metric][arm.name].sites.get(site, Estimate(np.nan))
            cells.append(_two_lines(value if gain is None else gain.value, digits))
            cells.append("" if gain is None else _two_lines(gain.gain, digits, signed=True))
        rows.append(cells)
    heads = [head for site in shown for head in (f"{site}: {_head(results)}", "gain")]
    note = "Second lines: 95 % intervals, unadjusted."
    if len(results.sites) > len(shown):
        note += f" The first {len(shown)} of {len(results.sites)} sites; all of them are in the forest plot."
    return Table("By test site.", ["Arm", *heads], rows, 1, note)


def ensemble_table(results: CrossvalResults) -> Table | None:
    """Return the second estimand: the metric of the mean prediction of all runs."""
    if not results.ensemble:
        return None
    digits = _digits(results)
    first = results.ensemble[0]
    rows = [[first.reference, _two_lines(first.reference_value, digits), "", ""]]
    by_arm = {gain.arm: gain for gain in results.ensemble}
    for arm in results.arms[1:]:
        gain = by_arm[arm.name]
        cells = [_two_lines(gain.value, digits), _two_lines(gain.gain, digits, signed=True), p_text(gain.p_value)]
        rows.append([arm.name, *cells])
    note = (
        f"Another estimand: one predictor, the mean prediction of the {results.num_runs} runs. The interval holds the "
        "chance of the participants only. It does not decide, and its p-values are not adjusted."
    )
    return Table("Ensemble of the runs.", ["Arm", _head(results), "Gain", "p"], rows, 1, note)


def secondary_table(results: CrossvalResults) -> Table:
    """Return every metric but the primary one of every arm, and the gain of the main arm."""
    shown = metrics_of(results.task)
    rows = []
    for metric, by_arm in results.scores.items():
        if metric == results.metric:
            continue
        digits = min(shown[metric].digits, 2)
        label = with_unit(shown[metric].label, results.context.unit if shown[metric].in_unit else None)
        cells = [_two_lines(by_arm[arm.name].value, digits) for arm in results.arms]
        gain = by_arm[results.main.name].gain if results.main is not None else None
        rows.append([label, *cells, *([] if results.main is None else [_gain_cell(gain, digits)])])
    gain_head = [] if results.main is None else [f"Gain of {results.main.name}"]
    note = (
        f"{'Mean over sites. ' if len(results.sites) > 1 else ''}Second lines: 95 % intervals, "
        f"{results.secondary_replicates:,} bootstrap replicates. Gain: positive is better, whatever the metric. None "
        f"of it decides, and p-values are not given.{_threshold_note(results)}"
    )
    columns = ["Metric", *(arm.name for arm in results.arms), *gain_head]
    return Table("Secondary metrics.", columns, rows, 1, note)


def matrix_table(results: CrossvalResults) -> Table:
    """Return training site by test site with counts, the metric, and calibration."""
    digits = _digits(results)
    extra = CALIBRATION[results.task]
    shown = metrics_of(results.task)
    rows: list[list[str]] = []
    for arm, matrix in results.matrices.items():
        rows.append([arm])
        for cell in matrix.to_dict("records"):
            events = _count(cell["num_events"])
            names = [str(cell["train_sites"]).replace("+", " + ") or "not known", str(cell["test_site"])]
            values = [_of_cell(cell, "estimate", "", digits), *(_of_cell(cell, name, f"{name}_", 2) for name in extra)]
            values = values if results.shows(str(cell["test_site"])) else [""] * len(values)
            rows.append([*names, _count(cell["num_participants"]), events, *values])
    columns = ["Trained at", "Tested at", "n", "Events", _head(results), *(shown[name].label for name in extra)]
    return Table("Training site by test site.", columns, rows, 2, "Second lines: 95 % intervals.")


def subgroup_table(results: CrossvalResults) -> Table | None:
    """Return the metric inside subgroups; None where none was computed."""
    table = results.context.subgroups
    if table is None or table.empty:
        return None
    digits = _digits(results)
    shown = [arm for arm in dict.fromkeys(table["arm"]) if isinstance(arm, str)]
    rows: list[list[str]] = []
    for column, own in table.groupby("column", sort=False):
        rows.append([capitalised(str(column).replace("_", " "))])
        for level, cells in own.groupby("level", sort=False):
            first = cells.iloc[0]
            by_arm = {str(cell["arm"]): cell for cell in cells.to_dict("records")}
            values = [_subgroup_cell(by_arm.get(arm), digits) for arm in shown]
            rows.append([str(level), _count(first["num_participants"]), _count(first["num_events"]), *values])
    note = (
        "Too few: under ten participants with or without the outcome. Exploratory: intervals are not adjusted, and a "
        "difference between subgroups is not tested."
    )
    return Table(f"{_head(results)} in subgroups.", ["Subgroup", "n", "Events", *shown], rows, 1, note)


def arms_words(results: CrossvalResults) -> Table:
    """Return what each arm is."""
    return Table("Arms.", ["Arm", "What it is"], [[arm.name, arm.description] for arm in results.arms], 2)


def corrected_table(results: CrossvalResults) -> Table | None:
    """Return Nadeau and Bengio's test of each arm; None where the protocol is no k-fold."""
    rows = []
    for arm in results.arms:
        whole = results.whole(arm)
        if whole is None or (test := whole.corrected_t) is None:
            continue
        numbers = [_two_lines(Estimate(test.difference, test.low, test.high), 3), number_text(test.statistic, 2)]
        rows.append([arm.name, *numbers, f"{test.degrees:.0f}", p_text(test.p_value)])
    if not rows:
        return None
    note = "Over folds and repeats, seeds averaged first; the variance is corrected for overlapping trainings."
    columns = ["Arm", "Gain", "t", "Degrees of freedom", "p"]
    return Table("Corrected resampled t-test (Nadeau and Bengio).", columns, rows, 1, note)


def _primary(results: CrossvalResults, arm: Arm) -> tuple[Estimate, float]:
    """Return the value of an arm and its spread between runs, from the gains where there are any."""
    for gain in results.gains:
        if gain.site is None and gain.arm == arm.name:
            return gain.value, gain.spread
        if gain.site is None and gain.reference == arm.name:
            return gain.reference_value, gain.reference_spread
    score = results.scores[results.metric][arm.name]
    return score.value, score.spread


def _two_lines(value: Estimate, digits: int, *, signed: bool = False) -> str:
    text = interval_text(value, digits).replace(" (", "\n").removesuffix(")")
    is_positive = value.defined and float(number_text(abs(value.estimate), digits)) > 0 and value.estimate > 0
    return f"+{text}" if signed and is_positive else text


def _gain_cell(gain: Estimate | None, digits: int) -> str:
    return "" if gain is None else _two_lines(gain, digits, signed=True)


def _of_cell(cell: Mapping[Any, Any], name: str, prefix: str, digits: int) -> str:
    ends = [cell[f"{prefix}{end}"] for end in ("low", "high")]
    low, high = (None if pd.isna(end) else float(end) for end in ends)
    return _two_lines(Estimate(float(cell[name]), low, high), digits)


def _subgroup_cell(cell: Mapping[Any, Any] | None, digits: int) -> str:
    if cell is None:
        return ""
    if cell["note"] == "too few" or pd.isna(cell["estimate"]):
        return str(cell["note"]) or "undefined"
    low, high = (None if pd.isna(cell[end]) else float(cell[end]) for end in ("low", "high"))
    return interval_text(Estimate(float(cell["estimate"]), low, high), digits)


def _head(results: CrossvalResults) -> str:
    name = results.metric_name()
    return with_unit(name[0].upper() + name[1:], results.unit)


def _digits(results: CrossvalResults) -> int:
    return metrics_of(results.task)[results.metric].digits


def _left_out(results: CrossvalResults) -> str:
    sites = sorted({site for gain in results.gains for site in gain.left_out})
    sites = sites or sorted({s for score in results.scores[results.metric].values() for s in score.left_out})
    if not sites:
        return ""
    return f" Left out of the mean, for too few participants of a class: {join_words(sites)}."


def _threshold_note(results: CrossvalResults) -> str:
    if results.task != "binary":
        return ""
    without = [arm.name for arm in results.arms if "threshold" not in arm.rows or arm.rows["threshold"].isna().any()]
    text = " Decisions are taken at each model's own threshold"
    return f"{text}; of {join_words(without)}, at 0.5." if without else f"{text}."


def _of_site(cells: pd.DataFrame, site: str) -> pd.DataFrame:
    return cells[cells["part"].isin(["test", "external"]) & (cells["site"] == site)]


def _sizes(cells: pd.DataFrame, site: str, part: str) -> pd.Series:
    """Return the size of a part of every training that was tested at a site."""
    tested = _of_site(cells, site)[["repeat", "fold"]].drop_duplicates()
    own = cells[cells["part"] == part].merge(tested, on=["repeat", "fold"])
    return own.groupby(["repeat", "fold"])["participants"].sum()


def _count(count: float | str) -> str:
    """Return a count, or the mark in its place; empty where there is none."""
    if isinstance(count, str):
        return count
    return "" if pd.isna(count) else f"{count:.0f}"

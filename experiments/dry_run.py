"""What `crossval --dry-run` and `sweep --dry-run` say: jobs, sizes, what they can show, and what they cost."""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from datamodules.cohort import participant_keys, stack_rows
from datamodules.splits import Split
from evaluation.parts import HELD_OUT
from evaluation.power import MIN_CLASS
from evaluation.power_models import MODELS
from evaluation.tasks import metrics_of, primary_of
from evaluation.wording import count_text
from experiments.campaign import warn_of_few_validation_participants
from experiments.costs import Clock, Finished, Work, crossval_work, folds_of, print_costs, sweep_work
from experiments.expectation import Expectation
from experiments.expectation_text import WIDTH, print_expectation
from experiments.launcher import default_workers
from experiments.runtime import FontanelCLI, locate_weights, scratch_folder
from experiments.study import Study, as_words
from experiments.sweep_plan import SweepPlan
from experiments.timing import Timing, time_training
from experiments.workplan import Workplan, make_workplan
from lightning_modules.classification import ClassificationModule
from tracking.addresses import output_folder
from tracking.store import Store

MAX_ROWS = 20  # test sets that are printed


def show_crossval(study: Study, words: Sequence[str], store: Store, arguments: argparse.Namespace) -> int:
    """Print what a cross-validation would do; nothing is written."""
    plan = make_workplan(study, words, store, output_folder(arguments.output_dir), arguments.num_threads)
    warn_of_few_validation_participants(plan)
    inline = arguments.launcher == "inline"
    work = crossval_work(plan, 1 if inline else arguments.num_workers or default_workers())
    found, notes = expectation_of(plan, arguments)
    clock: Clock | None = time_crossval(plan, words, store) if arguments.time else finished_jobs(plan, store)
    document = crossval_document(plan) | _costs_and_power(found, notes, work, clock)
    if arguments.json:
        print(json.dumps(document, indent=2))
        return 0
    print_crossval(plan, document)
    _print_rest(document, found, clock)
    return 0


def show_sweep(plans: Sequence[SweepPlan], store: Store, arguments: argparse.Namespace) -> int:
    """Print what a sweep would do; nothing is written."""
    with scratch_folder() as scratch:
        config = scratch / "base.yaml"
        config.write_text(plans[0].config, encoding="utf-8")
        given = ["--config", str(config), "--num_threads", str(plans[0].num_threads)]
        cli = FontanelCLI(given)
        cli.datamodule.assign_splits()
        work = sweep_work(plans, cli.datamodule, arguments.num_workers or default_workers())
        found, notes = _expectation_of_sweep(plans[0], cli, arguments)
        clock: Clock | None = None
        if not arguments.time:
            folders = [plan.folder(output_folder(arguments.output_dir)) for plan in plans]
            clock = Finished.find(folders, sum(plan.sweep.num_trials or 0 for plan in plans), store)
        elif folds := folds_of(plans[0], cli.datamodule):
            clock = time_training(given, folds[0], lambda source: locate_weights(source, store), "a trial")
    overview = [plan.overview() for plan in plans]
    document = {"sweeps": overview} | _costs_and_power(found, notes, work, clock)
    if arguments.json:
        print(json.dumps(document, indent=2))
        return 0
    print("\n".join(overview))
    _print_rest(document, found, clock)
    return 0


def expectation_of(plan: Workplan, arguments: argparse.Namespace) -> tuple[Expectation | None, list[str]]:
    """Return what a cross-validation is expected to show, None with too few participants, and what to know of it."""
    tested = {key for cell in plan.cells for part in HELD_OUT for key in cell.split.keys(part)}
    sites, notes = _sites(plan.frame, tested, plan.cli.datamodule.stratify_by, plan.task)
    metric, more = _metric(plan.lock.primary_metric, plan.task)
    runs = plan.study.num_repeats * plan.study.num_seeds
    if not sites:
        return None, notes
    return Expectation.of(arguments, metric, sites, runs, len(plan.study.arms)), [*notes, *more]


def crossval_document(plan: Workplan) -> dict[str, Any]:
    """Return the plan of a cross-validation as JSON types."""
    return {
        "study": plan.study.name,
        "protocol": plan.study.protocol,
        "folder": str(plan.folder),
        "primary_metric": plan.lock.primary_metric,
        "arms": [*plan.lock.arms],
        "num_seeds": plan.study.num_seeds,
        "tuning": None if plan.tuning is None else plan.tuning.effort,
        "test_sets": [
            {"repeat": cell.repeat, "fold": cell.fold, "participants": _part_sizes(cell.split)} for cell in plan.cells
        ],
    }


def print_crossval(plan: Workplan, document: Mapping[str, Any]) -> None:
    """Print the jobs of a cross-validation, and how many participants each test set trains and tests."""
    from rich.console import Console
    from rich.table import Table

    study, sets = plan.study, document["test_sets"]
    console = Console(width=WIDTH)
    arms = len(document["arms"])
    lines = [
        f"{study.name}, {study.protocol}: {count_text(plan.num_jobs, 'job')} = {count_text(arms, 'arm')} x "
        f"{count_text(len(sets), 'test set')} x {count_text(study.num_seeds, 'seed')}",
        f"Arms: {', '.join(document['arms'])}",
        f"Primary metric: {plan.lock.primary_metric}",
        *([] if plan.tuning is None else [f"Each job is tuned before: {plan.tuning.effort}"]),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False)
    table = Table(title="Participants of each test set", title_justify="left")
    for name in ("repeat", "test set", "train", "validate", "test", "unused", "jobs"):
        table.add_column(name, justify="left" if name == "test set" else "right")
    for row in sets[:MAX_ROWS]:
        sizes = row["participants"]
        counts = (sizes["train"], sizes["val"], sizes["test"], sizes["unused"], arms * study.num_seeds)
        table.add_row(str(row["repeat"]), row["fold"], *map(str, counts))
    console.print(table)
    if len(sets) > MAX_ROWS:
        console.print(f"and {len(sets) - MAX_ROWS} test sets more; --json lists all.", highlight=False)


def time_crossval(plan: Workplan, words: Sequence[str], store: Store) -> Timing | None:
    """Time the first arm with a network, on the largest training; None where no arm has one."""
    arm = next((arm for arm in plan.study.arms if not arm.baseline), None)
    if arm is None:
        return None
    cell = max(plan.cells, key=lambda cell: len(cell.split.keys("train")))
    given = ["--config", str(plan.study.base), *words, *as_words(arm.arguments), "--num_threads", str(plan.num_threads)]
    return time_training(given, cell.split, lambda source: locate_weights(source, store), f"the arm {arm.name}")


def finished_jobs(plan: Workplan, store: Store) -> Finished | None:
    """Return the jobs with a network that this cross-validation has done already, None where they are too few."""
    networks = sum(not arm.baseline for arm in plan.study.arms)
    return Finished.find([plan.folder], plan.num_jobs * networks // len(plan.study.arms), store)


def _costs_and_power(
    found: Expectation | None, notes: Sequence[str], work: Work, clock: Clock | None
) -> dict[str, Any]:
    shows = {"notes": []} if found is None else found.as_json()
    return {"shows": {**shows, "notes": [*shows["notes"], *notes]}, "costs": work.as_json(clock)}


def _print_rest(document: Mapping[str, Any], found: Expectation | None, clock: Clock | None) -> None:
    print()
    if found is None:
        print("\n".join(document["shows"]["notes"]))
    else:
        print_expectation(document["shows"], found.label, found.comparison.model.task)
    print()
    print_costs(
        document["costs"], ["No hours: add --time, which trains for a few steps."] if clock is None else clock.said
    )
    print("Nothing was written to the store.")


def _expectation_of_sweep(
    plan: SweepPlan, cli: FontanelCLI, arguments: argparse.Namespace
) -> tuple[Expectation | None, list[str]]:
    data = cli.datamodule
    judged = {key for fold in folds_of(plan, data) for key in fold.keys("val")}
    task = "binary" if isinstance(cli.model, ClassificationModule) else "regression"
    frame = stack_rows(data.cohorts)
    together = frame.assign(site="all sites")  # a trial has one score
    sites, notes = _sites(together, judged, data.stratify_by, task)
    if not sites:
        return None, notes
    metric, more = _metric(plan.sweep.metric[0].rpartition("/")[2], task)
    said = "These are the participants that trials are judged by: smaller differences between two trials are chance."
    return Expectation.of(arguments, metric, sites, 1, 2), [*notes, *more, said]


def _sites(
    frame: pd.DataFrame, keys: Iterable[str], target: str | None, task: str
) -> tuple[list[tuple[int, ...]], list[str]]:
    """Return the participants of each class at each site, and which sites a report would leave out."""
    known = frame.assign(participant=list(participant_keys(frame)))
    known = known[known["participant"].isin(set(keys))]
    if target is not None:
        known = known[known[target].notna()]
    people = known.groupby(["site", "participant"])
    table = people[target].max() if target is not None else people.size()
    sites: list[tuple[int, ...]] = []
    left_out = []
    for site, values in table.groupby(level="site"):
        events = int((values == 1).sum())
        counts = (events, len(values) - events) if task == "binary" else (len(values),)
        if min(counts) < MIN_CLASS:
            left_out.append(str(site))
        else:
            sites.append(counts)
    notes = [f"Left out, for too few participants of a class: {', '.join(left_out)}."] if left_out else []
    notes += [] if sites else ["No site has enough participants for a comparison; its power is not known."]
    return sites, notes


def _metric(wanted: str, task: str) -> tuple[str, list[str]]:
    if wanted in MODELS and MODELS[wanted].task == task:
        return wanted, []
    shown = primary_of(task)
    known = metrics_of(task)
    name = known[wanted].label if wanted in known else wanted
    return shown, [f"The power of {name} cannot be planned; this is that of {known[shown].label}."]


def _part_sizes(split: Split) -> dict[str, int]:
    sizes = {part: len(split.keys(part)) for part in ("train", "val")}
    return {**sizes, "test": sum(len(split.keys(part)) for part in HELD_OUT), "unused": len(split.keys("unused"))}

"""One trial of a sweep, in a process of its own: one training, or one for each fold of a study.

A training is a run, a child of the sweep's; it predicts validation participants alone. Folds leave no runs of their
own: their scores are points of the trial's one run, and what is finished of them another attempt does not do again.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from typing_extensions import override

from evaluation.assessment import assess
from evaluation.predictions import normalise_predictions
from evaluation.tasks import task_of
from experiments.inner import best_rows
from experiments.job_folder import DONE, RUN, JobFolder, read_lists
from experiments.ranks import num_processes
from experiments.runtime import ConfigurationError, FontanelCLI
from experiments.sweep_link import Link, Reporting
from experiments.training import RunKey, Training
from tracking.environment import environment_facts
from tracking.files import read_json, write_json
from tracking.journal import read_records
from tracking.logger import RunLogger
from tracking.store import Point, Store

PROTOCOL = "sweep"
FOLD = "fold-{}.json"  # folds of a trial, in the folder of the sweep
ROWS = "rows-{}.parquet"  # what a trial predicts of one


@dataclass(frozen=True)
class TrialJob(JobFolder):
    """One attempt at a trial.

    Args:
        slot: Which of the asked trials it is.
        attempt: Which attempt, from 0.
        metric: What is optimised.
        direction: Which way each is better.
        folds: Files of splits, each of which is trained on and scored by its validation part; none for one training.
    """

    slot: int
    attempt: int
    metric: tuple[str, ...]
    direction: tuple[str, ...]
    folds: tuple[str, ...]

    @property
    @override
    def name(self) -> str:
        """Name of its run."""
        return f"trial-{self.slot}"

    @property
    def values(self) -> tuple[list[float], bool]:
        """What came out, and whether it was stopped before its end."""
        content = read_json(self.folder / DONE)
        return content["values"], content["stopped"]

    def prepare(self, before: Path | None) -> None:
        """Write what the attempt needs to run in a process of its own.

        Args:
            before: Folder of the attempt before it, whose run it goes on with.
        """
        self.write()
        for path in [] if before is None else [before / RUN, *before.glob(ROWS.format("*"))]:
            if path.is_file():
                (self.folder / path.name).write_bytes(path.read_bytes())

    @classmethod
    def read(cls, folder: Path) -> "TrialJob":
        """Return the attempt that was prepared in a folder."""
        return cls(**read_lists(folder, "words", "metric", "direction", "folds"))

    def run(self, store: Store) -> None:
        """Do it, or go on with what the attempt before it has done."""
        if self.is_done:
            return
        if self.folds:
            _score_folds(self, store)
        else:
            _train(self, store)

    def finish(self, values: Sequence[float], *, stopped: bool, seconds: float) -> None:
        """Leave the values, last of all."""
        write_json(self.folder / DONE, {"values": list(values), "stopped": stopped, "seconds": round(seconds, 3)})


def _train(job: TrialJob, store: Store) -> None:
    """Train once, report the first metric after each validation, and take the values of the best epoch."""
    started = time.time()
    point = job.resume_point(store)
    cli = FontanelCLI(job.words) if point is None else point.rebuild()
    cli.be_quiet()
    if (num := num_processes(cli)) > 1:
        job.run_in_processes(cli, num, store)
        return
    cli.datamodule.assign_splits()
    if not cli.datamodule.part("val"):
        raise ConfigurationError(f"{job.name} has no validation participants to be judged by. Set data.val_fraction.")
    if point is not None:
        training = Training.resume(cli, point, store)
    else:
        key = RunKey(job.name, PROTOCOL, job.attempt, seed=cli.seed, name=job.name)
        known = store.known_here(job.run_id)
        training = Training.start(cli, study=job.study, key=key, store=store, tags=job.tags, run_id=known)
    if training.speaks:
        write_json(job.folder / RUN, {"run_id": training.run_id})
    reporting = Reporting(Link(job.folder), job.metric[0])
    if point is None or not point.is_done:
        training.run([reporting])
    if training.speaks:
        values = best_values(training.folder, job.metric, job.direction)
        job.finish(values, stopped=reporting.stopped, seconds=time.time() - started)


def best_values(folder: Path, metric: Sequence[str], direction: Sequence[str]) -> list[float]:
    """Return the values of the epoch in which the first metric was best, from the journal of a run.

    Args:
        folder: Folder of the run.
        metric: Names of metrics, as they are logged.
        direction: Which way each is better.

    Raises:
        ConfigurationError: The run has logged none of that name.
    """
    logged: dict[str, dict[int, float]] = {name: {} for name in metric}
    known: set[str] = set()
    for record, _ in read_records(folder):
        if isinstance(record, Point):
            known.add(record.key)
            if record.key in logged:
                logged[record.key][record.step] = record.value
    steps = {step for step, value in logged[metric[0]].items() if value == value}
    for values in logged.values():
        steps &= values.keys()
    if not steps:
        shown = ", ".join(sorted(name for name in known if name.startswith("val/")))
        raise ConfigurationError(
            f"The training has logged no finite {' and '.join(metric)}. It has: {shown or 'nothing'}."
        )
    sign = 1 if direction[0] == "minimize" else -1
    best = min(sorted(steps), key=lambda step: sign * logged[metric[0]][step])
    return [logged[name][best] for name in metric]


def _score_folds(job: TrialJob, store: Store) -> None:
    """Train once for each fold, report its score, and take their mean."""
    started, link, stopped = time.time(), Link(job.folder), False
    tags = {**job.tags, "protocol": PROTOCOL}
    logger = RunLogger(store, job.study, job.name, tags, run_id=store.known_here(job.run_id))
    write_json(job.folder / RUN, {"run_id": logger.run_id})
    with logger.closing():
        cli = FontanelCLI([*job.words, "--data.split_file", job.folds[0]])
        logger.log_config(cli.resolved())
        logger.log_json("environment.json", environment_facts())
        scores: list[list[float]] = []
        for number, fold in enumerate(job.folds):
            path = job.folder / ROWS.format(number)
            if not path.is_file():
                best_rows([*job.words, "--data.split_file", fold], store).to_parquet(path)
            scores.append(score(pd.read_parquet(path), job.metric))
            logger.log_metrics(_named("fold", job.metric, scores[-1]), number)
            stopped = link.report(number, scores[-1][0])
            if stopped:
                break
        values = [sum(column) / len(column) for column in zip(*scores, strict=True)]
        logger.log_metrics(_named("mean", job.metric, values), 0)
    job.finish(values, stopped=stopped, seconds=time.time() - started)


def _named(prefix: str, metric: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in zip(metric, values, strict=True)}


def score(rows: pd.DataFrame, metric: Sequence[str]) -> list[float]:
    """Return metrics of predicted rows; of several outputs, their means.

    Args:
        rows: What a module predicts, one row for each image and output.
        metric: Names as `evaluation` has them.
    """
    table = normalise_predictions(rows)
    found = []
    for _, own in table.groupby("output", sort=True):
        values = assess(own, task_of(own), num_replicates=0).metrics
        for name in metric:
            if name not in values:
                raise ConfigurationError(f"There is no metric '{name}'. There are: {', '.join(values)}.")
        found.append([values[name].estimate for name in metric])
    return [sum(column) / len(column) for column in zip(*found, strict=True)]

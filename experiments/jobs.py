"""The jobs of a cross-validation: one training, or one baseline, with its test; independent, resumable, idempotent.

A job leaves in its folder `folds.json` (who is in which part), `run.json` (its run), and at the very end
`predictions.parquet` with `done.json`: a job with the latter is never done again.
"""

import os
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from datamodules.splits import Split
from evaluation.predictions import read_predictions, write_predictions
from experiments.baselines import baseline_rows
from experiments.cli import INTERRUPTED
from experiments.inner import inner_words
from experiments.options import STEP_TIMEOUT
from experiments.ranks import num_processes, run_ranks
from experiments.runtime import FontanelCLI
from experiments.scoring import score_all
from experiments.session import PREDICTIONS, Session
from experiments.training import ResumePoint, RunKey, Training
from lightning_modules.operating_point import OperatingPointWarning
from tracking.checkpoints import CheckpointError
from tracking.files import read_json, write_json
from tracking.interruption import Interrupted
from tracking.store import Store

DONE, RUN, FOLDS, JOB = "done.json", "run.json", "folds.json", "job.json"


class JobError(ValueError):
    """A job that failed; says why."""


class Runnable(Protocol):
    """What a launcher asks of a job that was prepared in a folder."""

    @property
    def name(self) -> str:
        """Name of its run."""

    @property
    def folder(self) -> Path:
        """Where it leaves what it has done."""

    @property
    def is_done(self) -> bool:
        """Whether it is finished."""

    def run(self, store: Store) -> None:
        """Do it, or go on where it was interrupted."""


def read_job(folder: Path) -> Runnable:
    """Return the job that was prepared in a folder, of whatever kind it is."""
    from experiments.sweep_trial import TrialJob

    return TrialJob.read(folder) if "slot" in read_json(folder / JOB) else Job.read(folder)


@dataclass(frozen=True)
class Job:
    """One fold x arm x seed.

    Args:
        key: What tells its run from the others; the arm has `@SHARE` where it trains on a share of the labels.
        study: MLflow experiment.
        words: The whole configuration, as words of a command line.
        baseline: Columns of the table that a regression without images uses; empty for a network.
        folder: Where the job leaves what it has done.
        tags: Further tags of its run.
        num_inner_folds: Folds within the training that choose threshold, temperature and number of epochs.
    """

    key: RunKey
    study: str
    words: tuple[str, ...]
    baseline: tuple[str, ...]
    folder: Path
    tags: dict[str, str]
    num_inner_folds: int = 0

    @property
    def name(self) -> str:
        """Name of its run."""
        return self.key.run_name

    @property
    def is_done(self) -> bool:
        """Whether its predictions are there."""
        return (self.folder / DONE).is_file()

    @property
    def run_id(self) -> str | None:
        """Its run, None before it was started."""
        path = self.folder / RUN
        return str(read_json(path)["run_id"]) if path.is_file() else None

    def predictions(self) -> pd.DataFrame:
        """Return its rows of the predictions table."""
        return read_predictions(self.folder / PREDICTIONS)

    def prepare(self, split: Split | None) -> None:
        """Write what the job needs to run in a process of its own.

        Args:
            split: Who is in which part; drawn by the configuration without one.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if split is not None and not (self.folder / FOLDS).is_file():
            split.write(self.folder / FOLDS)
        write_json(self.folder / JOB, {**asdict(self), "folder": None})

    def run(self, store: Store) -> None:
        """Do it, go on where it was interrupted, or do nothing where it is done."""
        run_job(self, store)

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """Return the job that was prepared in a folder."""
        content: dict[str, Any] = read_json(folder / JOB)
        lists = {name: tuple(content[name]) for name in ("words", "baseline")}
        return cls(**{**content, **lists, "key": RunKey(**content["key"]), "folder": folder})


def run_job(job: Job, store: Store, *, quiet: bool = True) -> None:
    """Do a job, go on where it was interrupted, or do nothing where it is done.

    Args:
        job: What to do.
        store: Where its run is kept.
        quiet: Whether somebody else shows how far it has come.
    """
    if job.is_done:
        return
    with warnings.catch_warnings():
        if quiet:  # whoever plans many jobs says it once
            warnings.simplefilter("ignore", OperatingPointWarning)
        _run(job, store, quiet)


def _run(job: Job, store: Store, quiet: bool) -> None:
    started = time.time()
    point = resume_point(job, store)
    cli = configured(job, store) if point is None else point.rebuild()
    if quiet:
        cli.be_quiet()
    if not job.baseline and (num := num_processes(cli)) > 1:
        _run_in_processes(job, cli, num, store)
        return
    training = _training(job, cli, point, store)
    if training.speaks:
        write_json(job.folder / RUN, {"run_id": training.run_id})
    if job.baseline:
        rows, facts = baseline_rows(cli, job.baseline)
        training.record("baseline.json", facts)
        step = 0
    else:
        if point is None or not point.is_done:
            training.run()
        rows, step = score_all(training)
    if not training.speaks:
        return  # the first process of several speaks for all
    session = Session.reopen(training.contract, store, num_replicates=0)
    session.keep_predictions(rows, step)
    write_predictions(session.predictions, job.folder / PREDICTIONS)
    write_json(job.folder / DONE, {"run_id": session.run_id, "seconds": round(time.time() - started, 3)})


def resume_point(job: Job, store: Store) -> ResumePoint | None:
    """Return where a job was interrupted, None where there is nothing to go on from."""
    if job.run_id is None or job.baseline:
        return None
    folder = store.folder(job.run_id)
    try:
        return ResumePoint.of(str(folder), [], store)
    except CheckpointError:
        return None


def _training(job: Job, cli: FontanelCLI, point: ResumePoint | None, store: Store) -> Training:
    """Open the run of a job: where it stopped, from the beginning where it came to no checkpoint, or a new one."""
    if point is not None:
        return Training.resume(cli, point, store)
    known = job.run_id if job.run_id is not None and store.folder(job.run_id).is_dir() else None
    return Training.start(cli, study=job.study, key=job.key, store=store, tags=job.tags, run_id=known)


def _run_in_processes(job: Job, cli: FontanelCLI, num: int, store: Store) -> None:
    """Do a job whose configuration wants several processes; they are watched from here."""
    cli.datamodule.prepare_data()
    os.environ["MLFLOW_TRACKING_URI"] = store.uri  # not among the words: it may hold a password
    code = run_ranks(["job", str(job.folder), "--output-dir", str(store.output_folder)], num, store, STEP_TIMEOUT)
    if code == INTERRUPTED:
        raise Interrupted(f"{job.name} was interrupted")
    if code or not job.is_done:
        raise JobError(f"The processes of {job.name} ended with exit code {code}; what they said stands above.")


def configured(job: Job, store: Store) -> FontanelCLI:
    """Return configuration, model and datamodule of a job, its participants assigned."""
    folds = job.folder / FOLDS
    if job.num_inner_folds and not job.baseline:
        words = inner_words(job.words, job.folder, job.num_inner_folds, store)
    else:
        words = [*job.words, *(["--data.split_file", str(folds)] if folds.is_file() else [])]
    cli = FontanelCLI(words)
    cli.datamodule.assign_splits(unknown="unused")
    return cli

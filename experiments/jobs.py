"""The jobs of a cross-validation: one training, or one baseline, with its test; independent, resumable, idempotent.

A job leaves in its folder `folds.json` (who is in which part), `run.json` (its run), and at the very end
`predictions.parquet` with `done.json`: a job with the latter is never done again.
"""

import time
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from typing_extensions import override

from datamodules.splits import Split
from evaluation.predictions import read_predictions, write_predictions
from experiments.baselines import baseline_rows
from experiments.inner import CHOICE, INNER, inner_words
from experiments.job_folder import DONE, JOB, RUN, JobFolder, read_lists
from experiments.ranks import num_processes
from experiments.runtime import FontanelCLI
from experiments.scoring import score_all
from experiments.session import PREDICTIONS, Session
from experiments.sweep_trial import TrialJob
from experiments.training import ResumePoint, RunKey, Training
from experiments.tuning import FOLDER as TUNING
from experiments.tuning import SCORE, Tuning, tuned_words
from lightning_modules.operating_point import OperatingPointWarning
from tracking.files import read_json, write_json
from tracking.store import Store

FOLDS = "folds.json"


def read_job(folder: Path) -> JobFolder:
    """Return the job that was prepared in a folder, of whatever kind it is."""
    return TrialJob.read(folder) if "slot" in read_json(folder / JOB) else Job.read(folder)


@dataclass(frozen=True)
class Job(JobFolder):
    """One fold x arm x seed.

    Args:
        key: What tells its run from the others; the arm has `@SHARE` where it trains on a share of the labels.
        baseline: Columns of the table that a regression without images uses; empty for a network.
        num_inner_folds: Folds within the training that choose threshold, temperature and number of epochs.
        tune: What `Tuning.as_json` gives; empty without a tuning.
    """

    key: RunKey
    baseline: tuple[str, ...] = ()
    num_inner_folds: int = 0
    tune: dict[str, Any] = field(default_factory=dict)

    @property
    @override
    def name(self) -> str:
        """Name of its run."""
        return self.key.run_name

    @cached_property
    def tuning(self) -> Tuning | None:
        """What its training chooses from, None without a tuning."""
        return Tuning.from_json(self.tune) if self.tune else None

    @property
    @override
    def stage(self) -> str:
        """How far its tuning has come, empty without one or after it."""
        place = self.folder / TUNING
        if self.tuning is None or (place / CHOICE).is_file():
            return ""
        done = len(list(place.glob(SCORE.format("*", "*"))))
        return f"tuning, {done} of at most {self.tuning.num_trainings - 1} trainings"

    def predictions(self) -> pd.DataFrame:
        """Return its rows of the predictions table."""
        return read_predictions(self.folder / PREDICTIONS)

    def prepare(self, split: Split | None) -> None:
        """Write what the job needs to run in a process of its own.

        Args:
            split: Who is in which part; drawn by the configuration without one.
        """
        self.write()
        if split is not None and not (self.folder / FOLDS).is_file():
            split.write(self.folder / FOLDS)

    def run(self, store: Store) -> None:
        """Do it, go on where it was interrupted, or do nothing where it is done."""
        run_job(self, store)

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """Return the job that was prepared in a folder."""
        content = read_lists(folder, "words", "baseline")
        return cls(**{**content, "key": RunKey(**content["key"])})


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
    point = None if job.baseline else job.resume_point(store)
    cli = configured(job, store) if point is None else point.rebuild()
    if quiet:
        cli.be_quiet()
    if not job.baseline and (num := num_processes(cli)) > 1:
        job.run_in_processes(cli, num, store)
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


def _training(job: Job, cli: FontanelCLI, point: ResumePoint | None, store: Store) -> Training:
    """Open the run of a job: where it stopped, from the beginning where it came to no checkpoint, or a new one."""
    if point is not None:
        return Training.resume(cli, point, store)
    known = store.known_here(job.run_id)
    training = Training.start(cli, study=job.study, key=job.key, store=store, tags=job.tags, run_id=known)
    choices = {TUNING: job.folder / TUNING / CHOICE, INNER: job.folder / INNER / CHOICE}
    training.documents = {f"{name}.json": read_json(path) for name, path in choices.items() if path.is_file()}
    return training


def configured(job: Job, store: Store) -> FontanelCLI:
    """Return configuration, model and datamodule of a job, its participants assigned; it is tuned before."""
    folds = job.folder / FOLDS
    words = list(job.words)
    if job.tuning is not None:
        words = tuned_words(words, job.folder, job.tuning, store)
    if job.num_inner_folds and not job.baseline:
        words = inner_words(words, job.folder, job.num_inner_folds, store)
    elif folds.is_file():
        words += ["--data.split_file", str(folds)]
    cli = FontanelCLI(words)
    cli.datamodule.assign_splits(unknown="unused")
    return cli

"""What every job that runs in a process of its own has in common: a folder with its state, and a run to go on with."""

import os
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.cli import INTERRUPTED
from experiments.options import STEP_TIMEOUT
from experiments.ranks import run_ranks
from experiments.runtime import FontanelCLI
from experiments.training import ResumePoint
from tracking.checkpoints import CheckpointError
from tracking.files import read_json, write_json
from tracking.interruption import Interrupted
from tracking.store import Store

DONE, RUN, JOB = "done.json", "run.json", "job.json"


class JobError(ValueError):
    """A job that failed; says why."""


@dataclass(frozen=True)
class JobFolder(ABC):
    """A job: plain data, and a folder; what launchers ask of a job of any kind.

    Args:
        study: MLflow experiment.
        words: The whole configuration, as words of a command line.
        folder: Where the job leaves what it has done.
        tags: Further tags of its run.
    """

    study: str
    words: tuple[str, ...]
    folder: Path
    tags: dict[str, str]

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of its run."""

    @abstractmethod
    def run(self, store: Store) -> None:
        """Do it, or go on where it was interrupted; nothing where it is done."""

    @property
    def is_done(self) -> bool:
        """Whether it is finished."""
        return (self.folder / DONE).is_file()

    @property
    def stage(self) -> str:
        """How far it has come before its training; empty where that is all there is."""
        return ""

    @property
    def run_id(self) -> str | None:
        """Its run, None before it was started."""
        path = self.folder / RUN
        return str(read_json(path)["run_id"]) if path.is_file() else None

    def write(self) -> None:
        """Write what the job is, so that another process can do it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / JOB, {**asdict(self), "folder": None})

    def resume_point(self, store: Store) -> ResumePoint | None:
        """Return where its training was interrupted, None where there is nothing to go on from."""
        run_id = store.known_here(self.run_id)
        if run_id is None:
            return None
        try:
            return ResumePoint.of(str(store.folder(run_id)), [], store)
        except CheckpointError:
            return None

    def run_in_processes(self, cli: FontanelCLI, num: int, store: Store) -> None:
        """Do it in several processes, which its configuration wants; they are watched from here."""
        cli.datamodule.prepare_data()
        os.environ["MLFLOW_TRACKING_URI"] = store.uri  # not among the words: it may hold a password
        code = run_ranks(["job", str(self.folder), "--output-dir", str(store.output_folder)], num, store, STEP_TIMEOUT)
        if code == INTERRUPTED:
            raise Interrupted(f"{self.name} was interrupted")
        if code or not self.is_done:
            raise JobError(f"The processes of {self.name} ended with exit code {code}; what they said stands above.")


def read_lists(folder: Path, *names: str) -> dict[str, Any]:
    """Return what `write` has written, some of its entries as tuples."""
    content: dict[str, Any] = read_json(folder / JOB)
    return {**content, **{name: tuple(content[name]) for name in names}, "folder": folder}

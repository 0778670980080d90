"""A sweep that is being done here: its parent run, this machine's worker, and what is written at its end."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.cli import DONE, FAILED
from experiments.launcher import default_workers
from experiments.runtime import ConfigurationError
from experiments.sweep_conclusion import SweepConclusion
from experiments.sweep_plan import SweepPlan
from experiments.sweep_queue import TrialQueue
from experiments.sweep_runner import Counts, Worker
from experiments.sweep_storage import SweepStorage
from tracking.environment import environment_facts
from tracking.interruption import Interrupted
from tracking.logger import RunLogger
from tracking.progress import PLAIN_INTERVAL
from tracking.store import PARENT_TAG, RunStatus, Store

PARENT = "parent"  # attribute of a study: MLflow's id of its run
KIND = "sweep"


@dataclass
class SweepCampaign:
    """A sweep that is being done.

    Args:
        plan: What was planned.
        queue: Its trials.
        store: Where its runs are kept.
        leads: Whether this process keeps the parent run, and writes what was found.
    """

    plan: SweepPlan
    queue: TrialQueue
    store: Store
    leads: bool

    @classmethod
    def create(cls, plan: SweepPlan, storage: SweepStorage, store: Store) -> "SweepCampaign":
        """Make the sweep, or go on with it, and let its trials wait."""
        queue = TrialQueue.create(plan.sweep, storage, plan.as_json(), plan.seed)
        if plan.sweep.num_trials is not None:
            queue.fill(plan.sweep.num_trials)
        return cls(plan, queue, store, leads=True)

    @classmethod
    def join(cls, name: str, storage: SweepStorage, store: Store, max_hours: float | None) -> "SweepCampaign":
        """Work on a sweep that somebody else has made."""
        queue, definition = TrialQueue.join(name, storage)
        return cls(SweepPlan.from_json(definition, max_hours=max_hours), queue, store, leads=False)

    def run(self, num_workers: int | None) -> int:
        """Work until nothing is left to do.

        Returns:
            0 done, 1 when no trial was completed.

        Raises:
            Interrupted: A signal asked to stop.
        """
        folder, words, folds = self.plan.write(self.store)
        with self._alone(folder / "work.lock"), self._parent() as parent:
            tags = {"sweep": self.plan.sweep.name}
            if (parent_id := self.queue.study().user_attrs.get(PARENT)) is not None:
                tags[PARENT_TAG] = parent_id
            num = num_workers or default_workers()
            watch = _Lines(self.plan.sweep.name)
            worker = Worker(
                self.plan.sweep, self.plan.study, self.queue, words, folds, folder, self.store, num, tags, watch
            )
            worker.run()
            if parent is None:
                print(f"Nothing waits any more: {worker.counts()}.")
                return DONE
            found = SweepConclusion(self.plan, self.queue)
            found.write(parent)
        print(f"{self.plan.sweep.name}: {worker.counts()}.")
        if not found.completed:
            sys.stderr.write("No trial was completed. The reasons stand in trials.csv of the parent run, column why.\n")
            return FAILED
        for name, value in found.best.params.items():
            print(f"  {name}: {value}")
        name = self.plan.sweep.name
        print(f"Next:\n  fontanel best {name} > best.yaml\n  fontanel fit --config best.yaml\n  fontanel ui")
        return DONE

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Let one process of this machine lead a sweep; others join."""
        if not self.leads:
            yield
            return
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigurationError(
                f"Another process of this machine leads {self.plan.sweep.name}. Join it: fontanel sweep --join "
                f"{self.plan.sweep.name}"
            ) from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _parent(self) -> Iterator[RunLogger | None]:
        """Open the parent run, new or again, and close it with its true status; None for those who joined."""
        if not self.leads:
            yield None
            return
        sweep, study = self.plan.sweep, self.queue.study()
        known = study.user_attrs.get(PARENT)
        if known is not None and not self.store.folder(known).is_dir():
            known = None
        tags = {"study": self.plan.study, "kind": KIND, "metric": ", ".join(sweep.metric)}
        if sweep.name != self.plan.study:
            tags["sweep_group"] = self.plan.study
        parent = RunLogger(self.store, self.plan.study, f"sweep-{sweep.name.rpartition('/')[2]}", tags, run_id=known)
        study.set_user_attr(PARENT, parent.run_id)
        status: RunStatus = "FAILED"
        try:
            if known is None:
                parent.log_config(self.plan.config)
                parent.log_json("sweep.json", sweep.as_json())
                parent.log_json("environment.json", environment_facts())
                parent.release()
            yield parent
            status = "FINISHED"
        except (Interrupted, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            parent.close(status)


class _Lines:
    """One line at the beginning, one a minute, and one at the end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.last = -PLAIN_INTERVAL

    def __call__(self, counts: Counts) -> None:
        now = time.monotonic()
        over = counts.running == counts.waiting == 0
        if now - self.last < PLAIN_INTERVAL and not over:
            return
        self.last = now
        sys.stderr.write(f"{self.name}: {counts}\n")
        sys.stderr.flush()

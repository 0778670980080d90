"""A sweep that is being done here: its parent run, this machine's worker, and what is written at its end."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli import DONE, FAILED
from experiments.launcher import default_workers
from experiments.runtime import work_alone
from experiments.sweep_conclusion import SweepConclusion
from experiments.sweep_plan import SweepPlan
from experiments.sweep_queue import TrialQueue
from experiments.sweep_runner import Worker
from experiments.sweep_storage import STORAGE, SweepStorage
from tracking.environment import environment_facts
from tracking.logger import RunLogger
from tracking.progress import Lines
from tracking.store import PARENT_TAG, Store

if TYPE_CHECKING:
    from experiments.slurm import Crew

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
        queue.set_budget(plan.sweep.num_trials, plan.sweep.max_hours)
        return cls(plan, queue, store, leads=True)

    @classmethod
    def join(cls, name: str, storage: SweepStorage, store: Store, max_hours: float | None) -> "SweepCampaign":
        """Work on a sweep that somebody else has made, no longer than that one, and than this many hours."""
        queue, definition = TrialQueue.join(name, storage)
        num_trials, left = queue.budget()
        hours = [one for one in (left, max_hours) if one is not None]
        plan = SweepPlan.from_json(definition, num_trials, min(hours, default=None))
        return cls(plan, queue, store, leads=False)

    def run(self, num_workers: int | None, launcher: str = "processes") -> int:
        """Work until nothing is left to do.

        Args:
            num_workers: Trials at once.
            launcher: `processes`, or `slurm`: then jobs of the cluster join, and this process only watches.

        Returns:
            0 done, 1 when no trial was completed.

        Raises:
            Interrupted: A signal asked to stop.
        """
        folder, words, folds = self.plan.write(self.store)
        joining = f"Join it: fontanel sweep --join {self.plan.sweep.name}"
        with work_alone(folder, joining) if self.leads else nullcontext(), self._parent() as parent:
            tags = {"sweep": self.plan.sweep.name}
            if (parent_id := self.queue.study().user_attrs.get(PARENT)) is not None:
                tags[PARENT_TAG] = parent_id
            crew = self._hire(folder, num_workers or 1) if launcher == "slurm" else None
            num = 0 if crew is not None else num_workers or default_workers()
            lines = Lines(self.plan.sweep.name)
            worker = Worker(
                self.plan.sweep,
                self.plan.study,
                self.queue,
                words,
                folds,
                folder,
                self.store,
                num,
                tags,
                lines.show,
                crew,
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

    def _hire(self, folder: Path, number: int) -> "Crew":
        """Let jobs of the cluster join."""
        from experiments.slurm import Cluster

        os.environ[STORAGE] = self.queue.storage.uri  # not among the words: it may hold a password
        words = ["sweep", "--join", self.plan.sweep.name, "--num-workers", "1"]
        return Cluster(folder, self.plan.sweep.slurm, self.store).hire(words, number)

    @contextmanager
    def _parent(self) -> Iterator[RunLogger | None]:
        """Open the parent run, new or again, and close it with its true status; None for those who joined."""
        if not self.leads:
            yield None
            return
        sweep, study = self.plan.sweep, self.queue.study()
        known = self.store.known_here(study.user_attrs.get(PARENT))
        tags = {"study": self.plan.study, "kind": KIND, "metric": ", ".join(sweep.metric)}
        if sweep.name != self.plan.study:
            tags["sweep_group"] = self.plan.study
        parent = RunLogger(self.store, self.plan.study, f"sweep-{sweep.name.rpartition('/')[2]}", tags, run_id=known)
        study.set_user_attr(PARENT, parent.run_id)
        with parent.closing():
            if known is None:
                parent.log_config(self.plan.config)
                parent.log_json("sweep.json", sweep.as_json())
                parent.log_json("environment.json", environment_facts())
                parent.release()
            yield parent

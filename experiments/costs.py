"""What a cross-validation or a sweep costs: trainings, hours and disk, before anything is trained."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, Protocol

from datamodules.cohort import participant_keys
from evaluation.parts import HELD_OUT
from evaluation.wording import count_text

if TYPE_CHECKING:
    from datamodules.base import BaseDataModule
    from datamodules.splits import Split
    from experiments.sweep_plan import SweepPlan
    from experiments.workplan import Workplan
    from tracking.store import Store

HALF = 2  # bytes of a voxel in the cache
MIN_FINISHED = 2  # earlier jobs from which the others are foreseen


@dataclass(frozen=True)
class Load:
    """Trainings that cost alike.

    Args:
        times: How many.
        num_train: Images that each trains on.
        num_val: Images that choose its epoch.
        num_test: Images that it predicts in the end.
        is_run: Whether each leaves a run with checkpoints in the store.
    """

    times: int
    num_train: float
    num_val: float
    num_test: float = 0
    is_run: bool = False


class Clock(Protocol):
    """What knows how long trainings take."""

    @property
    def run_bytes(self) -> int:
        """Bytes that a run leaves: checkpoints, weights, artifacts."""

    @property
    def said(self) -> list[str]:
        """How it was measured, in words."""

    def seconds(self, loads: Sequence[Load]) -> tuple[float, float, float]:
        """Return how long all trainings take, one after the other: (low, expected, high)."""


@dataclass(frozen=True)
class Work:
    """Everything that is to be done.

    Args:
        num_jobs: Jobs: trainings with their test, and regressions without images; None for a sweep.
        loads: Trainings of a network, at most.
        num_images: Images that the cache keeps.
        image_bytes: Bytes of each of them.
        num_at_once: Jobs at once.
        max_hours: No trial of a sweep is started after so long.
    """

    num_jobs: int | None
    loads: tuple[Load, ...]
    num_images: int
    image_bytes: int
    num_at_once: int
    max_hours: float | None = None

    @property
    def num_trainings(self) -> int | None:
        """Trainings of a network, at most; None where only time ends them."""
        return sum(load.times for load in self.loads) if self.loads or self.max_hours is None else None

    def scaled(self, factor: float) -> "Work":
        """Return the same work for another number of participants.

        Args:
            factor: New number, as a multiple of the one planned.
        """
        loads = tuple(_with_images(load, factor) for load in self.loads)
        return replace(self, loads=loads, num_images=round(self.num_images * factor))

    def as_json(self, clock: Clock | None) -> dict[str, Any]:
        """Return the JSON of `fontanel plan --json`.

        Args:
            clock: What knows how long a training takes; None gives neither hours nor the disk that runs take.
        """
        found: dict[str, Any] = {
            "jobs": self.num_jobs,
            "trainings": self.num_trainings,
            "at_once": self.num_at_once,
            "cache_bytes": self.num_images * self.image_bytes,
        }
        if self.max_hours is not None:
            found["max_hours"] = self.max_hours
        if clock is None or self.num_trainings is None:
            return found
        most = math.inf if self.max_hours is None else self.max_hours
        names = ("low", "expected", "high")
        found["hours"] = {
            name: min(most, seconds / 3600 / self.num_at_once)
            for name, seconds in zip(names, clock.seconds(self.loads), strict=True)
        }
        found["run_bytes"] = clock.run_bytes
        found["runs_bytes"] = clock.run_bytes * sum(load.times for load in self.loads if load.is_run)
        return found


@dataclass(frozen=True)
class Finished:
    """Earlier jobs of the same analysis, or trials of the same sweep, whose time is taken for that of all.

    Args:
        taken: Seconds that each took.
        num_jobs: How many there are in all, what is done among them.
        run_bytes: Bytes that each leaves.
    """

    taken: tuple[float, ...]
    num_jobs: int
    run_bytes: int

    @classmethod
    def find(cls, folders: Sequence[Path], num_jobs: int, store: "Store") -> "Finished | None":
        """Return the finished jobs with a network in some folders; None where there are too few.

        Args:
            folders: Folders of a cross-validation, or of sweeps.
            num_jobs: How many jobs with a network there are in all.
            store: Where they left their runs.
        """
        from experiments.job_folder import DONE, JOB, RUN
        from tracking.files import read_json

        paths = [path.parent for folder in folders for path in folder.glob(f"*/*/{DONE}")]
        paths = [path for path in paths if not read_json(path / JOB).get("baseline")]
        if len(paths) < MIN_FINISHED:
            return None
        runs = [read_json(path / RUN)["run_id"] for path in paths]
        left = median(bytes_of_runs(store.output_folder, run) for run in runs)
        return cls(tuple(read_json(path / DONE)["seconds"] for path in paths), num_jobs, round(left))

    def seconds(self, loads: Sequence[Load]) -> tuple[float, float, float]:
        """Return how long all jobs take, at the lower quartile, the median and the upper quartile of those done."""
        low, middle, high = (self.num_jobs * one for one in quantiles(self.taken, n=4, method="inclusive"))
        return low, middle, high

    @property
    def said(self) -> list[str]:
        """How it was measured, in words."""
        low, middle, high = (duration_text(one) for one in quantiles(self.taken, n=4, method="inclusive"))
        number = count_text(len(self.taken), "finished job")
        return [
            f"From {number} of the same plan: {middle} each (middle half {low} to {high}). What is done is counted."
        ]


def crossval_work(plan: "Workplan", num_at_once: int) -> Work:
    """Return what a cross-validation has to do.

    Args:
        plan: The cross-validation.
        num_at_once: Jobs at once.
    """
    study, data = plan.study, plan.cli.datamodule
    networks = study.num_seeds * sum(not arm.baseline for arm in study.arms)
    loads = []
    for cell in plan.cells:
        train, val = (len(cell.split.keys(part)) for part in ("train", "val"))
        tested = sum(len(cell.split.keys(part)) for part in HELD_OUT)
        for share in study.label_fractions:
            loads += _job_loads(plan, networks, share * train, share * val, tested)
    images = len(plan.frame)
    people = len({*participant_keys(plan.frame)})
    per_person = tuple(_with_images(load, images / people) for load in loads)
    return Work(plan.num_jobs, per_person, images, image_bytes(data), num_at_once)


def sweep_work(plans: Sequence["SweepPlan"], data: "BaseDataModule", num_at_once: int) -> Work:
    """Return what a sweep, or one for each training part of an outer protocol, has to do.

    Args:
        plans: The sweeps, one after the other.
        data: The cohort, with its split where trials have no folds of their own.
        num_at_once: Trials at once.
    """
    loads, hours = [], []
    for plan in plans:
        for fold in folds_of(plan, data) if plan.sweep.num_trials is not None else ():
            train, val = (len(fold.keys(part)) for part in ("train", "val"))
            is_run = not plan.is_judged_by_folds or not plan.folds
            loads.append(Load(plan.sweep.num_trials or 0, train, val, 0 if is_run else val, is_run))
        hours.append(math.inf if plan.sweep.max_hours is None else plan.sweep.max_hours)
    images = sum(len(cohort.frame) for cohort in data.cohorts)
    most = sum(hours)
    return Work(None, tuple(loads), images, image_bytes(data), num_at_once, most if most < math.inf else None)


def folds_of(plan: "SweepPlan", data: "BaseDataModule") -> tuple["Split", ...]:
    """Return whom each training of a trial trains on and is judged by."""
    return plan.folds or (() if data.split is None else (data.split,))


def num_test_sets(protocol: str, num_sites: int, num_folds: int) -> int:
    """Return the test sets of one repeat of a protocol.

    >>> [num_test_sets(name, 3, 5) for name in ("k-fold", "same-site", "multi-site", "cross-site", "external")]
    [5, 15, 15, 3, 1]
    """
    return {"k-fold": num_folds, "cross-site": num_sites, "external": 1}.get(protocol, num_sites * num_folds)


def bytes_of_runs(output: Path, run_id: str = "*") -> int:
    """Return the bytes of the files of runs in an output folder, their share of the database not among them."""
    kept = [*output.glob(f"runs/{run_id}/**/*"), *output.glob(f"artifacts/**/{run_id}/artifacts/**/*")]
    return sum(path.stat().st_size for path in kept if path.is_file())


def image_bytes(data: "BaseDataModule") -> int:
    """Return the bytes that a preprocessed image takes in the cache."""
    return len(data.images) * math.prod(data.preprocessing.shape) * HALF


def print_costs(found: Mapping[str, Any], said: Iterable[str] = ()) -> None:
    """Print what `Work.as_json` gives.

    Args:
        found: The JSON.
        said: How the time was measured.
    """
    from rich.console import Console

    from experiments.checks import size_text
    from experiments.expectation_text import WIDTH

    work = [] if found["jobs"] is None else [count_text(found["jobs"], "job")]
    if found["trainings"] is None:
        work.append(f"as many trials as {found['max_hours']:g} hours leave time for")
    else:
        work.append(count_text(found["trainings"], "training of a network", "trainings of networks"))
    lines = [f"Work: {', '.join(work)}."]
    if hours := found.get("hours"):
        low, expected, high = (duration_text(3600 * hours[name]) for name in ("low", "expected", "high"))
        once = "" if found["at_once"] == 1 else f", {found['at_once']} at once"
        lines.append(f"Time: at most about {expected} ({low} to {high}){once}.")
    lines += said
    if "cache_bytes" in found:
        disk = [f"cache {size_text(found['cache_bytes'])}"]
        if found.get("runs_bytes"):
            disk.append(f"runs {size_text(found['runs_bytes'])} ({size_text(found['run_bytes'])} each)")
        lines.append(f"Disk: {', '.join(disk)}.")
    console = Console(width=WIDTH)
    for line in lines:
        console.print(line, highlight=False, markup=False)


def duration_text(seconds: float) -> str:
    """Return a time with a unit that fits it.

    >>> duration_text(40), duration_text(600), duration_text(9000)
    ('40 s', '10 min', '2.5 h')
    """
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def _job_loads(plan: "Workplan", networks: int, train: float, val: float, tested: int) -> list[Load]:
    """Return the trainings of the jobs of one test set: those that are tested, and those within them."""
    study, pool = plan.study, train + val
    parts = (pool, 0.0) if study.num_inner_folds else (train, val)
    inner = [(study.num_inner_folds, study.num_inner_folds)]
    if plan.tuning is not None:
        inner.append((plan.tuning.num_trainings - 1, plan.tuning.num_folds))
    loads = [Load(networks, *parts, tested, is_run=True)]
    loads += [Load(networks * times, pool * (1 - 1 / k), pool / k) for times, k in inner if times]
    return [load for load in loads if load.times]


def _with_images(load: Load, factor: float) -> Load:
    return replace(
        load, num_train=factor * load.num_train, num_val=factor * load.num_val, num_test=factor * load.num_test
    )

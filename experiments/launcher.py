"""Launchers: how the jobs of a cross-validation are done, one after another here, or several at once.

`inline` does them in this process. `processes` gives each a process of its own (its memory is returned when it ends),
on a GPU of its own where there are some. `slurm` gives them to a cluster. Who is killed loses nothing that a job has
finished: the queue is the folders of the jobs, and the same command goes on where it was.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from experiments.cli import FAILED, INTERRUPTED, describe
from experiments.job_folder import JobFolder
from experiments.jobs import Job, read_job, run_job
from experiments.memory import keep_freed_memory
from tracking.interruption import STOP_SIGNALS, Interrupted
from tracking.store import Store

Launcher = Literal["inline", "processes", "slurm"]
LAUNCHERS: tuple[Launcher, ...] = ("inline", "processes", "slurm")
LOG = "log.txt"
INTERVAL = 0.05  # seconds between two looks
STOPPING = "\nStopping the jobs at their next batch, after a checkpoint; Ctrl-C again quits at once.\n"
PRELOADED = ["experiments.jobs", "experiments.sweep_trial", "mlflow.store.tracking.sqlalchemy_store"]


@dataclass
class Progress:
    """How far the jobs have come.

    Args:
        total: Jobs in all.
        done: Those that are finished, now or before.
        running: Those that are worked on, by name, with when each began.
        failed: Those that failed: job -> why.
        fresh: How many of the finished were finished now.
        started: When the work began.
    """

    total: int
    done: int = 0
    running: dict[str, tuple[JobFolder, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    fresh: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.done + len(self.failed) == self.total

    @property
    def seconds_left(self) -> float | None:
        """How long the rest will take at the pace so far, None before the first is finished."""
        left = self.total - self.done - len(self.failed)
        return (time.monotonic() - self.started) / self.fresh * left if self.fresh else None

    @property
    def summary(self) -> str:
        """How far the jobs have come, in one line."""
        text = f"{self.done} of {self.total} jobs done, {len(self.running)} running, {len(self.failed)} failed"
        left = self.seconds_left
        return text if left is None else f"{text}; about {left / 60:.1f} min left"

    def __str__(self) -> str:
        stages = [f"{name}: {stage}" for name, (job, _) in self.running.items() if (stage := job.stage)]
        return "; ".join([self.summary, *stages])

    def begin(self, job: JobFolder) -> None:
        """Count a job that is worked on from now."""
        self.running[job.name] = (job, time.monotonic())

    def finish(self, job: JobFolder, error: str | None) -> None:
        """Count a job that has ended."""
        self.running.pop(job.name, None)
        if error is None:
            self.done, self.fresh = self.done + 1, self.fresh + 1
        else:
            self.failed[job.name] = error


Watcher = Callable[[Progress], None]


def run_jobs(
    jobs: Sequence[Job],
    store: Store,
    launcher: Launcher,
    num_workers: int | None,
    watch: Watcher,
    resources: Mapping[str, Any] | None = None,
) -> Progress:
    """Do every job that is not done; those that fail are named at the end, and done anew by the next call.

    Args:
        jobs: What is to be done, in order.
        store: Where their runs are kept.
        launcher: How.
        num_workers: How many at once: by default one per GPU or core, and as many as the cluster takes.
        watch: Called whenever something may have changed.
        resources: What each job needs of a cluster.

    Raises:
        Interrupted: A signal asked to stop; what was running has saved a checkpoint.
    """
    progress = Progress(len(jobs), sum(job.is_done for job in jobs))
    waiting = [job for job in jobs if not job.is_done]
    watch(progress)
    if launcher == "inline":
        _run_inline(waiting, store, progress, watch)
    elif launcher == "processes":
        _Pool(store, num_workers or default_workers(), progress, watch).run(waiting)
    elif waiting:
        from experiments.slurm import Cluster

        Cluster(waiting[0].folder.parent, resources or {}, store).run(waiting, num_workers, progress, watch)
    return progress


def default_workers() -> int:
    """Return how many jobs to do at once: one per GPU, or one per core."""
    import torch

    return torch.cuda.device_count() or len(os.sched_getaffinity(0))


def _run_inline(waiting: Sequence[Job], store: Store, progress: Progress, watch: Watcher) -> None:
    for job in waiting:
        progress.begin(job)
        watch(progress)
        try:
            run_job(job, store)
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted("interrupted") from None
        except Exception as error:
            _write_log(job, traceback.format_exc())
            progress.finish(job, describe(error))
        else:
            progress.finish(job, None)
        watch(progress)


def _write_log(job: Job, text: str) -> None:
    with (job.folder / LOG).open("a", encoding="utf-8") as log:
        log.write(text)


class _Pool:
    """Processes, one for each job, as many at once as there are slots.

    They are forked from a server that has imported everything and computed nothing, so that a job starts at once.

    Args:
        store: Where runs are kept.
        num_workers: How many at once.
        progress: What is told to `watch`.
        watch: Called at every look.
    """

    def __init__(self, store: Store, num_workers: int, progress: Progress, watch: Watcher) -> None:
        self.store = store
        self.num_workers = num_workers
        self.progress = progress
        self.watch = watch
        self.context = forkserver()
        self.slots = list(range(num_workers))
        self.running: dict[str, tuple[Job, ForkServerProcess, int]] = {}
        self.stops = 0

    def run(self, waiting: Sequence[Job]) -> None:
        """Do all jobs."""
        queue = list(waiting)
        before = {number: signal.signal(number, self._stop) for number in STOP_SIGNALS}
        try:
            while self.running or (queue and not self.stops):
                while queue and self.slots and not self.stops:
                    self._start(queue.pop(0))
                time.sleep(INTERVAL)
                self._reap()
                self.watch(self.progress)
        finally:
            for _, process, _ in self.running.values():
                process.kill()
                process.join()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.stops:
            raise Interrupted("interrupted")

    def _start(self, job: Job) -> None:
        slot = self.slots.pop(0)
        process = start_job(self.context, job.folder, self.store, slot, job.name)
        self.running[job.name] = (job, process, slot)
        self.progress.begin(job)

    def _reap(self) -> None:
        for name, (job, process, slot) in list(self.running.items()):
            if process.exitcode is None:
                continue
            process.join()
            del self.running[name]
            self.slots.append(slot)
            if self.stops and process.exitcode in (INTERRUPTED, *(-number for number in STOP_SIGNALS)):
                self.progress.running.pop(name)
            else:
                self.progress.finish(job, failure_of(job, process.exitcode))

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Hand the wish to stop to all jobs once; a second Ctrl-C ends them at once."""
        self.stops += 1
        if self.stops == 1:
            sys.stderr.write(STOPPING)
        for _, process, _ in self.running.values():
            send_stop(process, at_once=self.stops > 1)


def forkserver() -> ForkServerContext:
    """Return a context whose processes are forked from one that has imported everything and computed nothing."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def start_job(context: ForkServerContext, folder: Path, store: Store, slot: int, name: str) -> ForkServerProcess:
    """Start the process of a job that was prepared in a folder.

    Args:
        context: What `forkserver` returned.
        folder: The folder.
        store: Where its run is kept.
        slot: Which of the places at once it takes; GPUs are given out by it.
        name: Name of the process.
    """
    process = context.Process(target=_work, args=(folder, store.uri, store.output_folder, slot), name=name)
    process.start()
    return process


def send_stop(process: ForkServerProcess, *, at_once: bool) -> None:
    """Ask a job to stop after a checkpoint, or end it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid or 0, signal.SIGKILL if at_once else signal.SIGTERM)


def failure_of(job: JobFolder, code: int) -> str | None:
    """Say why a job's process failed, None if it did not."""
    if code == 0 and job.is_done:
        return None
    log = job.folder / LOG
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] if log.is_file() else []
    end = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"{said[0] if said else end} (log: {log})"


def _work(folder: Path, uri: str, output: Path, slot: int) -> None:
    """Do one job in a process of its own; its words go to the job's log."""
    os.setsid()  # Ctrl-C in the terminal is for the one that watches
    _end_with_parent()
    keep_freed_memory()
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    _take_slot(slot)
    try:
        read_job(folder).run(Store(uri, output))
    except (Interrupted, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.write(f"{describe(error)}\n")
        sys.exit(FAILED)


def _end_with_parent() -> None:
    """End this process when the one that watches over it is gone; the server that forked it would wait for its jobs."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _take_slot(slot: int) -> None:
    """Give this process one of the GPUs, by turns, before any library looks for them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    if devices and devices != [""]:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]

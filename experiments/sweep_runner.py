"""One worker of a sweep: it takes trials, gives each a process of its own, listens to them, and tells what came out.

Any number of workers may work on the same sweep; one that is killed takes its trials with it, and another goes on with
them. A signal stops the trials at their next batch, after a checkpoint; they wait for the next worker.
"""

import math
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.cli import INTERRUPTED
from experiments.launcher import STOPPING, failure_of, forkserver, send_stop, start_job
from experiments.study import as_words
from experiments.sweep_file import Sweep, best_of
from experiments.sweep_link import Listener
from experiments.sweep_queue import ATTEMPT, BEAT_INTERVAL, CHOSEN, FOLDER, TrialQueue, slot_of
from experiments.sweep_trial import TrialJob
from tracking.errors import StoreError
from tracking.interruption import STOP_SIGNALS, Interrupted
from tracking.store import Store

if TYPE_CHECKING:
    from experiments.slurm import Crew

INTERVAL = 0.05  # seconds between two looks
IDLE_INTERVAL = 2.0  # seconds between two looks at the trials of others


class Watch(Protocol):
    """Shows how far a sweep has come."""

    def __call__(self, state: object, *, is_over: bool) -> None:
        """Show a state."""


@dataclass
class Running:
    """A trial that is worked on here.

    Args:
        trial: As Optuna has it.
        job: What its process does.
        process: The process.
        lane: Which of this worker's places it takes.
        listener: Where it reports.
    """

    trial: Trial
    job: TrialJob
    process: ForkServerProcess
    lane: int
    listener: Listener


@dataclass
class Counts:
    """How far a sweep has come, all workers together.

    Args:
        done: Trials that were completed.
        pruned: Trials that were stopped early.
        failed: Trials that came to nothing, and are not tried again.
        running: Trials that are worked on, here or elsewhere.
        waiting: Trials that wait.
        best: Best value so far, None before the first, and of several metrics.
    """

    done: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    best: float | None = None

    def __str__(self) -> str:
        shown = (
            f"{self.done} trials done, {self.pruned} pruned, {self.failed} failed, {self.running} running, "
            f"{self.waiting} waiting"
        )
        return shown if self.best is None else f"{shown}; best {self.best:.4g}"


def best_value(trials: Sequence[FrozenTrial], sweep: Sweep) -> float | None:
    """Return the best value of completed trials, None before the first, and of several metrics."""
    known = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return best_of(known, sweep).value if known and len(sweep.metric) == 1 else None


@dataclass
class Worker:
    """A worker of a sweep.

    Args:
        sweep: What is searched.
        study: MLflow experiment.
        queue: Its trials.
        words: Words of the configuration that every trial starts from.
        folds: Files of the folds of every trial; none where a trial is one training.
        folder: Folder of the sweep on this machine.
        store: Where runs are kept.
        num_workers: Trials at once.
        tags: Tags of every trial's run.
        watch: Called now and then.
        crew: Jobs of a cluster that do the trials; they are watched, and stopped with this worker.
    """

    sweep: Sweep
    study: str
    queue: TrialQueue
    words: tuple[str, ...]
    folds: tuple[str, ...]
    folder: Path
    store: Store
    num_workers: int
    tags: Mapping[str, str]
    watch: Watch
    crew: "Crew | None" = None
    _running: dict[int, Running] = field(default_factory=dict)
    _stops: int = 0

    def run(self) -> None:
        """Work until no trial waits or runs anywhere, or time is over.

        Raises:
            Interrupted: A signal asked to stop; what was running waits for the next worker.
        """
        self._context = forkserver()
        self._space = self.sweep.searched
        self._lanes = list(range(self.num_workers))
        self._deadline = math.inf if self.sweep.max_hours is None else time.monotonic() + 3600 * self.sweep.max_hours
        beat = look = self._next_look = -math.inf
        before = {number: signal.signal(number, self._stop) for number in STOP_SIGNALS}
        try:
            while True:
                now = time.monotonic()
                if now - beat > BEAT_INTERVAL:
                    beat = now
                    self._beat()
                self._fill_lanes()
                self._listen()
                self._collect()
                if now - look > IDLE_INTERVAL:
                    look = now
                    counts = self.counts()
                    over = self._is_over(counts)
                    self.watch(counts, is_over=over)
                    if self._stops or over:
                        if not self._running:
                            break
                    elif self.crew is not None:
                        self.crew.require()
                time.sleep(INTERVAL)
        finally:
            for one in self._running.values():
                one.process.kill()
                one.process.join()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._stops:
            raise Interrupted("interrupted; repeat the same command to go on: what is finished is kept.")

    def counts(self) -> Counts:
        """Return how far the sweep has come."""
        trials = self.queue.trials()
        last = {}
        for trial in trials:
            last[slot_of(trial)] = trial  # a retry stands behind what it repeats
        states = [trial.state for trial in last.values()]
        return Counts(
            done=states.count(TrialState.COMPLETE),
            pruned=states.count(TrialState.PRUNED),
            failed=states.count(TrialState.FAIL),
            running=states.count(TrialState.RUNNING),
            waiting=states.count(TrialState.WAITING),
            best=best_value(trials, self.sweep),
        )

    def _is_over(self, counts: Counts) -> bool:
        all_taken = self.sweep.num_trials is not None and counts.waiting == 0
        return counts.running == 0 and (all_taken or time.monotonic() > self._deadline)

    def _fill_lanes(self) -> None:
        while self._lanes and not self._stops and self._next_look <= time.monotonic() < self._deadline:
            trial = self.queue.take(self.sweep)
            if trial is not None:
                self._start(trial)
            elif self.sweep.num_trials is None:
                self.queue.extend()
            else:
                self._next_look = time.monotonic() + IDLE_INTERVAL

    def _start(self, trial: Trial) -> None:
        chosen = self._space.suggest(trial)
        attempt, before = int(trial.user_attrs[ATTEMPT]), trial.user_attrs.get(FOLDER)
        folder = self.folder / "trials" / f"{slot_of(trial):04d}-{trial.number}"
        trial.set_user_attr(CHOSEN, trial.params)
        trial.set_user_attr(FOLDER, str(folder))
        job = TrialJob(
            self.study,
            (*self.words, *as_words(chosen)),
            folder,
            {**self.tags, "trial": str(slot_of(trial))},
            slot=slot_of(trial),
            attempt=attempt,
            metric=self.sweep.metric,
            direction=self.sweep.directions,
            folds=self.folds,
        )
        job.prepare(Path(before) if before else None)
        lane = self._lanes.pop(0)
        process = start_job(self._context, folder, self.store, lane, job.name)
        self._running[trial.number] = Running(trial, job, process, lane, Listener(folder))

    def _beat(self) -> None:
        for one in list(self._running.values()):
            try:
                self.queue.beat(one.trial)
            except UpdateFinishedTrialError:
                self._lose(one)
        self.queue.reap(tuple(self._running))

    def _listen(self) -> None:
        for one in list(self._running.values()):
            for step, value in one.listener.news():
                stop = False
                try:
                    if len(self.sweep.metric) == 1:
                        one.trial.report(value, step)
                        stop = bool(one.trial.should_prune())
                except UpdateFinishedTrialError:
                    self._lose(one)
                    break
                one.listener.answer(stop)

    def _lose(self, one: Running) -> None:
        """End a trial that others have taken up: this machine was away for too long."""
        sys.stderr.write(f"{one.job.name} is given up here: others took this worker for dead, and go on with it.\n")
        one.process.kill()
        one.process.join()
        del self._running[one.trial.number]
        self._lanes.append(one.lane)

    def _collect(self) -> None:
        for number, one in list(self._running.items()):
            if one.process.exitcode is None:
                continue
            one.process.join()
            self._listen()
            if self._running.pop(number, None) is None:
                continue
            self._lanes.append(one.lane)
            self._next_look = -math.inf
            self._tell(one, one.process.exitcode)

    def _tell(self, one: Running, code: int) -> None:
        """Tell Optuna, and the run, what became of a trial."""
        why = failure_of(one.job, code)
        if self._stops and code in (INTERRUPTED, *(-number for number in STOP_SIGNALS)):
            self.queue.retry(one.trial, "stopped", counts=False)
        elif (code < 0 or code == INTERRUPTED) and not one.job.is_done:
            self.queue.retry(one.trial, why or "")
        elif why is not None:
            self.queue.finish(one.trial.number, None, TrialState.FAIL, why)
        else:
            values, pruned = one.job.values
            if not all(map(math.isfinite, values)):
                self.queue.finish(one.trial.number, None, TrialState.FAIL, f"its value is {values}")
            elif pruned:
                self.queue.finish(one.trial.number, None, TrialState.PRUNED)
            else:
                self.queue.finish(one.trial.number, values, TrialState.COMPLETE)
        self._tag(one)

    def _tag(self, one: Running) -> None:
        if one.job.run_id is None:
            return
        state = self.queue.state(one.trial.number).name.lower()
        try:
            self.store.set_tag(one.job.run_id, "trial_state", state)
        except StoreError as error:
            sys.stderr.write(f"{error} The trial counts all the same.\n")

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Hand the wish to stop to all trials once; a second Ctrl-C ends them at once."""
        self._stops += 1
        if self._stops == 1:
            sys.stderr.write(STOPPING)
            if self.crew is not None:
                self.crew.dismiss()
        for one in self._running.values():
            send_stop(one.process, at_once=self._stops > 1)

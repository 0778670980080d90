"""A worker among others: what it does with a trial that somebody else has taken for lost, and with an exit code."""

import math
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from experiments.cli import INTERRUPTED
from experiments.runtime import ConfigurationError
from experiments.sweep_file import Sweep
from experiments.sweep_link import Link, Listener
from experiments.sweep_queue import ATTEMPT, TrialQueue
from experiments.sweep_runner import Counts, Running, Worker
from experiments.sweep_storage import open_storage
from tracking.errors import StoreError

SWEEP = Sweep("tests/sweep", Path("fit.yaml"), {"x": {"low": 0.0, "high": 1.0}}, ("val/loss",))


class Process:
    """A process that has ended with a code, or lives."""

    def __init__(self, exitcode=None):
        self.exitcode = exitcode

    def kill(self):
        self.exitcode = -signal.SIGKILL

    def join(self):
        assert self.exitcode is not None


class Store:
    """A store that is away."""

    def set_tag(self, run_id, name, value):
        raise StoreError(f"Could not set the tag {name}.")


@pytest.fixture
def worker(tmp_path):
    queue = TrialQueue.create(SWEEP, open_storage(f"sqlite:///{tmp_path / 'optuna.db'}"), {}, seed=0)
    queue.fill(2)
    worker = Worker(SWEEP, "tests/sweep", queue, (), (), tmp_path, Store(), 2, {}, lambda counts, is_over: None)
    worker._lanes = [1]
    return worker


def start(worker, *, exitcode=None, values=None, pruned=False):
    trial = worker.queue.take(SWEEP)
    job = SimpleNamespace(name="trial-0", folder=worker.folder, run_id="1" * 32, is_done=values is not None)
    job.values = (values, pruned)
    running = Running(trial, job, Process(exitcode), 0, Listener(worker.folder))
    worker._running[trial.number] = running
    return running


def state_of(worker, running):
    return next(trial for trial in worker.queue.trials() if trial.number == running.trial.number).state


@pytest.mark.parametrize("how", ["beat", "report"])
def test_a_trial_that_others_have_taken_up_is_ended_here(worker, how, capsys, monkeypatch):
    running = start(worker)
    worker.queue.retry(running.trial, "its worker is gone")
    if how == "report":
        monkeypatch.setattr("experiments.sweep_link.PATIENCE", 0.01)
        Link(worker.folder).report(0, 1.5)
        worker._listen()
    else:
        worker._beat()
    assert running.process.exitcode == -signal.SIGKILL
    assert (worker._running, worker._lanes) == ({}, [1, 0])
    assert "others took this worker for dead" in capsys.readouterr().err
    assert state_of(worker, running) == TrialState.FAIL


@pytest.mark.parametrize(
    ("outcome", "stops", "state", "again"),
    [
        ({"exitcode": 0, "values": [0.5]}, 0, TrialState.COMPLETE, None),
        ({"exitcode": 0, "values": [0.5], "pruned": True}, 0, TrialState.PRUNED, None),
        ({"exitcode": 0, "values": [float("nan")]}, 0, TrialState.FAIL, None),
        ({"exitcode": 1}, 0, TrialState.FAIL, None),
        ({"exitcode": -signal.SIGKILL}, 0, TrialState.FAIL, 1),
        ({"exitcode": INTERRUPTED}, 0, TrialState.FAIL, 1),
        ({"exitcode": INTERRUPTED}, 1, TrialState.FAIL, 0),
    ],
)
def test_what_becomes_of_a_trial_follows_from_how_its_process_ended(worker, outcome, stops, state, again, capsys):
    running = start(worker, **outcome)
    worker._stops = stops
    worker._collect()
    assert state_of(worker, running) == state
    waiting = [trial for trial in worker.queue.trials(TrialState.WAITING) if trial.user_attrs["slot"] == 0]
    assert [trial.user_attrs[ATTEMPT] for trial in waiting] == ([] if again is None else [again])
    assert "The trial counts all the same" in capsys.readouterr().err, "the store is away, and it goes on"


@pytest.mark.parametrize(
    ("num_trials", "waiting", "running", "late", "over"),
    [
        (6, 0, 0, False, True),
        (6, 1, 0, False, False),
        (6, 0, 1, False, False),
        (6, 1, 0, True, True),
        (None, 0, 0, False, False),  # others have yet to begin
        (None, 0, 0, True, True),
        (None, 0, 1, True, False),
    ],
)
def test_a_sweep_is_over_when_nothing_runs_and_nothing_more_is_to_begin(
    worker, num_trials, waiting, running, late, over
):
    worker.sweep = replace(SWEEP, num_trials=num_trials, max_hours=1.0)
    worker._deadline = -math.inf if late else math.inf
    assert worker._is_over(Counts(waiting=waiting, running=running)) is over


class Crew:
    """Jobs of a cluster, of which none is left."""

    dismissed = False

    def require(self):
        raise ConfigurationError("No worker of the cluster is left")

    def dismiss(self):
        self.dismissed = True


def test_a_watcher_does_not_wait_for_workers_that_are_gone_and_stops_those_that_are_not(worker):
    worker.num_workers, worker.crew = 0, Crew()
    with pytest.raises(ConfigurationError, match="No worker of the cluster is left"):
        worker.run()
    worker._stop(signal.SIGTERM, None)
    assert worker.crew.dismissed

"""The trials of a sweep, shared by workers: taken once, taken up again, and never more than were asked for."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

from experiments import sweep_queue
from experiments.runtime import ConfigurationError
from experiments.sweep_file import Sweep
from experiments.sweep_queue import ATTEMPT, CHOSEN, FOLDER, MAX_RETRIES, OWNER, TrialQueue, slot_of
from experiments.sweep_space import Space
from experiments.sweep_storage import JOURNAL, open_storage, storage_uri
from tracking.errors import StoreError

SPACE = {"x": {"low": 0.0, "high": 1.0}, "n": {"low": 1, "high": 3}}
SWEEP = Sweep("tests/sweep", Path("fit.yaml"), SPACE, ("val/loss",), num_trials=6)
KINDS = ("sqlite", "journal")


def uri_of(kind, folder):
    return storage_uri(
        f"{JOURNAL}{folder / 'log'}" if kind == "journal" else f"sqlite:///{folder / 'optuna.db'}", folder
    )


@pytest.fixture(params=KINDS)
def queue(request, tmp_path):
    return TrialQueue.create(SWEEP, open_storage(uri_of(request.param, tmp_path)), {"sweep": 1}, seed=3)


def take(queue):
    trial = queue.take(SWEEP)
    if trial is not None:
        Space.read(SPACE).suggest(trial)
        trial.set_user_attr(CHOSEN, trial.params)
    return trial


def work(uri, barrier):
    queue, _ = TrialQueue.join("tests/sweep", open_storage(uri))
    barrier.wait()
    while (trial := take(queue)) is not None:
        queue.finish(trial.number, [trial.params["x"]], TrialState.COMPLETE)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_together_do_exactly_what_was_asked(kind, tmp_path):
    uri = uri_of(kind, tmp_path)
    queue = TrialQueue.create(SWEEP, open_storage(uri), {}, seed=0)
    queue.fill(24)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.sweep_queue"])  # imported once
    barrier = context.Barrier(3)
    workers = [context.Process(target=work, args=(uri, barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    trials = queue.trials()
    assert sorted(map(slot_of, trials)) == list(range(24))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len({trial.params["x"] for trial in trials}) == 24
    assert len({trial.user_attrs[OWNER]["pid"] for trial in trials}) > 1


def test_the_end_is_the_same_for_everybody_who_joins(queue):
    queue.set_budget(2, None)
    assert queue.budget() == (2, None)
    assert len(queue.trials(TrialState.WAITING)) == 2
    queue.set_budget(None, 2.0)
    num_trials, hours = queue.budget()
    assert num_trials is None
    assert hours == pytest.approx(2.0, abs=0.01)
    queue.set_budget(3, -1.0)
    assert queue.budget() == (3, 0.0)
    assert len(queue.trials(TrialState.WAITING)) == 3


def test_more_trials_are_added_and_none_twice(queue):
    queue.fill(2)
    queue.fill(2)
    queue.fill(3)
    assert [slot_of(trial) for trial in queue.trials(TrialState.WAITING)] == [0, 1, 2]
    queue.extend()
    assert len(queue.trials(TrialState.WAITING)) == 4
    for _ in range(4):
        queue.finish(take(queue).number, [0.5], TrialState.COMPLETE)
    assert take(queue) is None


def test_the_trial_of_a_worker_that_is_gone_waits_again_with_what_was_chosen(queue):
    queue.fill(1)
    chosen = None
    for attempt in range(MAX_RETRIES + 1):
        trial = take(queue)
        chosen = chosen or trial.params
        assert trial.params == chosen
        assert trial.user_attrs[ATTEMPT] == attempt
        assert trial.user_attrs.get(FOLDER) == (f"folder-{attempt - 1}" if attempt else None)
        trial.set_user_attr(FOLDER, f"folder-{attempt}")
        assert queue.reap() == [], "this process lives"
        trial.set_user_attr(OWNER, {**trial.user_attrs[OWNER], "started": "another boot 1"})
        assert queue.reap() == [trial.number]
        assert queue.reap() == []
    assert take(queue) is None, "tried often enough"
    assert {trial.state for trial in queue.trials()} == {TrialState.FAIL}


def test_a_worker_that_died_before_it_had_chosen_leaves_a_fresh_trial(queue):
    queue.fill(1)
    trial = queue.take(SWEEP)
    trial.set_user_attr(OWNER, {**trial.user_attrs[OWNER], "started": None})
    assert queue.reap() == [trial.number]
    again = take(queue)
    assert again.user_attrs[CHOSEN] == again.params
    assert set(again.params) == set(SPACE)


def test_the_heart_of_another_machine_stands_still(queue, monkeypatch):
    queue.fill(1)
    trial = take(queue)
    trial.set_user_attr(OWNER, {"host": "elsewhere", "pid": os.getpid(), "started": "x"})
    assert queue.reap() == []
    monkeypatch.setattr(sweep_queue, "GRACE", 0.05)
    time.sleep(0.1)
    queue.beat(trial)
    assert queue.reap() == [], "it has beaten"
    time.sleep(0.1)
    assert queue.reap() == [trial.number]


def test_who_ends_a_trial_that_is_over_is_told(queue):
    queue.fill(1)
    trial = take(queue)
    assert queue.finish(trial.number, [1.0], TrialState.COMPLETE)
    assert not queue.finish(trial.number, None, TrialState.FAIL, "late")
    queue.retry(trial, "late")
    assert [one.state for one in queue.trials()] == [TrialState.COMPLETE]


def test_another_sweep_of_the_same_name_is_refused(queue):
    with pytest.raises(ConfigurationError, match="sweep was 1 and is 2"):
        TrialQueue.create(SWEEP, queue.storage, {"sweep": 2}, seed=3)
    with pytest.raises(ConfigurationError, match="There are: tests/sweep"):
        TrialQueue.join("tests/swep", queue.storage)
    assert TrialQueue.join("tests/sweep", queue.storage)[1] == {"sweep": 1}


def test_sqlite_is_refused_on_a_network_filesystem_and_a_journal_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.sweep_storage.network_filesystem", lambda path: "nfs4")
    assert storage_uri(None, tmp_path) == f"{JOURNAL}{tmp_path / 'optuna.journal'}"
    with pytest.raises(StoreError, match="journal://"):
        storage_uri(f"sqlite:///{tmp_path / 'optuna.db'}", tmp_path)
    monkeypatch.undo()
    assert storage_uri(None, tmp_path) == f"sqlite:///{tmp_path / 'optuna.db'}"
    with pytest.raises(StoreError, match="is no storage"):
        storage_uri("mysql://user:secret@host/db", tmp_path)
    with pytest.raises(StoreError, match="cannot be opened"):
        open_storage(f"sqlite:///{tmp_path}")


def test_a_fresh_sqlite_is_made_once_and_in_wal_mode(tmp_path):
    uri = uri_of("sqlite", tmp_path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.sweep_queue"])  # imported once
    openers = [context.Process(target=open_storage, args=(uri,)) for _ in range(3)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    assert [opener.exitcode for opener in openers] == [0, 0, 0]
    with open_storage(uri).backend._backend.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    assert signal.getsignal(signal.SIGTERM) is not None

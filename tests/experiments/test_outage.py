"""The MLflow server dies under a training, for a while or for good: nothing is lost, doubled, or waited for."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tracking.journal import journal_size, read_cursor, read_records
from tracking.server import TrackingServer
from tracking.store import Point

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]
CONFIG = Path(__file__).parent.parent / "conf" / "brain_age_resumable.yaml"
NUM_STEPS = 100
PATIENCE = 90  # seconds of this test


def fit_words(table, folder, address, callbacks):
    words = ["fit", "--config", str(CONFIG), "--data.table", str(table), "--output-dir", str(folder)]
    words += ["--tracking-uri", address, "--trainer.max_steps", str(NUM_STEPS), "--trainer.max_epochs", "-1"]
    return [*words, f"--trainer.callbacks={json.dumps(callbacks)}"]


def wait_for(path):
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.02)


def run_folder(folder):
    (found,) = (path for path in (folder / "runs").iterdir() if not path.is_symlink())
    return found


def points_of(folder):
    return [record for record, _ in read_records(folder) if isinstance(record, Point)]


def assert_arrived(client, folder):
    """Every point of the journal is in the store once, and all else too."""
    assert read_cursor(folder).sent == journal_size(folder)
    run = client.get_run(read_cursor(folder).run_id)
    assert run.info.status == "FINISHED"
    stored = [point for key in run.data.metrics for point in client.get_metric_history(run.info.run_id, key)]
    kept = points_of(folder)
    assert sorted((p.key, p.step, p.value) for p in stored) == sorted((p.key, p.step, p.value) for p in kept)
    assert sorted(p.step for p in kept if p.key == "train/loss") == list(range(NUM_STEPS))
    assert run.data.params["seed_everything"] == "3"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"checkpoints", "config.yaml", "model"}


def test_a_server_that_dies_and_comes_back(commands, make_database, tiny_cohort, tmp_path):
    folder, log = tmp_path / "out", tmp_path / "log"
    make_database(folder)
    server = TrackingServer(f"sqlite:///{folder / 'mlflow.db'}", folder, port=0)
    server.start()
    try:
        pause = {"class_path": "faults.Pause", "init_args": {"folder": str(tmp_path), "steps": [20, 60]}}
        pid = commands.start(fit_words(tiny_cohort, folder, server.address, [pause]), log)
        wait_for(tmp_path / "at-20")
        os.killpg(server.pid, signal.SIGKILL)
        (tmp_path / "go-20").touch()
        wait_for(tmp_path / "at-60")
        server.stop()
        server.start()
        (tmp_path / "go-60").touch()
        assert commands.wait(pid) == 0, log.read_text(encoding="utf-8")
        times = [float(line) for line in (tmp_path / "times").read_text(encoding="utf-8").splitlines()]
        assert len(times) == NUM_STEPS
        usual, without = times[19] - times[0], times[59] - times[20]
        assert without - usual * 39 / 19 < 2.0  # seconds that the outage added to 39 steps
        assert log.read_text(encoding="utf-8").count("Training goes on") == 1
        assert_arrived(MlflowClient(server.address), run_folder(folder))
    finally:
        server.stop()


def test_a_server_that_never_comes_back_and_one_that_never_was(commands, make_database, tiny_cohort, tmp_path):
    folder, log = tmp_path / "out", tmp_path / "log"
    make_database(folder)
    server = TrackingServer(f"sqlite:///{folder / 'mlflow.db'}", folder, port=0)
    server.start()
    address = server.address
    try:
        pause = {"class_path": "faults.Pause", "init_args": {"folder": str(tmp_path), "steps": [20]}}
        pid = commands.start(fit_words(tiny_cohort, folder, address, [pause]), log)
        wait_for(tmp_path / "at-20")
        server.stop()
        (tmp_path / "go-20").touch()
        assert commands.wait(pid) == 0, log.read_text(encoding="utf-8")
        first = run_folder(folder)
        assert "fontanel: warning: The store" in log.read_text(encoding="utf-8")
        assert f"fontanel sync {first.name}" in log.read_text(encoding="utf-8")
        assert len([point for point in points_of(first) if point.key == "train/loss"]) == NUM_STEPS
        assert read_cursor(first).sent < journal_size(first)

        other = tmp_path / "other"
        start = time.monotonic()
        pid = commands.start(fit_words(tiny_cohort, other, address, []), tmp_path / "log-offline")
        wait_for(other / "runs")
        assert time.monotonic() - start < 15
        assert commands.wait(pid) == 0, (tmp_path / "log-offline").read_text(encoding="utf-8")
        assert "does not answer. The run starts without it." in (tmp_path / "log-offline").read_text(encoding="utf-8")
        offline = run_folder(other)

        server.start()
        for place, run in ((folder, first), (other, offline)):
            words = ["sync", run.name, "--output-dir", str(place), "--tracking-uri", server.address]
            assert commands.wait(commands.start(words, tmp_path / "log-sync")) == 0
            assert_arrived(MlflowClient(server.address), run)
        assert (other / "runs" / read_cursor(offline).run_id).resolve() == offline
    finally:
        server.stop()

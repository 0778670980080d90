"""A process of a training dies or hangs: all end in time, the run is FAILED, and it can be resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from experiments import ranks
from tracking.journal import last_status
from tracking.store import Store

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "conf" / "brain_age_resumable.yaml"
TIMEOUT = 8.0  # seconds without a batch; a step takes a twentieth of one
MARGIN = 30.0  # seconds that the end may take beyond


class ForkedProcess:
    """What `subprocess.Popen` would start, forked from a process that has imported everything."""

    def __init__(self, commands, log: Path, command: list[str], env: dict[str, str]) -> None:
        self.commands = commands
        own = {name: value for name, value in env.items() if os.environ.get(name) != value}
        self.pid = commands.start(list(command[3:]), log, own)

    def poll(self):
        return self.commands.poll(self.pid)

    def wait(self):
        return self.commands.wait(self.pid)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


@pytest.fixture
def forked(monkeypatch, commands, tmp_path):
    started = []

    def start(command, environment):
        started.append(ForkedProcess(commands, tmp_path / "log", command, environment))
        return started[-1]

    monkeypatch.setattr(ranks, "start_process", start)
    return started


def fit_words(table: Path, folder: Path, **fault) -> list[str]:
    words = ["fit", "--config", str(CONFIG), "--data.table", str(table), "--output-dir", str(folder)]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    if fault:
        init = {**fault, "marker": str(folder.parent / "marker")}
        words.append(f"--trainer.callbacks={json.dumps([{'class_path': 'faults.Fault', 'init_args': init}])}")
    return words


def run_of(store: Store):
    (run,) = store.client.search_runs([e.experiment_id for e in store.client.search_experiments()])
    return run.info


@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        *[("SIGKILL", 1), ("raise", 1), ("SIGSTOP", 0)],
        *[pytest.param(*fault, marks=pytest.mark.slow) for fault in (("SIGKILL", 0), ("raise", 0), ("SIGSTOP", 1))],
    ],
)
def test_all_end_when_one_does(forked, make_database, tiny_cohort, tmp_path, capsys, kind, rank):
    folder = tmp_path / "out"
    store = Store(f"sqlite:///{make_database(folder)}", folder)
    words = fit_words(tiny_cohort, folder, kind=kind, at="batch_end", step=4, rank=rank)
    code = ranks.run_ranks(words, 2, store, TIMEOUT)
    ended = time.time()
    log = (tmp_path / "log").read_text(encoding="utf-8")
    happened = (tmp_path / "marker").stat().st_mtime
    assert code == 1, log
    assert ended - happened < TIMEOUT + MARGIN
    assert not any(psutil.pid_exists(process.pid) for process in forked)
    assert "process hangs" in capsys.readouterr().err if kind == "SIGSTOP" else True
    run = run_of(store)
    assert run.status == "FAILED"
    assert last_status(store.folder(run.run_id)) == "FAILED"
    assert ranks.run_ranks(["fit", "--resume", run.run_id, "--output-dir", str(folder)], 2, store, 60.0) == 0, log
    assert run_of(store).status == "FINISHED"
    assert run_of(store).run_id == run.run_id


def test_ctrl_c_reaches_all_once_and_a_checkpoint_is_kept(tiny_cohort, tmp_path):
    folder = tmp_path / "out"
    words = [*fit_words(tiny_cohort, folder), "--trainer.max_epochs", "10000"]
    command = [sys.executable, "-m", "experiments.cli", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while len(list(folder.glob("runs/*/checkpoints/step-*.ckpt"))) < 2 and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        processes = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        _, stderr = process.communicate()
    assert "Traceback" not in stderr
    assert stderr.count("continue with: fontanel fit --resume") == 1
    assert not any(child.is_running() for child in processes)
    assert run_of(Store(f"sqlite:///{folder / 'mlflow.db'}", folder)).status == "KILLED"

"""A finished run that the tests of several verbs look at, and a quick way to run commands as processes."""

import contextlib
import importlib.util
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from experiments.cli import main
from tracking.store import Store

HARNESS = Path(__file__).parent.parent / "harness"
CONFIG = Path(__file__).parent.parent / "conf" / "brain_age_regression.yaml"


@pytest.fixture(scope="session")
def fitted(tiny_cohort, tmp_path_factory):
    """An output folder with one finished run, and its id."""
    output = tmp_path_factory.mktemp("outputs")
    words = ["fit", "--config", str(CONFIG), "--data.table", str(tiny_cohort), "--output-dir", str(output)]
    assert main(words) == 0
    store = Store(f"sqlite:///{output / 'mlflow.db'}", output)
    return output, store.find_run("scratch-holdout-0-r0-s3").run_id


@pytest.fixture(scope="session")
def files_below():
    """A function of a folder that returns when each of its files was written, and the runs that its store holds.

    MLflow writes to a database when it opens it, so a database counts by its content.
    """

    def listed(folder):
        found = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
        listing = {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items() if path.name != "mlflow.db"}
        with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
            tables = ("experiments", "runs", "tags", "params", "metrics")
            return listing, [database.execute(f"SELECT * FROM {table}").fetchall() for table in tables]

    return listed


LAB = {
    "mylab/nets.py": """
from lightning_modules.networks import Encoder
from mylab.blocks import patches


class Foo(Encoder):
    def __init__(self, in_channels: int = 1, num_outputs: int = 1) -> None:
        super().__init__(in_channels, num_features=4, num_outputs=num_outputs, minimum_size=(8, 8, 8))
        self.stem = patches(in_channels)

    def forward_features(self, image):
        return self.stem(image).relu()
""",
    "mylab/blocks.py": """
from torch import nn


def patches(in_channels):
    return nn.Conv3d(in_channels, 4, kernel_size=8, stride=8)
""",
    "mylab/data.py": """
from datamodules import BrainAgeDataModule


class MyDataModule(BrainAgeDataModule):
    pass
""",
    "evaluation.py": "raise RuntimeError('This is a script of the lab.')",
    "experiments/notes.py": "raise RuntimeError('This is a script of the lab.')",
    "tracking/__init__.py": "raise RuntimeError('This is a script of the lab.')",
}


@pytest.fixture(scope="session")
def lab_folder(tmp_path_factory):
    """A folder with a lab's own classes, a configuration that names them, and scripts that are called as ours are."""
    folder = tmp_path_factory.mktemp("lab")
    for name, text in LAB.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["model"]["init_args"]["network"] = {"class_path": "mylab.nets.Foo"}
    config["data"]["class_path"] = "mylab.data.MyDataModule"
    (folder / "lab.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def harness():
    """A function of a name that returns the module of the harness that has it."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"harness_{name}", HARNESS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


class Commands:
    """Runs `fontanel` commands in forks of a process that has imported everything."""

    def __init__(self) -> None:
        path = [str(HARNESS), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, str(HARNESS / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout.readline() == "ready\n"

    def start(self, words, log, env=None):
        """Start a command and return its process id."""
        return self._ask({"words": words, "env": env or {}, "log": str(log)})

    def wait(self, pid):
        """Return the exit code of a command, negative for a signal."""
        return self._ask({"wait": pid})

    def poll(self, pid):
        """Return the exit code of a command, None while it runs."""
        return self._ask({"poll": pid})

    def wait_for(self, pattern, folder, pid, patience=180.0):
        """Wait until a command has made a file that fits a pattern, and return the first."""
        deadline = time.monotonic() + patience
        while not (found := sorted(folder.glob(pattern))):
            assert self.poll(pid) is None, "it ended too early"
            assert time.monotonic() < deadline, f"{pattern} never came"
            time.sleep(0.02)
        return found[0]

    def wait_until_deserted(self, folder, patience=20.0):
        """Wait until no process has a file open below a folder: those of a command that was killed take a moment."""
        deadline = time.monotonic() + patience
        while left := _processes_in(folder):
            assert time.monotonic() < deadline, f"processes {left} have outlived their command"
            time.sleep(0.05)

    def run_all(self, words, world_size, log):
        """Run a command in one process, or in several as a launcher would, and return their exit codes."""
        if world_size == 1:
            return [self.wait(self.start(words, log))]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size), "NODE_RANK": "0"}
        ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
        pids = [self.start(words, log, env) for env in ranks]
        return [self.wait(pid) for pid in pids]

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()

    def _ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="session")
def commands():
    commands = Commands()
    yield commands
    commands.close()


def _processes_in(folder):
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            names = [str(link.readlink()) for link in (process / "fd").iterdir()]
            if any(name.startswith(f"{folder}/") for name in names):
                found.append(int(process.name))
    return [pid for pid in found if pid != os.getpid()]

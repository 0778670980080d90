"""A training that was stopped anywhere and resumed is the training that was not stopped."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tracking.checkpoints import load_checkpoint
from tracking.contract import newest_first
from tracking.journal import read_records
from tracking.store import Point, Store

CONFIG = Path(__file__).parent.parent / "conf" / "brain_age_resumable.yaml"
NAME = "scratch-holdout-0-r0-s3"
# Three steps an epoch: before anything, in the first epoch, at its last batch, in a validation, and in the last epoch.
POINTS = {
    "first": ("batch_start", 0),
    "middle": ("batch_end", 2),
    "last-of-epoch": ("batch_start", 2),
    "validation": ("validation", 6),
    "last-epoch": ("batch_end", 8),
}


class Lab:
    """One cohort and one place for the runs of a test."""

    def __init__(self, tools, table: Path, folder: Path, options: Sequence[str] = (), world_size: int = 1) -> None:
        self.commands, self.make_database = tools
        self.table, self.folder = table, folder
        self.world_size = world_size
        self.options = options

    def fit(self, name: str, fault: tuple[str, str, int] | None = None, *more: str) -> list[int]:
        watch = {"class_path": "faults.Watch", "init_args": {"path": str(self.folder / f"{name}.seen")}}
        callbacks = [watch, {"class_path": "pytorch_lightning.callbacks.LearningRateMonitor"}]
        if fault is not None:
            kind, at, step = fault
            marker = str(self.folder / f"{name}.marker")
            init = {"kind": kind, "at": at, "step": step, "marker": marker, "rank": self.world_size - 1}
            callbacks.append({"class_path": "faults.Fault", "init_args": init})
        self.make_database(self.folder / name)
        words = ["fit", "--config", str(CONFIG), "--data.table", str(self.table), *self.options, *more]
        return self.run(name, [*words, f"--trainer.callbacks={json.dumps(callbacks)}"])

    def resume(self, name: str, *words: str) -> list[int]:
        return self.run(name, ["fit", "--resume", NAME, *words])

    def run(self, name: str, words: list[str]) -> list[int]:
        words = [*words, "--output-dir", str(self.folder / name)]
        if self.world_size > 1 and words[1] != "--resume":
            words += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
        return self.commands.run_all(words, self.world_size, self.folder / f"{name}.log")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def run_folder(self, name: str) -> Path:
        (folder,) = (self.folder / name / "runs").iterdir()
        return folder

    def seen(self, name: str) -> list[list[str]]:
        """Return the steps each process took, a repeated one once (a kill takes back the steps since a checkpoint)."""
        paths = [self.folder / f"{name}.seen.{rank}" for rank in range(self.world_size)]
        return [list(dict.fromkeys(path.read_text(encoding="utf-8").splitlines())) for path in paths]

    def points(self, name: str) -> list[tuple[str, int, float]]:
        """Return the metrics that the store has, but for what the training took of the machine."""
        folder = self.folder / name
        client = Store(f"sqlite:///{folder / 'mlflow.db'}", folder).client
        (run,) = client.search_runs(["1"])
        assert run.info.status == "FINISHED"
        assert run.info.run_id == self.run_folder(name).name
        history = [point for key in run.data.metrics for point in client.get_metric_history(run.info.run_id, key)]
        journal = [record for record, _ in read_records(self.run_folder(name)) if isinstance(record, Point)]
        assert len(journal) == len(history)
        own = [point for point in history if not point.key.startswith("system/")]
        assert own != history
        return sorted((point.key, point.step, point.value) for point in own)

    def state(self, name: str):
        return load_checkpoint(newest_first(self.run_folder(name) / "checkpoints")[0])


def assert_same(lab: Lab, name: str) -> None:
    assert lab.seen(name) == lab.seen("whole")
    assert lab.points(name) == lab.points("whole")
    ours, whole = lab.state(name), lab.state("whole")
    assert ours["global_step"] == whole["global_step"] > 0
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert_equal(ours[key], whole[key], key)


def assert_equal(ours, theirs, place: str) -> None:
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), f"{place} differs by up to {(ours - theirs).abs().max()}"
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), place
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{place}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), place
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{place}.{index}")
    else:
        assert ours == theirs, place


@pytest.fixture(scope="module")
def tools(commands, make_database):
    return commands, make_database


KINDS = [(0, 1), (2, 1), (0, 2), pytest.param((2, 2), marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"workers{kind[0]}-processes{kind[1]}")
def lab(request, tools, tiny_cohort, tmp_path_factory):
    num_workers, world_size = request.param
    options = ["--data.num_workers", str(num_workers)]
    lab = Lab(tools, tiny_cohort, tmp_path_factory.mktemp("lab"), options, world_size)
    assert lab.fit("whole") == [0] * lab.world_size, lab.log("whole")
    return lab


@pytest.mark.parametrize("point", POINTS)
def test_stopped_and_resumed_is_not_stopped(lab, point):
    codes = lab.fit(point, ("SIGTERM", *POINTS[point]))
    assert codes == [130] * lab.world_size, lab.log(point)
    assert f"fontanel fit --resume {lab.run_folder(point).name}" in lab.log(point)
    assert lab.resume(point) == [0] * lab.world_size, lab.log(point)
    assert_same(lab, point)


def test_killed_and_resumed_is_not_killed(lab):
    codes = lab.fit("killed", ("SIGKILL", "batch_end", 5))
    assert -9 in codes, lab.log("killed")
    assert 0 not in codes, lab.log("killed")
    assert lab.resume("killed") == [0] * lab.world_size, lab.log("killed")
    assert_same(lab, "killed")


ACCUMULATED = ["--trainer.accumulate_grad_batches", "2", "--data.batch_size", "2"]
EVERY_BATCH, EVERY_SECOND_EPOCH = ["--trainer.val_check_interval", "1"], ["--trainer.check_val_every_n_epoch", "2"]


@pytest.mark.parametrize(
    ("options", "at"),
    [
        pytest.param(ACCUMULATED, "batch_start", marks=pytest.mark.slow),
        (ACCUMULATED, "batch_end"),
        (EVERY_BATCH, "batch_end"),
        pytest.param(EVERY_SECOND_EPOCH, "batch_start", marks=pytest.mark.slow),
    ],
    ids=["accumulated-start", "accumulated-end", "validated-every-batch", "validated-every-second-epoch"],
)
def test_other_rhythms(options, at, tools, tiny_cohort, tmp_path):
    lab = Lab(tools, tiny_cohort, tmp_path, options)
    assert lab.fit("whole") == [0], lab.log("whole")
    assert lab.fit("stopped", ("SIGTERM", at, 4)) == [130], lab.log("stopped")
    assert lab.resume("stopped") == [0], lab.log("stopped")
    assert_same(lab, "stopped")


def test_a_finished_training_is_continued(tools, tiny_cohort, tmp_path):
    lab = Lab(tools, tiny_cohort, tmp_path)
    assert lab.fit("whole") == [0], lab.log("whole")
    assert lab.fit("longer", None, "--trainer.max_epochs", "2") == [0], lab.log("longer")
    assert lab.resume("longer") == [0]
    assert "is finished" in lab.log("longer")
    assert lab.resume("longer", "--trainer.max_epochs", "3") == [0], lab.log("longer")
    assert_same(lab, "longer")

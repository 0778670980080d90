import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from tracking.addresses import tracking_uri
from tracking.checkpoints import AtomicCheckpointIO
from tracking.contract import CHECKPOINTS, CheckpointContract
from tracking.journal import hold
from tracking.keeper import CheckpointKeeper
from tracking.logger import RunLogger
from tracking.store import Store


@pytest.fixture
def store(make_database: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store in `tmp_path/out`, seen from an empty working directory."""
    folder = tmp_path / "out"
    make_database(folder)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Store(tracking_uri(None, folder), folder)


@pytest.fixture
def make_logger(store: Store) -> Iterator[Callable[..., RunLogger]]:
    """Makes loggers of the store, or of another one, whose threads end with the test."""
    made: list[RunLogger] = []

    def make(at: Store = store, **options: Any) -> RunLogger:
        name = options.pop("name", "scratch-holdout-0-r0-s0")
        made.append(RunLogger(at, study="study", name=name, tags={"arm": "scratch"}, **options))
        return made[-1]

    yield make
    for logger in made:
        if hasattr(logger, "_shipper"):
            logger._shipper.finish(0)


@pytest.fixture
def logger(make_logger: Callable[..., RunLogger]) -> RunLogger:
    return make_logger()


@pytest.fixture
def run_in_fork() -> Callable[[Callable[[], object]], int]:
    """Does work in a child process, which costs no import, and returns its exit code."""

    def run(work: Callable[[], object]) -> int:
        child = os.fork()
        if child == 0:
            try:
                work()
            finally:
                os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run


@pytest.fixture
def held() -> Callable[[Path], AbstractContextManager[None]]:
    """A context in which another process works on the run of a folder; it is killed at the end."""

    @contextmanager
    def hold_elsewhere(folder: Path) -> Iterator[None]:
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            lock = hold(folder)
            os.write(tell, b"y" if lock else b"n")
            signal.pause()
            os._exit(0)
        try:
            assert os.read(told, 1) == b"y"
            yield
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(told)
            os.close(tell)

    return hold_elsewhere


class Line(LightningModule):
    """Learns y = 3 x.

    Args:
        scores: What the validation of each epoch says, instead of the truth.
        trouble: Called with the module and the loss of every batch; returns the loss.
    """

    def __init__(self, scores: Sequence[float], trouble: "Callable[[Line, Tensor], Tensor]") -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.register_buffer("seen", torch.zeros(1))
        self.scores = scores
        self.trouble = trouble

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss = (self.layer(batch) - 3 * batch).square().mean()
        self.log("train/loss", loss, on_step=True, on_epoch=False)
        return self.trouble(self, loss)

    def validation_step(self, batch: Tensor, index: int) -> None:
        truth = (self.layer(batch) - 3 * batch).abs().mean()
        self.log("val/mae", self.scores[self.current_epoch] if self.scores else truth)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        schedulers = [torch.optim.lr_scheduler.LinearLR(optimizer), torch.optim.lr_scheduler.ConstantLR(optimizer)]
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, schedulers, milestones=[2])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Training:
    """Trains `Line` in a run: four steps and a validation an epoch.

    Args:
        logger: Of the run.
    """

    def __init__(self, logger: RunLogger) -> None:
        self.logger = logger
        self.trainer: Trainer
        self.keeper: CheckpointKeeper

    @property
    def folder(self) -> Path:
        return self.logger.folder / CHECKPOINTS

    @property
    def contract(self) -> CheckpointContract:
        split = {"protocol": "holdout", "seed": 0, "parts": {"train": {"north": ("ixi/1", "ixi/2")}}}
        config = "lr: 0.01\nhf_token: abc\n"
        return CheckpointContract(config, self.logger.run_id, self.logger.study, self.logger.run_name, split)

    def names(self) -> list[str]:
        """Return the names of all files there, but for hashes that lie beside their checkpoint."""
        names = {path.name for path in self.folder.iterdir()}
        return sorted(name for name in names if name.removesuffix(".sha256") not in names - {name})

    def fit(
        self,
        epochs: int = 2,
        *,
        mode: Literal["min", "max"] = "min",
        scores: Sequence[float] = (),
        trouble: Callable[[Line, Tensor], Tensor] = lambda module, loss: loss,
        validate: bool = True,
        callbacks: Sequence[Callback] = (),
        ckpt_path: Path | None = None,
        **options: Any,
    ) -> Trainer:
        self.keeper = CheckpointKeeper(self.folder, self.contract, self.logger, "val/mae", mode)
        self.trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=self.logger,
            callbacks=[*callbacks, self.keeper],
            plugins=[AtomicCheckpointIO()],
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=None if validate else 0,
            **options,
        )
        loader = DataLoader(torch.linspace(-1, 1, 8).reshape(8, 1), batch_size=2)
        model = Line(scores, trouble)
        self.trainer.fit(model, loader, loader, ckpt_path=ckpt_path, weights_only=True)
        return self.trainer


@pytest.fixture
def training(logger: RunLogger) -> Training:
    return Training(logger)


@pytest.fixture
def resume(make_logger: Callable[..., RunLogger]) -> Callable[[Training], Training]:
    """Opens the run of an earlier training, which was closed, again."""
    return lambda before: Training(make_logger(run_id=before.logger.run_id))

"""Callbacks that a test names in a configuration: one makes trouble at an exact place, one writes down what it sees."""

import hashlib
import json
import os
import signal
import time
from pathlib import Path

from pytorch_lightning import Callback


class Fault(Callback):
    """Do something to this process once, at one place of the training.

    Args:
        kind: A signal's name, or `raise`.
        at: `batch_start`, `batch_end` or `validation`.
        step: Optimiser step.
        marker: File that says that it has happened; a resumed training is spared.
        rank: In which process.
    """

    def __init__(self, kind: str, at: str, step: int, marker: str, rank: int = 0) -> None:
        self.kind, self.at, self.step, self.rank = kind, at, step, rank
        self.marker = Path(marker)

    def _happen(self, trainer, at: str) -> None:
        if (at, trainer.global_step, trainer.global_rank) != (self.at, self.step, self.rank) or self.marker.exists():
            return
        self.marker.write_text(str(os.getpid()))
        if self.kind == "raise":
            raise RuntimeError("planted")
        os.kill(os.getpid(), signal.Signals[self.kind])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._happen(trainer, "batch_start")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._happen(trainer, "batch_end")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._happen(trainer, "validation")


class Watch(Callback):
    """Write down which images, augmented how, every step was trained on, and with which loss.

    Args:
        path: File to append to; one for each process.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pixels = hashlib.sha256(batch["image"].numpy().tobytes()).hexdigest()[:16]
        seen = [trainer.current_epoch, batch_idx, batch["image_id"], pixels, float(outputs["loss"])]
        with Path(f"{self.path}.{trainer.global_rank}").open("a") as file:
            file.write(json.dumps(seen) + "\n")


class Pause(Callback):
    """Wait at certain steps until the test has done something, and write down when each step ended.

    Args:
        folder: Where `at-<step>` says that the step has come, and `go-<step>` that the test is done; times are in
            `times`, one a line, without the waiting.
        steps: At which steps.
    """

    def __init__(self, folder: str, steps: list[int]) -> None:
        self.folder = Path(folder)
        self.steps = steps
        self.waited = 0.0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step in self.steps:
            start = time.monotonic()
            (self.folder / f"at-{trainer.global_step}").touch()
            while not (self.folder / f"go-{trainer.global_step}").exists():
                time.sleep(0.02)
            self.waited += time.monotonic() - start

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with (self.folder / "times").open("a") as file:
            file.write(f"{time.monotonic() - self.waited}\n")

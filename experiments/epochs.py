"""Progress of a training where nobody watches: one line when an epoch ends, at most one a minute."""

import sys
import time
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar

from tracking.progress import PLAIN_INTERVAL


class LiveProgressBar(RichProgressBar):
    """Show the loss of the last step, too."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return what stands beside the bar."""
        return {**super().get_metrics(trainer, pl_module), **_latest(pl_module)}


class PlainProgressBar(ProgressBar):
    """Write epoch, metrics and the time left to standard error, at most once a minute, and when training ends."""

    def __init__(self) -> None:
        super().__init__()
        self._start = self._last = 0.0
        self._first_epoch = 0

    def disable(self) -> None:
        """Keep quiet (Lightning calls this on all ranks but the first)."""
        self._disabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = self._last = time.monotonic()
        self._first_epoch = trainer.current_epoch
        begin = f"Resuming at step {trainer.global_step}: training" if trainer.global_step else "Training"
        self._say(f"{begin} for {trainer.max_epochs} epochs of {trainer.num_training_batches} steps")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the training stands when a minute has passed."""
        now = time.monotonic()
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 0
        if now - self._last < PLAIN_INTERVAL and done != total:
            return
        self._last = now
        left = (now - self._start) / (done - self._first_epoch) * max(total - done, 0)
        self._say(f"Epoch {done}/{total}: {self._metrics(trainer, pl_module)}; about {left / 60:.1f} min left")

    def _metrics(self, trainer: Trainer, pl_module: LightningModule) -> str:
        values: dict[str, Any] = {**trainer.callback_metrics, **_latest(pl_module)}
        return ", ".join(f"{name} {float(value):.4g}" for name, value in sorted(values.items()))

    def _say(self, text: str) -> None:
        if not getattr(self, "_disabled", False):
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def _latest(pl_module: LightningModule) -> dict[str, float]:
    """Return what the module recorded in training last."""
    return {name: float(value) for name, value in getattr(pl_module, "latest", {}).items()}

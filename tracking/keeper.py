"""Keep the checkpoints of a training: two newest and the best, from which a resumed training is the same training.

Every checkpoint to resume from is taken at one of two places, where nothing is half done and every point that was
measured so far has been written: before a batch is trained on, or before a validation. Lightning's own places, after a
batch or an epoch, lose the points that are logged after them.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed import ReduceOp
from typing_extensions import override

from tracking.contract import BEST, CONTRACT, CheckpointContract, checkpoint_name, newest_first
from tracking.interruption import Interrupted, StopRequest
from tracking.logger import RunLogger

NUM_KEPT = 2  # newest checkpoints: one may be damaged
INTERVAL = 600.0  # seconds of training within an epoch after which a checkpoint is due

Place = Literal["batch", "validation", "end"]
_NOTHING, _SAVE, _STOP, _NOT_FINITE = range(4)  # what processes want, by urgency; the most urgent wish wins


class NotFiniteError(ValueError):
    """A loss or weights that are not numbers any more; says at which step, and what to do."""


class CheckpointKeeper(Callback):
    """Save at the start of every epoch, every ten minutes, when asked to stop, at the end, and the best validation.

    Args:
        folder: Where checkpoints go.
        contract: What each of them says of itself.
        logger: Logger of the run, whose journal the checkpoints remember.
        monitor: Metric that chooses the best; without a validation the last is the best.
        mode: Whether a small or a large value is good.
    """

    def __init__(
        self, folder: Path, contract: CheckpointContract, logger: RunLogger, monitor: str, mode: Literal["min", "max"]
    ) -> None:
        super().__init__()
        self.folder = folder
        self.contract = contract
        self.logger = logger
        self.monitor = monitor
        self.mode = mode
        self.best_score: float | None = None
        self.stop = StopRequest()
        self._place: Place | None = None
        self._loss: Tensor | None = None
        self._saved_at = 0.0
        self._offset = 0
        self._common_batches = 0

    # State and content of a checkpoint ---------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the score of the best checkpoint."""
        return {"best_score": self.best_score}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the score of the best checkpoint."""
        self.best_score = state_dict["best_score"]

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the contract, and make Lightning's progress that of the place the checkpoint is taken at."""
        self._offset = self.logger.checkpoint()
        contract = replace(
            self.contract,
            num_threads=torch.get_num_threads(),
            world_size=trainer.world_size,
            journal=self._offset,
            finished=self._place == "end",
        )
        checkpoint[CONTRACT] = contract.as_dict()
        if self._place is not None:  # others may save, too, wherever they like
            _settle_progress(checkpoint["loops"]["fit_loop"], self._place, trainer)

    # When --------------------------------------------------------------------------------------------------------

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals from here on, and start the clock."""
        batches = trainer.fit_loop.epoch_loop.batch_progress
        batches.total.ready = batches.total.completed  # what was fetched before a resumption is fetched again
        self.stop.listen()
        self._saved_at = time.monotonic()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save before a batch where one is due, and stop if asked to."""
        if batch_idx % trainer.accumulate_grad_batches:
            return  # half of a step's gradients are in no checkpoint
        wish = self._agreed_wish(trainer)
        if wish >= _SAVE or batch_idx == 0:
            self._save(trainer, "batch")
        if wish == _STOP:
            self._interrupt()

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Remember the loss; it is looked at before anything else happens, and without waiting for the device now."""
        loss = outputs["loss"].detach() if isinstance(outputs, Mapping) else outputs
        self._loss = loss if self._loss is None or loss is None else self._loss + loss  # of accumulated batches

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out how many batches every process will see: at those all can agree on something."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            self._common_batches = 0
            return
        own = sum(int(number) for number in trainer.num_val_batches)
        self._common_batches = _reduced(trainer, own, ReduceOp.MIN)

    @override
    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop within a validation if asked to; a resumed training repeats it as a whole."""
        if batch_idx < self._common_batches and self._agreed_wish(trainer) == _STOP:
            self._save(trainer, "validation")
            self._interrupt()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best."""
        score = trainer.callback_metrics.get(self.monitor)
        if self._common_batches == 0 or score is None:
            return
        value = float(score)
        better = self.best_score is None or (value < self.best_score if self.mode == "min" else value > self.best_score)
        if better and math.isfinite(value):
            self.best_score, before = value, self.best_score
            if not self._save(trainer, "validation", BEST):
                self.best_score = before

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end, as the best if no validation chose one."""
        self.stop.restore()
        self._agreed_wish(trainer)
        self._save(trainer, "end")
        if self.best_score is None:
            self._save(trainer, "end", BEST)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave signals as they were."""
        self.stop.restore()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave signals as they were."""
        self.stop.restore()

    # How ---------------------------------------------------------------------------------------------------------

    def _agreed_wish(self, trainer: Trainer) -> int:
        """Return the most urgent wish of all processes.

        Raises:
            NotFiniteError: If the loss of the last step was none.
        """
        wish = _SAVE if time.monotonic() - self._saved_at > INTERVAL else _NOTHING
        if self.stop.requested:
            wish = _STOP
        if self._loss is not None and not math.isfinite(self._loss.item()):
            wish = _NOT_FINITE
        self._loss = None
        wish = _reduced(trainer, wish, ReduceOp.MAX)
        if wish == _NOT_FINITE:
            raise self._not_finite(trainer, "loss")
        return wish

    def _save(self, trainer: Trainer, place: Place, name: str = "") -> bool:
        """Save a checkpoint, remove those that are too many, and let the journal be delivered up to it.

        Returns:
            False if the disk refused it.
        """
        if not _reduced(trainer, int(_all_finite(trainer)), ReduceOp.MIN):
            raise self._not_finite(trainer, "weights")
        self._place = place
        target = self.folder / (name or checkpoint_name(trainer.global_step))
        before = _stamp(target)
        trainer.save_checkpoint(target, weights_only=False)  # without a word, Lightning talks about it at every save
        self._place = None
        self._saved_at = time.monotonic()
        saved = bool(_reduced(trainer, int(not trainer.is_global_zero or _stamp(target) != before), ReduceOp.MIN))
        if saved and not name and trainer.is_global_zero:
            self._remove_others(trainer, target)
            self.logger.release(self._offset)
        return saved

    def _remove_others(self, trainer: Trainer, newest: Path) -> None:
        """Remove all but the newest checkpoints; those of later steps are of a training that went another way."""
        others = [path for path in newest_first(self.folder) if path != newest]
        earlier = [path for path in others if path.name < newest.name]
        for path in others:
            if path not in earlier[: NUM_KEPT - 1]:
                trainer.strategy.remove_checkpoint(path)

    def _interrupt(self) -> None:
        if not self.contract.run_id:
            raise SystemExit(Interrupted.exit_code)  # the first process says it for all
        raise Interrupted(f"interrupted; continue with: fontanel fit --resume {self.contract.run_id}")

    def _not_finite(self, trainer: Trainer, what: str) -> NotFiniteError:
        kept = newest_first(self.folder)
        last = f" The last good checkpoint is {kept[0].name}." if kept else ""
        return NotFiniteError(
            f"The {what} stopped being finite at step {trainer.global_step} (epoch {trainer.current_epoch}) of run "
            f"{self.contract.run_id}.{last} Look for images or targets that are not finite (fontanel verify), lower "
            "the learning rate, or clip gradients (trainer.gradient_clip_val), and train anew."
        )


def _reduced(trainer: Trainer, value: int, operation: ReduceOp.RedOpType) -> int:
    """Return the smallest or largest value of all processes."""
    if trainer.world_size == 1:
        return value
    shared = torch.tensor(value, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(shared, operation)
    return int(shared)


def _all_finite(trainer: Trainer) -> bool:
    values = trainer.lightning_module.state_dict().values()
    return bool(torch.stack([torch.isfinite(value).all() for value in values if value.is_floating_point()]).all())


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is replaced."""
    if not path.exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _settle_progress(loops: dict[str, Any], place: Place, trainer: Trainer) -> None:
    """Make the progress of Lightning's loops such that it resumes at the place.

    Before a batch, the batch has been fetched and not started, which Lightning undoes by itself; that it was the last
    of its epoch must be forgotten until it is trained on. At the end, an epoch is over and none has begun. Before a
    validation, one of its batches is made to have been started, which makes Lightning go back to it.
    """
    batches, validation = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
    if place == "validation":
        for count in ("total", "current"):
            validation[count] = {**validation[count], "ready": 1, "started": 1, "processed": 0, "completed": 0}
        validation["is_last_batch"] = False
        return
    batches["is_last_batch"] = False
    if place == "end":
        batches["current"] = dict.fromkeys(batches["current"], 0)
        return
    fetched = batches["current"]["ready"]
    if fetched % trainer.accumulate_grad_batches == 0 or fetched == trainer.num_training_batches:
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # Lightning adds one on such a restart

"""The module that every task extends: one step for all stages, one way out for metrics, rows for every prediction.

Example:
    A task implements :meth:`BaseModule.configure_losses`, :meth:`BaseModule.configure_metrics`, :meth:`BaseModule.step`
    and `forward`. Its configuration names the network and the optimizer by class path; the optimizer has no default:

    .. code-block:: yaml

        model:
          class_path: lightning_modules.RegressionModule
          init_args:
            network: {class_path: lightning_modules.networks.SFCN, init_args: {width: 32}}
            optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1e-4, weight_decay: 1e-4}}
            scheduler: {class_path: torch.optim.lr_scheduler.CosineAnnealingLR, init_args: {T_max: 100}}
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from evaluation.predictions import UNIT
from lightning_modules.fine_tuning import TransferModule
from lightning_modules.networks.encoder import Encoder, ModelError
from lightning_modules.transfer import Transfer

Stage = Literal["train", "val", "test", "predict"]
Batch = Mapping[str, Any]
Metrics = Callable[[NDArray[np.float64], NDArray[np.float64]], dict[str, float]]

IDENTITY = ("dataset", "participant_id", "session_id", "image_id")
COLUMNS = (*IDENTITY, "site", "output", "target", "prediction")


@dataclass(frozen=True)
class StepOutput:
    """What one step computes from one batch of B images.

    Args:
        loss: Scalar; 0, but on the graph, when the batch holds no label.
        num_labelled: How many labels the loss is the mean of; an epoch's loss is the mean over labels, not batches.
        rows: Output name -> columns of the predictions table: `target`, `prediction` and `baseline` (B,), in the unit
            of the target, and `scores` (B, K) for classes.
    """

    loss: Tensor
    num_labelled: Tensor
    rows: dict[str, dict[str, Tensor]]


class BaseModule(TransferModule, ABC):
    """Base class of the tasks: wires a network, losses, metrics and an optimizer.

    A subclass calls ``super().__init__``, sets what it needs, and ends its ``__init__`` with `configure_losses` and
    `configure_metrics`.

    Args:
        network: The encoder and its head.
        optimizer: Class of the optimizer and its arguments; required, because the learning rate is.
        scheduler: Class of the learning-rate scheduler, stepped once per epoch; constant without one.
        monitor: Metric that chooses the best checkpoint, stops early, and drives a scheduler that needs one.
        monitor_mode: Whether a small or a large value of `monitor` is good.
        decay_norm_and_bias: Apply the optimizer's weight decay to biases and normalisation weights too, as torch does;
            false spares them.
        transfer: Pretrained weights to start from, and how to train on from them; from scratch without.
    """

    def __init__(
        self,
        network: Encoder,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        monitor: str = "val/loss",
        monitor_mode: Literal["min", "max"] = "min",
        decay_norm_and_bias: bool = True,
        transfer: Transfer | None = None,
    ) -> None:
        super().__init__(network, transfer)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.monitor = monitor
        self.monitor_mode = monitor_mode
        self.decay_norm_and_bias = decay_norm_and_bias
        self.metrics: dict[str, Metrics] = {}
        self.latest: dict[str, Tensor | float] = {}  # what training recorded last, for those who watch
        self.prediction_rows: list[dict[str, Any]] = []
        self.seed: int | None = None  # of the random numbers that training draws; torch's own without one
        self._in_step = False
        self._losses: list[tuple[float, int]] = []

    @abstractmethod
    def configure_losses(self) -> None:
        """Set the losses as attributes."""

    @abstractmethod
    def configure_metrics(self) -> None:
        """Fill `metrics`: output name -> function of (target, prediction) that returns values by name."""

    @abstractmethod
    def describe_outputs(self) -> dict[str, dict[str, Any]]:
        """Say of each output what a reader of the exported weights must know, in JSON types."""

    @abstractmethod
    def step(self, batch: Batch, stage: Stage) -> StepOutput:
        """Compute loss and rows of one batch, the same way in every stage.

        Args:
            batch: The batch that the datamodule documents; without targets in the stage `predict`.
            stage: For which stage.
        """

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed torch by (seed, epoch, batch, process), so that a resumed training drops out what it would have."""
        if self.seed is None:
            return
        seed = step_seed(self.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed remembers every call for devices it never meets
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a training batch; what the step records leaves at once."""
        self.latest, self._in_step = {}, True
        loss = self._shared_step(batch, "train").loss
        if (penalty := self.penalty()) is not None:
            self.record("train/penalty", penalty.detach())
            loss = loss + penalty
        self._in_step = False
        self._send(self.latest)
        if self.trainer.is_last_batch:
            self.log_dict(self.latest, logger=False)  # for callbacks that monitor the training
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the rows of a validation batch."""
        self._shared_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the rows of a test batch."""
        self._shared_step(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Keep the rows of a batch without labels, and return the predictions of each output."""
        output = self._shared_step(batch, "predict")
        return {name: columns["prediction"] for name, columns in output.rows.items()}

    def record(self, name: str, value: Tensor | float) -> None:
        """Send a metric out of the module; nothing else does.

        Args:
            name: `stage/metric`, for example `val/mae`.
            value: Its value now; a tensor stays one.
        """
        if name.startswith("train/"):
            self.latest[name] = value  # five calls of `log` cost more than a whole step may
            if not self._in_step:
                self._send({name: value})
            return
        self._send({name: value})
        # Values at the end of an epoch come from gathered rows and agree between processes.
        outside = self.trainer.state.fn != TrainerFn.FITTING  # there Lightning returns what it would log
        shown = name == self.monitor
        self.log(name, value, prog_bar=shown, logger=None if outside else False, sync_dist=self.trainer.world_size > 1)

    def _send(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Hand points of this step to the loggers, in training at the steps that the trainer's interval leaves."""
        trainer = self.trainer
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        step = self.global_step
        interval: int = getattr(trainer, "log_every_n_steps", 1)
        if trainer.training and step % interval:
            return
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)  # type: ignore[arg-type]  # tensors wait

    def metric_name(self, stage: Stage, output: str, metric: str) -> str:
        """Return the name under which a metric of one output is recorded."""
        return f"{stage}/{metric}"

    def take_predictions(self) -> pd.DataFrame:
        """Return the predictions of the stage that ran last, of all processes, and forget them.

        Callbacks call it in `on_validation_end`, `on_test_end` or `on_predict_end`: earlier the rows are not complete.

        Returns:
            One row per image and output: `dataset, participant_id, session_id, image_id, site, split, output, target,
            prediction, score_0..score_{K-1}` (classes only) and `baseline`; `target` is NaN where it is not known.
        """
        frame = self._frame()
        self.prediction_rows = []
        return frame

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups that the optimizer gets."""
        groups = []
        for parameters, options in self.rated_parameters():
            if self.decay_norm_and_bias:
                groups.append({"params": parameters, **options})
                continue
            groups.append({"params": [parameter for parameter in parameters if parameter.ndim > 1], **options})
            spared = [parameter for parameter in parameters if parameter.ndim <= 1]
            groups.append({"params": spared, **options, "weight_decay": 0.0})
        return [group for group in groups if group["params"]]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and the scheduler from their classes."""
        optimizer = self.optimizer(self.parameter_groups())
        self.scale_rates(optimizer)
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer)
        self.require_rates(optimizer, scheduler)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "epoch", "monitor": self.monitor},
        }

    def start_evaluation(self) -> None:
        """Forget what an earlier validation, test or prediction left."""
        self.prediction_rows = []
        self._losses = []

    def on_validation_epoch_start(self) -> None:
        """Start a validation; processes may have different numbers of batches, so none waits for another in it."""
        self.start_evaluation()
        self._share_buffers_once(True)

    def on_validation_end(self) -> None:
        """Let training share its buffers again."""
        self._share_buffers_once(False)

    def _share_buffers_once(self, validating: bool) -> None:
        """Give every process the first one's running statistics now, instead of before every batch."""
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            if validating:
                for buffer in self.buffers():
                    torch.distributed.broadcast(buffer, src=0)
            wrapped.require_forward_param_sync = not validating

    def on_test_epoch_start(self) -> None:
        """Start a test."""
        self.start_evaluation()

    def on_predict_epoch_start(self) -> None:
        """Start a prediction."""
        self.start_evaluation()

    def on_validation_epoch_end(self) -> None:
        """Compute the validation metrics from the rows of all processes."""
        self._finish_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Compute the test metrics from the rows of all processes."""
        self._finish_evaluation("test")

    def on_predict_epoch_end(self) -> None:
        """Collect the rows of all processes."""
        self._gather()

    def _shared_step(self, batch: Batch, stage: Stage) -> StepOutput:
        output = self.step(batch, stage)
        if stage == "train":
            self.record("train/loss", output.loss.detach())
            return output
        self._losses.append((float(output.loss), int(output.num_labelled)))
        for name, columns in output.rows.items():
            self._keep_rows(batch, name, columns)
        return output

    def _keep_rows(self, batch: Batch, output: str, columns: dict[str, Tensor]) -> None:
        texts = {column: batch[column] for column in (*IDENTITY, "site", "split") if column in batch}
        values = {column: columns[column].tolist() for column in ("target", "prediction", "baseline")}
        scores = columns["scores"].tolist() if "scores" in columns else [[]] * len(values["prediction"])
        for index, row_scores in enumerate(scores):
            row: dict[str, Any] = {column: texts[column][index] for column in texts}
            row |= {"output": output, "target": values["target"][index], "prediction": values["prediction"][index]}
            row |= {f"score_{level}": score for level, score in enumerate(row_scores)}
            self.prediction_rows.append(row | {"baseline": values["baseline"][index]})

    def _gather(self) -> None:
        if self.trainer.world_size == 1:
            return
        mine = (self.prediction_rows, self._losses)
        parts: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, mine)
        self.prediction_rows = [row for rows, _ in parts for row in rows]
        self._losses = [loss for _, losses in parts for loss in losses]

    def _frame(self) -> pd.DataFrame:
        if not self.prediction_rows:
            return pd.DataFrame(columns=[*COLUMNS, "baseline"])
        # A sampler that pads the last round of several processes hands some images out twice.
        return pd.DataFrame(self.prediction_rows).drop_duplicates([*IDENTITY, "output"], ignore_index=True)

    def _finish_evaluation(self, stage: Literal["val", "test"]) -> None:
        self._gather()
        frame = self._frame()
        num_labelled = sum(number for _, number in self._losses)
        if num_labelled == 0 and not self.trainer.sanity_checking:
            raise ModelError(
                f"none of the {len(frame)} {stage} rows has a target ({', '.join(self.metrics)}), so there is nothing "
                "to measure. Fill the target's column, or use `predict` for images without labels."
            )
        total = sum(loss * number for loss, number in self._losses)
        self.record(f"{stage}/loss", total / num_labelled if num_labelled else float("nan"))
        self._send({"epoch": float(self.current_epoch)})
        for output, metrics in self.metrics.items():
            rows = frame[(frame["output"] == output) & frame["target"].notna()]
            units = rows.groupby(list(UNIT))[["target", "prediction"]].mean()
            values = metrics(units["target"].to_numpy(np.float64), units["prediction"].to_numpy(np.float64))
            for name, value in values.items():
                self.record(self.metric_name(stage, output, name), value)


def step_seed(seed: int, epoch: int, batch: int, rank: int = 0) -> int:
    """Return the seed of the random numbers of one step on one process, in [0, 2**63).

    Examples:
        >>> step_seed(0, 1, 2) == step_seed(0, 1, 2)
        True
        >>> len({step_seed(0, epoch, batch) for epoch in range(9) for batch in range(9)})
        81
    """
    digest = hashlib.blake2b(f"{seed}/{epoch}/{batch}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1

"""Regression of a continuous target, such as age, from images.

Example:
    Brain age with soft bins, as Peng et al. did in UK Biobank:

    .. code-block:: yaml

        model:
          class_path: lightning_modules.RegressionModule
          init_args:
            target: age
            head: soft_bins
            bins: {low: 42, high: 82, width: 1, sigma: 1}
            network: {class_path: lightning_modules.networks.SFCN, init_args: {width: 32}}
            optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.01, momentum: 0.9, weight_decay: 0.001}}
"""

from dataclasses import asdict
from typing import Any, Literal

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from evaluation.regression import point_estimates
from lightning_modules.base import BaseModule, Batch, Stage, StepOutput
from lightning_modules.losses import MaskedRegressionLoss, SoftBinsLoss
from lightning_modules.networks.encoder import Encoder, ModelError
from lightning_modules.networks.heads import SoftBins, SoftBinsConfig, TargetScaling
from lightning_modules.transfer import Transfer

LIFESPAN_BINS = SoftBinsConfig(low=0.0, high=100.0, width=1.0, sigma=1.0)


class RegressionModule(BaseModule):
    """Predict a continuous target in its own unit.

    The head `regression` fits the standardised target (after a logarithm when the datamodule asks for one);
    `soft_bins` fits a distribution over bins and predicts its mean. Images without a target are predicted and add
    nothing to the loss. Statistics of the training targets are saved with the weights, so that a checkpoint alone
    validates, tests and predicts.

    Args:
        network: The encoder; its head is replaced by one of the right size.
        optimizer: Class of the optimizer and its arguments; required, because the learning rate is.
        scheduler: Class of the learning-rate scheduler, stepped once per epoch; constant without one.
        target: Name of the target's column.
        head: What the network fits.
        loss: Error of the head `regression`, in standard deviations of the target; `huber` turns linear at one.
        bins: Bins of the head `soft_bins`, in the unit of the target.
        log_shift: Added before a logarithm of the target, in its unit; 0.75 years counts age from conception.
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
        target: str = "age",
        head: Literal["regression", "soft_bins"] = "regression",
        loss: Literal["l1", "huber", "mse"] = "l1",
        bins: SoftBinsConfig = LIFESPAN_BINS,
        log_shift: float = 0.75,
        monitor: str = "val/mae",
        monitor_mode: Literal["min", "max"] = "min",
        decay_norm_and_bias: bool = True,
        transfer: Transfer | None = None,
    ) -> None:
        super().__init__(network, optimizer, scheduler, monitor, monitor_mode, decay_norm_and_bias, transfer)
        self.target = target
        self.error = loss
        self.scaling = TargetScaling(log_shift)
        self.bins = SoftBins(**asdict(bins)) if head == "soft_bins" else None
        network.reset_head(1 if self.bins is None else self.bins.num_bins)
        self.configure_losses()
        self.configure_metrics()

    def configure_losses(self) -> None:
        """Set the loss of the chosen head."""
        self.loss = MaskedRegressionLoss(self.error) if self.bins is None else SoftBinsLoss(self.bins)

    def configure_metrics(self) -> None:
        """Measure error, correlation and bias in the unit of the target."""
        self.metrics = {self.target: point_estimates}

    def describe_outputs(self) -> dict[str, dict[str, Any]]:
        """Say how a reader of the weights gets from the network's output to the target's unit."""
        if self.bins is None:
            return {self.target: {"kind": "regression", "head": "regression", "scaling": self.scaling.describe()}}
        return {self.target: {"kind": "regression", "head": "soft_bins", "centres": self.bins.centres.tolist()}}

    def setup(self, stage: str) -> None:
        """Take the statistics of the training targets from the datamodule before a fit.

        Raises:
            ModelError: The datamodule gives no training targets, or they do not suit the head.
        """
        if stage != "fit":
            return
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if not (hasattr(datamodule, "target_values") and hasattr(datamodule, "target_transform")):
            raise ModelError(
                "RegressionModule needs the training targets to scale them, and got no datamodule with `target_values` "
                "and `target_transform`; pass one to `trainer.fit(module, datamodule=...)`."
            )
        values, transform = datamodule.target_values(self.target), datamodule.target_transform
        if self.bins is not None:
            if transform != "identity":
                raise ModelError(
                    f"the head soft_bins works in the unit of {self.target!r} and cannot be combined with the "
                    f"datamodule's target_transform={transform!r}; set target_transform identity, or head regression."
                )
            self.bins.require_inside(values)
        self.scaling.fit(values, transform)

    def start_evaluation(self) -> None:
        """Start, unless the module has never seen training targets or a checkpoint.

        Raises:
            ModelError: Predictions would have no unit.
        """
        if not self.scaling.is_fitted:
            raise ModelError(
                "this RegressionModule was neither trained nor loaded from a checkpoint, so its predictions have no "
                "unit; give the checkpoint (`ckpt_path`) or fit it first."
            )
        super().start_evaluation()

    def forward(self, image: Tensor) -> Tensor:
        """Predict the target (B,), in its own unit, from images (B, C, D, H, W) or (B, C, H, W)."""
        return self._to_unit(self.network(image).float())

    def step(self, batch: Batch, stage: Stage) -> StepOutput:
        """Compute the loss and the row of every image."""
        # Losses and units in float32, whatever precision the network ran in.
        outputs = self.network(batch["image"]).float()
        target = self._known_targets(batch, stage, outputs)
        if self.bins is None:
            loss = self.loss(outputs.squeeze(1), self.scaling.to_scaled(target))
        else:
            loss = self.loss(outputs, target)
        rows = {
            "target": target,
            "prediction": self._to_unit(outputs).detach(),
            "baseline": self.scaling.training_mean.expand(len(target)),
        }
        return StepOutput(loss, (~target.isnan()).sum(), {self.target: rows})

    def _to_unit(self, outputs: Tensor) -> Tensor:
        return self.scaling.to_unit(outputs.squeeze(1)) if self.bins is None else self.bins.expected_value(outputs)

    def _known_targets(self, batch: Batch, stage: Stage, outputs: Tensor) -> Tensor:
        targets = batch.get("target", {})
        if self.target in targets:
            return torch.as_tensor(targets[self.target]).to(outputs)
        if stage == "predict":
            return outputs.new_full((len(outputs),), float("nan"))
        raise ModelError(
            f"the batch has no target {self.target!r} (it has: {', '.join(targets) or 'none'}); set `target` of the "
            "module to a target column of the cohort."
        )

"""Classification of one or several binary outcomes, such as death or disability, from images.

Example:
    A rare outcome, told by a threshold that finds nine in ten:

    .. code-block:: yaml

        model:
          class_path: lightning_modules.ClassificationModule
          init_args:
            targets: outcome
            class_weighting: balanced
            threshold: sensitivity
            sensitivity: 0.9
            network: {class_path: lightning_modules.networks.Monai3D, init_args: {name: resnet18}}
            optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1e-4, weight_decay: 1e-4}}
"""

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from evaluation.tasks import metrics_of, statistic_of
from lightning_modules.base import BaseModule, Batch, Stage, StepOutput
from lightning_modules.losses import MaskedBCELoss
from lightning_modules.networks.encoder import Encoder, ModelError
from lightning_modules.operating_point import SMALL, OperatingPoint, OperatingPointWarning
from lightning_modules.transfer import Transfer

WATCHED = ("auroc", "auprc", "balanced_accuracy", "accuracy", "f1", "sensitivity", "specificity", "brier")


class ClassificationModule(BaseModule):
    """Predict the probability of one or several binary outcomes.

    Each target has one logit. A missing label adds nothing to the loss, which is the mean over the known labels of all
    targets. Prevalences and class weights come from the training labels; temperature and threshold come from the
    validation rows, anew at the end of every validation, or are given. All are saved with the weights, so that a
    checkpoint alone validates, tests and predicts, at the operating point of its own epoch. Class weights other than 1
    raise every probability, which a temperature does not undo.

    Args:
        network: The encoder; its head is replaced by one of the right size.
        optimizer: Class of the optimizer and its arguments; required, because the learning rate is.
        scheduler: Class of the learning-rate scheduler, stepped once per epoch; constant without one.
        targets: Name of the target's column, or of several; values are 0 and 1.
        class_weighting: Weight of the positives in the loss: 1 (`none`), negatives per positive in the training part
            (`balanced`), or one number per target.
        label_smoothing: How far labels are drawn from 0 and 1 towards 0.5 in the loss.
        threshold: How the probability that counts as positive is chosen from the validation rows: largest sensitivity +
            specificity (`youden`), or largest specificity at `sensitivity`. Or the probability itself, one for all
            targets or one per target, which then is never changed.
        sensitivity: Smallest sensitivity in the validation rows that the threshold `sensitivity` keeps.
        temperature: What logits are divided by: the number that makes the validation labels most likely (`fit`), or the
            number itself, one for all targets or one per target, which then is never changed.
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
        targets: list[str] | str = "outcome",
        class_weighting: Literal["none", "balanced"] | list[float] = "none",
        label_smoothing: float = 0.0,
        threshold: Literal["youden", "sensitivity"] | float | list[float] = "youden",
        sensitivity: float = 0.9,
        temperature: Literal["fit"] | float | list[float] = "fit",
        monitor: str = "val/auroc",
        monitor_mode: Literal["min", "max"] = "max",
        decay_norm_and_bias: bool = True,
        transfer: Transfer | None = None,
    ) -> None:
        super().__init__(network, optimizer, scheduler, monitor, monitor_mode, decay_norm_and_bias, transfer)
        self.targets = [targets] if isinstance(targets, str) else list(targets)
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ModelError(f"targets is {self.targets}; name one target or several different ones.")
        if not 0 <= label_smoothing < 1:
            raise ModelError(f"label_smoothing is {label_smoothing:g} and must lie from 0 to below 1; 0.1 is usual.")
        self.label_smoothing = label_smoothing
        self.labels = TrainingLabels(len(self.targets), class_weighting)
        self.operating_point = OperatingPoint(len(self.targets), threshold, sensitivity, temperature)
        network.reset_head(len(self.targets))
        self.configure_losses()
        self.configure_metrics()
        self._require_monitor()
        self._has_warned = False

    def configure_losses(self) -> None:
        """Set the loss."""
        self.loss = MaskedBCELoss(self.label_smoothing)

    def configure_metrics(self) -> None:
        """Measure ranking, and decisions at the threshold that the module holds when it measures."""
        self.metrics = {name: partial(self._measure, output) for output, name in enumerate(self.targets)}

    def describe_outputs(self) -> dict[str, dict[str, Any]]:
        """Say how a reader of the weights gets from a logit to a probability and a decision."""
        return {
            name: {
                "kind": "binary",
                "logit": output,
                **self.labels.describe(output),
                **self.operating_point.describe(output),
            }
            for output, name in enumerate(self.targets)
        }

    def metric_name(self, stage: Stage, output: str, metric: str) -> str:
        """Return `stage/metric` for one target, `stage/output/metric` for several."""
        return f"{stage}/{metric}" if len(self.targets) == 1 else f"{stage}/{output}/{metric}"

    def setup(self, stage: str) -> None:
        """Take prevalences and class weights from the training labels of the datamodule before a fit.

        Raises:
            ModelError: The datamodule gives no training labels, or they are not of two classes.
        """
        if stage != "fit":
            return
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(datamodule, "target_values"):
            raise ModelError(
                "ClassificationModule needs the training labels to weigh classes, and got no datamodule with "
                "`target_values`; pass one to `trainer.fit(module, datamodule=...)`."
            )
        for output, name in enumerate(self.targets):
            try:
                values = datamodule.target_values(name)
            except KeyError:
                raise ModelError(
                    f"the datamodule reads no target {name!r}; name it in `data.targets`, or correct `model.targets`."
                ) from None
            self.labels.fit(output, name, values)

    def start_evaluation(self) -> None:
        """Start, unless the module has never seen training labels or a checkpoint.

        Raises:
            ModelError: Predictions would be those of an untrained network.
        """
        if not self.labels.is_fitted:
            raise ModelError(
                "this ClassificationModule was neither trained nor loaded from a checkpoint, so its predictions mean "
                "nothing; give the checkpoint (`ckpt_path`) or fit it first."
            )
        super().start_evaluation()

    def forward(self, image: Tensor) -> Tensor:
        """Predict the probability of every target (B, K) from images (B, C, D, H, W) or (B, C, H, W)."""
        return torch.sigmoid(self.network(image).float() / self.operating_point.temperature)

    def step(self, batch: Batch, stage: Stage) -> StepOutput:
        """Compute the loss and, outside training, where nobody reads them, the rows of every image."""
        # The loss in single precision, whatever precision the network ran in.
        logits = self.network(batch["image"]).float()
        target = torch.stack([self._known_labels(batch, name, stage, logits) for name in self.targets], dim=1)
        loss = self.loss(logits, target, self.labels.positive_weight)
        rows = {} if stage == "train" else self._rows(logits.detach(), target)
        return StepOutput(loss, (~target.isnan()).sum(), rows)

    def _rows(self, logits: Tensor, target: Tensor) -> dict[str, dict[str, Tensor]]:
        # Above 17 the sigmoid is 1 in single precision, and participants of different logits would be tied.
        exact = logits.cpu().double()
        scores = torch.stack([torch.sigmoid(-exact), torch.sigmoid(exact)], dim=2)
        prediction = torch.sigmoid(exact / self.operating_point.temperature.cpu())
        prevalence = self.labels.prevalence.expand(target.shape)
        columns = {"target": target, "prediction": prediction, "scores": scores, "baseline": prevalence}
        return {
            name: {column: values[:, output] for column, values in columns.items()}
            for output, name in enumerate(self.targets)
        }

    def _known_labels(self, batch: Batch, name: str, stage: Stage, logits: Tensor) -> Tensor:
        targets = batch.get("target", {})
        if name not in targets:
            if stage == "predict":
                return logits.new_full((len(logits),), math.nan)
            raise ModelError(
                f"the batch has no target {name!r} (it has: {', '.join(targets) or 'none'}); set `targets` of the "
                "module to target columns of the cohort."
            )
        labels = torch.as_tensor(targets[name]).to(logits)
        if stage != "train":  # training labels were looked at before the first step, without waiting for the device
            wrong = ~(labels.isnan() | (labels == 0) | (labels == 1))
            if wrong.any():
                row = int(wrong.nonzero()[0])
                raise ModelError(
                    f"participant {batch['participant_id'][row]} has {name} {float(labels[row]):g}, and a binary "
                    "target is 0 or 1; correct the target's column, or use RegressionModule."
                )
        return labels

    def _gather(self) -> None:
        """Collect the rows of all processes; while training, choose the operating point from them."""
        super()._gather()
        if self.trainer.state.fn != TrainerFn.FITTING or self.trainer.sanity_checking:
            return
        frame = super()._frame()
        for output, name in enumerate(self.targets):
            rows = frame[frame["output"] == name]
            self.operating_point.choose(output, rows[rows["target"].notna()])
            self._calibrate(output, name)
        self._warn_of_little()

    def _calibrate(self, output: int, name: str) -> None:
        """Bring the predictions of the rows at hand, made with the last temperature, to the new one."""
        rows = [row for row in self.prediction_rows if row["output"] == name]
        scores = pd.DataFrame(rows, columns=["score_0", "score_1"])
        calibrated = self.operating_point.calibrated(output, scores["score_0"], scores["score_1"])
        for row, prediction in zip(rows, calibrated.tolist(), strict=True):
            row["prediction"] = prediction

    def _frame(self) -> pd.DataFrame:
        """Add `threshold` and `decision`."""
        frame = super()._frame()
        threshold = dict(zip(self.targets, self.operating_point.threshold.tolist(), strict=True))
        frame["threshold"] = frame["output"].map(threshold).astype(np.float64)
        frame["decision"] = (frame["prediction"] >= frame["threshold"]).astype(np.int64)
        return frame

    def _measure(self, output: int, target: NDArray[np.float64], prediction: NDArray[np.float64]) -> dict[str, float]:
        return watched_metrics(target, prediction, float(self.operating_point.threshold[output]))

    def _warn_of_little(self) -> None:
        """Say once what a training's validation rows are too few for."""
        if self._has_warned or not self.operating_point.is_chosen or not self.trainer.is_global_zero:
            return
        self._has_warned = True
        point, outputs = self.operating_point, list(enumerate(self.targets))
        chosen = " and ".join(name for name in ("threshold", "temperature") if name not in point.given)
        single = [name for output, name in outputs if not point.has_both_classes[output]]
        few = [name for output, name in outputs if point.is_small(output)]
        texts = []
        if single:
            texts.append(
                f"The labelled validation rows do not hold both classes of {', '.join(single)}: the AUROC is "
                f"undefined, and there is nothing to choose a {chosen} from. Validate on more participants "
                "(data.val_fraction)."
            )
        if few:
            texts.append(
                f"{int(point.num_participants.max())} validation participants choose the {chosen} of {', '.join(few)}; "
                f"below {SMALL} such a choice is mostly noise. Pooled inner out-of-fold scores are better: give what "
                "they say as model.threshold and model.temperature."
            )
        for text in texts:
            warnings.warn(text, OperatingPointWarning, stacklevel=2)

    def _require_monitor(self) -> None:
        """Refuse a metric of the validation that is not measured, and the wrong direction of one that is."""
        nothing = np.empty(0)
        larger: dict[str, bool | None] = {"val/loss": False}
        for output, metrics in self.metrics.items():
            for name in metrics(nothing, nothing):
                known = metrics_of("binary").get(name)
                larger[self.metric_name("val", output, name)] = None if known is None else known.larger_is_better
        if self.monitor.startswith("val/") and self.monitor not in larger:
            raise ModelError(f"monitor {self.monitor!r} is not measured here; choose one of {', '.join(larger)}.")
        wanted = larger.get(self.monitor)
        if wanted is not None and wanted != (self.monitor_mode == "max"):
            raise ModelError(
                f"monitor_mode {self.monitor_mode!r} would keep the worst {self.monitor}; set it to "
                f"{'max' if wanted else 'min'}."
            )


class TrainingLabels(nn.Module):
    """Prevalence and weight of the positives of K targets, from the training labels; both live in the state dict.

    Args:
        num_outputs: Number of targets K.
        weighting: `none`, `balanced` or one positive weight per target.

    Example:
        >>> labels = TrainingLabels(1, "balanced")
        >>> labels.fit(0, "outcome", torch.tensor([0.0, 0.0, 0.0, 1.0]))
        >>> labels.prevalence, labels.positive_weight
        (tensor([0.2500]), tensor([3.]))
    """

    prevalence: Tensor
    positive_weight: Tensor

    def __init__(self, num_outputs: int, weighting: Literal["none", "balanced"] | Sequence[float] = "none") -> None:
        super().__init__()
        self.weighting = weighting
        if not isinstance(weighting, str) and (
            len(weighting) != num_outputs or any(not 0 < weight < math.inf for weight in weighting)
        ):
            raise ModelError(
                f"class_weighting is {list(weighting)}; give none, balanced, or one positive number per target "
                f"({num_outputs})."
            )
        self.register_buffer("prevalence", torch.full((num_outputs,), math.nan))
        self.register_buffer("positive_weight", torch.ones(num_outputs))

    @property
    def is_fitted(self) -> bool:
        """Whether training labels, or a checkpoint's statistics, have been seen."""
        return not bool(self.prevalence.isnan().any())

    def fit(self, output: int, name: str, values: Tensor) -> None:
        """Take the statistics of the training labels of one target; NaN (missing) labels are left out.

        Raises:
            ModelError: A label is neither 0 nor 1, or one class is missing.
        """
        known = values[~values.isnan()].double()
        wrong = known[(known != 0) & (known != 1)]
        if len(wrong):
            shown = ", ".join(f"{value:g}" for value in sorted(set(wrong.tolist()))[:5])
            raise ModelError(
                f"{len(wrong)} of {len(known)} training labels of {name!r} are neither 0 nor 1 ({shown}); code the "
                "target's column as 0 and 1, or use RegressionModule for a number."
            )
        positives = int(known.sum())
        if not 0 < positives < len(known):
            raise ModelError(
                f"{positives} of {len(known)} training labels of {name!r} are 1: with one class there is nothing to "
                "learn. Check the target's column and the training split."
            )
        self.prevalence[output] = positives / len(known)
        if self.weighting == "balanced":
            self.positive_weight[output] = (len(known) - positives) / positives
        elif not isinstance(self.weighting, str):
            self.positive_weight[output] = self.weighting[output]

    def describe(self, output: int) -> dict[str, float]:
        """Return the statistics of one target in JSON types."""
        return {
            "prevalence": float(self.prevalence[output]),
            "positive_weight": float(self.positive_weight[output]),
        }


def watched_metrics(target: ArrayLike, prediction: ArrayLike, threshold: float) -> dict[str, float]:
    """Compute the metrics that a training watches, without intervals.

    Where the threshold was chosen on the same rows, as at the end of a validation, balanced accuracy, accuracy, F1,
    sensitivity and specificity are optimistic: they say how well the best threshold does here, not elsewhere.

    Args:
        target: (N,) 0 or 1, one row per participant and session.
        prediction: (N,) P(y = 1).
        threshold: Prediction from which on the decision is 1.

    Returns:
        `auroc`, `auprc`, `balanced_accuracy`, `accuracy`, `f1`, `sensitivity`, `specificity` and `brier`; NaN where
        undefined.

    >>> metrics = watched_metrics([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9], threshold=0.5)
    >>> metrics["auroc"], metrics["balanced_accuracy"]
    (0.75, 0.5)
    >>> watched_metrics([1, 1], [0.4, 0.9], threshold=0.5)["auroc"]
    nan
    """
    rows = pd.DataFrame({"target": target, "prediction": prediction, "threshold": threshold, "baseline": np.nan})
    values = statistic_of("binary")(rows, WATCHED)(np.ones((1, len(rows))))
    return {name: float(values[name][0]) for name in WATCHED}

"""Losses that leave out samples without a label, marked by a NaN target."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def masked_mean(losses: Tensor, is_known: Tensor) -> Tensor:
    """Average per-sample losses over the known samples.

    With no known sample the result is 0 and still hangs on the graph, so that a backward pass gives zero gradients.

    Args:
        losses: Loss of each sample, (B,), or of each of its outputs, (B, K); what unknown samples hold does not matter.
        is_known: Whether each loss counts, bool, of the same shape.

    Example:
        >>> masked_mean(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False]))
        tensor(2.)
        >>> masked_mean(torch.tensor([1.0]), torch.tensor([False]))
        tensor(0.)
    """
    return torch.where(is_known, losses, 0.0).sum() / is_known.sum().clamp(min=1)


class MaskedRegressionLoss(nn.Module):
    """Mean L1, Huber or squared error over the samples that have a target.

    With e = prediction - target: |e|; or e^2 / 2 where |e| <= delta and delta * (|e| - delta / 2) beyond; or e^2.

    Args:
        kind: Which error.
        delta: Where Huber's error turns from squared to absolute, in the unit of the prediction.

    Example:
        >>> loss = MaskedRegressionLoss("l1")
        >>> loss(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0.0, 5.0, float("nan")]))
        tensor(2.)
        >>> MaskedRegressionLoss("huber")(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 0.0]))
        tensor(1.3125)
        >>> MaskedRegressionLoss("mse")(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        tensor(5.)
    """

    def __init__(self, kind: Literal["l1", "huber", "mse"] = "l1", delta: float = 1.0) -> None:
        super().__init__()
        self.kind = kind
        self.delta = delta

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the mean error of predictions (B,) against targets (B,), both in the same unit."""
        is_known = ~target.isnan()
        # NaN * 0 is NaN: an unknown target must not enter the arithmetic at all.
        known_target = torch.where(is_known, target, prediction.detach())
        if self.kind == "l1":
            losses = F.l1_loss(prediction, known_target, reduction="none")
        elif self.kind == "huber":
            losses = F.huber_loss(prediction, known_target, reduction="none", delta=self.delta)
        else:
            losses = F.mse_loss(prediction, known_target, reduction="none")
        return masked_mean(losses, is_known)

"""Binary cross-entropy of several outputs, leaving out labels that are missing."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.losses.masked import masked_mean


class MaskedBCELoss(nn.Module):
    """Mean binary cross-entropy over the known labels of one or several outputs.

    With the probability s = sigmoid(logit), the weight w of the positives and the smoothed label
    q = y * (1 - e) + e / 2: -w * q * log(s) - (1 - q) * log(1 - s).

    Args:
        label_smoothing: How far e labels are drawn from 0 and 1 towards 0.5.

    Example:
        >>> loss = MaskedBCELoss()
        >>> loss(torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [float("nan")]]))  # log(2)
        tensor(0.6931)
        >>> loss(torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [0.0]]), torch.tensor([3.0]))  # 2 log(2)
        tensor(1.3863)
        >>> MaskedBCELoss(label_smoothing=0.2)(torch.tensor([[2.0]]), torch.tensor([[1.0]]))
        tensor(0.3269)
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor, positive_weight: Tensor | None = None) -> Tensor:
        """Return the loss of logits (B, K) against labels (B, K), 0 or 1, with the weight of positives (K,)."""
        is_known = ~target.isnan()
        labels = torch.where(is_known, target, 0.0) * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=positive_weight, reduction="none")
        return masked_mean(losses, is_known)

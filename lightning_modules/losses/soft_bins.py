"""Kullback-Leibler loss of a soft-bin head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.losses.masked import masked_mean
from lightning_modules.networks.heads import SoftBins


class SoftBinsLoss(nn.Module):
    """Mean KL(p || softmax(logits)) over the samples that have a target; p is the target's distribution over bins.

    Args:
        bins: The bins that make a distribution of a target.

    References:
        Peng et al., Medical Image Analysis 2021, doi:10.1016/j.media.2020.101871.

    Example:
        >>> bins = SoftBins(low=0, high=4, width=1, sigma=0.5)
        >>> loss = SoftBinsLoss(bins)
        >>> perfect = bins.distribution(torch.tensor([2.0])).log()
        >>> loss(perfect, torch.tensor([2.0])).round(decimals=4).abs()
        tensor(0.)
        >>> loss(torch.zeros(2, 4), torch.tensor([2.0, float("nan")]))  # log(4) less the entropy of p
        tensor(0.5083)
    """

    def __init__(self, bins: SoftBins) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, K) against targets (B,) in their own unit."""
        is_known = ~target.isnan()
        distribution = self.bins.distribution(torch.where(is_known, target, self.bins.low))
        losses = F.kl_div(logits.log_softmax(dim=1), distribution, reduction="none").sum(dim=1)
        return masked_mean(losses, is_known)

"""Losses: pure torch; a sample whose target is NaN adds nothing."""

from lightning_modules.losses.masked import MaskedRegressionLoss, masked_mean
from lightning_modules.losses.masked_bce import MaskedBCELoss
from lightning_modules.losses.soft_bins import SoftBinsLoss

__all__ = ["MaskedBCELoss", "MaskedRegressionLoss", "SoftBinsLoss", "masked_mean"]

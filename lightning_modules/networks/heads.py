"""What stands between a network's raw outputs and the target's own unit: scaling, and soft bins.

Example:
    .. code-block:: yaml

        model:
          class_path: lightning_modules.RegressionModule
          init_args:
            head: soft_bins
            bins: {low: 42, high: 82, width: 1, sigma: 1}
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_modules.networks.encoder import ModelError


class TargetScaling(nn.Module):
    """Standardise a target, and bring predictions back to its unit; the statistics live in the state dict.

    The scaled value is z = (t(y) - mean) / sd with t(y) = y or t(y) = log(y + shift); mean and sd are those of t(y)
    over the training values. `training_mean` is the mean of y itself: what predicting without an image would say.

    Args:
        shift: Added before the logarithm, in the target's unit; 0.75 years counts age from conception.

    Example:
        >>> scaling = TargetScaling()
        >>> scaling.fit(torch.tensor([10.0, 20.0, 30.0]), "identity")
        >>> scaling.to_scaled(torch.tensor([20.0, 30.0]))
        tensor([0., 1.])
        >>> scaling.to_unit(torch.tensor([-1.0]))
        tensor([10.])
    """

    mean: Tensor
    sd: Tensor
    shift: Tensor
    is_log: Tensor
    training_mean: Tensor

    def __init__(self, shift: float = 0.75) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("sd", torch.tensor(1.0))
        self.register_buffer("shift", torch.tensor(shift))
        self.register_buffer("is_log", torch.tensor(False))
        self.register_buffer("training_mean", torch.tensor(math.nan))

    @property
    def is_fitted(self) -> bool:
        """Whether training values, or a checkpoint's statistics, have been seen."""
        return not bool(self.training_mean.isnan())

    def fit(self, values: Tensor, transform: Literal["identity", "log"]) -> None:
        """Take the statistics of the training values; NaN (missing) values are left out.

        Args:
            values: Training targets in their own unit, one-dimensional.
            transform: `log` scales log(y + shift).

        Raises:
            ModelError: Fewer than two values, a constant target, or a value the logarithm cannot take.
        """
        known = values[~values.isnan()].double()
        if len(known) < 2:
            raise ModelError(
                f"{len(known)} of {len(values)} training rows have a target; scaling it needs two or more. Check the "
                "target's column and the training split."
            )
        transformed = known
        if transform == "log":
            shift = float(self.shift)
            if float(known.min()) + shift <= 0:
                raise ModelError(
                    f"the smallest training target is {float(known.min()):g}, and log(y + {shift:g}) needs y above "
                    f"{-shift:g}; correct the value, raise the shift, or use target_transform identity."
                )
            transformed = torch.log(known + shift)
        sd = transformed.std()
        if float(sd) == 0.0:
            raise ModelError(
                f"all {len(known)} training targets are {float(known[0]):g}: there is nothing to learn. Check the "
                "target's column and the training split."
            )
        self.mean.fill_(transformed.mean())
        self.sd.fill_(sd)
        self.is_log.fill_(transform == "log")
        self.training_mean.fill_(known.mean())

    def describe(self) -> dict[str, float | str]:
        """Return the statistics and the scale in JSON types."""
        numbers = {name: float(getattr(self, name)) for name in ("mean", "sd", "shift", "training_mean")}
        return {"transform": "log(y + shift)" if bool(self.is_log) else "identity", **numbers}

    def to_scaled(self, values: Tensor) -> Tensor:
        """Scale values in the target's unit; NaN stays NaN."""
        logarithm = torch.log(torch.where(self.is_log, values + self.shift, 1.0))
        return (torch.where(self.is_log, logarithm, values) - self.mean) / self.sd

    def to_unit(self, scaled: Tensor) -> Tensor:
        """Bring scaled values back to the target's unit."""
        transformed = scaled * self.sd + self.mean
        # exp of a branch that is not taken would overflow, and its gradient 0 * inf would be NaN.
        exponential = torch.exp(torch.where(self.is_log, transformed, 0.0)) - self.shift
        return torch.where(self.is_log, exponential, transformed)


@dataclass(frozen=True)
class SoftBinsConfig:
    """Bins of a soft-bin head, in the target's unit.

    Args:
        low: Lower edge of the first bin.
        high: Upper edge of the last bin.
        width: Width of a bin.
        sigma: Standard deviation of the normal distribution around a target.
    """

    low: float = 0.0
    high: float = 100.0
    width: float = 1.0
    sigma: float = 1.0


class SoftBins(nn.Module):
    """Turn a target into a distribution over bins, and logits over bins into an expected value.

    The mass of bin k is that of N(y, sigma) inside it, divided by the mass between `low` and `high`; a target outside
    that range counts as the nearer end.

    Args:
        low: Lower edge of the first bin, in the target's unit.
        high: Upper edge of the last bin.
        width: Width of a bin; it must divide `high` - `low`.
        sigma: Standard deviation of the normal distribution around a target.

    Raises:
        ModelError: The range is empty, is not a whole number of bins, or sigma is not positive.

    References:
        Peng et al., Medical Image Analysis 2021, doi:10.1016/j.media.2020.101871.

    Example:
        >>> bins = SoftBins(low=0, high=4, width=1, sigma=0.5)
        >>> bins.distribution(torch.tensor([2.0])).mul(100).round()
        tensor([[ 2., 48., 48.,  2.]])
        >>> bins.expected_value(torch.tensor([[0.0, 0.0, 0.0, 0.0]]))
        tensor([2.])
    """

    edges: Tensor

    def __init__(self, low: float, high: float, width: float = 1.0, sigma: float = 1.0) -> None:
        super().__init__()
        num_bins = round((high - low) / width) if width > 0 else 0
        if num_bins < 2 or not math.isclose(num_bins * width, high - low, rel_tol=1e-6) or sigma <= 0:
            raise ModelError(
                f"soft bins from {low:g} to {high:g} in steps of {width:g} with sigma {sigma:g} do not work: sigma "
                "must be positive, and the width must divide the range into two bins or more."
            )
        self.low, self.high, self.sigma, self.num_bins = low, high, sigma, num_bins
        # Derived from the configuration, which the checkpoint carries: not part of the state dict.
        self.register_buffer("edges", torch.linspace(low, high, num_bins + 1), persistent=False)

    @property
    def centres(self) -> Tensor:
        """Centre of each bin, (K,)."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    def distribution(self, target: Tensor) -> Tensor:
        """Return the distribution over bins (B, K) of targets (B,) in their own unit."""
        inside = target.clamp(self.low, self.high).unsqueeze(1)
        mass: Tensor = torch.special.ndtr((self.edges - inside) / self.sigma).diff(dim=1)
        return mass / mass.sum(dim=1, keepdim=True)

    def expected_value(self, logits: Tensor) -> Tensor:
        """Return the mean (B,), in the target's unit, of the distributions whose logits are (B, K)."""
        # A matrix product would drop to half precision under autocast.
        return (logits.softmax(dim=1) * self.centres).sum(dim=1)

    def require_inside(self, values: Tensor) -> None:
        """Refuse training targets outside the bins.

        Raises:
            ModelError: A value lies below `low` or above `high`.
        """
        outside = int(((values < self.low) | (values > self.high)).sum())
        if outside:
            known = values[~values.isnan()]
            raise ModelError(
                f"{outside} training targets lie outside the bins from {self.low:g} to {self.high:g} (targets span "
                f"{float(known.min()):g} to {float(known.max()):g}); widen `bins.low` and `bins.high`."
            )

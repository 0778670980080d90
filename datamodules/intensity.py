"""What happens to the intensities of an augmented image: blur, bias field, gamma and noise, on any device."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.geometry import Array, expand_lattice

FAINT = 2.0**-11  # relative; a smaller weight changes nothing at half precision
STATISTICS_SIZE = 2**16  # voxels that are enough for a standard deviation


@dataclass(frozen=True)
class Intensity:
    """What happens to one channel of a sample; each default leaves the channel as it is.

    Args:
        blur: Standard deviation of the Gaussian in voxels.
        log_bias: Logarithm of the multiplicative field on the bias lattice.
        gamma: Exponent.
        noise: Standard deviation of the noise over that of the foreground.
        noise_seed: Of the noise.
    """

    blur: float = 0.0
    log_bias: Array | None = None
    gamma: float = 1.0
    noise: float = 0.0
    noise_seed: int = 0


def change_intensity(above: Tensor, intensity: Intensity, span: Tensor, sd: Tensor) -> Tensor:
    """Blur a channel, multiply it by a bias field, bend it by gamma and add noise.

    Args:
        above: (D, H, W) or (H, W), intensity above the channel's minimum; may be overwritten.
        intensity: What to do.
        span: Maximum of the channel before it was moved, above the minimum.
        sd: Standard deviation of its foreground.
    """
    if intensity.blur > 0:
        above = _blur(above, intensity.blur)
    if intensity.log_bias is not None:
        above.mul_(expand_lattice(np.exp(intensity.log_bias)[np.newaxis], above.shape, above.device)[0])
    if intensity.gamma != 1:
        # span * (above / span) ** gamma by exp and log, five times faster than pow, but slow at log(0) and denormals.
        span = span.clamp_min(torch.finfo(torch.float32).tiny)
        offset = (1 - intensity.gamma) * span.log()
        above.clamp_min_(span * FAINT**2).log_().mul_(intensity.gamma).add_(offset).exp_()
    if intensity.noise > 0:
        generator = torch.Generator(above.device).manual_seed(intensity.noise_seed)
        noise = torch.randn(above.shape, generator=generator, device=above.device)
        above.add_(noise.mul_(sd * intensity.noise))
    return above


def retain_statistics(before: Tensor, after: Tensor) -> None:
    """Shift and scale each channel so that its foreground has the mean and standard deviation that it had before.

    Args:
        before: (B, C, ...) as it was.
        after: (B, C, ...) as it has become; changed in place. A constant channel stays as it is.
    """
    (wanted_mean, wanted_sd), (mean, sd) = foreground_moments(before.float()), foreground_moments(after)
    scale = torch.where(sd > 0, wanted_sd / sd, torch.ones_like(sd))
    after.sub_(mean).mul_(scale).add_(wanted_mean)


def foreground_moments(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (B, C, 1, ...) of each channel's voxels above the channel's mean.

    >>> mean, sd = foreground_moments(torch.tensor([0.0, 0.0, 2.0, 4.0]).reshape(1, 1, 2, 2))
    >>> mean.item(), sd.item()
    (3.0, 1.0)
    """
    axes = tuple(range(2, image.ndim))
    inside = (image > image.mean(axes, keepdim=True)).float()
    count = inside.sum(axes, keepdim=True).clamp_min(1)
    mean = (image * inside).sum(axes, keepdim=True) / count
    variance = ((image - mean).square() * inside).sum(axes, keepdim=True) / count
    return mean, variance.sqrt()


def foreground_sd(channel: Tensor) -> Tensor:
    """Return the standard deviation of a channel's voxels above their mean, without waiting for the device."""
    stride = channel.numel() // STATISTICS_SIZE | 1  # odd, so that no axis is cut short
    values = channel.flatten()[::stride].float()
    above = (values - values.mean()).clamp_min_(0)
    count = above.count_nonzero().clamp_min(1)
    return (above.dot(above) / count - (above.sum() / count).square()).clamp_min(0).sqrt()


def blur_weights(sigma: float) -> Array:
    """Return the weights of a Gaussian from its middle outwards; with their mirror image they sum to 1."""
    radius = int(sigma * math.sqrt(-2 * math.log(FAINT)))
    weights: Array = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    return weights


def _blur(channel: Tensor, sigma: float) -> Tensor:
    """Return the channel after a separable Gaussian whose border voxels repeat."""
    middle, *sides = blur_weights(sigma).tolist()
    for axis, size in enumerate(channel.shape):
        source, channel = channel, channel * middle
        for distance, weight in enumerate(sides, start=1):
            near = min(distance, size)
            channel.narrow(axis, near, size - near).add_(source.narrow(axis, 0, size - near), alpha=weight)
            channel.narrow(axis, 0, near).add_(source.narrow(axis, 0, 1), alpha=weight)
            channel.narrow(axis, 0, size - near).add_(source.narrow(axis, near, size - near), alpha=weight)
            channel.narrow(axis, size - near, near).add_(source.narrow(axis, size - 1, 1), alpha=weight)
    return channel

"""Whether a device computes 3D convolutions right in reduced precision.

Some kernels of some processors do not: on CPUs with bfloat16 matrix units, small volumes get gradients, or even values,
made of memory that nobody wrote to. Training goes on with them and learns nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# bfloat16 keeps 8 bits, so one rounding is off by up to 2**-9. The norm of an error over a whole tensor was 0.003 to
# 0.004 where the kernels are right, whatever the shape, and from 0.06 to infinite where they are not.
TOLERANCE = 2**-5
BATCH_SIZE = 8
CHANNELS = (64, 128)  # from here on the forward pass at 4x4x2 with stride 2 fails too
SOIL = tuple(2**power for power in range(4, 19)) * 2  # elements; up to the 1 MB that the scratch of these kernels takes


class ConvShape(NamedTuple):
    """Input of a 3x3x3 convolution with padding 1.

    Args:
        spatial: Voxels per axis.
        stride: Stride along every axis.
    """

    spatial: tuple[int, int, int]
    stride: int = 1

    def __str__(self) -> str:
        size = "x".join(map(str, self.spatial))
        return size if self.stride == 1 else f"{size} with stride {self.stride}"


SHAPES = (
    # Where networks are wide and volumes large: these were right everywhere.
    ConvShape((8, 8, 8)),
    ConvShape((4, 4, 4)),
    ConvShape((3, 3, 3)),
    ConvShape((4, 4, 4), 2),
    # Where a small encoder ends: each of these was wrong on some CPU.
    ConvShape((2, 2, 1)),
    ConvShape((2, 2, 2)),
    ConvShape((2, 3, 2)),
    ConvShape((2, 3, 3)),
    ConvShape((2, 4, 4)),
    ConvShape((1, 1, 1), 2),
    ConvShape((2, 1, 1), 2),
    ConvShape((2, 2, 1), 2),
    ConvShape((4, 4, 2), 2),
)


def conv3d_errors(
    device: torch.device, dtype: torch.dtype, shapes: Sequence[ConvShape] = SHAPES, repeats: int = 3
) -> dict[ConvShape, float]:
    """Return the largest relative error of 3x3x3 convolutions under autocast, by shape.

    The error is the norm of the difference from float32 on the CPU over the norm of that, the largest of the output,
    the gradient of the weight and the gradient of the input; infinite where anything is NaN.

    Args:
        device: Where to compute.
        dtype: Precision of autocast, `torch.bfloat16` or `torch.float16`.
        shapes: What to compute.
        repeats: How often, each time with other numbers; wrong kernels are right now and then.
    """
    return {
        shape: max(_error(device, dtype, shape, torch.Generator().manual_seed(seed)) for seed in range(repeats))
        for shape in shapes
    }


def _error(device: torch.device, dtype: torch.dtype, shape: ConvShape, generator: torch.Generator) -> float:
    in_channels, out_channels = CHANNELS
    image = torch.randn(BATCH_SIZE, in_channels, *shape.spatial, generator=generator)
    weight = torch.randn(out_channels, in_channels, 3, 3, 3, generator=generator) / (27 * in_channels) ** 0.5
    size = [(length - 1) // shape.stride + 1 for length in shape.spatial]
    gradient = torch.randn(BATCH_SIZE, out_channels, *size, generator=generator)
    expected = _convolve(image, weight, gradient, shape.stride, None)
    tensors = [tensor.to(device) for tensor in (image, weight, gradient)]
    computed = _convolve(tensors[0], tensors[1], tensors[2], shape.stride, dtype)
    return max(_distance(got.cpu(), wanted) for got, wanted in zip(computed, expected, strict=True))


def _convolve(
    volume: Tensor, weight: Tensor, gradient: Tensor, stride: int, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, gradient of the weight and gradient of the volume; in float32 where `dtype` is None."""
    device = volume.device
    image, kernel = volume.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.enable_grad():
        _soil(device)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            output = functional.conv3d(image, kernel, stride=stride, padding=1)
        _soil(device)
        of_weight, of_image = torch.autograd.grad(output, (kernel, image), gradient.to(output.dtype))
    return output.detach(), of_weight, of_image


def _soil(device: torch.device) -> None:
    """Leave NaN in the memory that is free, so that a kernel that reads what it never wrote is found at once."""
    held = [torch.full((size,), torch.nan, device=device) for size in SOIL]
    del held


def _distance(got: Tensor, wanted: Tensor) -> float:
    wanted = wanted.double()
    error = float((got.double() - wanted).norm() / wanted.norm())
    return error if error == error else torch.inf  # NaN is unequal to itself

"""The augmentation of a volume on a CPU, compiled by numba: plane by plane, while a plane is in the processor's cache.

`datamodules.geometry` and `datamodules.intensity` define what is computed and serve every other device. Here all of it
agrees with them up to rounding but the noise, whose numbers are others of the same distribution. Compiling takes about
ten seconds; the machine code is kept beside this file, or where `NUMBA_CACHE_DIR` says.
"""

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.geometry import Array, Warp, cut, spline_basis
from datamodules.intensity import FAINT, Intensity, blur_weights, foreground_sd
from datamodules.kernels import (
    NO_CHANGE,
    NO_LATTICE,
    NO_SAMPLING,
    Change,
    Lattice,
    Sampling,
    Single,
    blur_between_planes,
    blur_planes,
    load_kernels,
    render,
)


def augment_volume(channel: Tensor, warp: Warp, intensity: Intensity, out: Tensor) -> None:
    """Augment one channel as `move` and `change_intensity` do, up to rounding.

    Args:
        channel: (D, H, W), half or single precision.
        warp: Where the voxels come from; what comes from outside is the channel's minimum.
        intensity: What happens to them above that minimum.
        out: (D, H, W), single precision, of any size; contiguous.
    """
    load_kernels()
    target = out.numpy()
    low, high = (float(extreme) for extreme in channel.aminmax())
    window = warp.window(channel.shape, out.shape)
    if window is None:
        sampling = _sampling(channel, warp, low, out.shape)
    else:
        sampling = NO_SAMPLING
        out.copy_(cut(channel[np.newaxis], *window, out.shape)[0])
    if intensity.blur > 0:
        weights = _single(blur_weights(intensity.blur))
        _by_planes(render, sampling, NO_CHANGE, target)
        out.sub_(low)  # rounding of a large minimum would spoil a small range
        blurred = np.empty_like(target)
        _by_planes(blur_between_planes, target, weights, blurred)
        _by_planes(blur_planes, blurred, weights, target)
        sampling = NO_SAMPLING
    below = 0.0 if intensity.blur > 0 else low
    _by_planes(render, sampling, _change(channel, intensity, below, low, high, out.shape), target)


def _sampling(channel: Tensor, warp: Warp, low: float, size: Sequence[int]) -> Sampling:
    middle, output_middle = (np.array(channel.shape) - 1) / 2, (np.array(size) - 1) / 2
    start = warp.offset + middle - warp.linear @ output_middle + 1
    padded = torch.empty([length + 2 for length in channel.shape])
    for axis in range(3):
        padded.narrow(axis, 0, 1).fill_(low)
        padded.narrow(axis, channel.shape[axis] + 1, 1).fill_(low)
    padded[1:-1, 1:-1, 1:-1] = channel
    return Sampling(padded.numpy(), _single(warp.linear), _single(start), _lattice(warp.displacement, size))


def _change(
    channel: Tensor, intensity: Intensity, below: float, low: float, high: float, size: Sequence[int]
) -> Change:
    gamma = intensity.gamma if high > low else 1.0
    span = high - low if high > low else 1.0
    field = None if intensity.log_bias is None else np.exp(intensity.log_bias)[np.newaxis]
    noise_sd = intensity.noise * float(foreground_sd(channel)) if intensity.noise > 0 else 0.0
    seed = intensity.noise_seed
    return Change(
        np.float32(below),
        np.float32(low),
        _lattice(field, size),
        np.float32(gamma),
        np.float32((1 - gamma) * math.log2(span)),
        np.float32(span * FAINT**2),
        np.float32(noise_sd),
        (np.uint32(seed & 0xFFFFFFFF), np.uint32(seed * 0x9E3779B97F4A7C15 >> 32 & 0xFFFFFFFF)),
    )


def _lattice(control: Array | None, size: Sequence[int]) -> Lattice:
    if control is None:
        return NO_LATTICE
    x, y, z = (_basis(points, length) for points, length in zip(control.shape[1:], size, strict=True))
    return Lattice(_single(control), x, y, np.ascontiguousarray(z.T))


@functools.lru_cache(maxsize=64)
def _basis(num_points: int, size: int) -> Single:
    return _single(spline_basis(num_points, size))


def _single(array: Array) -> Single:
    return np.ascontiguousarray(array, dtype=np.float32)


def _by_planes(function: Callable[..., None], *arguments: Any) -> None:
    """Compute the planes of the last argument in as many threads as torch has, to the same result."""
    num_planes, num_threads = len(arguments[-1]), torch.get_num_threads()
    if num_threads == 1:
        function(*arguments, 0, num_planes)
        return
    edges = [num_planes * part // num_threads for part in range(num_threads + 1)]
    parts = [_threads(num_threads).submit(function, *arguments, *edge) for edge in pairwise(edges)]
    for part in parts:
        part.result()


@functools.cache
def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="augmentation")

"""Where the voxels of an augmented image come from: affine and elastic in one resampling, on any device."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Warp:
    """Where a sample's voxels come from, in voxels from the centres: input = linear @ output + offset + displacement.

    Args:
        linear: (d, d).
        offset: (d,).
        displacement: Control values on the elastic lattice over the output, (d, *points); none without elastic
            deformation.
    """

    linear: Array
    offset: Array
    displacement: Array | None = None

    def window(self, shape: Sequence[int], size: Sequence[int]) -> tuple[list[int], list[int]] | None:
        """Return the first voxel of the input and the mirrored axes where no voxel comes from between voxels.

        Args:
            shape: Of the input.
            size: Of the output.
        """
        signs = np.diag(self.linear)
        first = self.offset + (np.array(shape) - np.array(size)) / 2
        straight = np.array_equal(np.diag(signs), self.linear) and (np.abs(signs) == 1).all()
        if self.displacement is not None or not straight or (first != np.rint(first)).any():
            return None
        return first.astype(int).tolist(), np.flatnonzero(signs < 0).tolist()


def affine_matrix(degrees: Array, scale: Array, shear: Array) -> Array:
    """Return scale @ rotation @ shear for two or three axes.

    A rotation in 3D is about_z @ about_x @ about_y, as in ITK and torchio.

    Args:
        degrees: One angle in 2D, three in 3D.
        scale: Factor along each axis.
        shear: Upper off-diagonal terms.

    >>> affine_matrix(np.array([90.0]), np.array([1.0, 2.0]), np.zeros(3)).round()
    array([[ 0., -1.],
           [ 2.,  0.]])
    """
    axes = len(scale)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    if axes == 2:
        rotation = np.array([[cos[0], -sin[0]], [sin[0], cos[0]]])
    else:
        about_x = np.array([[1, 0, 0], [0, cos[0], -sin[0]], [0, sin[0], cos[0]]])
        about_y = np.array([[cos[1], 0, sin[1]], [0, 1, 0], [-sin[1], 0, cos[1]]])
        about_z = np.array([[cos[2], -sin[2], 0], [sin[2], cos[2], 0], [0, 0, 1]])
        rotation = about_z @ about_x @ about_y
    shearing = np.eye(axes)
    shearing[np.triu_indices(axes, 1)] = shear[: axes * (axes - 1) // 2]
    matrix: Array = np.diag(scale) @ rotation @ shearing
    return matrix


def inverse_warp(matrix: Array, translation: Array, spacing: Sequence[float] | None = None) -> Warp:
    """Return where voxels come from when the content is moved by output = matrix @ input + translation.

    Args:
        matrix: In mm, about the centre of the image.
        translation: In voxels.
        spacing: Voxel size in mm where voxels are not cubes.
    """
    size = np.ones(len(matrix)) if spacing is None else np.array(spacing, dtype=np.float64)
    linear = np.asarray(np.linalg.inv(matrix * size / size[:, np.newaxis]), dtype=np.float64)
    return Warp(linear, -linear @ translation)


def move(
    image: Tensor, warps: Sequence[Warp], mode: Literal["linear", "nearest"], size: Sequence[int] | None = None
) -> Tensor:
    """Take each image of a batch from where its warp says; what needs no interpolation is copied as it is.

    Args:
        image: (B, C, D, H, W) or (B, C, H, W); single precision where the mode is linear.
        warps: One per sample.
        mode: `linear` (bilinear or trilinear), or `nearest` for labels.
        size: Voxels of the output; those of the image by default.
    """
    size = image.shape[2:] if size is None else size
    moved = image.new_empty(*image.shape[:2], *size)
    windows = [warp.window(image.shape[2:], size) for warp in warps]
    bent = [index for index, window in enumerate(windows) if window is None]
    if bent:
        moved[bent] = resample(image[bent], [warps[index] for index in bent], mode, size)
    for index, window in enumerate(windows):
        if window is not None:
            moved[index] = cut(image[index], *window, size)
    return moved


def cut(image: Tensor, first: Sequence[int], mirrored: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return a window of an image (C, ...), mirrored along some of its axes."""
    for axis, (start, length) in enumerate(zip(first, size, strict=True), start=1):
        image = image.narrow(axis, start, length)
    return image.flip([1 + axis for axis in mirrored]) if mirrored else image


def resample(
    image: Tensor,
    warps: Sequence[Warp],
    mode: Literal["linear", "nearest"] = "linear",
    size: Sequence[int] | None = None,
) -> Tensor:
    """Sample each image of a batch where its warp says; zero outside.

    Args:
        image: (B, C, D, H, W) or (B, C, H, W); single precision where the mode is linear.
        warps: One per sample.
        mode: `linear` (bilinear or trilinear), or `nearest` for labels.
        size: Voxels of the output; those of the image by default.
    """
    size = image.shape[2:] if size is None else size
    if mode == "nearest":
        return _sample_nearest(image, warps, size)
    return _sample_planes(image, warps, size) if image.ndim == 4 else _sample_volumes(image, warps, size)


def _coordinates(
    image: Tensor, warps: Sequence[Warp], size: Sequence[int], scale: Array | float, shift: Array | float
) -> Tensor:
    """Return scale * index + shift of what to sample at each output voxel, (B, axes, *size), the last axis first.

    One term per axis is added by broadcasting: four times faster than affine_grid's product with a full-size matrix,
    and rounded in the same way whatever the batch is.
    """
    shape = np.array(image.shape[2:])
    axes = len(shape)
    scales = np.broadcast_to(scale, axes)
    linear = np.stack([(scales[:, np.newaxis] * warp.linear)[::-1] for warp in warps])
    start = np.stack([(scales * (warp.offset + (shape - 1) / 2) + shift)[::-1] for warp in warps])
    at = torch.tensor(start, dtype=torch.float32, device=image.device).view(len(warps), axes, *[1] * axes)
    for axis in range(axes):
        term = linear[:, :, axis, np.newaxis] * (np.arange(size[axis]) - (size[axis] - 1) / 2)
        line = [-1 if other == axis else 1 for other in range(axes)]
        at = at + torch.tensor(term, dtype=torch.float32, device=image.device).view(len(warps), axes, *line)
    for sample, warp in enumerate(warps):
        if warp.displacement is not None:
            control = scales.reshape(-1, *[1] * axes) * warp.displacement
            at[sample].add_(expand_lattice(control[::-1], size, image.device))
    return at


def _sample_nearest(image: Tensor, warps: Sequence[Warp], size: Sequence[int]) -> Tensor:
    nearest = _coordinates(image, warps, size, 1.0, 0.0).round_().long()
    flat = torch.zeros_like(nearest[:, 0])
    inside = torch.ones_like(flat, dtype=torch.bool)
    for length, index in zip(image.shape[2:], nearest.flip(1).unbind(1), strict=True):
        inside &= (index >= 0) & (index < length)
        flat = flat * length + index.clamp(0, length - 1)
    chosen = flat.flatten(1).unsqueeze(1).expand(-1, image.shape[1], -1)
    return image.flatten(2).gather(2, chosen).view(*image.shape[:2], *size) * inside.unsqueeze(1)


def _sample_planes(image: Tensor, warps: Sequence[Warp], size: Sequence[int]) -> Tensor:
    shape = np.array(image.shape[2:])
    grid = _coordinates(image, warps, size, 2 / shape, 1 / shape - 1).movedim(1, -1)
    return F.grid_sample(image, grid, padding_mode="zeros", align_corners=False)


def _sample_volumes(image: Tensor, warps: Sequence[Warp], size: Sequence[int]) -> Tensor:
    """Sample volumes as tall planes of slices: on a CPU torch vectorises grid_sample in 2D only, eight times faster.

    Every slice gets a border of zeros, each slice and the next are two channels of the plane, and the third axis is
    interpolated between them. A plane of 30,000 rows costs 0.002 voxels of precision.
    """
    batch, channels, num_x, num_y, num_z = image.shape
    pairs = image.new_zeros(batch, channels, 2, num_x + 1, num_y + 2, num_z)
    pairs[:, :, 0, 1:, 1:-1] = image
    pairs[:, :, 1, :-1, 1:-1] = image
    num_rows = (num_x + 1) * (num_y + 2)
    at = _coordinates(image, warps, size, np.array([1, 1, 2 / num_z]), np.array([1, 1, 1 / num_z - 1]))
    _, y, x = at.unbind(1)  # x and y count the border
    x.clamp_(0, num_x + 1)
    first = x.floor().clamp_max_(num_x)
    share = x.sub_(first).unsqueeze(1)
    y.clamp_(0, num_y + 1).add_(first.mul_(num_y + 2)).mul_(2 / num_rows).add_(1 / num_rows - 1)
    grid = at[:, :2].reshape(batch, 2, size[0] * size[1], size[2]).movedim(1, -1)
    plane = pairs.view(batch, 2 * channels, num_rows, num_z)
    pair = F.grid_sample(plane, grid, padding_mode="zeros", align_corners=False)
    near, far = pair.view(batch, channels, 2, *size).unbind(2)
    return far.sub_(near).mul_(share).add_(near)


def expand_lattice(control: Array, shape: Sequence[int], device: torch.device) -> Tensor:
    """Interpolate control values to a full-size field by cubic B-splines, one axis after the other.

    Args:
        control: (K, *points) values.
        shape: Of the field, as many axes as the lattice.
        device: Where the field is made.

    Returns:
        (K, *shape), within the range of the control values.

    >>> expand_lattice(np.ones((1, 4, 5)), (6, 7), torch.device("cpu")).shape
    torch.Size([1, 6, 7])
    """
    points = control.shape[1:]
    rows = len(control)
    for num_points, size in zip(points[:-1], shape[:-1], strict=True):
        control = spline_basis(num_points, size) @ control.reshape(rows, num_points, -1)
        rows *= size
    field = torch.tensor(control.reshape(rows, points[-1]), dtype=torch.float32, device=device)
    last = torch.tensor(spline_basis(points[-1], shape[-1]).T, dtype=torch.float32, device=device)
    return (field @ last).view(-1, *shape)


@functools.lru_cache(maxsize=64)
def spline_basis(num_points: int, size: int) -> Array:
    """Return the weight of each control point at each voxel centre, (size, num_points); every row sums to 1."""
    position = (np.arange(size) + 0.5) / size * (num_points - 3)
    first = np.minimum(position.astype(int), num_points - 4)
    t = position - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    basis = np.zeros((size, num_points))
    np.put_along_axis(basis, first[:, np.newaxis] + np.arange(4), weights, axis=1)
    return basis

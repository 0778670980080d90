"""Grids, poses and smooth random fields: where a participant's voxels lie in the anatomy they are made from."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Triple = tuple[float, float, float]

LATTICE_MM = 300.0  # side of the cube, around the centre of the brain, on which smooth random fields live


def centred_affine(shape: Sequence[int], spacing: Triple) -> NDArray[np.float64]:
    """Return the affine (4, 4) of a right-anterior-superior grid whose middle is at 0 mm.

    Args:
        shape: Voxels (D, H, W).
        spacing: Voxel size in mm.
    """
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-size * (count - 1) / 2 for size, count in zip(spacing, shape, strict=True)]
    return affine


def deformed_grid(
    shape: Sequence[int], spacing: Triple, scale: float, rng: np.random.Generator, bend_mm: float = 2.0
) -> Field:
    """Draw a head position, size along each axis and smooth bend; return where each voxel lies in the anatomy.

    Args:
        shape: Voxels (D, H, W) of a grid centred at 0 mm.
        spacing: Voxel size in mm.
        scale: Size of the head relative to its anatomy.
        rng: The participant's own stream; the drawn anatomy is the same whatever the grid.
        bend_mm: Standard deviation of the smooth displacement along each axis.

    Returns:
        Positions (3, D * H * W) in mm of the anatomy.
    """
    turn = _rotation(np.deg2rad(rng.normal(0, 4, 3).clip(-9, 9)))
    shift = rng.normal(0, 2.5, 3).clip(-6, 6)
    turn /= (scale * (1 + 0.015 * rng.standard_normal(3)))[:, None]
    lattices = bend_mm * rng.standard_normal((3, 10, 10, 10))
    affine = centred_affine(shape, spacing)
    axes = [affine[axis, 3] + spacing[axis] * np.arange(shape[axis]) - shift[axis] for axis in range(3)]
    points = np.empty((3, *shape), np.float32)
    for row in range(3):
        x, y, z = (axis.astype(np.float32) * np.float32(turn[row, column]) for column, axis in enumerate(axes))
        points[row] = x[:, None, None] + y[:, None] + z + smooth_field(lattices[row], shape, spacing)
    return points.reshape(3, -1)


def smooth_field(lattice: NDArray[np.float64], shape: Sequence[int], spacing: Triple) -> Field:
    """Evaluate a smooth random field, given on a lattice fixed in space, on an image grid centred at 0 mm.

    The same lattice gives the same field whatever the grid, so a participant's anatomy does not depend on the voxels.
    Independent lattice values of unit variance give a field of unit variance.

    Args:
        lattice: Values (I, J, K) at points spread evenly over a cube of 300 mm.
        shape: Voxels (D, H, W).
        spacing: Voxel size in mm.
    """
    x, y, z = (_spline_weights(lattice.shape[axis], shape[axis], spacing[axis]) for axis in range(3))
    # einsum without a plan is plain loops, hence the same bits whatever the number of threads
    field = np.einsum("di,ijk->djk", x, lattice.astype(np.float32))
    field = np.einsum("hj,djk->dhk", y, field)
    return np.asarray(np.einsum("wk,dhk->dhw", z, field))


@lru_cache(maxsize=128)
def _spline_weights(num_points: int, size: int, spacing: float) -> Field:
    """Return cubic B-spline weights (size, num_points) of the lattice points at the voxels, as rows of unit length."""
    step = LATTICE_MM / (num_points - 1)
    position = (np.arange(size) - (size - 1) / 2) * spacing / step + (num_points - 1) / 2
    position = position.clip(0, num_points - 1)
    away = np.abs(position[:, None] - np.arange(num_points)[None, :])
    weights = np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, np.where(away < 2, (2 - away) ** 3 / 6, 0))
    unit: Field = (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)
    return unit


def logistic(value: Field) -> Field:
    """Return 1 / (1 + exp(-value)), the profile of a soft boundary."""
    return np.asarray(1 / (1 + np.exp(-np.clip(value, -30, 30))), dtype=np.float32)


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    turned: NDArray[np.float64] = np.einsum("ij,jk,kl->il", about_x, about_y, about_z)
    return turned

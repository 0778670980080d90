"""How much of a saliency map lies inside a mask, beside what chance would put there.

References:
    Wang et al., Score-CAM, CVPR workshops 2020, doi:10.1109/CVPRW50498.2020.00020 (energy-based pointing game). Zhang
    et al., Excitation backprop, International Journal of Computer Vision 2018, doi:10.1007/s11263-017-1059-x (pointing
    game).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.estimate import FloatArray


@dataclass(frozen=True)
class Energy:
    """What of a map is inside a mask; NaN where the map is 0 everywhere or the mask is empty.

    Args:
        share: Share of the sum of the map that is inside the mask.
        chance: Share of the voxels that are inside the mask, which is what a map without a preference has there.
        hit: Whether the largest value is inside the mask, as 0 or 1; where several voxels have it, the share of them.
    """

    share: float
    chance: float
    hit: float


def energy_inside(saliency: ArrayLike, mask: ArrayLike, region: ArrayLike | None = None) -> Energy:
    """Return the share of a map's sum, and of the voxels, that a mask holds.

    Args:
        saliency: Map, nowhere negative.
        mask: What it should point at, where it is not 0; of the same shape.
        region: Where to look, such as the brain: the rest of map and mask is left out. Everywhere by default.

    Raises:
        ValueError: The shapes differ, or the map has negative or undefined values.

    >>> energy_inside([0.0, 1.0, 3.0, 0.0], [0, 0, 1, 0])
    Energy(share=0.75, chance=0.25, hit=1.0)
    >>> energy_inside([0.0, 1.0, 3.0, 0.0], [0, 0, 1, 0], region=[0, 1, 1, 0])
    Energy(share=0.75, chance=0.5, hit=1.0)
    """
    values, inside = np.asarray(saliency, dtype=np.float64), np.asarray(mask) != 0
    where = np.ones(values.shape, dtype=bool) if region is None else np.asarray(region) != 0
    if not values.shape == inside.shape == where.shape:
        shapes = f"{values.shape}, {inside.shape} and {where.shape}"
        raise ValueError(f"map, mask and region are {shapes} voxels large; resample them to one grid.")
    if not (values >= 0).all():
        raise ValueError("the map has negative or undefined values; its energy is that of a map from 0 up.")
    values, inside = values[where], inside[where]
    total, chance = values.sum(), float(inside.mean()) if inside.size else math.nan
    if not total or not inside.any():
        return Energy(math.nan, chance, math.nan)
    largest = values == values.max()
    return Energy(float(values[inside].sum() / total), chance, float(inside[largest].mean()))


def peak(saliency: ArrayLike) -> tuple[int, ...]:
    """Return the voxel with the largest value; of several, the one nearest to their middle.

    >>> peak([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]])
    (1, 1)
    """
    values: FloatArray = np.asarray(saliency, dtype=np.float64)
    places: NDArray[np.int64] = np.argwhere(values == values.max())
    distance = ((places - places.mean(axis=0)) ** 2).sum(axis=1)
    return tuple(int(index) for index in places[int(distance.argmin())])

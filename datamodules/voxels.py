"""What every image format has in common: a grid in space, and voxels that are looked at as they come by."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from datamodules.problems import CohortError

SINGULAR = 1e-3  # |det| of the unit axes; oblique and sheared scans stay far above
SMALLEST_VOXEL, LARGEST_VOXEL = 0.01, 100.0  # mm

Affine = np.ndarray[Any, np.dtype[np.float64]]


class Digest(Protocol):
    """A hash that takes bytes, as those of `hashlib` do."""

    def update(self, data: bytes, /) -> None:
        """Take the next bytes."""


@dataclass(frozen=True)
class Limits:
    """What is refused unread, so that a forged header or a decompression bomb cannot fill the memory.

    Args:
        max_voxels: Voxels of one image, over all its axes.
        max_file_bytes: Size of one file on disk.
        max_uncompressed_bytes: Size of one file after decompression.
    """

    max_voxels: int = 2**29
    max_file_bytes: int = 2**32
    max_uncompressed_bytes: int = 2**32

    def check(self, shape: tuple[int, ...], itemsize: int) -> None:
        """Refuse an image from its announced size.

        Raises:
            CohortError: With the code `too_large`.
        """
        voxels, size = math.prod(shape), math.prod(shape) * itemsize
        if voxels > self.max_voxels or size > self.max_uncompressed_bytes:
            text = "x".join(map(str, shape))
            raise CohortError.single(
                f"The header announces {text} voxels ({size / 2**30:.1f} GiB). It is damaged, or not the image of one "
                "head: export the file again.",
                "too_large",
            )


@dataclass(frozen=True)
class Layout:
    """What a header says about the bytes that follow it.

    Args:
        shape: Voxels per axis, without trailing axes of length 1.
        dtype: Type of the stored values, with its byte order.
        offset: Where the voxels begin, in bytes.
        affine: Voxel index to RAS millimetres, (4, 4); NaN where the header holds no transform at all.
        slope: Stored value times slope plus intercept is the intensity.
        intercept: See slope.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    affine: Affine
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def num_bytes(self) -> int:
        """Return the number of bytes of all voxels."""
        return math.prod(self.shape) * self.dtype.itemsize


class VoxelScan:
    """Range, finiteness and content hash of voxels that arrive in pieces.

    Args:
        dtype: Type of the values, with its byte order.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.lowest = math.inf
        self.highest = -math.inf
        self.num_non_finite = 0
        self.num_values = 0
        self.digest = hashlib.sha256()
        self._rest = b""

    def update(self, piece: bytes) -> None:
        """Take the next bytes of the voxels."""
        block = self._rest + piece if self._rest else piece
        count = len(block) // self.dtype.itemsize
        self._rest = block[count * self.dtype.itemsize :]
        if count:
            self.add(np.frombuffer(block, self.dtype, count))

    def add(self, values: np.ndarray[Any, Any]) -> None:
        """Take the next values."""
        # The hash is of the voxels alone and in one byte order, so that a scan is known again in another file format.
        self.digest.update(np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False)).data)
        self.num_values += values.size
        with np.errstate(invalid="ignore"):
            lowest, highest = values.min(), values.max()
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            finite = values[np.isfinite(values)]
            self.num_non_finite += values.size - finite.size
            if not finite.size:
                return
            lowest, highest = finite.min(), finite.max()
        self.lowest = min(self.lowest, float(lowest))
        self.highest = max(self.highest, float(highest))


def affine_fault(affine: Affine) -> str | None:
    """Say what is wrong with an affine, or return None.

    >>> affine_fault(np.diag([2.0, 2.0, 0.0, 1.0]))
    'The affine is singular (an axis has no length). Set the orientation from the original images.'
    """
    remedy = "Set the orientation from the original images."
    if not np.isfinite(affine).all():
        return f"The affine holds NaN or infinity. {remedy}"
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (spacing == 0).any():
        return f"The affine is singular (an axis has no length). {remedy}"
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < SINGULAR:
        return f"The affine is singular (its axes lie in one plane). {remedy}"
    if not ((spacing > SMALLEST_VOXEL) & (spacing < LARGEST_VOXEL)).all():
        text = " x ".join(f"{length:g}" for length in spacing)
        return f"A voxel would measure {text} mm. Correct the affine; its unit is the millimetre."
    return None


def trim_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop trailing axes of length 1: a series of one volume is a volume.

    >>> trim_axes((7, 8, 9, 1))
    (7, 8, 9)
    """
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape

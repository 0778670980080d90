"""Three slices through the middle of a volume, as a small picture: true aspect, left on the left, one grey window."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes
from PIL import Image
from scipy.ndimage import affine_transform, binary_erosion

from datamodules.preprocessing import Affine, Volume
from evaluation.contact_sheet import Thumbnail

TILE = 112  # pixels of the edge of the square that a slice is shown in
GAP = 4  # pixels between two slices
OUTLINE = (0, 229, 255)  # neither a grey nor a colour of the page
QUALITY = 72  # of WebP; the outlines stay sharp and a head takes about 1 kB a slice
WINDOW = (0.5, 99.5)  # percentiles
SAMPLE = 2**18  # voxels that percentiles are taken from
PLANES = ((1, 2), (0, 2), (0, 1))  # slice across an axis -> axes of the page, right and up: sagittal, coronal, axial

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Canonical:
    """One channel whose axes run to the right, to the front and up, as near as they come.

    Args:
        data: (D, H, W).
        affine: Voxel index to RAS millimetres.
        is_picture: Whether its axes have no anatomical meaning.
    """

    data: npt.NDArray[Any]
    affine: Affine
    is_picture: bool = False

    @classmethod
    def of(cls, volume: Volume, channel: int = 0) -> "Canonical":
        """Turn and flip a channel of a volume; the voxels are not copied."""
        data = volume.data[channel]
        turn = nib.io_orientation(volume.affine)
        affine = volume.affine @ nib.orientations.inv_ornt_aff(turn, data.shape)
        return cls(nib.apply_orientation(data, turn), affine)

    def as_picture(self, file_affine: Affine) -> "Canonical":
        """Return it as a viewer of pictures shows it: the file's columns run to the right, and its rows down.

        Args:
            file_affine: Of the file that it is from.
        """
        affine = self.affine.copy()
        turned = [axis for axis, sign in ((0, 1), (1, -1)) if file_affine[axis, axis] * sign < 0]
        for axis in turned:
            affine[:, 3] += affine[:, axis] * (self.data.shape[axis] - 1)
            affine[:, axis] *= -1
        return Canonical(np.flip(self.data, tuple(turned)), affine, is_picture=True)

    @property
    def middle(self) -> tuple[int, int, int]:
        """The voxel in the middle."""
        first, second, third = (size // 2 for size in self.data.shape)
        return first, second, third


def sample_mask(mask: Volume, shape: Sequence[int], affine: Affine) -> BoolArray:
    """Return where a mask is above 0 on another grid, by the nearest voxel.

    Args:
        mask: The mask.
        shape: Voxels of the grid.
        affine: Of the grid.
    """
    step = np.linalg.inv(mask.affine) @ affine
    sampled: npt.NDArray[np.uint8] = affine_transform(
        (mask.data[0] > 0).astype(np.uint8), step[:3, :3], step[:3, 3], output_shape=tuple(shape), order=0
    )
    return sampled > 0


def window_of(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Return what is shown black and white: percentiles of all intensities, and of those above their mean."""
    some = thin_out(values)
    bright = some[some > some.mean(dtype=np.float64)]
    high = np.percentile(bright, WINDOW[1]) if bright.size else some.max()
    return float(np.percentile(some, WINDOW[0])), float(high)


def thin_out(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return at most some `SAMPLE` of many values, evenly spread; enough for percentiles."""
    flat = values.reshape(-1) if values.flags.c_contiguous else values.T.reshape(-1)
    return flat[:: max(flat.size // SAMPLE, 1) | 1]  # an odd step meets every row and column


def draw(volume: Canonical, window: tuple[float, float], mask: Volume | None = None) -> Thumbnail:
    """Draw the three slices through the middle, or the only one of an image in two dimensions.

    Args:
        volume: What to draw.
        window: What is black and what is white.
        mask: What to outline, on any grid.
    """
    flat = [axis for axis in range(3) if volume.data.shape[axis] == 1]
    axes = flat[:1] or range(3)
    tile = TILE * 2 if flat else TILE
    scale = tile / max(np.array(volume.data.shape) * voxel_sizes(volume.affine))
    tiles = [_tile(volume, axis, window, mask, (tile, scale)) for axis in axes]
    gap = np.zeros((tile, GAP, 3), np.uint8)
    picture = Image.fromarray(np.concatenate([part for one in tiles for part in (gap, one)][1:], axis=1))
    kind = "volume" if not flat else "picture" if volume.is_picture else "xyz"[flat[0]]
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=QUALITY, method=4)
    return Thumbnail(stream.getvalue(), picture.width, picture.height, kind)


def _tile(
    volume: Canonical, axis: int, window: tuple[float, float], mask: Volume | None, size: tuple[int, float]
) -> npt.NDArray[np.uint8]:
    """Draw one slice in the middle of a black square, (height, width, 3)."""
    edge, scale = size
    place = volume.middle[axis]
    shown = _grey(np.take(volume.data, place, axis=axis), window)
    spacing = voxel_sizes(volume.affine)
    width, height = (max(round(volume.data.shape[one] * spacing[one] * scale), 1) for one in PLANES[axis])
    picture = Image.fromarray(_upright(shown)).resize((width, height), Image.Resampling.BICUBIC)
    colours = np.repeat(np.asarray(picture)[..., np.newaxis], 3, axis=2)
    if mask is not None:
        inside = Image.fromarray(_upright(_mask_slice(volume, axis, mask))).resize(
            (width, height), Image.Resampling.NEAREST
        )
        colours[_edge(np.asarray(inside))] = OUTLINE
    tile = np.zeros((edge, edge, 3), np.uint8)
    left, top = (edge - width) // 2, (edge - height) // 2
    tile[top : top + height, left : left + width] = colours
    return tile


def _grey(values: npt.NDArray[Any], window: tuple[float, float]) -> npt.NDArray[np.uint8]:
    low, high = window
    share = (values.astype(np.float32) - low) / max(high - low, float(np.finfo(np.float32).tiny))
    grey: npt.NDArray[np.uint8] = (np.clip(np.nan_to_num(share), 0, 1) * 255).round().astype(np.uint8)
    return grey


def _upright(across: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a slice as rows from top to bottom."""
    return np.ascontiguousarray(across.T[::-1])


def _mask_slice(volume: Canonical, axis: int, mask: Volume) -> BoolArray:
    place = np.zeros(3)
    place[axis] = volume.middle[axis]
    affine = volume.affine.copy()
    affine[:3, 3] = nib.affines.apply_affine(volume.affine, place)
    shape = [1 if one == axis else size for one, size in enumerate(volume.data.shape)]
    inside: BoolArray = np.take(sample_mask(mask, shape, affine), 0, axis=axis)
    return inside


def _edge(inside: BoolArray) -> BoolArray:
    """Return the rim of a region, one pixel wide."""
    return inside & ~binary_erosion(inside, np.ones((3, 3), bool), border_value=1)

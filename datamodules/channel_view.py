"""What is shown and measured of one image of a row: pictures, and the numbers by which images are compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nibabel.affines import voxel_sizes

from datamodules.inspection import FileFacts
from datamodules.preprocessing import Volume
from datamodules.slices import BoolArray, thin_out
from evaluation.contact_sheet import Thumbnail
from evaluation.outliers import SIMILARITY, similarity

COARSE = 16  # voxels of each axis of the image that similarity is taken from, at most
LEVELS = np.linspace(0, 1, 129)  # quantiles that are kept of an image's foreground
MM3_PER_ML = 1000.0

FloatArray = npt.NDArray[np.float64]


@dataclass
class ChannelView:
    """What is shown of one image of a row.

    Args:
        column: Its column.
        facts: What its header says; None where it cannot be read.
        scanner: How it was acquired, label -> text.
        native: As it is in the file.
        network: As the network is given it.
        augmented: As a training is given it, in one draw.
        reasons: Why a picture is missing.
        measures: Name of a measure in `evaluation.outliers` -> value.
        before: Quantiles `LEVELS` of the foreground in the file.
        after: The same of what the network is given.
        coarse: The network's image on a few voxels, flattened.
    """

    column: str
    facts: FileFacts | None = None
    scanner: Mapping[str, str] = field(default_factory=dict)
    native: Thumbnail | None = None
    network: Thumbnail | None = None
    augmented: Thumbnail | None = None
    reasons: list[str] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    before: FloatArray | None = None
    after: FloatArray | None = None
    coarse: npt.NDArray[np.float16] | None = None


def compare(rows: Sequence[Sequence[ChannelView]], sites: Sequence[str]) -> None:
    """Measure how alike each image is to the median image of its column, once all were looked at.

    Args:
        rows: What `Previewer.look` returned of each row.
        sites: Site of each.
    """
    for views in zip(*rows, strict=True):
        known = [(view, view.coarse, site) for view, site in zip(views, sites, strict=True) if view.coarse is not None]
        if known:
            alike = similarity(np.stack([coarse for _, coarse, _ in known]), [site for _, _, site in known])
            for (view, _, _), value in zip(known, alike, strict=True):
                view.measures[SIMILARITY] = float(value)


def quantiles(values: npt.NDArray[Any]) -> FloatArray:
    """Return the quantiles `LEVELS` of values."""
    found: FloatArray = np.quantile(thin_out(values).astype(np.float64), LEVELS)
    return found


def measure_file(view: ChannelView, volume: Volume, inside: BoolArray) -> None:
    """Take the measures of what is in the file.

    Args:
        view: Where they are written.
        volume: What is in the file.
        inside: Its foreground.
    """
    values = volume.data[0][inside]
    if values.size < 2:
        return
    size = float(np.prod(voxel_sizes(volume.affine)))
    view.before = quantiles(values)
    low, median, high = np.interp((0.25, 0.5, 0.75), LEVELS, view.before)
    view.measures |= {
        "voxel_volume": size,
        "foreground_volume": values.size * size / MM3_PER_ML,
        "intensity": float(median),
        "spread": float(high - low),
    }


def measure_input(view: ChannelView, volume: Volume, channel: int, inside: BoolArray) -> None:
    """Take the measures of what the network is given.

    Args:
        view: Where they are written.
        volume: What the network is given.
        channel: Which of its channels.
        inside: Its foreground.
    """
    data = volume.data[channel].astype(np.float32)
    values = data[inside]
    if values.size < 2:
        return
    view.after = quantiles(values)
    low, quarter, median, third, high = np.interp((0.05, 0.25, 0.5, 0.75, 0.95), LEVELS, view.after)
    view.coarse = _coarse(data)
    if high > low:
        view.measures["skew"] = float((high + low - 2 * median) / (high - low))
    if third > quarter:
        view.measures["roughness"] = float(_neighbour_difference(data, inside) / (third - quarter))


def _neighbour_difference(data: npt.NDArray[np.float32], inside: BoolArray) -> float:
    """Return the mean absolute difference between neighbours that are both in the foreground."""
    total, count = 0.0, 0
    for axis in range(3):
        pairs = np.delete(inside, 0, axis) & np.delete(inside, -1, axis)
        total += float(np.abs(np.diff(data, axis=axis)[pairs]).sum(dtype=np.float64))
        count += int(pairs.sum())
    return total / max(count, 1)


def _coarse(data: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    depth, height, width = (min(length, COARSE) for length in data.shape)
    pooled = torch.nn.functional.adaptive_avg_pool3d(torch.from_numpy(data)[None], (depth, height, width))
    coarse: npt.NDArray[np.float16] = pooled.numpy().reshape(-1).astype(np.float16)  # a copy: thousands are kept
    return coarse

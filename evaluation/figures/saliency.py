"""Figures of saliency maps: a map over the participant's own image, and all participants of a run side by side.

The left of the participant is on the left of the page; letters say so on every slice.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from evaluation.estimate import FloatArray
from evaluation.figures.style import COLOURS, INK, NOISE, STYLE
from evaluation.saliency import peak
from evaluation.wording import MINUS

MASK_COLOUR = "#00E5FF"  # neither a grey nor a colour of the map
FAINT = 0.15  # share of the maximum up to which nothing is painted
NOTHING = "the map is 0 everywhere"
PLANES = {"x": (1, 2), "y": (0, 2), "z": (0, 1)}  # slice across an axis -> axes of the page, right and up
ENDS = (("L", "R"), ("P", "A"), ("I", "S"))
# Lighter is more; the darkest of inferno would look like the darkest of an image.
HEAT = LinearSegmentedColormap.from_list("heat", mpl.colormaps["inferno"](np.linspace(0.35, 1.0, 256)))


@dataclass(frozen=True)
class Case:
    """A map, and the image that it is of, on one grid.

    Args:
        image: Intensities (I, J, K), along the axes of the file.
        saliency: Map, nowhere negative.
        affine: Voxel index to RAS millimetres, (4, 4).
        mask: What the map should point at, where it is not 0, such as a lesion.
        title: What the figure is headed by.
    """

    image: ArrayLike
    saliency: ArrayLike
    affine: ArrayLike
    mask: ArrayLike | None = None
    title: str = ""


def overlay(case: Case, *, map_name: str = "Saliency", mask_name: str = "mask") -> Figure:
    """Draw three orthogonal slices through the maximum of a map, over the image.

    Args:
        case: The map and its image.
        map_name: What the colours mean.
        mask_name: What the contour is of.
    """
    view = _View.of(case)
    widths = [view.extent(axis)[0] for axis in PLANES]
    height = max(view.extent(axis)[1] for axis in PLANES)
    panel = 2.15  # inches of the highest slice
    total = panel * sum(widths) / height + 0.16 * 2 + 0.95
    with _figure(min(total, 9.0), min(total, 9.0) / total * panel + 0.62) as figure:
        panels = figure.subplots(1, 3, width_ratios=widths)
        for axes, axis in zip(panels, PLANES, strict=True):
            view.draw(axes, axis)
            axes.set_xlabel(view.place(axis), color=INK, labelpad=3)
        _colour_bar(figure, list(panels), f"{map_name} (share of maximum)" if view.has_map else NOTHING)
        if case.title:
            figure.suptitle(case.title, x=0.01, ha="left", fontsize=9.5, color=INK)
        if view.mask is not None and view.mask.any():
            _legend(figure, mask_name)
    return figure


def through_maximum(case: Case) -> Case:
    """Return what a contact sheet shows of a case: the axial slice through the maximum of the map."""
    image, affine, _ = to_canonical(case.image, case.affine)
    saliency = to_canonical(case.saliency, case.affine)[0]
    place = peak(saliency)[2] if saliency.any() else image.shape[2] // 2
    affine[:, 3] += place * affine[:, 2]
    mask = None if case.mask is None else to_canonical(case.mask, case.affine)[0]
    image, saliency = (volume[:, :, place : place + 1].copy() for volume in (image, saliency))
    return Case(image, saliency, affine, None if mask is None else mask[:, :, place : place + 1].copy(), case.title)


def contact_sheet(
    cases: Sequence[Case], *, map_name: str = "Saliency", mask_name: str = "mask", num_columns: int = 4
) -> Figure:
    """Draw the axial slice through the maximum of each map, several in a row.

    Args:
        cases: The maps and their images, one or more.
        map_name: What the colours mean.
        mask_name: What the contours are of.
        num_columns: Slices in a row, at most.
    """
    views = [_View.of(case) for case in cases]
    columns = min(num_columns, len(views))
    rows = -(-len(views) // columns)
    ratio = max(view.extent("z")[1] / view.extent("z")[0] for view in views)
    with _figure(max(1.9 * columns + 0.8, 2.9), (1.9 * ratio + 0.45) * rows + 0.35) as figure:
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes, view, case in zip(panels.flat, views, cases, strict=False):
            view.draw(axes, "z")
            axes.set_title(case.title, fontsize=7.5, color=INK)
            axes.set_xlabel(view.place("z") if view.has_map else NOTHING, fontsize=7.5, color=INK, labelpad=2)
        for axes in panels.flat[len(views) :]:
            axes.set_axis_off()
        _colour_bar(figure, list(panels.flat), f"{map_name} (share of maximum)", 0.8 / rows)
        if any(view.mask is not None and view.mask.any() for view in views):
            _legend(figure, mask_name)
    return figure


def energy_against_chance(share: ArrayLike, chance: ArrayLike, *, mask_name: str = "mask") -> Figure:
    """Draw what share of each map lies inside its mask against the share that chance would put there.

    Args:
        share: Share of each participant's map, as `evaluation.saliency.energy_inside` gives it.
        chance: Share of its voxels.
        mask_name: What the masks are of.
    """
    expected, found = np.asarray(chance, dtype=np.float64), np.asarray(share, dtype=np.float64)
    known = np.isfinite(found) & np.isfinite(expected)
    highest = 1.08 * float(max(found[known].max(initial=0.0), expected[known].max(initial=0.0))) or 1.0
    with _figure(3.4, 3.2) as figure:
        axes = figure.subplots()
        axes.grid(visible=True)
        axes.plot([0, highest], [0, highest], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="chance")
        axes.plot(expected[known], found[known], "o", color=COLOURS[0], markersize=4.5, label="one participant each")
        axes.set(xlim=(0, highest), ylim=(0, highest), aspect="equal")
        axes.set_xlabel(f"Share of the foreground inside the {mask_name}")
        axes.set_ylabel(f"Share of the map inside the {mask_name}")
        axes.legend(loc="lower right")
    return figure


def to_canonical(array: ArrayLike, affine: ArrayLike) -> tuple[NDArray[np.float64], FloatArray, FloatArray]:
    """Turn and flip the axes of an image so that they run to the right, to the front and up, as near as they come.

    Args:
        array: (I, J, K).
        affine: Voxel index to RAS millimetres.

    Returns:
        The array, its affine, and the distance between voxels along each axis, in millimetres.

    >>> affine = np.array([[0, 0, 4, 0], [-2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])  # runs back, up, right
    >>> turned, _, spacing = to_canonical(np.zeros((5, 6, 7)), affine)
    >>> turned.shape, spacing
    ((7, 5, 6), array([4., 2., 3.]))
    """
    values, old = np.asarray(array, dtype=np.float64), np.asarray(affine, dtype=np.float64)
    directions = old[:3, :3] / np.linalg.norm(old[:3, :3], axis=0)
    _, order = linear_sum_assignment(-np.abs(directions))  # the axis of the file for each axis of the world
    new, turned = old[:, [*order, 3]], values.transpose(order)
    for axis in range(3):
        if new[axis, axis] < 0:
            turned = np.flip(turned, axis)
            new[:, 3] += new[:, axis] * (turned.shape[axis] - 1)
            new[:, axis] *= -1
    return turned, new, np.linalg.norm(new[:3, :3], axis=0)


@dataclass(frozen=True)
class _View:
    """A case in canonical order, ready to be cut."""

    image: FloatArray
    heat: FloatArray  # 0 to 1
    mask: NDArray[np.bool_] | None
    affine: FloatArray
    spacing: FloatArray
    centre: tuple[int, ...]
    has_map: bool

    @classmethod
    def of(cls, case: Case) -> "_View":
        image, affine, spacing = to_canonical(case.image, case.affine)
        saliency, _, _ = to_canonical(case.saliency, case.affine)
        mask = None if case.mask is None else to_canonical(np.asarray(case.mask) != 0, case.affine)[0] != 0
        if image.shape != saliency.shape or (mask is not None and mask.shape != image.shape):
            raise ValueError(f"image and map are {image.shape} and {saliency.shape} voxels; resample them to one grid.")
        largest = float(saliency.max())
        centre = peak(saliency) if largest > 0 else tuple(size // 2 for size in image.shape)
        heat = saliency / largest if largest > 0 else saliency
        return cls(_grey(image), heat, mask, affine, spacing, centre, largest > 0)

    def extent(self, axis: str) -> tuple[float, float]:
        """Return width and height of a slice in millimetres."""
        right, up = PLANES[axis]
        sizes = self.image.shape * self.spacing
        return float(sizes[right]), float(sizes[up])

    def place(self, axis: str) -> str:
        """Say where a slice lies, at the maximum of the map, in millimetres of the image's own world."""
        place = float((self.affine @ [*self.centre, 1.0])["xyz".index(axis)])
        return f"{axis} = {f'{place:.0f}'.replace('-', MINUS)} mm"

    def cut(self, volume: NDArray[np.generic], axis: str) -> NDArray[np.generic]:
        """Return a slice with rows from bottom to top."""
        number = "xyz".index(axis)
        across: NDArray[np.generic] = np.take(volume, self.centre[number], axis=number)
        return across.T

    def draw(self, axes: Axes, axis: str) -> None:
        width, height = self.extent(axis)
        where: Any = {"origin": "lower", "extent": (0, width, 0, height), "aspect": "equal"}
        heat = self.cut(self.heat, axis)
        axes.imshow(self.cut(self.image, axis), cmap="gray", vmin=0, vmax=1, interpolation="antialiased", **where)
        visible = 0.7 * np.clip((heat.astype(float) - FAINT) / (1 - FAINT), 0, 1)  # the anatomy stays in sight
        axes.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=visible, interpolation="bilinear", **where)
        if self.mask is not None:
            inside = self.cut(self.mask, axis)
            if inside.any() and not inside.all():
                framed = np.pad(inside.astype(float), 1)  # so that the contour closes at the border
                across, along = width / inside.shape[1], height / inside.shape[0]
                rows, columns = (np.arange(size) - 0.5 for size in framed.shape)
                axes.contour(columns * across, rows * along, framed, [0.5], colors=MASK_COLOUR, linewidths=1.1)
        self._mark(axes, axis, width, height)

    def _mark(self, axes: Axes, axis: str, width: float, height: float) -> None:
        """Add the letters of the directions, and where the other two slices lie."""
        right, up = PLANES[axis]
        axes.set(xlim=(0, width), ylim=(0, height), xticks=[], yticks=[], anchor="S")
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        letters: Any = {"fontsize": 7.5, "color": "white", "fontweight": "bold", "transform": axes.transAxes}
        (left_end, right_end), (low_end, high_end) = ENDS[right], ENDS[up]
        x, y = ((self.centre[one] + 0.5) * self.spacing[one] for one in (right, up))
        beside, above = _clear_of(x / width), _clear_of(y / height)
        axes.text(0.02, above, left_end, ha="left", va="center", **letters)
        axes.text(0.98, above, right_end, ha="right", va="center", **letters)
        axes.text(beside, 0.02, low_end, ha="center", va="bottom", **letters)
        axes.text(beside, 0.98, high_end, ha="center", va="top", **letters)
        if self.has_map:
            line: Any = {"color": "white", "linewidth": 0.6, "alpha": 0.75}
            for low, high in ((0.0, 0.07), (0.93, 1.0)):
                axes.plot([x, x], [low * height, high * height], **line)
                axes.plot([low * width, high * width], [y, y], **line)


def _clear_of(mark: float) -> float:
    """Return the middle of an edge, or a place beside it where the middle is marked; in shares of the edge."""
    return 0.5 if abs(mark - 0.5) > 0.07 else mark - 0.09


def _grey(image: FloatArray) -> FloatArray:
    """Scale intensities to 0..1 by percentiles of what is not background, which is the most frequent value."""
    values, counts = np.unique(image, return_counts=True)
    shown = image[image != values[counts.argmax()]]
    if not shown.size:
        return np.zeros_like(image)
    low, high = np.percentile(shown, [0.5, 99.5])
    low = min(low, float(values[counts.argmax()])) if low >= 0 else low
    grey: FloatArray = np.clip((image - low) / max(high - low, np.finfo(float).tiny), 0, 1)
    return grey


def _colour_bar(figure: Figure, panels: Sequence[Axes], label: str, shrink: float = 0.8) -> None:
    shown = ScalarMappable(mpl.colors.Normalize(0, 1), HEAT)
    bar = figure.colorbar(shown, ax=panels, shrink=shrink, aspect=22, pad=0.02, ticks=[0, 0.5, 1])
    bar.set_label(label, fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7.5, length=2.5, color=NOISE)
    bar.outline.set_visible(False)


def _legend(figure: Figure, mask_name: str) -> None:
    line = Line2D([], [], color=MASK_COLOUR, linewidth=1.6, label=mask_name)
    figure.legend(handles=[line], loc="outside lower left", facecolor="#3a3f45", labelcolor="white", framealpha=1)


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure

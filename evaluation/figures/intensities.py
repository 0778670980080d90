"""Intensities of the sites of a cohort, in the file and as a network is given them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from evaluation.estimate import FloatArray
from evaluation.figures.style import COLOURS, DASHES, NOISE, open_panels

NUM_BINS = 48
MARGIN = 0.04  # of the axis, beyond the 0.5th and the 99.5th percentile of every site


@dataclass(frozen=True)
class Intensities:
    """Quantiles of the foreground of images.

    Args:
        label: What is on the axis.
        by_site: (N, Q) evenly spaced quantiles of each site's N images, from the lowest to the highest value.
    """

    label: str
    by_site: Mapping[str, ArrayLike]


def intensities_by_site(panels: Sequence[Intensities], *, title: str = "", width: float = 8.8) -> Figure:
    """Draw the distribution of intensities of every site, each image counting alike.

    Args:
        panels: What to draw, one beside the other.
        title: What the figure is headed by.
        width: In inches.
    """
    with open_panels(len(panels), width, 2.7 + 0.16 * _num_legend_rows(panels)) as (figure, axes):
        for one, panel in zip(axes, panels, strict=True):
            _draw(one, panel)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=4, fontsize=8, handlelength=2.6)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=9.5)
    return figure


def density(quantiles: ArrayLike, edges: FloatArray) -> FloatArray:
    """Return the mean density of images, from their quantiles.

    Args:
        quantiles: (N, Q) evenly spaced, from the lowest to the highest value of each image.
        edges: (K + 1,) of the bins.

    Returns:
        (K,) share per unit of intensity.

    >>> density([[0.0, 1.0, 2.0], [0.0, 0.5, 1.0]], np.array([0.0, 1.0, 2.0]))
    array([0.75, 0.25])
    """
    images = np.asarray(quantiles, dtype=np.float64)
    levels = np.linspace(0, 1, images.shape[1])
    shares = [np.diff(np.interp(edges, own, levels, left=0.0, right=1.0)) for own in images]
    mean: FloatArray = np.mean(shares, axis=0) / np.diff(edges)
    return mean


def _draw(axes: Axes, panel: Intensities) -> None:
    sites = {site: np.asarray(images, dtype=np.float64) for site, images in panel.by_site.items() if len(images)}  # type: ignore[arg-type]
    axes.set_xlabel(panel.label)
    axes.set_ylabel("Density")
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    if not sites:
        axes.text(0.5, 0.5, "nothing to draw", transform=axes.transAxes, ha="center", color=NOISE)
        return
    edges = _edges(list(sites.values()))
    middles = (edges[:-1] + edges[1:]) / 2
    order = sorted(sites, key=lambda site: -len(sites[site]))
    named = order if len(order) <= len(COLOURS) else order[: len(COLOURS) - 1]
    for number, site in enumerate(order):
        drawn = _smooth(density(sites[site], edges))
        if site in named:
            text = f"{site} (n = {len(sites[site])})"
            colour, dash = COLOURS[number], DASHES[number % len(DASHES)]
            axes.plot(middles, drawn, color=colour, linestyle=dash, linewidth=1.5, label=text, zorder=3)
        else:
            first = number == len(named)
            rest = sum(len(sites[other]) for other in order[len(named) :])
            text = f"{len(order) - len(named)} further sites (n = {rest})"
            axes.plot(middles, drawn, color=NOISE, linewidth=0.7, alpha=0.6, label=text if first else None)
    axes.set_ylim(bottom=0)
    axes.set_xlim(edges[0], edges[-1])


def _smooth(drawn: FloatArray) -> FloatArray:
    """Return the running mean of three bins, the middle one counting double: whole numbers fill bins unevenly."""
    smoothed: FloatArray = np.convolve(np.pad(drawn, 1, mode="edge"), (0.25, 0.5, 0.25), mode="valid")
    return smoothed


def _edges(sites: Sequence[FloatArray]) -> FloatArray:
    """Return bins that hold nearly all of every site."""
    number = sites[0].shape[1] - 1
    low, high = (
        function(np.median(images[:, round(share * number)]) for images in sites)
        for function, share in ((min, 0.005), (max, 0.995))
    )
    margin = MARGIN * (high - low) or 0.5
    return np.linspace(low - margin, high + margin, NUM_BINS + 1)


def _num_legend_rows(panels: Sequence[Intensities]) -> int:
    number = max((len(panel.by_site) for panel in panels), default=0)
    return -(-min(number, len(COLOURS)) // 4)

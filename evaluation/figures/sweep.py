"""Figures of a sweep: functions from the table of its trials to a matplotlib Figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from evaluation.figures.style import COLOURS, INK, NOISE, RULE, add_legend, open_axes

WIDTH = 6.4  # inches
MARK: Any = {
    **{"textcoords": "offset points", "va": "center", "fontsize": 7.5, "zorder": 4},
    "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
}
MAX_VALUES = 5  # of a number that are written one by one
MIN_DECADES = 1.0  # of positive numbers, from which an axis is logarithmic


def history(trials: pd.DataFrame, *, metric: str, maximize: bool) -> Figure:
    """Draw the value of each trial in the order in which they were begun, and the best so far.

    Args:
        trials: Columns `trial`, `value`, `state` (`complete`, `pruned`, ...).
        metric: Name of what is optimised.
        maximize: Whether large values are good.
    """
    with open_axes(WIDTH, 3.2) as (figure, axes):
        for state, colour, marker in (("complete", COLOURS[0], "o"), ("pruned", NOISE, "x")):
            own = trials[(trials["state"] == state) & trials["value"].notna()]
            if len(own):
                axes.scatter(own["trial"], own["value"], s=22, color=colour, marker=marker, label=state, zorder=3)
        done = trials[(trials["state"] == "complete") & trials["value"].notna()].sort_values("trial")
        if len(done):
            best = np.maximum.accumulate(done["value"]) if maximize else np.minimum.accumulate(done["value"])
            axes.step(done["trial"], best, where="post", color=COLOURS[1], linewidth=1.4, label="best so far")
            add_legend(axes)
        axes.set_xlabel("Trial")
        axes.set_ylabel(metric)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    return figure


def importances(shares: Mapping[str, float]) -> Figure:
    """Draw how much of the variance of the values each argument explains.

    Args:
        shares: Argument -> its share.
    """
    names = sorted(shares, key=lambda name: shares[name])
    with open_axes(WIDTH, 0.9 + 0.32 * len(names)) as (figure, axes):
        axes.barh(range(len(names)), [shares[name] for name in names], color=COLOURS[0], height=0.6)
        axes.set_yticks(range(len(names)), names)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, max([1e-9, *shares.values()]) * 1.12)
        for place, name in enumerate(names):
            axes.annotate(f"{shares[name]:.2f}", (shares[name], place), (3, 0), textcoords="offset points", va="center")
        axes.set_xlabel("Importance (share of the variance)")
    return figure


def parallel_coordinates(trials: pd.DataFrame, arguments: Sequence[str], *, metric: str, maximize: bool) -> Figure:
    """Draw every completed trial as a line over the arguments, coloured by its value; good ones on top.

    Args:
        trials: Columns `value` and the arguments.
        arguments: The columns to draw, in order; numbers, or anything else as categories.
        metric: Name of what is optimised.
        maximize: Whether large values are good.
    """
    shown = trials[trials["value"].notna()]
    shown = shown.sort_values("value", ascending=maximize)
    scales = {name: _scale(shown[name]) for name in arguments}
    width = max(WIDTH, 1.5 * (len(arguments) + 1))
    with open_axes(width, 3.8) as (figure, axes):
        lines = np.array([[scales[name][0](row[name]) for name in arguments] for _, row in shown.iterrows()])
        points = [np.column_stack([np.arange(len(arguments)), line])[~np.isnan(line)] for line in lines]
        bundle = LineCollection(points, cmap="viridis_r" if not maximize else "viridis", linewidth=1.3, alpha=0.85)
        bundle.set_array(shown["value"].to_numpy(np.float64))
        axes.add_collection(bundle)
        for place, name in enumerate(arguments):
            axes.axvline(place, color=RULE, linewidth=1.0, zorder=0)
            for height, text in scales[name][1]:
                axes.annotate(text, (place, height), (3, 0), **MARK)
        axes.set_xlim(-0.1, max(len(arguments) - 1, 0) + 0.45)
        axes.set_ylim(-0.06, 1.06)
        axes.set_yticks([])
        axes.grid(visible=False)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.set_xticks(range(len(arguments)), [_short(name) for name in arguments], rotation=20, ha="right", color=INK)
        figure.colorbar(bundle, ax=axes, label=metric, pad=0.02)
    return figure


def _scale(values: pd.Series) -> tuple[Any, list[tuple[float, str]]]:
    """Return a function from a value to its height, from 0 to 1, and the labels of the axis."""
    known = values.dropna()
    numbers = pd.to_numeric(known, errors="coerce")
    if len(known) and numbers.notna().all() and not any(isinstance(value, bool) for value in known):
        low, high = float(numbers.min()), float(numbers.max())
        is_log = low > 0 and math.log10(high / low) >= MIN_DECADES
        ends = (math.log10(low), math.log10(high)) if is_log else (low, high)
        span = (ends[1] - ends[0]) or 1.0
        values_shown = sorted(set(numbers)) if numbers.nunique() <= MAX_VALUES else None
        marks = np.linspace(ends[0], ends[1], 4).tolist()
        if values_shown is not None:
            marks = [math.log10(one) if is_log else one for one in values_shown]

        def height(value: Any) -> float:  # noqa: ANN401 - of a cell
            number = pd.to_numeric(value, errors="coerce")
            return float(((np.log10(number) if is_log else number) - ends[0]) / span)

        return height, [((mark - ends[0]) / span, f"{10**mark if is_log else mark:.3g}") for mark in marks]
    texts = sorted(map(str, known.unique()))
    places = {text: place / max(len(texts) - 1, 1) for place, text in enumerate(texts)}
    return lambda value: np.nan if pd.isna(value) else places[str(value)], [(places[text], text) for text in texts]


def _short(name: str) -> str:
    """Return a dotted name without what comes before its last two parts."""
    return ".".join(name.split(".")[-2:])

"""Figures of a comparison of arms across sites: functions from tables to a matplotlib Figure."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.figures.binary import Line
from evaluation.figures.style import COLOURS, INK, MARKERS, NOISE, RULE, add_legend, open_axes, open_panels
from evaluation.wording import enough_digits, number_text, signed_text, size_text

FULL = 8.8  # inches of the width of a page
ROW = 0.24  # inches of a row of the forest
LEFT, RIGHT = 0.24, 0.77  # shares of the forest between which intervals are drawn, with words on both sides
DARK = 0.6  # of the colour scale; text upon it is white


def forest(
    rows: pd.DataFrame, *, label: str, digits: int = 2, noise: tuple[float, float] | None = None, reference: str = ""
) -> Figure:
    """Draw the gain of each arm over the reference, at each site and over all, beside the noise.

    Args:
        rows: Columns `arm` (shown once), `kind` (`transfer`, `noise`, `baseline` or `variant`), `site` (as it is
            written), `whole` (all sites together), `num_participants`, `gain`, `low`, `high` (NaN without an interval).
        label: Name of the metric, with its unit.
        digits: Decimals.
        noise: Interval of the gain of the reference over itself, drawn as a band.
        reference: Name of the reference.
    """
    places, heads = _layout(rows)
    bottom = places[-1] + 0.8
    height = ROW * (bottom + 4.0)
    with open_axes(FULL, height) as (figure, axes):
        figure.set_layout_engine("none")  # the text beside the axes has a column of its own
        lower, upper = 0.55 / height, 1 - 0.4 / height
        axes.set_position((LEFT, lower, RIGHT - LEFT, upper - lower))
        if noise is not None:
            axes.axvspan(*noise, color=RULE, alpha=0.55, linewidth=0, label=f"noise: {reference} again, all sites")
            add_legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        axes.axvline(0, color=INK, linewidth=1.0)
        for place, row in zip(places, rows.to_dict("records"), strict=True):
            _interval(axes, place, row)
        axes.set_ylim(bottom, -0.9)
        axes.set_yticks([])
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        low, high = _range(rows, noise)
        axes.set_xlim(low, high)
        axes.set_xlabel(f"Gain in {label} over {reference}")
        side = mpl.transforms.blended_transform_factory(figure.transFigure, axes.transData)
        head: dict[str, Any] = {"transform": side, "va": "center", "fontsize": 8.5, "color": NOISE}
        axes.text(LEFT - 0.02, -0.75, "n", ha="right", **head)
        axes.text(RIGHT + 0.02, -0.75, "gain (95 % interval)", **head)
        for place, arm in heads:
            axes.text(0.0, place, arm, transform=side, fontweight="bold", va="center", color=INK)
        for place, row in zip(places, rows.to_dict("records"), strict=True):
            style = {**head, "color": INK, "fontweight": "bold" if row["whole"] else "normal"}
            axes.text(0.015, place, row["site"], **style)
            axes.text(LEFT - 0.02, place, f"{row['num_participants']}", ha="right", **style)
            axes.text(RIGHT + 0.02, place, _gain_text(row, digits), **style)
        _directions(axes, low, high)
    return figure


def site_heat_map(
    matrices: Mapping[str, pd.DataFrame], *, label: str, limits: tuple[float, float] | None, digits: int = 2
) -> Figure:
    """Draw a metric for every pair of training sites and test site, one panel per arm, on one scale.

    Args:
        matrices: Arm -> as `evaluation.cross_site.site_matrix` gives it.
        label: Name of the metric, with its unit.
        limits: Ends of the colour scale; those of the values by default.
        digits: Decimals.
    """
    everything = pd.concat(list(matrices.values()))
    trained, tested = (sorted(everything[name].unique()) for name in ("train_sites", "test_site"))
    known = everything["estimate"].dropna()
    low, high = limits or (float(known.min()), float(known.max()))
    colours = mpl.colormaps["Blues"]
    with open_panels(len(matrices), FULL, 1.1 + 0.62 * len(trained), share_y=True) as (figure, panels):
        scale = mpl.colors.Normalize(low, high if high > low else low + 1e-9)
        for axes, (arm, matrix) in zip(panels, matrices.items(), strict=True):
            values = np.full((len(trained), len(tested)), np.nan)
            for cell in matrix.to_dict("records"):
                place = tested.index(cell["test_site"]), trained.index(cell["train_sites"])
                values[place[1], place[0]] = cell["estimate"]
                dark = scale(cell["estimate"]) > DARK if np.isfinite(cell["estimate"]) else False
                _cell(axes, place, cell, digits, "white" if dark else INK)
            axes.imshow(values, cmap=colours, norm=scale, aspect="auto")
            axes.set_xticks(range(len(tested)), tested)
            axes.set_yticks(range(len(trained)), [name.replace("+", " + ") for name in trained])
            axes.set(title=arm, xlabel="Tested at")
            axes.grid(visible=False)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        panels[0].set_ylabel("Trained at")
        bar = figure.colorbar(mpl.cm.ScalarMappable(scale, colours), ax=panels, label=label, aspect=12)
        bar.outline.set_visible(False)
    return figure


def label_efficiency_curves(table: pd.DataFrame, *, lines: Mapping[str, Line], label: str) -> Figure:
    """Draw a metric against the share of the training labels, with intervals.

    Args:
        table: As `evaluation.gain.label_efficiency` gives it.
        lines: How each arm is drawn.
        label: Name of the metric, with its unit.
    """
    with open_axes(4.3, 3.4) as (figure, axes):
        for order, (arm, line) in enumerate(lines.items()):
            own = table[table["arm"] == arm]
            if own.empty:
                continue
            places = own["fraction"] * 100 * 1.035 ** (order - len(lines) / 2)  # side by side, not upon each other
            reach = np.stack([own["estimate"] - own["low"], own["high"] - own["estimate"]]).astype(np.float64)
            axes.errorbar(
                places,
                own["estimate"],
                yerr=np.nan_to_num(reach).clip(min=0),
                marker=MARKERS[line.number % len(MARKERS)],
                markersize=4.5,
                capsize=2.5,
                elinewidth=1.0,
                label=line.label,
                **line.style,
            )
        shares = sorted(table["fraction"].unique())
        axes.set_xscale("log")
        axes.set_xticks([100 * share for share in shares], [f"{100 * share:g} %" for share in shares])
        axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axes.set(xlabel="Share of the training labels", ylabel=label)
        add_legend(axes)
    return figure


def _layout(rows: pd.DataFrame) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the vertical place of each row, and of the head of each arm."""
    places: list[float] = []
    heads: list[tuple[float, str]] = []
    place, last = -0.4, None
    for arm in rows["arm"]:
        if arm != last:
            place += 0.4 if last is None else 0.55
            heads.append((place, arm))
            last = arm
            place += 0.95
        places.append(place)
        place += 0.9
    return places, heads


def _interval(axes: Axes, place: float, row: Mapping[Any, Any]) -> None:
    gain, low, high = (float(row[name]) for name in ("gain", "low", "high"))
    if not np.isfinite(gain):
        return
    whole = bool(row["whole"])
    colour = {"transfer": COLOURS[0], "variant": COLOURS[2], "noise": NOISE}.get(str(row["kind"]), COLOURS[1])
    if np.isfinite(low) and np.isfinite(high):
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2 if whole else 1.2, solid_capstyle="butt")
    axes.plot([gain], [place], marker="D" if whole else "o", color=colour, markersize=6.5 if whole else 4.5)


def _directions(axes: Axes, low: float, high: float) -> None:
    """Say which side is better."""
    style: dict[str, Any] = {"fontsize": 8, "color": NOISE, "va": "bottom"}
    bottom = axes.get_ylim()[0]
    axes.text(low, bottom, " worse", ha="left", **style)
    axes.text(high, bottom, "better ", ha="right", **style)


def _range(rows: pd.DataFrame, noise: tuple[float, float] | None) -> tuple[float, float]:
    values = np.concatenate([rows[["gain", "low", "high"]].to_numpy(np.float64).ravel(), noise or (0.0, 0.0), [0.0]])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.06 * max(high - low, 1e-3)
    return low - margin, high + margin


def _gain_text(row: Mapping[Any, Any], digits: int) -> str:
    gain, low, high = (float(row[name]) for name in ("gain", "low", "high"))
    if not np.isfinite(gain):
        return "undefined"
    digits = enough_digits([low, high], digits)
    text = signed_text(gain, digits)
    if not (np.isfinite(low) and np.isfinite(high)):
        return text
    return f"{text} ({number_text(low, digits)} to {number_text(high, digits)})"


def _cell(axes: Axes, place: tuple[int, int], cell: Mapping[Any, Any], digits: int, colour: str) -> None:
    estimate = float(cell["estimate"])
    value = number_text(estimate, digits) if np.isfinite(estimate) else "undefined"
    events = cell["num_events"]
    counts = size_text(cell["num_participants"])
    if isinstance(events, str) or (events is not None and np.isfinite(events)):
        counts += f", {events if isinstance(events, str) else f'{events:.0f}'} events"
    axes.text(place[0], place[1], value, ha="center", va="bottom", color=colour, fontsize=10.5, fontweight="bold")
    axes.text(place[0], place[1], counts, ha="center", va="top", color=colour, fontsize=7.5, linespacing=1.3)

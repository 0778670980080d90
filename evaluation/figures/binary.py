"""Figures of a binary outcome: functions from tables to a matplotlib Figure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.figures.style import COLOURS, DASHES, INK, MARKERS, NOISE, add_legend, open_axes
from evaluation.wording import size_text

SQUARE = (4.3, 4.1)  # inches
RUG = 0.07  # share of the calibration plot that the distribution of the predictions takes
NUM_BARS = 20


@dataclass(frozen=True)
class Line:
    """How one model is drawn in every figure of a page.

    Args:
        label: Its name.
        number: Its place in the palette.
        band: Whether its interval is drawn.
        thin: Whether it is drawn thin, as what others are compared with.
    """

    label: str
    number: int
    band: bool = True
    thin: bool = False

    @property
    def colour(self) -> str:
        """Colour of the line."""
        return COLOURS[self.number % len(COLOURS)]

    @property
    def style(self) -> dict[str, Any]:
        """Colour, dashes and width for matplotlib."""
        dashes = DASHES[self.number % len(DASHES)]
        return {"color": self.colour, "linestyle": dashes, "linewidth": 1.2 if self.thin else 1.9}


def roc_curves(curves: Mapping[Line, pd.DataFrame]) -> Figure:
    """Draw ROC curves with their bands.

    Args:
        curves: Columns `x` (share of false positives), `y` (share of true positives), `low`, `high` of each model; the
            label of a line holds its area.
    """
    with open_axes(*SQUARE) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=NOISE, linewidth=0.9, linestyle=(0, (4, 3)), label="chance")
        _draw(axes, curves)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set(xlabel=f"1 {chr(0x2212)} specificity", ylabel="Sensitivity")
        add_legend(axes, loc="lower right")
    return figure


def calibration_curves(
    curves: Mapping[Line, pd.DataFrame],
    risks: Mapping[Line, pd.DataFrame],
    bins: pd.DataFrame | None = None,
) -> Figure:
    """Draw the share of events against the predicted risk, and the distribution of the risks below.

    Args:
        curves: Columns `x` (predicted risk), `y` (share of events), `low`, `high` of each model.
        risks: Columns `target`, `prediction` of the models whose distribution is drawn: events above the line,
            non-events below it.
        bins: Bins of one model as `evaluation.calibration.reliability_table` gives them, drawn as points.
    """
    with open_axes(*SQUARE) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=NOISE, linewidth=0.9, linestyle=(0, (4, 3)), label="ideal")
        _draw(axes, curves)
        if bins is not None:
            reach = np.stack([bins["observed"] - bins["observed_low"], bins["observed_high"] - bins["observed"]])
            axes.errorbar(
                bins["predicted"],
                bins["observed"],
                yerr=reach.clip(min=0),
                fmt="o",
                color=INK,
                markersize=3.5,
                linewidth=0.9,
                capsize=2,
                label="bins of width 0.1",
            )
        _distributions(axes, risks)
        bottom = -0.03 - 2.2 * RUG * len(risks)
        axes.set(xlim=(-0.01, 1.01), ylim=(bottom, 1.02), xlabel="Predicted risk", ylabel="Observed share of events")
        axes.set_yticks(np.linspace(0, 1, 6))
        add_legend(axes, loc="lower right", bbox_to_anchor=(1.0, -bottom / (1.02 - bottom)))
    return figure


def decision_curves(curves: Mapping[Line, pd.DataFrame], *, width: float = 4.3) -> Figure:
    """Draw net benefit against the threshold, beside treating everybody and nobody.

    Args:
        curves: As `evaluation.decision_curve.decision_curve` gives them, of each model.
        width: Width in inches.
    """
    first = next(iter(curves.values()))
    with open_axes(width, 3.6) as (figure, axes):
        axes.plot(first["threshold"], first["treat_all"], color=NOISE, linewidth=1.2, label="treat all")
        axes.axhline(0, color=INK, linewidth=1.0, linestyle=(0, (1, 1)), label="treat none")
        renamed = {"threshold": "x", "net_benefit": "y", "net_benefit_low": "low", "net_benefit_high": "high"}
        _draw(axes, {line: table.rename(columns=renamed) for line, table in curves.items()})
        top = max(float(table["net_benefit"].max()) for table in curves.values())
        top = max(top, float(first["treat_all"].max()), 0.05)
        axes.set(xlim=(0, 1), ylim=(-0.3 * top, 1.12 * top))
        axes.set(xlabel="Threshold probability", ylabel="Net benefit (events per participant)")
        add_legend(axes, loc="upper right")
    return figure


def score_histogram(
    rows: pd.DataFrame, *, threshold: tuple[float, float] | None = None, sizes: Mapping[int, str] | None = None
) -> Figure:
    """Draw how often each risk was predicted, to those with and without the outcome.

    Args:
        rows: Columns `target`, `prediction`.
        threshold: Lowest and highest threshold of the models, where they have one.
        sizes: Class -> how its size is written; counted by default.
    """
    edges = np.linspace(0, 1, NUM_BARS + 1)
    with open_axes(4.3, 3.6) as (figure, axes):
        for value, label, sign in ((1, "with the outcome", 1), (0, "without", -1)):
            counts, _ = np.histogram(rows["prediction"][rows["target"] == value], edges)
            total = int(counts.sum())
            axes.bar(
                edges[:-1],
                sign * counts / max(total, 1),
                width=np.diff(edges),
                align="edge",
                color=COLOURS[1 if value else 0],
                edgecolor="white",
                linewidth=0.5,
                label=f"{label} ({size_text(total) if sizes is None else sizes[value]})",
                hatch="" if value else "///",
                alpha=0.85,
            )
        axes.axhline(0, color=INK, linewidth=0.9)
        if threshold is not None:
            low, high = threshold
            middle = (low + high) / 2
            axes.axvspan(low, high, color=NOISE, alpha=0.25, linewidth=0)
            axes.axvline(middle, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label=f"threshold {middle:.2f}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0%}")
        axes.set(xlim=(0, 1), xlabel="Predicted risk", ylabel="Share of the class")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.3 * (high - low))
        add_legend(axes, loc="upper center", ncols=1)
    return figure


def metric_by_site(sites: pd.DataFrame, *, label: str, width: float = 4.3) -> Figure:
    """Draw a metric between 0 and 1 at each site with its interval; the number of participants and events below.

    Args:
        sites: Columns `site`, `num_participants` and `num_events` (or a mark in their place), `estimate`, `low`, `high`
            (NaN without an interval).
        label: Name of the metric.
        width: Width in inches.
    """
    with open_axes(width, 3.2) as (figure, axes):
        places = np.arange(len(sites))
        reach = np.stack([sites["estimate"] - sites["low"], sites["high"] - sites["estimate"]]).astype(np.float64)
        axes.axhline(0.5, color=NOISE, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.errorbar(
            places,
            sites["estimate"],
            yerr=np.nan_to_num(reach).clip(min=0),
            fmt=MARKERS[0],
            color=COLOURS[0],
            markersize=5,
            capsize=3,
            linewidth=1.4,
        )
        for place, value in enumerate(sites["estimate"]):
            if np.isnan(value):
                axes.text(place, 0.5, "undefined", rotation=90, ha="center", va="center", color=NOISE, fontsize=8)
        ticks = [
            f"{row['site']}\n{size_text(row['num_participants'])}\n{row['num_events']} events"
            for row in sites.to_dict("records")
        ]
        axes.set_xticks(places, ticks)
        axes.set(xlim=(-0.6, len(sites) - 0.4), ylim=(0, 1.02), ylabel=label)
        axes.grid(visible=False, axis="x")
    return figure


def _draw(axes: Axes, curves: Mapping[Line, pd.DataFrame]) -> None:
    for line, table in curves.items():
        axes.plot(table["x"], table["y"], label=line.label, **line.style)
        if line.band and table["low"].notna().any():
            axes.fill_between(table["x"], table["low"], table["high"], color=line.colour, alpha=0.14, linewidth=0)


def _distributions(axes: Axes, risks: Mapping[Line, pd.DataFrame]) -> None:
    """Draw bars of the events upwards and of the non-events downwards, one row per model."""
    edges = np.linspace(0, 1, 2 * NUM_BARS + 1)
    for row, (line, table) in enumerate(risks.items()):
        base = -0.03 - RUG * (1.1 + 2.2 * row)
        counts = [np.histogram(table["prediction"][table["target"] == value], edges)[0] for value in (1, 0)]
        largest = max(1, *(int(count.max()) for count in counts))
        for count, sign in zip(counts, (1, -1), strict=True):
            height = sign * RUG * count / largest
            axes.bar(edges[:-1], height, np.diff(edges), bottom=base, align="edge", color=line.colour, alpha=0.7)
        axes.axhline(base, color=NOISE, linewidth=0.6)

"""Figures of a continuous outcome and of a training: functions from a table to a matplotlib Figure."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.estimate import Estimate
from evaluation.figures.style import COLOURS, INK, MARKERS, add_legend, open_axes, open_panels, svg_data_uri
from evaluation.regression import point_estimates
from evaluation.wording import MINUS, interval_text, size_text, with_unit

__all__ = [
    "error_by_bin",
    "error_by_site",
    "error_vs_target",
    "has_learning_curve",
    "learning_curve",
    "predicted_vs_target",
    "svg_data_uri",
]

MAX_UPRIGHT_LABELS = 12
MAX_VECTOR_POINTS = 1500  # more points are drawn as pixels, or the figure weighs megabytes
WATCHED = ("loss", "mae", "auroc")  # what a learning curve shows of a history


def predicted_vs_target(rows: pd.DataFrame, *, name: str = "target", unit: str | None = None) -> Figure:
    """Draw predictions against true values, the identity line, and the sites apart.

    Args:
        rows: Columns `site`, `target`, `prediction`; one point per row.
        name: What the target is called.
        unit: Its unit.
    """
    with open_axes(4.3, 4.1) as (figure, axes):
        values = np.concatenate([rows["target"], rows["prediction"]]).astype(np.float64)
        margin = 0.04 * max(float(np.ptp(values)), 1e-9)
        limits = (float(values.min()) - margin, float(values.max()) + margin)
        axes.plot(limits, limits, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="identity")
        _scatter(axes, rows, rows["prediction"])
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        axes.set(xlabel=with_unit(f"True {name}", unit), ylabel=with_unit(f"Predicted {name}", unit))
        add_legend(axes)
    return figure


def error_vs_target(
    rows: pd.DataFrame,
    *,
    name: str = "target",
    unit: str | None = None,
    slope: Estimate | None = None,
    fitted_on: pd.DataFrame | None = None,
) -> Figure:
    """Draw prediction - target against the target with its regression line.

    Args:
        rows: Columns `site`, `target`, `prediction`; one point per row.
        name: What the target is called.
        unit: Its unit.
        slope: Slope with interval, written beside the line.
        fitted_on: Rows that the line is fitted on, where those drawn are not as they were.
    """
    with open_axes(4.3, 4.1) as (figure, axes):
        error = rows["prediction"] - rows["target"]
        axes.axhline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="no error")
        _scatter(axes, rows, error)
        whole = rows if fitted_on is None else fitted_on
        fitted = point_estimates(whole["target"], whole["prediction"])
        if np.isfinite(fitted["bias_slope"]):
            ends = np.array([rows["target"].min(), rows["target"].max()])
            line = fitted["mean_bias"] + fitted["bias_slope"] * (ends - whole["target"].mean())
            axes.plot(ends, line, color=INK, linewidth=1.8, label="regression line")
        if slope is not None and slope.defined:
            axes.set_title(f"slope {interval_text(slope, 2)}", color=INK)
        axes.set(xlabel=with_unit(f"True {name}", unit), ylabel=with_unit(f"Prediction {MINUS} target", unit))
        add_legend(axes)
    return figure


def error_by_bin(bins: pd.DataFrame, *, labels: Sequence[str], name: str = "target", unit: str | None = None) -> Figure:
    """Draw the mean absolute error of each bin with its interval and number of participants.

    Args:
        bins: As `evaluation.regression.mae_by_age_bin` gives them.
        labels: What the bins are called.
        name: What the target is called.
        unit: Its unit.
    """
    with open_axes(4.3, 3.2) as (figure, axes):
        _intervals(axes, labels, bins)
        axes.set(xlabel=with_unit(f"True {name}", unit), ylabel=with_unit("Mean absolute error", unit))
    return figure


def error_by_site(sites: pd.DataFrame, *, unit: str | None = None, width: float = 4.3) -> Figure:
    """Draw the mean absolute error of each site with its interval, beside that of predicting the mean.

    Args:
        sites: Columns `site`, `num_participants` (or a mark in its place), `mae`, `mae_low`, `mae_high`,
            `mae_predict_mean`.
        unit: Unit of the target.
        width: Width in inches.
    """
    with open_axes(width, 3.2) as (figure, axes):
        _intervals(axes, list(sites["site"]), sites, label="model")
        places = np.arange(len(sites))
        axes.hlines(
            sites["mae_predict_mean"],
            places - 0.28,
            places + 0.28,
            color=COLOURS[1],
            linewidth=1.8,
            label="predict the mean",
        )
        columns = ["mae_high", "mae", "mae_predict_mean"]
        axes.set_ylim(0, 1.25 * float(np.nanmax(sites[columns].to_numpy(dtype=np.float64))) or 1.0)
        axes.set(xlabel="Site", ylabel=with_unit("Mean absolute error", unit))
        axes.legend(loc="upper center", ncols=2, borderaxespad=0.2)
    return figure


def has_learning_curve(history: pd.DataFrame | None) -> bool:
    """Whether a history holds anything that `learning_curve` draws."""
    return history is not None and any(_keys(history, kind) for kind in WATCHED)


def learning_curve(history: pd.DataFrame, *, unit: str | None = None) -> Figure:
    """Draw the course of a training: the losses, and the validation metric where it was logged.

    Args:
        history: Columns `key`, `step`, `value`; keys such as `train/loss`, `val/loss`, `val/mae`, `val/auroc`.
        unit: Unit of the target.

    Raises:
        ValueError: No key ends in `loss`, `mae` or `auroc`.
    """
    known = history[np.isfinite(history["value"].astype(float))]
    labels = {"loss": "Loss", "mae": with_unit("MAE", unit), "auroc": "AUROC"}
    shown = [kind for kind in WATCHED if _keys(known, kind)]
    if not shown:
        raise ValueError("The history holds no loss, MAE or AUROC: a learning curve needs a key such as 'val/loss'.")
    with open_panels(len(shown), 4.3 * len(shown), 3.0) as (figure, panels):
        for axes, kind in zip(panels, shown, strict=True):
            for key in _keys(known, kind):
                points = known[known["key"] == key].sort_values("step")
                style = _STAGES.get(key.split("/")[0], (COLOURS[2], "-"))
                axes.plot(
                    points["step"],
                    points["value"],
                    color=style[0],
                    linestyle=style[1],
                    linewidth=1.4,
                    marker="o" if len(points) <= 30 else None,
                    markersize=3,
                    label=key,
                )
            axes.set(xlabel="Optimisation step", ylabel=labels[kind])
            add_legend(axes)
    return figure


_STAGES = {"train": (COLOURS[0], "-"), "val": (COLOURS[1], "--"), "test": (COLOURS[2], ":")}


def _scatter(axes: Axes, rows: pd.DataFrame, values: pd.Series) -> None:
    sites = sorted(rows["site"].unique())
    rasterized = len(rows) > MAX_VECTOR_POINTS
    if len(sites) > len(COLOURS):
        label = f"{len(sites)} sites (n = {len(rows)})"
        axes.scatter(
            rows["target"], values, s=10, alpha=0.35, linewidth=0, color=COLOURS[0], label=label, rasterized=rasterized
        )
        return
    for number, site in enumerate(sites):
        here = rows["site"] == site
        axes.scatter(
            rows["target"][here],
            values[here],
            s=16,
            alpha=0.75,
            linewidth=0,
            color=COLOURS[number],
            marker=MARKERS[number],
            label=f"{site} ({size_text(int(here.sum()))})",
            rasterized=rasterized,
        )


def _intervals(axes: Axes, labels: Sequence[str], table: pd.DataFrame, label: str | None = None) -> None:
    """Draw `mae` with its interval at one place per row, n under each label."""
    places = np.arange(len(table))
    reach = np.stack([table["mae"] - table["mae_low"], table["mae_high"] - table["mae"]]).astype(np.float64)
    axes.errorbar(
        places,
        table["mae"],
        yerr=np.nan_to_num(reach).clip(min=0),
        fmt="o",
        color=COLOURS[0],
        markersize=5,
        capsize=3,
        linewidth=1.4,
        label=label,
    )
    crowded = len(table) > MAX_UPRIGHT_LABELS
    ticks = [
        f"{text} ({size_text(count)})" if crowded else f"{text}\n{size_text(count)}"
        for text, count in zip(labels, table["num_participants"], strict=True)
    ]
    axes.set_xticks(places, ticks, rotation=90 if crowded else 0)
    axes.set_xlim(-0.6, len(table) - 0.4)
    axes.set_ylim(0, 1.08 * float(np.nanmax(table[["mae_high", "mae"]].to_numpy(dtype=np.float64))) or 1.0)
    axes.grid(visible=False, axis="x")


def _keys(history: pd.DataFrame, kind: str) -> list[str]:
    """Return the keys of a kind, per-step doubles of an epoch's value left out."""
    keys = {str(key) for key in history["key"]}
    return sorted(key for key in keys if key.split("/")[-1] in {kind, f"{kind}_epoch"})

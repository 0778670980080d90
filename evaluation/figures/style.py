"""The look of every figure: one palette, one style, and a canvas without pyplot and its global state."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow: the colour-blind tell it apart, and the markers do in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6B4C9A", "#555555")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
INK, RULE, NOISE = "#1f2933", "#cfd6dd", "#7b8794"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": "#7b8794",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ecf0",
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.direction": "out",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 8,
    "svg.hashsalt": "fontanel",
    "savefig.dpi": 200,
}


@contextmanager
def open_axes(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Open a figure with one pair of axes in the house style.

    Args:
        width: Width in inches.
        height: Height in inches.
    """
    with open_panels(1, width, height) as (figure, panels):
        yield figure, panels[0]


@contextmanager
def open_panels(
    number: int, width: float, height: float, *, share_y: bool = False
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Open a figure with several pairs of axes side by side in the house style.

    Args:
        number: How many.
        width: Width of the whole in inches.
        height: Height in inches.
        share_y: Whether all have the same vertical axis.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, list(figure.subplots(1, number, squeeze=False, sharey=share_y)[0])


def add_legend(axes: Axes, **options: Any) -> None:
    """Add a legend where it hides least."""
    axes.legend(**{"loc": "best", "handletextpad": 0.4, "borderaxespad": 0.2, **options})


def svg_data_uri(figure: Figure) -> str:
    """Return a figure as a data address of an SVG without date: the same figure, the same bytes."""
    stream = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"

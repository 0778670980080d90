import base64

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from evaluation.estimate import Estimate
from evaluation.figures import regression as figures
from evaluation.regression import mae_by_age_bin


@pytest.fixture
def history():
    steps = np.arange(1, 6) * 10
    keys = ("train/loss", "val/loss", "val/mae", "lr")
    return pd.concat([pd.DataFrame({"key": key, "step": steps, "value": 1 / steps}) for key in keys])


def line_named(figure: Figure, label: str) -> np.ndarray:
    return next(line for line in figure.axes[0].lines if line.get_label() == label).get_xydata()


def test_points_are_target_and_prediction_and_the_identity_is_drawn(table):
    figure = figures.predicted_vs_target(table, name="age", unit="years")
    axes = figure.axes[0]
    drawn = np.concatenate([points.get_offsets() for points in axes.collections])
    expected = table.sort_values("site", kind="stable")[["target", "prediction"]].to_numpy()
    np.testing.assert_allclose(drawn, expected)
    identity = line_named(figure, "identity")
    np.testing.assert_allclose(identity[:, 0], identity[:, 1])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("True age (years)", "Predicted age (years)")
    assert axes.get_xlim() == axes.get_ylim()


def test_regression_line_of_the_error_has_the_least_squares_slope(table):
    figure = figures.error_vs_target(table, slope=Estimate(-0.2, -0.3, -0.1))
    (x0, y0), (x1, y1) = line_named(figure, "regression line")
    slope, intercept = np.polyfit(table["target"], table["prediction"] - table["target"], 1)
    assert (y1 - y0) / (x1 - x0) == pytest.approx(slope)
    assert y0 == pytest.approx(intercept + slope * x0)
    assert "0.20" in figure.axes[0].get_title(loc="left")


def test_sites_differ_in_colour_and_marker_and_many_are_not_told_apart(table):
    few = figures.predicted_vs_target(table).axes[0].collections
    assert len({tuple(points.get_facecolor()[0]) for points in few}) == 3
    assert len({points.get_paths()[0].vertices.shape for points in few}) == 3
    many = table.assign(site=[f"site {number % 9}" for number in range(len(table))])
    assert len(figures.predicted_vs_target(many).axes[0].collections) == 1


def test_bins_show_error_interval_and_number(table):
    bins = mae_by_age_bin(table["target"], table["prediction"], num_replicates=100)
    named = [f"{start:g} on" for start in bins["start"]]
    axes = figures.error_by_bin(bins, labels=named, name="age").axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [f"{name}\nn = {count:g}" for name, count in zip(named, bins["num_participants"], strict=True)]
    segments = np.array(axes.collections[0].get_segments())[:, :, 1]
    interval = bins[["mae_low", "mae_high"]].fillna({"mae_low": bins["mae"], "mae_high": bins["mae"]})
    np.testing.assert_allclose(segments, interval)
    assert axes.get_ylim()[0] == 0


def test_sites_stand_beside_predicting_the_mean():
    sites = pd.DataFrame(
        {"site": ["A", "B"], "num_participants": [9, 2], "mae": [4.0, 5.0], "mae_low": [3.0, np.nan]}
        | {"mae_high": [6.0, np.nan], "mae_predict_mean": [20.0, 21.0]}
    )
    axes = figures.error_by_site(sites, unit="years").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["A\nn = 9", "B\nn = 2"]
    assert axes.get_ylim()[1] > 21


def test_learning_curve_has_losses_and_error_apart(history):
    left, right = figures.learning_curve(history, unit="years").axes
    assert [line.get_label() for line in left.lines] == ["train/loss", "val/loss"]
    assert [line.get_label() for line in right.lines] == ["val/mae"]
    assert right.get_ylabel() == "MAE (years)"
    assert not figures.has_learning_curve(history[history["key"] == "lr"])
    assert not figures.has_learning_curve(None)


def test_same_figure_same_bytes_and_no_address_of_the_network(table):
    first, second = (figures.svg_data_uri(figures.predicted_vs_target(table)) for _ in range(2))
    assert first == second
    kind, _, content = first.partition(";base64,")
    picture = base64.b64decode(content)
    assert kind == "data:image/svg+xml"
    assert b"<svg" in picture
    assert b"<image" not in picture
    assert len(first) < 200_000


def test_many_points_are_drawn_as_pixels(table):
    many = pd.concat([table] * 60)
    uri = figures.svg_data_uri(figures.error_vs_target(many))
    assert b"<image" in base64.b64decode(uri.partition(";base64,")[2])
    assert len(uri) < 500_000

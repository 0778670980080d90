import numpy as np
import pandas as pd
import pytest

from evaluation.figures import transfer as figures
from evaluation.figures.binary import Line


@pytest.fixture
def rows():
    arms = [("pretrained", "transfer"), ("again", "noise"), ("burden", "baseline")]
    places = [("A", False), ("B", False), ("all sites, mean", True)]
    frame = pd.DataFrame(
        [{"arm": arm, "kind": kind, "site": site, "whole": whole} for arm, kind in arms for site, whole in places]
    )
    gain = np.linspace(-0.04, 0.12, len(frame))
    return frame.assign(num_participants=40, gain=gain, low=gain - 0.05, high=gain + 0.05)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_forest_has_a_row_for_each_arm_and_site_with_its_numbers(rows):
    rows.loc[1, ["gain", "low", "high"]] = np.nan
    rows.loc[3, ["low", "high"]] = np.nan
    axes = figures.forest(rows, label="AUROC", noise=(-0.03, 0.03), reference="scratch").axes[0]
    shown = texts(axes)
    for words in ("pretrained", "again", "burden", "worse", "better"):
        assert sum(words in text for text in shown) == 1
    assert shown.count("all sites, mean") == 3
    assert "undefined" in shown
    assert f"+{rows['gain'].iloc[8]:.2f} ({rows['low'].iloc[8]:.2f} to {rows['high'].iloc[8]:.2f})" in shown
    points = [line for line in axes.lines if len(line.get_xdata()) == 1]
    np.testing.assert_allclose([point.get_xdata()[0] for point in points], rows["gain"].dropna())
    assert [point.get_marker() for point in points].count("D") == 3
    assert len({point.get_color() for point in points}) == 3
    places = [point.get_ydata()[0] for point in points]
    assert places == sorted(places)
    low, high = axes.get_xlim()
    assert low < rows["low"].min() < rows["high"].max() < high


def test_words_of_the_forest_stay_on_the_figure_and_apart_from_the_intervals(rows):
    figure = figures.forest(rows, label="AUROC", noise=None, reference="scratch")
    renderer = figure.canvas.get_renderer()
    width = figure.bbox.width
    inside = figure.axes[0].get_window_extent(renderer)
    for text in figure.axes[0].texts:
        box = text.get_window_extent(renderer)
        assert 0 <= box.x0 < box.x1 <= width
        if text.get_text().strip() not in ("worse", "better"):
            assert box.x1 <= inside.x0 or box.x0 >= inside.x1


def test_heat_map_has_one_scale_and_leaves_out_what_was_not_trained():
    def matrix(*values):
        counts = pd.DataFrame({"num_participants": [30, 30, 40], "num_events": [12.0, 12.0, 16.0]})
        return counts.assign(train_sites=["B", "C", "A"], test_site=["A", "A", "B"], estimate=values)

    arms = {"scratch": matrix(0.6, 0.8, 0.95), "pretrained": matrix(0.7, 0.8, np.nan)}
    figure = figures.site_heat_map(arms, label="AUROC", limits=(0.5, 1.0))
    left, right = figure.axes[:2]
    assert left.images[0].get_clim() == right.images[0].get_clim() == (0.5, 1.0)
    drawn = left.images[0].get_array().filled(np.nan)
    np.testing.assert_array_equal(drawn, [[np.nan, 0.95], [0.6, np.nan], [0.8, np.nan]])  # trained at A, B, C
    assert {text.get_text(): text.get_position() for text in left.texts}["0.95"] == (1, 0)
    assert {"0.60", "n = 30, 12 events", "0.95"} <= set(texts(left))
    assert "undefined" in texts(right)
    dark = next(text for text in left.texts if text.get_text() == "0.95")
    assert dark.get_color() == "white"


def test_label_efficiency_has_an_interval_at_each_share():
    table = pd.DataFrame(
        {"arm": ["p", "p", "s"], "fraction": [0.25, 1.0, 1.0], "estimate": [0.6, 0.8, 0.7]}
        | {"low": [0.5, 0.7, np.nan], "high": [0.7, 0.9, np.nan]}
    )
    lines = {"s": Line("scratch", 1), "p": Line("pretrained", 0), "other": Line("other", 2)}
    axes = figures.label_efficiency_curves(table, lines=lines, label="AUROC").axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["scratch", "pretrained"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["25 %", "100 %"]
    drawn = next(c for c in axes.containers if c.get_label() == "pretrained")
    np.testing.assert_allclose(drawn[0].get_ydata().astype(float), [0.6, 0.8])
    np.testing.assert_allclose([s[:, 1] for s in drawn[2][0].get_segments()], [[0.5, 0.7], [0.7, 0.9]])

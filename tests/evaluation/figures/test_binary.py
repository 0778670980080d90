import numpy as np
import pandas as pd
import pytest

from evaluation.calibration import reliability_table
from evaluation.figures import binary as figures
from evaluation.figures.binary import Line


@pytest.fixture
def curve():
    x = np.linspace(0, 1, 11)
    return pd.DataFrame({"x": x, "y": x**0.5, "low": x**0.7, "high": x**0.3})


@pytest.fixture
def risks():
    generator = np.random.default_rng(3)
    target = (np.arange(80) % 2).astype(float)
    return pd.DataFrame({"target": target, "prediction": 0.2 + 0.3 * target + 0.3 * generator.random(80)})


def named(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


def test_curves_are_the_tables_with_a_band_where_one_is_wanted(curve):
    lines = {
        Line("pretrained 0.80", 0): curve,
        Line("scratch 0.70", 1, band=False, thin=True): curve.assign(y=curve["x"]),
    }
    axes = figures.roc_curves(lines).axes[0]
    np.testing.assert_allclose(named(axes, "pretrained 0.80").get_xydata(), curve[["x", "y"]])
    first, second = (named(axes, label) for label in ("pretrained 0.80", "scratch 0.70"))
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle()
    assert first.get_linewidth() > second.get_linewidth()
    assert len(axes.collections) == 1
    band = axes.collections[0].get_paths()[0].vertices
    assert {round(value, 6) for value in curve["high"]} <= {round(value, 6) for value in band[:, 1]}
    assert axes.get_aspect() == 1


def test_calibration_has_bins_and_the_risks_of_both_classes_below(curve, risks):
    line = Line("model", 0)
    bins = reliability_table(risks["target"], risks["prediction"])
    axes = figures.calibration_curves({line: curve}, {line: risks}, bins).axes[0]
    points = next(c for c in axes.containers if c.get_label() == "bins of width 0.1")
    np.testing.assert_allclose(points[0].get_xydata(), bins[["predicted", "observed"]])
    bars = [container for container in axes.containers if hasattr(container, "patches")]
    heights = [sum(bar.get_height() for bar in container.patches) for container in bars]
    assert heights[0] == pytest.approx(-heights[1], rel=0.5)
    assert heights[0] > 0 > heights[1]
    assert min(axes.get_yticks()) == 0  # what lies below is no share of events


def test_decision_curve_shows_treating_all_and_none_and_is_cut_below():
    thresholds = np.linspace(0.01, 0.99, 99)
    table = pd.DataFrame({"threshold": thresholds, "net_benefit": 0.3 * (1 - thresholds)})
    table = table.assign(net_benefit_low=0.0, net_benefit_high=0.4, treat_all=0.3 - thresholds * 5, treat_none=0.0)
    axes = figures.decision_curves({Line("model", 0): table}).axes[0]
    assert {"treat all", "treat none", "model"} <= {line.get_label() for line in axes.lines}
    assert axes.get_ylim()[0] > -0.2


def test_histogram_parts_the_classes_and_marks_the_threshold(risks):
    axes = figures.score_histogram(risks, threshold=(0.4, 0.5)).axes[0]
    events, others = (container.patches for container in axes.containers)
    assert sum(bar.get_height() for bar in events) == pytest.approx(1)
    assert sum(bar.get_height() for bar in others) == pytest.approx(-1)
    assert named(axes, "threshold 0.45").get_xdata()[0] == pytest.approx(0.45)
    assert [text.get_text() for text in axes.get_legend().get_texts()][1:] == [
        "with the outcome (n = 40)",
        "without (n = 40)",
    ]


def test_sites_show_counts_and_say_what_is_undefined():
    sites = pd.DataFrame(
        {"site": ["A", "B"], "num_participants": [30, 4], "num_events": [12, 0], "estimate": [0.7, np.nan]}
        | {"low": [0.5, np.nan], "high": [0.9, np.nan]}
    )
    axes = figures.metric_by_site(sites, label="AUROC").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["A\nn = 30\n12 events", "B\nn = 4\n0 events"]
    np.testing.assert_allclose(axes.collections[0].get_segments()[0][:, 1], [0.5, 0.9])
    assert [text.get_text() for text in axes.texts] == ["undefined"]
    assert axes.get_ylim() == (0, 1.02)

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_curve

from evaluation.calibration import smooth_curve
from evaluation.discrimination import auroc
from evaluation.predictions import normalise_predictions, scored_rows
from evaluation.report.curves import (
    calibration_table,
    ranked_by_confident_error,
    roc_table,
    weighted_roc,
)


@pytest.fixture
def rows(simulate):
    return scored_rows(normalise_predictions(simulate({"A": 45, "B": 60}, {"scratch": 1.5})))


@pytest.mark.parametrize("prevalence", [0.3, 0.7])
def test_roc_is_that_of_scikit_learn_with_and_without_weights(prevalence):
    generator = np.random.default_rng(2)
    target = (generator.random(60) < prevalence).astype(float)
    score = np.round(generator.random(60) + 0.3 * target, 1)  # ties
    weights = np.stack([np.ones(60), generator.integers(0, 4, 60)]).astype(float)
    grid = np.array([0.015, 0.235, 0.5, 0.87])
    found = weighted_roc(target, score, weights, grid)
    for own, curve in zip(weights, found, strict=True):
        x, y, _ = roc_curve(target, score, sample_weight=own, drop_intermediate=False)
        np.testing.assert_allclose(curve, np.interp(grid, x, y))


def test_curve_is_undefined_where_a_class_has_no_weight():
    target, score = np.array([0.0, 1.0, 1.0]), np.array([0.2, 0.4, 0.6])
    assert np.isnan(weighted_roc(target, score, np.array([[0.0, 1.0, 1.0]]))).all()


@pytest.mark.parametrize("by_site", [True, False])
def test_area_under_the_mean_curve_is_the_mean_area(rows, by_site):
    curve = roc_table(rows, by_site=by_site, num_replicates=30)
    cells = rows.groupby(["run", "site"] if by_site else "run")
    mean = np.mean([auroc(cell["target"], cell["prediction"]) for _, cell in cells])
    assert np.trapezoid(curve["y"], curve["x"]) == pytest.approx(mean, abs=0.01)
    assert (curve["low"] <= curve["high"]).all()
    inside = (curve["low"] - 1e-9 <= curve["y"]) & (curve["y"] <= curve["high"] + 1e-9)
    assert inside.mean() > 0.9
    assert tuple(curve[["x", "y"]].iloc[0]) == (0.0, 0.0)


def test_site_of_one_class_is_left_out_of_the_curve(rows):
    one = rows.assign(target=rows["target"].where(rows["site"] == "A", 1.0))
    np.testing.assert_allclose(
        roc_table(one, by_site=True, num_replicates=0)["y"],
        roc_table(rows[rows["site"] == "A"].reset_index(), by_site=True, num_replicates=0)["y"],
    )
    assert roc_table(rows.assign(target=1.0), by_site=True, num_replicates=0).empty


def test_calibration_is_the_lowess_of_all_runs(rows):
    found = calibration_table(rows, num_replicates=0)
    places, heights = smooth_curve(rows["target"], rows["prediction"])
    inner = np.isin(places, found["x"])
    assert inner.sum() == len(found) > 30
    np.testing.assert_allclose(found["y"], heights[inner], atol=1e-9)


def test_band_narrows_with_the_participants_and_not_with_the_runs(rows):
    width = [
        float((band["high"] - band["low"]).mean())
        for band in (
            calibration_table(one, num_replicates=80)
            for one in (
                rows,
                rows[rows["run"] == 0],
                pd.concat(
                    [rows, *(rows.assign(participant=rows["participant"] + str(copy)) for copy in range(3))],
                    ignore_index=True,
                ),
            )
        )
    ]
    assert width[1] == pytest.approx(width[0], rel=0.6)
    assert width[2] == pytest.approx(width[0] / 2, rel=0.3)


def test_surest_errors_come_first_and_runs_are_counted():
    rows = pd.DataFrame(
        {
            "participant": ["d/a", "d/a", "d/b", "d/b"],
            "dataset": "d",
            "participant_id": ["a", "a", "b", "b"],
            "session_id": "",
            "site": "S",
            "target": [1.0, 1.0, 0.0, 0.0],
            "prediction": [0.1, 0.5, 0.9, 0.99],
            "threshold": 0.4,
        }
    )
    found = ranked_by_confident_error(rows)
    assert found["participant_id"].tolist() == ["b", "a"]
    assert found["num_wrong"].tolist() == [2, 1]
    odds = np.log([1 / 9, 1.0])
    assert found["prediction"].iloc[1] == pytest.approx(1 / (1 + np.exp(-odds.mean())))

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference

from evaluation.assessment import assess, evaluate
from evaluation.design import DesignError
from evaluation.predictions import PredictionsError
from evaluation.regression import POINT_METRICS, regression_metrics
from evaluation.tasks import metrics_of


@pytest.fixture
def test_part(table):
    return table[table["split"] == "test"].reset_index(drop=True)


def test_json_is_the_contract(test_part):
    result = evaluate(test_part, num_replicates=200)
    assert set(result) == {"metrics", "num_participants"}
    assert result["num_participants"] == 24
    assert set(POINT_METRICS) < set(result["metrics"])
    for value in result["metrics"].values():
        assert list(value) == ["estimate", "low", "high"]
        assert value["low"] <= value["estimate"] <= value["high"]
    json.dumps(result, allow_nan=False)


def test_undefined_metrics_are_null(test_part):
    metrics = evaluate(test_part.assign(prediction=40.0), num_replicates=50)["metrics"]
    assert metrics["pearson_r"] == {"estimate": None, "low": None, "high": None}
    assert metrics["mae"]["estimate"] is not None


def test_foreign_table_gives_the_same_numbers_as_arrays(test_part):
    foreign = test_part[["participant_id", "target", "prediction"]]
    found = assess(foreign, num_replicates=100)
    expected = regression_metrics(foreign["target"], foreign["prediction"], num_replicates=0)
    assert found.metrics["rmse"].estimate == pytest.approx(expected["rmse"].estimate)
    assert found.unit is None


def test_null_model_comes_from_the_training_rows_or_says_so(test_part):
    trained = assess(test_part, num_replicates=0)
    assert trained.null_model == "training"
    assert "training" in trained.null_model_text
    assert trained.metrics["mae_predict_mean"].estimate == pytest.approx((test_part["target"] - 41.5).abs().mean())
    holes = test_part.assign(baseline=np.where(test_part.index < 3, np.nan, 41.5))
    own = assess(holes, num_replicates=0)
    assert own.null_model == "table"
    assert "own targets" in own.null_model_text
    spread = (test_part["target"] - test_part["target"].mean()).abs().mean()
    assert own.metrics["mae_predict_mean"].estimate == pytest.approx(spread)


def test_rows_without_a_target_are_counted(test_part):
    test_part.loc[[1, 4], "target"] = np.nan
    found = assess(test_part, num_replicates=0)
    assert (found.num_missing_target, found.num_participants, len(found.rows)) == (2, 22, 22)


def test_same_id_in_two_datasets_is_two_participants(test_part):
    other = test_part.assign(dataset="other")
    assert assess(pd.concat([test_part, other]), num_replicates=0).num_participants == 48


def test_participants_with_many_sessions_widen_the_interval(test_part):
    visits = pd.concat([test_part.assign(session_id=str(visit)) for visit in range(6)])
    found = assess(visits).metrics["mae"]
    once = assess(test_part).metrics["mae"]
    assert assess(visits, num_replicates=0).num_participants == 24
    assert (found.low, found.high) == pytest.approx((once.low, once.high))


def test_models_are_averaged_and_their_spread_is_given(test_part):
    runs = [
        test_part.assign(seed=seed, prediction=test_part["target"] + shift) for seed, shift in enumerate((1, -2, 6))
    ]
    found = assess(pd.concat(runs), num_replicates=0)
    assert found.num_runs == 3
    assert found.metrics["mae"].estimate == pytest.approx(3)
    assert found.metrics["mean_bias"].estimate == pytest.approx(5 / 3)
    assert found.between_runs("mae") == pytest.approx(np.std([1, 2, 6], ddof=1))
    assert np.isnan(assess(test_part, num_replicates=0).between_runs("mae"))


def test_errors_of_infants_are_in_weeks_too(test_part):
    infants = test_part.assign(target=np.linspace(0, 3, 24))
    infants["prediction"] = infants["target"] + 0.5
    found = assess(infants, num_replicates=100).metrics["mae_weeks_under_2y"]
    assert found.estimate == pytest.approx(0.5 * 365.25 / 7)
    assert "mae_weeks_under_2y" not in assess(infants, unit="months", num_replicates=0).metrics
    assert "mae_weeks_under_2y" not in assess(infants.assign(target=30.0), num_replicates=0).metrics


def test_mixed_tables_and_unknown_tasks_are_refused(table, test_part):
    with pytest.raises(PredictionsError, match="--split"):
        assess(table)
    with pytest.raises(PredictionsError, match="There are: regression"):
        assess(test_part, "astrology")


@pytest.fixture
def binary_part(test_part):
    """Two models' probabilities of a binary outcome for the participants of the test part."""
    target = np.tile([0.0, 1.0, 0.0, 1.0, 0.0, 0.0], 4)
    first = np.clip(0.3 * target + np.linspace(0.1, 0.6, 24), 0, 1)
    frame = test_part.assign(output="poor", target=target, prediction=first, threshold=0.5, seed=0)
    return pd.concat([frame, frame.assign(seed=1, prediction=first[::-1])], ignore_index=True)


def test_binary_outcome_is_assessed_over_runs(binary_part):
    result = evaluate(binary_part, "binary", num_replicates=50)
    assert set(result["metrics"]) == set(metrics_of("binary"))
    assert result["num_participants"] == 24
    json.dumps(result, allow_nan=False)
    found = assess(binary_part, "binary", num_replicates=0)
    areas = [reference.roc_auc_score(run["target"], run["prediction"]) for _, run in binary_part.groupby("seed")]
    assert found.metrics["auroc"].estimate == pytest.approx(np.mean(areas))
    assert found.over_runs("auroc") == pytest.approx(np.mean(areas))
    assert found.between_runs("auroc") == pytest.approx(np.std(areas, ddof=1))


def test_prevalence_reaches_metrics_and_spread(binary_part):
    plain = assess(binary_part, "binary", num_replicates=0)
    rare = assess(binary_part, "binary", num_replicates=0, design="case-control", prevalence=0.01)
    assert rare.metrics["prevalence"].estimate == pytest.approx(0.01)
    assert rare.metrics["ppv"].estimate < 0.1 < plain.metrics["ppv"].estimate
    assert rare.over_runs("brier") == pytest.approx(rare.metrics["brier"].estimate)
    assert not assess(binary_part, "binary", num_replicates=0, design="case-control").metrics["oe_ratio"].defined


def test_what_is_not_binary_is_refused_by_the_rows_of_the_file(binary_part, test_part):
    binary_part.loc[[3, 27], "target"] = 2.0
    second = binary_part[binary_part["seed"] == 1]
    with pytest.raises(PredictionsError, match=r"neither 0 nor 1 in row 28\."):
        assess(second, "binary")
    with pytest.raises(PredictionsError, match=r"neither 0 nor 1 in row 4\."):
        assess(second.set_axis([f"r{number}" for number in range(24)]), "binary")
    with pytest.raises(DesignError, match="belong to a binary outcome"):
        assess(test_part, prevalence=0.2)
    with pytest.raises(DesignError, match="has no unit, and 'points'"):
        assess(binary_part.assign(target=1.0), "binary", unit="points")

import numpy as np
import pandas as pd
import pytest

from evaluation.tasks import TASKS, metrics_of, primary_of, statistic_of, task_of


@pytest.fixture
def rows():
    generator = np.random.default_rng(91)
    target = (generator.random(50) < 0.4).astype(float)
    return pd.DataFrame({"target": target, "prediction": generator.random(50), "baseline": 0.4})


@pytest.mark.parametrize("task", TASKS)
def test_every_task_gives_its_metrics_with_labels_for_any_weights(task, rows):
    weights = np.random.default_rng(92).integers(0, 3, (7, 50)).astype(float)
    values = statistic_of(task)(rows)(weights)
    shown = metrics_of(task)
    assert set(values) <= set(shown)
    assert primary_of(task) in values
    assert shown[primary_of(task)].larger_is_better is not None
    for name, value in values.items():
        assert value.shape == (7,), name
        assert value.dtype == np.float64, name
    assert list(statistic_of(task)(rows, [primary_of(task)])(weights)) == [primary_of(task)]
    better = {True: 1.0, False: -1.0}
    ideal = statistic_of(task)(rows.assign(prediction=rows["target"] * 0.98 + 0.01))(weights)
    for name, value in values.items():
        if (direction := shown[name].larger_is_better) is not None and name != "mae_predict_mean":
            assert np.all(better[direction] * (ideal[name] - value) >= -1e-12), name


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, "regression"),
        ({"threshold": 0.4}, "binary"),
        ({"score_1": 0.4}, "binary"),
        ({"score_1": np.nan, "threshold": np.nan}, "regression"),
        ({"score_1": 0.4, "target": [0.0, 2.0, 1.0]}, "regression"),
        ({"score_1": 0.4, "target": [0.0, np.nan, 1.0]}, "binary"),
        ({"score_1": 0.4, "target": np.nan}, "regression"),
    ],
)
def test_task_is_told_from_columns_and_targets(columns, expected):
    frame = pd.DataFrame({"target": [0.0, 1.0, 1.0], "prediction": 0.5})
    assert task_of(frame.assign(**columns)) == expected

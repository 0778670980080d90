import math
import time
from pathlib import Path

import pytest
import torch

from tracking.logger import PointBuffer, RunLogger


def history(logger: RunLogger, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in logger.experiment.get_metric_history(logger.run_id, key)]


def test_one_run_with_its_folder(logger: RunLogger, tmp_path: Path) -> None:
    run_id = logger.run_id
    assert logger.run_id == run_id
    assert logger.save_dir == logger.log_dir == str(tmp_path / "out" / "runs" / run_id)
    assert (tmp_path / "out" / "runs" / run_id).stat().st_mode & 0o777 == 0o700
    assert len(logger.experiment.search_runs([logger.experiment.get_run(run_id).info.experiment_id])) == 1


def test_points_wait_for_the_flush(logger: RunLogger) -> None:
    before = time.time()
    value = torch.tensor(0.5, requires_grad=True)
    for step in range(3):
        logger.log_metrics({"train/loss": value + step, "lr": 0.1}, step)
    assert history(logger, "train/loss") == []
    logger.flush()
    assert history(logger, "train/loss") == [(0, 0.5), (1, 1.5), (2, 2.5)]
    assert history(logger, "lr") == [(0, 0.1), (1, 0.1), (2, 0.1)]
    (stamp, *_) = [point.timestamp for point in logger.experiment.get_metric_history(logger.run_id, "lr")]
    assert before * 1000 - 1 <= stamp <= time.time() * 1000 + 1


def test_each_key_and_step_once(logger: RunLogger) -> None:
    for value, step in [(1.0, 5), (2.0, 5), (3.0, 4)]:
        logger.log_metrics({"val/mae": value}, step)
    logger.flush()
    logger.log_metrics({"val/mae": 4.0}, 5)
    logger.log_metrics({"val/mae": 4.0, "test/mae": 6.0}, 4)
    logger.log_metrics({"val/mae": 5.0}, 6)
    logger.flush()
    logger.flush()
    assert history(logger, "val/mae") == [(4, 3.0), (5, 1.0), (6, 5.0)]
    assert history(logger, "test/mae") == [(4, 6.0)]


def test_a_name_that_mlflow_refuses_holds_nothing_back(logger: RunLogger) -> None:
    logger.log_metrics({"mae@5": 1.0, "a//b": 2.0, "b": 3.0}, 0)
    logger.flush()
    assert [history(logger, key) for key in ("mae_5", "a/b", "b")] == [[(0, 1.0)], [(0, 2.0)], [(0, 3.0)]]


def test_a_tensor_changed_after_logging_counts_as_it_was(logger: RunLogger) -> None:
    value = torch.zeros(1)
    logger.log_metrics({"a": value}, 0)
    value += 1
    logger.flush()
    assert history(logger, "a") == [(0, 0.0)]


def test_all_kinds_of_numbers(logger: RunLogger) -> None:
    metrics = {"f16": torch.tensor(1.5, dtype=torch.bfloat16), "i": torch.tensor(2**40), "nan": float("nan"), "int": 3}
    logger.log_metrics(metrics)
    logger.flush()
    assert [history(logger, key) for key in ("f16", "i", "int")] == [[(0, 1.5)], [(0, 2.0**40)], [(0, 3.0)]]
    assert math.isnan(history(logger, "nan")[0][1])


def test_the_buffer_is_bounded_and_its_memory_flat(logger: RunLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracking.logger.BUFFERED_POINTS", 100)
    for step in range(150):
        logger.log_metrics({"a": 1.0}, step)
    assert len(history(logger, "a")) == 100
    buffer = PointBuffer()
    for step in range(10_000):
        buffer.add({"a": 1.0}, step)
    buffer.sent(buffer.points())
    assert len(buffer) == 0
    assert len(buffer._sent["a"]) == 10

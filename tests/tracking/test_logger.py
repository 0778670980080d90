import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning_utilities.core.rank_zero import rank_zero_only

from tracking.errors import StoreError
from tracking.journal import read_records
from tracking.logger import PointBuffer, RunLogger
from tracking.store import Point, Store


def points(logger: RunLogger) -> list[Point]:
    return [record for record, _ in read_records(logger.folder) if isinstance(record, Point)]


def history(logger: RunLogger, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in points(logger) if point.key == key]


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
    assert points(logger) == []
    logger.flush()
    assert history(logger, "train/loss") == [(0, 0.5), (1, 1.5), (2, 2.5)]
    assert history(logger, "lr") == [(0, 0.1), (1, 0.1), (2, 0.1)]
    assert all(before <= point.time <= time.time() for point in points(logger))


def test_the_end_of_a_fit_flushes_and_ends_no_run(logger: RunLogger) -> None:
    logger.log_metrics({"a": 1.0}, 1)
    logger.finalize("success")
    assert history(logger, "a") == [(1, 1.0)]
    assert logger.experiment.get_run(logger.run_id).info.status == "RUNNING"


def test_a_checkpoint_knows_where_the_journal_stands(logger: RunLogger) -> None:
    assert logger.checkpoint() == 0
    logger.log_metrics({"a": 1.0}, 1)
    offset = logger.checkpoint()
    logger.log_metrics({"a": 2.0}, 2)
    logger.flush()
    assert [record.step for record, _ in read_records(logger.folder, 0, offset) if isinstance(record, Point)] == [1]


def test_each_key_and_step_once(logger: RunLogger) -> None:
    for value, step in [(1.0, 5), (2.0, 5), (3.0, 4)]:
        logger.log_metrics({"val/mae": value}, step)
    logger.flush()
    logger.log_metrics({"val/mae": 4.0}, 5)
    logger.log_metrics({"val/mae": 4.0, "test/mae": 6.0}, 4)
    logger.log_metrics({"val/mae": 5.0}, 6)
    logger.flush()
    logger.flush()
    assert history(logger, "val/mae") == [(5, 1.0), (4, 3.0), (6, 5.0)]
    assert history(logger, "test/mae") == [(4, 6.0)]


def test_a_name_that_mlflow_refuses_holds_nothing_back(logger: RunLogger) -> None:
    logger.log_metrics({"mae@5": 1.0, "a//b": 2.0, "b": 3.0}, 0)
    assert logger.close("FINISHED")
    assert logger.experiment.get_run(logger.run_id).data.metrics == {"mae_5": 1.0, "a/b": 2.0, "b": 3.0}


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
    buffer.written(buffer.points())
    assert len(buffer) == 0
    assert len(buffer._written["a"]) == 10


def test_other_ranks_write_nothing(logger: RunLogger, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert logger.run_id == ""
    assert logger.save_dir is None
    assert logger.checkpoint() == 0
    logger.log_metrics({"a": 1.0}, 1)
    logger.log_config("a: 1\n")
    logger.flush()
    logger.release()
    logger.finalize("success")
    logger.close("FINISHED")
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    assert not (store.output_folder / "runs").exists()
    with pytest.raises(StoreError, match="no runs yet"):
        store.find_run("scratch-holdout-0-r0-s0")


def test_an_unused_logger_leaves_no_run(logger: RunLogger, store: Store) -> None:
    logger.flush()
    logger.finalize("failed")
    with pytest.raises(StoreError, match="no runs yet"):
        store.find_run("scratch-holdout-0-r0-s0")


def test_artifacts_are_private_and_without_secrets(logger: RunLogger, store: Store, tmp_path: Path) -> None:
    logger.log_config("model:\n  lr: 0.1  # tuned\n  hf_token: abc\n")
    logger.log_json("cohort.json", {"spacing": [2.0, 2.0, 2.0], "api_key": "hunter2"})
    logger.log_text("report.html", "<p>token: x</p>")
    images = logger.folder / "images"
    images.mkdir()
    (images / "a.png").write_text("x")
    (images / "a.png").chmod(0o644)
    logger.log_artifact(images, "figures")
    local = {path.name: path.stat().st_mode & 0o777 for path in logger.folder.iterdir()}
    assert {local[name] for name in ("config.yaml", "cohort.json", "report.html")} == {0o600}
    assert logger.close("FINISHED")
    texts = {
        name: store.download(logger.run_id, name).read_text()
        for name in ("config.yaml", "cohort.json", "report.html", "figures/a.png")
    }
    assert texts["config.yaml"] == "model:\n  lr: 0.1  # tuned\n  hf_token: <redacted>\n"
    assert '"spacing": [\n' in texts["cohort.json"]
    assert "<redacted>" in texts["cohort.json"]
    assert "hunter2" not in texts["cohort.json"] + (logger.folder / "cohort.json").read_text()
    assert (texts["report.html"], texts["figures/a.png"]) == ("<p>token: x</p>", "x")
    params = store.client.get_run(logger.run_id).data.params
    assert params == {"model.lr": "0.1", "model.hf_token": "<redacted>"}
    assert "abc" not in (logger.folder / "journal.jsonl").read_text()
    for path in (tmp_path / "out" / "artifacts").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_numbers_that_json_does_not_know_are_refused(logger: RunLogger) -> None:
    with pytest.raises(ValueError, match="JSON"):
        logger.log_json("cohort.json", {"mean_age": math.nan})
    assert not (logger.folder / "cohort.json").exists()


def test_two_loggers_of_one_run_are_refused(
    logger: RunLogger, make_logger: Callable[..., RunLogger], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracking.logger.PATIENCE", 0.1)
    other = make_logger(run_id=logger.run_id)
    with pytest.raises(StoreError, match=f"Another process works on run {logger.run_id}"):
        other.log_text("a.txt", "a")
    assert not (logger.folder / "a.txt").exists()

"""Loggers of runs that end, go on, or whose disk or store fails."""

import errno
import os
import time
from collections.abc import Callable, Sequence

import pytest

from tracking.errors import StoreError
from tracking.journal import last_status, read_records
from tracking.logger import RUN_FILE, RunLogger
from tracking.store import Point, RunStatus, Store


def history(logger: RunLogger, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in logger.experiment.get_metric_history(logger.run_id, key)]


def journaled(logger: RunLogger) -> list[tuple[int, float]]:
    return [(r.step, r.value) for r, _ in read_records(logger.folder) if isinstance(r, Point)]


def status(logger: RunLogger) -> str:
    return str(logger.experiment.get_run(logger.run_id).info.status)


@pytest.mark.parametrize("word", ["FINISHED", "FAILED", "KILLED"])
def test_the_end_delivers_and_sets_the_status(word: RunStatus, logger: RunLogger) -> None:
    logger.log_metrics({"a": 1.0}, 1)
    assert logger.run_id
    assert status(logger) == "RUNNING"
    assert logger.close(word)
    assert status(logger) == last_status(logger.folder) == word
    assert history(logger, "a") == [(1, 1.0)]


def test_points_are_delivered_when_a_checkpoint_covers_them(logger: RunLogger) -> None:
    logger.log_metrics({"a": 1.0}, 1)
    logger.flush()
    time.sleep(0.1)
    assert history(logger, "a") == []
    offset = logger.checkpoint()
    logger.log_metrics({"a": 2.0}, 2)
    logger.flush()
    logger.release(offset)
    deadline = time.monotonic() + 20
    while not history(logger, "a") and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert history(logger, "a") == [(1, 1.0)]


def test_resuming_continues_the_same_run(
    logger: RunLogger, store: Store, make_logger: Callable[..., RunLogger]
) -> None:
    logger.log_hyperparams({"model": {"class_path": "M", "init_args": {"lr": 0.1}}})
    logger.log_metrics({"a": 1.0}, 1)
    logger.close("FAILED")
    again = make_logger(run_id=logger.run_id)
    again.log_metrics({"a": -1.0}, 1)  # measured again
    again.log_metrics({"a": 2.0}, 2)
    again.log_hyperparams({"model": {"class_path": "M", "init_args": {"lr": 0.2}}})
    assert again.close("FINISHED")
    assert again.run_id == logger.run_id
    assert status(again) == "FINISHED"
    run = store.client.get_run(again.run_id)
    assert run.data.params["model.lr"] == "0.1"
    assert run.data.tags["changed_param.model.lr"] == "0.2"
    assert history(again, "a") == [(1, 1.0), (2, 2.0)]
    others = [record for record, _ in read_records(again.folder) if not isinstance(record, Point)]
    assert [other["status"] for other in others if "status" in other] == ["FAILED", "RUNNING", "FINISHED"]


@pytest.mark.parametrize("delivered", [False, True])
def test_resuming_drops_what_the_checkpoint_does_not_know(
    delivered: bool, logger: RunLogger, make_logger: Callable[..., RunLogger]
) -> None:
    logger.log_metrics({"a": 1.0}, 1)
    offset = logger.checkpoint()
    logger.log_metrics({"a": 2.0}, 2)
    if delivered:
        logger.close("FAILED")
    else:
        logger.flush()
        assert logger._shipper.finish(0)
        logger._journal.close()
        logger._lock.release()
    again = make_logger(run_id=logger.run_id, offset=offset)
    again.log_metrics({"a": -2.0}, 2)
    again.log_metrics({"a": 3.0}, 3)
    assert again.close("FINISHED")
    assert history(again, "a") == journaled(again) == [(1, 1.0), (2, 2.0 if delivered else -2.0), (3, 3.0)]


def test_a_watching_process_is_told_the_folder(logger: RunLogger, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_FILE, str(tmp_path / "folder"))
    assert logger.run_id
    assert (tmp_path / "folder").read_text() == str(logger.folder)


def test_a_store_that_fails_for_a_while_loses_nothing(logger: RunLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Store, run_id: str, points: Sequence[Point]) -> None:
        raise StoreError("The server is gone.", permanent=False)

    monkeypatch.setattr("tracking.logger.PATIENCE", 0.2)
    assert logger.run_id
    with monkeypatch.context() as patch:
        patch.setattr(Store, "log_points", broken)
        logger.log_metrics({"a": 0.0}, 0)
        logger.release()
        while logger._shipper.failure is None:
            time.sleep(0.01)
        with pytest.warns(UserWarning, match=r"The server is gone\. Training goes on"):
            logger.flush()
        for step in range(1, 5):
            logger.log_metrics({"a": float(step)}, step)
            logger.flush()  # no second warning
    assert logger.close("FINISHED")
    assert history(logger, "a") == journaled(logger) == [(step, float(step)) for step in range(5)]
    assert status(logger) == "FINISHED"


def test_what_the_store_refuses_is_said_once(logger: RunLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Store, run_id: str, points: Sequence[Point]) -> None:
        raise StoreError("Never.", permanent=True)

    assert logger.run_id
    monkeypatch.setattr(Store, "log_points", refuse)
    logger.log_metrics({"a": 0.0}, 0)
    with pytest.warns(UserWarning, match=r"Never\. It stays in ") as caught:
        assert logger.close("FINISHED")
    assert len(caught) == 1
    assert status(logger) == "FINISHED"


def test_a_full_disk_loses_no_point_once_there_is_room(logger: RunLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert logger.run_id
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        logger.log_metrics({"a": 0.0}, 0)
        with pytest.warns(UserWarning, match=r"cannot be written: .*No space left.*free space"):
            logger.flush()
        logger.log_metrics({"a": 1.0}, 1)
        logger.flush()  # no second warning
        assert journaled(logger) == []
    assert logger.close("FINISHED")
    assert history(logger, "a") == [(0, 0.0), (1, 1.0)]

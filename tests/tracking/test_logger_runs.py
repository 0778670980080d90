import sys
from collections.abc import Sequence

import pytest
from lightning_utilities.core.rank_zero import rank_zero_only

from tracking.logger import RunLogger
from tracking.store import Point, Store, StoreError


def history(logger: RunLogger, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in logger.experiment.get_metric_history(logger.run_id, key)]


def status(logger: RunLogger) -> str:
    return str(logger.experiment.get_run(logger.run_id).info.status)


@pytest.mark.parametrize(
    ("word", "expected"),
    [("success", "FINISHED"), ("finished", "FINISHED"), ("failed", "FAILED"), ("killed", "KILLED")],
)
def test_the_end_flushes_and_sets_the_status(word: str, expected: str, logger: RunLogger) -> None:
    logger.log_metrics({"a": 1.0}, 1)
    assert status(logger) == "RUNNING"
    logger.finalize(word)
    assert status(logger) == expected
    assert history(logger, "a") == [(1, 1.0)]


def test_ctrl_c_is_killed_and_not_failed(logger: RunLogger) -> None:
    def trainer() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            logger.finalize("failed")
            assert status(logger) == "KILLED"
            sys.exit(1)

    assert logger.run_id
    try:
        trainer()
    except SystemExit:
        logger.finalize("failed")
    assert status(logger) == "KILLED"


def test_an_unused_logger_leaves_no_run(logger: RunLogger, store: Store) -> None:
    logger.finalize("failed")
    with pytest.raises(StoreError, match="no runs yet"):
        store.find_run("scratch-holdout-0-r0-s0")


def test_resuming_continues_the_same_run(logger: RunLogger, store: Store) -> None:
    logger.log_hyperparams({"model": {"class_path": "M", "init_args": {"lr": 0.1}}})
    logger.log_metrics({"a": 1.0}, 1)
    logger.finalize("failed")
    again = RunLogger(store, study="study", name="any", tags={}, run_id=logger.run_id)
    again.log_hyperparams({"model": {"class_path": "M", "init_args": {"lr": 0.2}}})
    again.log_metrics({"a": 2.0}, 2)
    again.flush()
    assert again.run_id == logger.run_id
    assert status(again) == "RUNNING"
    run = store.client.get_run(again.run_id)
    assert run.data.params["model.lr"] == "0.1"
    assert run.data.tags["changed_param.model.lr"] == "0.2"
    assert history(again, "a") == [(1, 1.0), (2, 2.0)]


def test_config_is_artifact_and_params(logger: RunLogger, store: Store) -> None:
    logger.log_config("model:\n  lr: 0.1  # tuned\n  hf_token: abc\n")
    assert (
        store.download(logger.run_id, "config.yaml").read_text()
        == "model:\n  lr: 0.1  # tuned\n  hf_token: <redacted>\n"
    )
    assert store.client.get_run(logger.run_id).data.params == {"model.lr": "0.1", "model.hf_token": "<redacted>"}


def test_other_ranks_write_nothing(logger: RunLogger, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert logger.run_id == ""
    assert logger.save_dir is None
    logger.log_metrics({"a": 1.0}, 1)
    logger.log_hyperparams({"a": 1})
    logger.log_text("a.txt", "a")
    logger.flush()
    logger.finalize("success")
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    with pytest.raises(StoreError, match="no runs yet"):
        store.find_run("scratch-holdout-0-r0-s0")


def test_a_store_that_fails_for_a_while_loses_nothing(logger: RunLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def broken(self: Store, run_id: str, points: Sequence[Point]) -> None:
        nonlocal calls
        calls += 1
        raise StoreError("The server is gone.")

    assert logger.run_id
    with monkeypatch.context() as patch:
        patch.setattr(Store, "log_points", broken)
        patch.setattr("tracking.logger.BUFFERED_POINTS", 2)
        logger.log_metrics({"a": 0.0}, 0)
        with pytest.warns(UserWarning, match=r"The server is gone\. Training goes on"):
            logger.log_metrics({"a": 1.0}, 1)
        for step in range(2, 5):
            logger.log_metrics({"a": float(step)}, step)
        logger.flush()  # warned once, and tried again at every flush only
        assert calls == 2
        with pytest.warns(UserWarning, match="gone"):
            logger.finalize("failed")
        with pytest.raises(StoreError, match="gone"):
            logger.finalize("success")
    logger.finalize("success")
    assert history(logger, "a") == [(step, float(step)) for step in range(5)]
    assert status(logger) == "FINISHED"

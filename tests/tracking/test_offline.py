"""A run whose store is not there: it is trained on, and delivered later."""

import socket
import time
import warnings
from collections.abc import Callable

import pytest

from tracking.errors import StoreError
from tracking.journal import read_cursor, read_records
from tracking.logger import RunLogger
from tracking.shipping import find_folder, reconcile, settle
from tracking.store import Point, Store

pytestmark = pytest.mark.usefixtures("_impatient")


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("tracking.logger.PATIENCE", 0.2)
    monkeypatch.setattr("tracking.shipping.FIRST_DELAY", 0.01)


@pytest.fixture
def away(store: Store) -> Store:
    """A server that is not there, with the output folder of `store`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Store(f"http://127.0.0.1:{port}", store.output_folder)


@pytest.fixture
def offline(away: Store, make_logger: Callable[..., RunLogger]) -> RunLogger:
    """The logger of a run that was started without its store."""
    logger = make_logger(away)
    with pytest.warns(UserWarning, match=r"does not answer\. The run starts without it"):
        assert len(logger.run_id) == 32
    return logger


def close(logger: RunLogger) -> None:
    with pytest.warns(UserWarning, match=rf"fontanel sync {logger.run_id}"):
        assert not logger.close("FINISHED")


def test_one_warning_and_training_goes_on(offline: RunLogger) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(5):
            offline.log_metrics({"val/mae": 1.0}, step)
            offline.release(offline.checkpoint())
            time.sleep(0.05)
        assert offline._shipper.failure is not None
        offline.flush()
    close(offline)
    assert read_cursor(offline.folder).run_id is None
    assert offline.folder.name == offline.run_id


def test_a_later_delivery_brings_the_whole_run(offline: RunLogger, away: Store, store: Store) -> None:
    offline.log_config("lr: 0.1\nhf_token: abc\n")
    for step in range(3):
        offline.log_metrics({"val/mae": float(step)}, step)
    close(offline)
    assert find_folder(away, "scratch-holdout-0-r0-s0") == offline.folder
    assert settle(store, offline.folder)
    run = store.find_run("scratch-holdout-0-r0-s0")
    assert run.run_id != offline.run_id
    assert (run.study, run.status, run.tags["arm"]) == ("study", "FINISHED", "scratch")
    assert store.client.get_run(run.run_id).data.params == {"lr": "0.1", "hf_token": "<redacted>"}
    history = store.client.get_metric_history(run.run_id, "val/mae")
    journal = [record for record, _ in read_records(offline.folder) if isinstance(record, Point)]
    assert [(p.step, p.value, p.timestamp) for p in history] == [
        (p.step, p.value, round(p.time * 1e3)) for p in journal
    ]
    assert store.download(run.run_id, "config.yaml").read_text() == "lr: 0.1\nhf_token: <redacted>\n"
    for reference in (run.run_id, offline.run_id, str(store.folder(run.run_id))):
        assert find_folder(store, reference) == offline.folder
    assert reconcile(store) == []


def test_it_is_resumed_by_either_id_and_stays_one_run(
    offline: RunLogger, store: Store, make_logger: Callable[..., RunLogger]
) -> None:
    offline.log_metrics({"val/mae": 0.0}, 0)
    close(offline)
    settle(store, offline.folder)
    run_id = store.find_run("scratch-holdout-0-r0-s0").run_id
    for step, reference in enumerate((offline.run_id, run_id), start=1):
        again = make_logger(run_id=reference)
        again.log_metrics({"val/mae": -1.0}, 0)
        again.log_metrics({"val/mae": float(step)}, step)
        assert again.close("FINISHED")
    assert store.find_run("scratch-holdout-0-r0-s0").run_id == run_id
    history = store.client.get_metric_history(run_id, "val/mae")
    assert [(point.step, point.value) for point in history] == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_a_store_that_comes_back_during_the_training(offline: RunLogger, store: Store) -> None:
    assert offline.run_id
    offline._shipper.delivery.store = store
    offline.log_metrics({"val/mae": 0.0}, 0)
    assert offline.close("FINISHED")
    assert store.find_run("scratch-holdout-0-r0-s0").status == "FINISHED"


def test_a_server_that_fails_at_the_start(
    away: Store, make_logger: Callable[..., RunLogger], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "answers", lambda store: True)
    logger = make_logger(away)
    with pytest.warns(UserWarning, match=r"Could not start run .* The run starts without it"):
        assert logger.run_id
    close(logger)


def test_a_start_that_is_refused_for_good_is_an_error(
    away: Store, make_logger: Callable[..., RunLogger], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> str:
        raise StoreError("Study 'study' was deleted.")

    monkeypatch.setattr(Store, "answers", lambda store: True)
    monkeypatch.setattr(Store, "start_run", refuse)
    with pytest.raises(StoreError, match="was deleted"):
        make_logger(away).run_id  # noqa: B018


def test_a_server_that_takes_calls_and_never_answers(store: Store, make_logger: Callable[..., RunLogger]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        logger = make_logger(Store(f"http://127.0.0.1:{silent.getsockname()[1]}", store.output_folder))
        start = time.monotonic()
        with pytest.warns(UserWarning, match="does not answer"):
            assert len(logger.run_id) == 32
        assert time.monotonic() - start < 10
        logger.log_metrics({"val/mae": 1.0}, 0)
        logger.release()
        start = time.monotonic()
        close(logger)
        assert time.monotonic() - start < 10

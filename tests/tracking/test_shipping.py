import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tracking.errors import StoreError
from tracking.journal import (
    Cursor,
    Journal,
    Record,
    RunStart,
    read_cursor,
    read_records,
    undelivered,
    write_cursor,
    write_start,
)
from tracking.shipping import JOURNAL_TAG, Delivery, Shipper
from tracking.store import Point, Store


def points(key: str, *steps: int) -> list[Record]:
    return [Point(key, step, step / 7, 1_700_000_000 + step / 3) for step in range(*steps)]


RECORDS: list[Record] = [
    {"params": {"lr": "0.1"}},
    *points("train/loss", 2300),
    {"status": "FAILED"},
    {"status": "RUNNING"},
    *points("val/mae", 5),
    {"artifact": "report.html", "folder": "reports"},
    *points("train/loss", 2300, 2310),
    {"status": "FINISHED"},
]


@pytest.fixture
def folder(store: Store) -> Path:
    """Folder of a run that the store has, with nothing in its journal."""
    tags = {"arm": "scratch", JOURNAL_TAG: "f" * 32}
    folder = store.folder(store.start_run("study", "run", tags))
    Journal(folder).close()
    write_start(folder, RunStart("study", "run", tags))
    write_cursor(folder, Cursor(folder.name))
    (folder / "report.html").write_text("<p>")
    return folder


def write(folder: Path, records: Sequence[Record]) -> int:
    journal = Journal(folder)
    journal.append(records)
    journal.close()
    return journal.size


class Calls:
    """Writes down what is asked of stores, and fails where it is told to.

    Args:
        patch: To put it in the place of the methods of all stores.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[str, int]] = []
        self.failing: dict[int, StoreError] = {}  # by number of the call
        self.failure: StoreError | None = None  # of all calls
        self.lost_answer = False  # whether a call that fails has done its work before
        for name in ("log_points", "log_params", "log_artifact", "set_status"):
            patch.setattr(Store, name, self._watched(name, getattr(Store, name)))

    def _watched(self, name: str, method: Callable[..., bool | None]) -> Callable[..., bool | None]:
        def call(store: Store, run_id: str, *arguments: Any) -> bool | None:
            answer, failure = None, self.failing.get(len(self.sent), self.failure)
            self.sent.append((name, len(arguments[0]) if name == "log_points" else 1))
            if failure is None or self.lost_answer:
                answer = method(store, run_id, *arguments)
            if failure is not None:
                raise failure
            return answer

        return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Calls:
    monkeypatch.setattr("tracking.shipping.FIRST_DELAY", 0.01)
    return Calls(monkeypatch)


@pytest.fixture
def shipper(store: Store, folder: Path) -> Iterator[Shipper]:
    shipper = Shipper(Delivery(store, folder))
    shipper.start()
    yield shipper
    shipper.finish(0)
    shipper.join(10)
    assert not shipper.is_alive()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def stored(store: Store, folder: Path) -> list[tuple[str, int, float]]:
    run_id = str(read_cursor(folder).run_id)
    keys = store.client.get_run(run_id).data.metrics
    history = [point for key in keys for point in store.client.get_metric_history(run_id, key)]
    return sorted((point.key, point.step, point.value) for point in history)


def journaled(folder: Path) -> list[tuple[str, int, float]]:
    return sorted((r.key, r.step, r.value) for r, _ in read_records(folder) if isinstance(r, Point))


def assert_all_there(store: Store, folder: Path) -> None:
    assert stored(store, folder) == journaled(folder)
    run = store.client.get_run(str(read_cursor(folder).run_id))
    assert (run.info.status, run.data.params) == ("FINISHED", {"lr": "0.1"})
    assert store.download(run.info.run_id, "reports/report.html").read_text() == "<p>"
    assert undelivered(folder) == 0


ORDER = [
    ("log_params", 1),
    ("log_points", 1000),
    ("log_points", 1000),
    ("log_points", 300),
    ("set_status", 1),
    ("set_status", 1),
    ("log_points", 5),
    ("log_artifact", 1),
    ("log_points", 10),
    ("set_status", 1),
]


def test_everything_in_order_and_a_thousand_at_a_time(store: Store, folder: Path, calls: Calls) -> None:
    size = write(folder, RECORDS)
    Delivery(store, folder).everything()
    assert calls.sent == ORDER
    assert read_cursor(folder) == Cursor(folder.name, size, size)
    assert_all_there(store, folder)
    Delivery(store, folder).everything()
    assert calls.sent == ORDER, "nothing is sent again"


@pytest.mark.parametrize("lost_answer", [False, True])
def test_interrupted_at_any_record_it_goes_on_there(
    lost_answer: bool, store: Store, folder: Path, calls: Calls
) -> None:
    write(folder, RECORDS)
    calls.lost_answer = lost_answer
    calls.failing = {2 * number: StoreError("away", permanent=False) for number in range(len(ORDER))}
    for _ in ORDER:
        with pytest.raises(StoreError, match="away"):
            Delivery(store, folder).everything()
    Delivery(store, folder).everything()
    assert calls.sent[1::2] + calls.sent[-1:] == [*ORDER, ORDER[-1]][: len(calls.sent[1::2]) + 1]
    assert_all_there(store, folder)


def test_a_chunk_is_announced_before_it_is_sent(store: Store, folder: Path, calls: Calls) -> None:
    write(folder, RECORDS[:1])
    start = Delivery(store, folder)
    start.everything()
    end = write(folder, RECORDS[1:501])
    write(folder, RECORDS[501:])
    calls.failure = StoreError("away", permanent=False)
    with pytest.raises(StoreError, match="away"):
        start.chunk(end)
    assert read_cursor(folder) == Cursor(folder.name, start.cursor.sent, end)
    with pytest.raises(StoreError, match="away"):
        Delivery(store, folder).chunk(end - 1)
    assert read_cursor(folder).sending == end, "it may have arrived all the same"


def test_killed_between_sending_and_confirming_stores_nothing_twice(store: Store, folder: Path, calls: Calls) -> None:
    write(folder, RECORDS)
    delivery = Delivery(store, folder)
    more = True
    while more:
        before = delivery.cursor
        more = delivery.chunk(10**9)
        if more:
            write_cursor(folder, Cursor(before.run_id, before.sent, delivery.cursor.sent))
            delivery = Delivery(store, folder)
            assert delivery.chunk(10**9)
    assert len(calls.sent) == 2 * len(ORDER)
    assert_all_there(store, folder)


def test_numbers_that_are_none_arrive(store: Store, folder: Path) -> None:
    write(folder, [Point("val/größe 量", step, value, 1e9) for step, value in enumerate((math.nan, math.inf, 5e-324))])
    Delivery(store, folder).everything()
    none, infinite, small = stored(store, folder)
    assert math.isnan(none[2])
    assert infinite[2] > 1e308
    assert small[2] == 5e-324


def test_what_is_refused_for_good_is_remembered_and_the_rest_goes_on(store: Store, folder: Path, calls: Calls) -> None:
    write(folder, RECORDS)
    calls.failing = {2: StoreError("No such thing.", permanent=True)}
    delivery = Delivery(store, folder)
    delivery.everything()
    assert delivery.refused == ["No such thing."]
    assert calls.sent == ORDER
    assert sorted(set(journaled(folder)) - set(stored(store, folder))) == [
        (point.key, point.step, point.value) for point in RECORDS[1001:2001] if isinstance(point, Point)
    ]


def test_a_file_that_is_gone_holds_nothing_back(store: Store, folder: Path) -> None:
    write(folder, RECORDS)
    (folder / "report.html").unlink()
    delivery = Delivery(store, folder)
    delivery.everything()
    assert len(delivery.refused) == 1
    assert "report.html is gone" in delivery.refused[0]
    assert stored(store, folder) == journaled(folder)


def test_a_deleted_run_refuses_everything_and_says_so(store: Store, folder: Path) -> None:
    write(folder, RECORDS[-3:])
    store.client.delete_run(folder.name)
    delivery = Delivery(store, folder)
    delivery.everything()
    assert len(delivery.refused) == 2
    assert undelivered(delivery.folder) == 0


def test_nothing_beyond_what_was_released(store: Store, folder: Path, calls: Calls, shipper: Shipper) -> None:
    first = write(folder, [*RECORDS[:1], *points("a", 1500)])
    second = write(folder, points("a", 1500, 1510))
    size = write(folder, [{"status": "FINISHED"}])
    time.sleep(0.1)
    assert calls.sent == []
    shipper.release(first)
    wait_until(lambda: shipper.delivery.cursor.sent == first)
    shipper.release(second - 1)
    shipper.release(first)
    wait_until(lambda: shipper.delivery.cursor.sent > first)
    time.sleep(0.05)
    assert first < read_cursor(folder).sending < second
    assert [number for _, number in calls.sent] == [1, 1000, 500, 9]
    shipper.release(size)
    assert shipper.finish(20)
    assert stored(store, folder) == journaled(folder)


def test_a_store_that_comes_back_gets_everything_once(
    store: Store, folder: Path, calls: Calls, shipper: Shipper
) -> None:
    calls.failing = {number: StoreError("away", permanent=False) for number in (0, 1, 2, 5, 7, 8, 12)}
    calls.lost_answer = True
    for start in range(0, len(RECORDS), 400):
        shipper.release(write(folder, RECORDS[start : start + 400]))
    assert shipper.finish(20)
    assert shipper.failure is None
    assert not shipper.is_alive()
    assert_all_there(store, folder)


def test_the_end_waits_no_longer_than_its_patience(folder: Path, calls: Calls, shipper: Shipper) -> None:
    calls.failure = StoreError("away", permanent=False)
    shipper.release(write(folder, RECORDS))
    began = time.monotonic()
    assert not shipper.finish(0.3)
    assert 0.3 <= time.monotonic() - began < 3
    assert shipper.failure is calls.failure
    shipper.join(5)
    assert not shipper.is_alive(), "the lock of the run is free now: another process may deliver it"


def test_the_end_waits_as_long_as_there_is_progress(
    store: Store, folder: Path, shipper: Shipper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracking.shipping.CHUNK", 100)
    monkeypatch.setattr(Store, "log_points", lambda *arguments: time.sleep(0.2))
    shipper.release(write(folder, points("a", 800)))
    assert shipper.finish(1.2)

"""What is done about runs whose process, or whose store, went away."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tracking.errors import StoreError
from tracking.journal import (
    Cursor,
    Journal,
    Record,
    RunStart,
    read_cursor,
    read_records,
    write_cursor,
    write_start,
)
from tracking.shipping import JOURNAL_TAG, find_folder, reconcile, run_folders, settle
from tracking.store import Point, Store

Held = Callable[[Path], AbstractContextManager[None]]
TOKEN = "a1b2c3d4" * 4
POINTS: list[Record] = [Point("val/mae", step, float(step), 1e9) for step in range(3)]


def start_run(store: Store, records: list[Record], *, online: bool = True, token: str = TOKEN, name: str = "x") -> Path:
    """Leave behind what a process does that started a run, with or without the store, and died."""
    tags = {JOURNAL_TAG: token, "arm": "scratch"}
    run_id = store.start_run("study", name, tags) if online else None
    journal = Journal(store.folder(run_id or token))
    journal.append(records)
    journal.close()
    write_start(journal.folder, RunStart("study", name, tags))
    write_cursor(journal.folder, Cursor(run_id))
    return journal.folder


def status(store: Store, folder: Path) -> str:
    return str(store.client.get_run(str(read_cursor(folder).run_id)).info.status)


def steps(store: Store, folder: Path) -> list[int]:
    return [p.step for p in store.client.get_metric_history(str(read_cursor(folder).run_id), "val/mae")]


def all_runs(store: Store) -> list[str]:
    ids = [experiment.experiment_id for experiment in store.client.search_experiments()]
    return [run.info.run_id for run in store.client.search_runs(ids)]


def test_a_dead_run_without_an_end_has_failed(store: Store) -> None:
    folder = start_run(store, [*POINTS, {"status": "RUNNING"}])
    assert settle(store, folder)
    assert status(store, folder) == "FAILED"
    assert steps(store, folder) == [0, 1, 2]
    before = list(read_records(folder))
    assert settle(store, folder)
    assert list(read_records(folder)) == before, "it has an end now"


@pytest.mark.parametrize("end", ["FINISHED", "KILLED", "FAILED"])
def test_a_run_with_an_end_keeps_it(end: str, store: Store) -> None:
    folder = start_run(store, [*POINTS, {"status": end}])
    assert settle(store, folder)
    assert status(store, folder) == end
    assert sum(isinstance(record, dict) for record, _ in read_records(folder)) == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_run_that_a_process_works_on_is_left_to_it(store: Store, held: Held) -> None:
    folder = start_run(store, POINTS)
    with held(folder):
        assert not settle(store, folder)
        assert steps(store, folder) == []
    assert len(list(read_records(folder))) == 3
    assert settle(store, folder)


def test_the_lock_is_free_after_a_store_failed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = start_run(store, POINTS)

    def away(*arguments: object) -> None:
        raise StoreError("away", permanent=False)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "log_points", away)
        with pytest.raises(StoreError, match="away"):
            settle(store, folder)
    assert settle(store, folder)
    assert status(store, folder) == "FAILED"


def test_a_run_started_without_the_store_is_started_now(store: Store) -> None:
    folder = start_run(store, [*POINTS, {"status": "FINISHED"}], online=False)
    assert all_runs(store) == []
    assert settle(store, folder)
    (run_id,) = all_runs(store)
    run = store.find_run("x")
    assert (run.run_id, run.study, run.status) == (run_id, "study", "FINISHED")
    assert run.tags["arm"] == "scratch"
    assert store.folder(run_id).is_symlink()
    assert store.folder(run_id).resolve() == folder.resolve()
    assert run_folders(store) == [folder], "one run, by whichever id"


def test_a_start_whose_answer_got_lost_starts_no_second_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = start_run(store, POINTS, online=False)
    start = Store.start_run

    def lose(*arguments: object) -> str:
        start(*arguments)  # type: ignore[arg-type]
        raise StoreError("no answer", permanent=False)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "start_run", lose)
        with pytest.raises(StoreError, match="no answer"):
            settle(store, folder)
    assert read_cursor(folder).run_id is None
    (run_id,) = all_runs(store)
    assert settle(store, folder)
    assert all_runs(store) == [run_id] == [read_cursor(folder).run_id]
    assert steps(store, folder) == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_reconciling_tells_alive_dead_and_elsewhere(store: Store, held: Held) -> None:
    dead = start_run(store, POINTS, token="1" * 32)
    alive = start_run(store, POINTS, token="2" * 32)
    offline = start_run(store, POINTS, online=False, token="3" * 32)
    start_run(store, [{"status": "FINISHED"}], token="4" * 32, name="fine")
    elsewhere = store.start_run("study", "elsewhere", {})
    settle(store, find_folder(store, "fine"))
    contents = {path: path.read_bytes() for path in store.output_folder.glob("runs/*/*") if path.is_file()}
    with held(alive):
        expected = [("alive", alive), ("dead", dead), ("dead", offline), ("elsewhere", None)]
        for repair in (False, True):
            found = reconcile(store, repair=repair)
            assert sorted((left.state, left.folder) for left in found[:-1]) == sorted(expected[:-1])
            assert (found[-1].state, found[-1].folder, found[-1].run.run_id) == ("elsewhere", None, elsewhere)
            assert [left.undelivered > 0 for left in found] == [True, True, True, False]
            assert [left.run is None for left in found] == [left.folder == offline for left in found]
            if not repair:
                assert {path: path.read_bytes() for path in contents} == contents
                assert len(all_runs(store)) == 4
        assert (status(store, dead), status(store, alive), status(store, offline)) == ("FAILED", "RUNNING", "FAILED")
        assert store.find_run("elsewhere").status == "RUNNING"
        assert steps(store, dead) == steps(store, offline) == [0, 1, 2]
        assert {left.state for left in reconcile(store)} == {"alive", "elsewhere"}


def test_one_that_cannot_be_settled_holds_up_no_other(store: Store) -> None:
    folders = [start_run(store, POINTS, token=str(number) * 32) for number in range(3)]
    damaged = sorted(folders)[0]
    (damaged / "journal.jsonl").write_text("[1\n")
    found = {left.folder: left.problem for left in reconcile(store)}
    assert "is damaged in the line that ends at byte 3" in str(found.pop(damaged))
    assert found == dict.fromkeys(sorted(folders)[1:])
    assert [status(store, folder) for folder in sorted(folders)] == ["RUNNING", "FAILED", "FAILED"]


def test_a_folder_answers_to_ids_prefix_name_and_path(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = start_run(store, POINTS, online=False, name="scratch-holdout-0-r0-s0")
    start_run(store, POINTS, name="another", token="b" * 32)
    with monkeypatch.context() as patch:
        patch.delattr(Store, "find_run")  # the store is not asked
        references = [TOKEN, TOKEN[:6], "scratch-holdout-0-r0-s0", str(folder), f"{folder}/", os.path.relpath(folder)]
        assert [find_folder(store, reference) for reference in references] == [folder] * 6
        settle(store, folder)
        run_id = str(read_cursor(folder).run_id)
        references += [run_id, run_id[:20], str(store.folder(run_id))]
        assert [find_folder(store, reference) for reference in references] == [folder] * 9


def test_an_ambiguous_name_is_refused_wherever_the_runs_are(store: Store) -> None:
    folders = [start_run(store, POINTS), start_run(store, POINTS, online=False, token="b" * 32)]
    with pytest.raises(StoreError, match="stands for 2 runs") as caught:
        find_folder(store, "x")
    for folder in folders:
        assert str(folder) in str(caught.value)
        assert find_folder(store, str(folder)) == folder


def test_runs_that_are_not_here(store: Store) -> None:
    run_id = store.start_run("study", "elsewhere", {})
    with pytest.raises(StoreError, match="started on another machine"):
        find_folder(store, run_id)
    for reference in ("absent", TOKEN[:5], "no/such/folder"):
        with pytest.raises(StoreError, match="There is no run"):
            find_folder(store, reference)


def test_a_folder_that_is_no_run_cannot_be_delivered(store: Store) -> None:
    with pytest.raises(StoreError, match="is not the folder of a run"):
        settle(store, store.folder("nothing"))

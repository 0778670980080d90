import errno
import math
import os
import signal
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
    hold,
    journal_size,
    last_status,
    read_cursor,
    read_records,
    read_start,
    write_cursor,
    write_start,
)
from tracking.store import Point

RECORDS: list[Record] = [
    {"params": {"model.Größe": "ü\u2028\n", "lr": "0.1"}},
    Point("val/mae", 3, 0.1 + 0.2, 1_700_000_000.123456),
    Point("val/größe 量", 4, 5e-324, 1_700_000_001.0),
    {"artifact": "model/weights.safetensors", "folder": None},
    {"status": "FINISHED"},
]


def records(folder: Path, *between: int) -> list[Record]:
    return [record for record, _ in read_records(folder, *between)]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "run")


def test_records_come_back_as_they_were(journal: Journal) -> None:
    journal.append(RECORDS[:2])
    journal.append(RECORDS[2:])
    journal.sync()
    journal.close()
    assert records(journal.folder) == RECORDS
    assert journal.size == journal_size(journal.folder) == journal.path.stat().st_size


def test_numbers_that_are_none_survive(journal: Journal) -> None:
    journal.append([Point("a", step, value, 0.0) for step, value in enumerate((math.nan, math.inf, -math.inf))])
    first, *others = records(journal.folder)
    assert isinstance(first, Point)
    assert math.isnan(first.value)
    assert others == [Point("a", 1, math.inf, 0.0), Point("a", 2, -math.inf, 0.0)]


def test_only_its_owner_reads_it(journal: Journal) -> None:
    write_start(journal.folder, RunStart("study", "run", {}))
    write_cursor(journal.folder, Cursor())
    lock = hold(journal.folder)
    assert lock is not None
    assert {path.stat().st_mode & 0o777 for path in journal.folder.iterdir()} == {0o600}
    assert journal.folder.stat().st_mode & 0o777 == 0o700
    lock.release()


def test_a_last_line_cut_anywhere_is_dropped(journal: Journal) -> None:
    journal.append(RECORDS[:2])
    kept = journal.size
    journal.append(RECORDS[2:3])
    journal.close()
    content = journal.path.read_bytes()
    for end in range(kept, len(content)):
        journal.path.write_bytes(content[:end])
        assert records(journal.folder) == RECORDS[:2], "before it is opened, too"
        again = Journal(journal.folder)
        assert again.size == kept
        again.append(RECORDS[3:4])
        again.close()
        assert records(journal.folder) == [*RECORDS[:2], RECORDS[3]]


@pytest.mark.parametrize("whole", [[], RECORDS])
@pytest.mark.parametrize("length", [65_535, 65_536, 65_537, 200_000])
def test_a_torn_line_may_be_long(length: int, whole: list[Record], journal: Journal) -> None:
    journal.append(whole)
    with journal.path.open("ab") as file:
        file.write(b"x" * length)
    assert Journal(journal.folder).size == journal.size
    assert records(journal.folder) == whole


@pytest.mark.parametrize("written", [0, 1, 30, 60])
def test_a_full_disk_takes_all_or_nothing(written: int, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.append(RECORDS[:1])
    write, room = os.write, written

    def full(descriptor: int, content: memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(descriptor, content[:room])
        room -= done
        return done

    before = journal.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            journal.append(RECORDS[1:])
    assert journal.path.read_bytes() == before
    assert journal.size == len(before)
    journal.append(RECORDS[1:])
    assert records(journal.folder) == RECORDS


def test_a_disk_that_writes_little_by_little(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:7]))
    journal.append(RECORDS)
    assert records(journal.folder) == RECORDS


def test_what_comes_after_an_offset_is_cut(journal: Journal) -> None:
    sizes = []
    for record in RECORDS:
        journal.append([record])
        sizes.append(journal.size)
    journal.cut(sizes[-1] + 1000)
    assert records(journal.folder) == RECORDS
    journal.cut(sizes[1])
    journal.append(RECORDS[4:])
    assert records(journal.folder) == [*RECORDS[:2], RECORDS[4]]
    assert journal.size == journal_size(journal.folder)


def test_reading_between_two_offsets(journal: Journal) -> None:
    journal.append(RECORDS)
    ends = [end for _, end in read_records(journal.folder)]
    assert ends[-1] == journal.size
    starts = [0, *ends]
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            assert records(journal.folder, starts[first], starts[last]) == RECORDS[first:last]
    assert records(journal.folder, ends[0], ends[2] - 1) == RECORDS[1:2], "a record that ends later is left out"


@pytest.mark.parametrize("line", ["", "{", "1", '["a", 1]', "\0\0\0", '"text"'])
def test_a_damaged_line_is_named(line: str, journal: Journal) -> None:
    journal.append(RECORDS[:1])
    with journal.path.open("a") as file:
        file.write(f"{line}\n")
    end = journal.path.stat().st_size
    with pytest.raises(StoreError, match=rf"journal\.jsonl is damaged in the line that ends at byte {end}"):
        records(journal.folder)
    assert records(journal.folder, 0, journal.size) == RECORDS[:1]


def test_a_folder_without_a_journal(tmp_path: Path) -> None:
    assert records(tmp_path) == []
    assert journal_size(tmp_path) == 0
    assert last_status(tmp_path) is read_start(tmp_path) is None
    assert read_cursor(tmp_path) == Cursor(None, 0, 0)


def test_the_last_status_counts(journal: Journal) -> None:
    journal.append([{"status": "FAILED"}, Point("a", 0, 1.0, 0.0), {"status": "RUNNING"}, {"params": {}}])
    assert last_status(journal.folder) == "RUNNING"


def test_start_and_cursor_come_back(tmp_path: Path) -> None:
    start = RunStart("age2hie/größe", "scratch", {"arm": "量", "journal": "f" * 32})
    write_start(tmp_path, start)
    assert read_start(tmp_path) == start
    for cursor in (Cursor(None, 0, 10), Cursor("e" * 32, 10, 20)):
        write_cursor(tmp_path, cursor)
        assert read_cursor(tmp_path) == cursor


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_one_process_has_the_lock_and_a_kill_frees_it(
    tmp_path: Path, held: Callable[[Path], AbstractContextManager[None]]
) -> None:
    with held(tmp_path):
        assert hold(tmp_path) is None
    lock = hold(tmp_path)
    assert lock is not None
    assert hold(tmp_path) is None, "not twice in one process either"
    lock.release()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_while_appending_leaves_whole_records(tmp_path: Path, run_in_fork: Callable[..., int]) -> None:
    def work() -> None:
        journal = Journal(tmp_path)
        write = os.write

        def die(descriptor: int, content: memoryview) -> int:
            write(descriptor, content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        journal.append(RECORDS[:1])
        os.write = die
        journal.append(RECORDS[1:])

    assert run_in_fork(work) == -signal.SIGKILL
    Journal(tmp_path).append([{"status": "FAILED"}])
    found = records(tmp_path)
    assert found[0] == RECORDS[0]
    assert found[1:-1] == RECORDS[1 : len(found) - 1]
    assert found[-1] == {"status": "FAILED"}

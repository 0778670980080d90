"""The journal of a run: every point and every file it leaves, on this machine, before anything is sent anywhere.

A run's folder holds `run.json` (study, name, tags), `journal.jsonl` (one record a line, in order) and `journal.sent`
(how far the store has it). A line is a point `[key, step, value, time]` or one of `{"params": {NAME: VALUE}}`,
`{"artifact": PATH, "folder": FOLDER}` and `{"status": STATUS}`.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tracking.errors import StoreError
from tracking.files import make_private_folder, read_json, write_json
from tracking.store import Point

Record = Point | dict[str, Any]

JOURNAL = "journal.jsonl"
_RUN, _CURSOR, _LOCK = "run.json", "journal.sent", "run.lock"


@dataclass(frozen=True)
class RunStart:
    """What a run is started with, kept beside its journal so that it can be started later, too.

    Args:
        study: Name of the MLflow experiment.
        name: Name of the run.
        tags: Its tags.
    """

    study: str
    name: str
    tags: dict[str, str]


@dataclass(frozen=True)
class Cursor:
    """How far a journal has been delivered.

    Args:
        run_id: MLflow's id of the run, None while no store has it.
        sent: Offset in bytes up to which the store has everything.
        sending: Offset up to which it may have everything: what was on its way when the process was killed.
    """

    run_id: str | None = None
    sent: int = 0
    sending: int = 0


class Journal:
    """An append-only file of records; what a kill cut in the middle of a line is dropped when it is opened again.

    Args:
        folder: Folder of the run; made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = make_private_folder(folder)
        self.path = folder / JOURNAL
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.size = _end_of_last_line(self.path)
        os.ftruncate(self._file, self.size)

    def append(self, records: Iterable[Record]) -> None:
        """Write records to the end; all of them, or none where the disk refuses.

        Names of points are names that MLflow takes: they hold nothing that JSON would escape.

        Raises:
            OSError: If the disk refuses them.
        """
        content = memoryview("".join(f"{_line(record)}\n" for record in records).encode())
        start, self.size = self.size, self.size + len(content)
        try:
            while content:
                content = content[os.write(self._file, content) :]
        except OSError:
            self.size = start
            os.ftruncate(self._file, start)
            raise

    def sync(self) -> None:
        """Make sure that what was written is on the disk."""
        os.fsync(self._file)

    def cut(self, offset: int) -> None:
        """Drop everything after an offset that `size` was once."""
        if offset < self.size:
            os.ftruncate(self._file, offset)
            self.size = offset

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_records(folder: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[Record, int]]:
    """Yield the whole records between two offsets, each with the offset of its end.

    Args:
        folder: Folder of the run.
        start: Offset of a record.
        stop: Offset to stop at; the end of the file by default.

    Raises:
        StoreError: If a whole line is no record: the file was damaged.
    """
    path = folder / JOURNAL
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            start += len(line)
            if not line.endswith(b"\n") or (stop is not None and start > stop):
                return
            yield _record(line, path, start), start


def journal_size(folder: Path) -> int:
    """Return the size in bytes of a run's journal, 0 without one."""
    path = folder / JOURNAL
    return path.stat().st_size if path.is_file() else 0


def undelivered(folder: Path) -> int:
    """Return how many bytes of a run's journal the store does not have."""
    return journal_size(folder) - read_cursor(folder).sent


def last_status(folder: Path) -> str | None:
    """Return the last status that a journal holds, None if it holds none."""
    status = None
    for record, _ in read_records(folder):
        if isinstance(record, dict):
            status = record.get("status", status)
    return status


def write_start(folder: Path, start: RunStart) -> None:
    """Keep what a run is started with."""
    write_json(folder / _RUN, asdict(start))


def read_start(folder: Path) -> RunStart | None:
    """Return what a run was started with, None if the folder is no run of ours."""
    path = folder / _RUN
    return RunStart(**read_json(path)) if path.is_file() else None


def write_cursor(folder: Path, cursor: Cursor) -> None:
    """Keep how far a journal has been delivered."""
    write_json(folder / _CURSOR, asdict(cursor))


def read_cursor(folder: Path) -> Cursor:
    """Return how far a journal has been delivered."""
    path = folder / _CURSOR
    return Cursor(**read_json(path)) if path.is_file() else Cursor()


def hold(folder: Path, patience: float = 0.0) -> FileLock | None:
    """Take the lock of a run, which the system frees when this process ends.

    Args:
        folder: Folder of the run.
        patience: Seconds to wait for another process: loader processes of a killed training live on for some.

    Returns:
        None if another process has it.
    """
    lock = FileLock(folder / _LOCK, timeout=patience, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def _line(record: Record) -> str:
    if not isinstance(record, Point):
        return json.dumps(record)
    if math.isfinite(record.value):  # five times as fast as json, which writes the same; a step waits for it
        return f'["{record.key}", {record.step}, {record.value!r}, {record.time!r}]'
    return json.dumps([record.key, record.step, record.value, record.time])


def _record(line: bytes, path: Path, end: int) -> Record:
    try:
        value = json.loads(line)
        return Point(*value) if isinstance(value, list) else dict(value)
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{path} is damaged in the line that ends at byte {end}. What comes before it is whole; delete that line "
            "to go on with the rest."
        ) from error


def _end_of_last_line(path: Path) -> int:
    """Return the offset after the last newline."""
    end = path.stat().st_size
    with path.open("rb") as file:
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            if (found := file.read(end - start).rfind(b"\n")) >= 0:
                return start + found + 1
            end = start
    return 0

"""Delivery of journals to the store: in batches, in order, once, and never in the way of a training."""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tracking.errors import StoreError
from tracking.images import read_withheld, write_withheld
from tracking.journal import (
    Cursor,
    Journal,
    Record,
    hold,
    journal_size,
    last_status,
    read_cursor,
    read_records,
    read_start,
    undelivered,
    write_cursor,
)
from tracking.store import MINIMUM_PREFIX, Point, RunInfo, Store

CHUNK = 1000  # points in one request: as many as MLflow takes
JOURNAL_TAG = "journal"  # names the journal of a run, so that a run whose start got no answer is found again
SHARE = 0.1  # of its time that the delivering thread works while a training runs beside it: both need the interpreter
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds between two tries; doubled each time
ENDED = ("FINISHED", "FAILED", "KILLED")


class Delivery:
    """Brings the journal of one run to the store, as far as it is told; interrupted anywhere, it goes on there.

    A chunk is announced in the cursor before it is sent and confirmed after, so that a resumed training knows which
    points the store may have already. A chunk sent twice, because its confirmation was lost, is stored once: MLflow
    keeps one of two points that agree in everything, and a journal never changes a point.

    Args:
        store: Where to.
        folder: Folder of the run.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.folder = folder
        self.cursor = read_cursor(folder)
        self.refused: list[str] = []  # what the store will never take, and why

    def everything(self) -> None:
        """Deliver all there is.

        Raises:
            StoreError: If the store does not take it now; what was delivered stays delivered.
        """
        while self.chunk(journal_size(self.folder)):
            pass

    def chunk(self, limit: int) -> bool:
        """Deliver the next chunk up to an offset, and tell whether there was one.

        Raises:
            StoreError: If the store does not take it now.
        """
        if self.cursor.run_id is None:
            self._start()
        records, end = self._next(limit)
        if not records:
            return False
        self._move(replace(self.cursor, sending=max(end, self.cursor.sending)))
        try:
            self._send(str(self.cursor.run_id), records)
        except StoreError as error:
            if not error.permanent:
                raise
            self.refused.append(str(error))
        self._move(replace(self.cursor, sent=end))
        return True

    def _start(self) -> None:
        """Start a run that no store has yet, unless an earlier try did and got no answer."""
        start = read_start(self.folder)
        if start is None:
            raise StoreError(f"{self.folder} is not the folder of a run.", permanent=True)
        journal = start.tags[JOURNAL_TAG]
        run_id = self.store.find_tagged(start.study, JOURNAL_TAG, journal)
        run_id = run_id or self.store.start_run(start.study, start.name, start.tags)
        link = self.store.folder(run_id)
        if link != self.folder and not link.exists():
            link.symlink_to(self.folder.name)  # known by either id from now on
        self._move(replace(self.cursor, run_id=run_id))

    def _next(self, limit: int) -> tuple[list[Record], int]:
        """Return points as long as there are points, or else one other record."""
        records: list[Record] = []
        end = self.cursor.sent
        for record, offset in read_records(self.folder, end, limit):
            if records and not isinstance(record, Point):
                break
            records.append(record)
            end = offset
            if not isinstance(record, Point) or len(records) == CHUNK:
                break
        return records, end

    def _send(self, run_id: str, records: list[Record]) -> None:
        points = [record for record in records if isinstance(record, Point)]
        if points:
            self.store.log_points(run_id, points)
            return
        record: dict[str, Any] = records[0]  # type: ignore[assignment]
        if "params" in record:
            self.store.log_params(run_id, record["params"])
        elif "artifact" in record:
            path = self.folder / record["artifact"]
            if not path.exists():
                raise StoreError(f"{path} is gone, so run {run_id} stays without it.", permanent=True)
            if not self.store.log_artifact(run_id, path, record["folder"]):
                self.refused.append(kept_text([path.name], self.store.shown_uri, run_id))
        else:
            self.store.set_status(run_id, record["status"])

    def _move(self, cursor: Cursor) -> None:
        write_cursor(self.folder, cursor)
        self.cursor = cursor


def kept_text(names: Sequence[str], uri: str, run_id: str) -> str:
    """Say that images of participants were not sent, and how to send them."""
    return (
        f"{', '.join(names)} not sent to {uri}: images of participants leave this machine only when that is asked for. "
        f"Send with: fontanel sync {run_id} --share-images"
    )


def send_withheld(store: Store, folder: Path) -> int:
    """Send the images that a run has kept back, and return how many there were.

    Raises:
        StoreError: If the store does not take them now.
    """
    run_id, kept = str(read_cursor(folder).run_id or folder.name), read_withheld(folder)
    for number, one in enumerate(kept):
        store.log_artifact(run_id, folder / one.path, one.folder)
        write_withheld(folder, kept[number + 1 :])
    return len(kept)


class Shipper(threading.Thread):
    """Delivers a growing journal in the background, up to the offset that was released last.

    Nothing is printed and nothing raised here: `failure` holds what the store said last, None while it answers.

    Args:
        delivery: Of the run.
    """

    def __init__(self, delivery: Delivery) -> None:
        super().__init__(name="fontanel-shipper", daemon=True)
        self.delivery = delivery
        self.failure: StoreError | OSError | None = None
        self._limit = 0
        self._given_up = False
        self._wake = threading.Event()
        self._ended = threading.Event()

    def release(self, offset: int) -> None:
        """Allow delivery up to an offset of the journal."""
        self._limit = max(self._limit, offset)
        self._wake.set()

    def finish(self, patience: float) -> bool:
        """Deliver what was released, and tell whether all of it arrived; nothing is sent after this.

        Args:
            patience: Seconds without progress after which it is given up.
        """
        self._ended.set()
        self._wake.set()
        sent, since = self.delivery.cursor.sent, time.monotonic()
        while self.is_alive() and time.monotonic() - since < patience:
            self.join(0.05)
            if self.delivery.cursor.sent > sent:
                sent, since = self.delivery.cursor.sent, time.monotonic()
        self._given_up = True  # the run's lock is freed now: another process may deliver the rest
        self._wake.set()
        return self.delivery.cursor.sent >= self._limit

    def run(self) -> None:
        """Deliver until told to finish."""
        delay = FIRST_DELAY
        while not self._given_up:
            self._wake.clear()
            start = time.monotonic()
            try:
                more = self.delivery.chunk(self._limit)
            except (StoreError, OSError) as error:
                self.failure = error
                self._wake.wait(delay)
                delay = min(2 * delay, LONGEST_DELAY)
                continue
            if more:
                self.failure = None
                delay = FIRST_DELAY
                self._ended.wait((time.monotonic() - start) * (1 / SHARE - 1))
            elif self._ended.is_set() and self.delivery.cursor.sent >= self._limit:
                return
            else:
                self._wake.wait()


@dataclass(frozen=True)
class Leftover:
    """A run that is not over in the store, or not wholly there.

    Args:
        run: The run as the store has it; None while no store has it.
        folder: Its folder here, None if there is none.
        state: `alive` while a process works on it, `dead` when that process is gone, `elsewhere` if it has no folder
            here, so that nobody here can tell.
        undelivered: Bytes of its journal that had not reached the store.
        problem: Why it could not be settled, None where it was, or was not to be.
    """

    run: RunInfo | None
    folder: Path | None
    state: Literal["alive", "dead", "elsewhere"]
    undelivered: int
    problem: str | None = None


def settle(store: Store, folder: Path) -> bool:
    """Deliver the journal of a run whose process is gone; a run without an end is set to FAILED.

    Returns:
        False if a process is still at work on it.

    Raises:
        StoreError: If the store does not take it now.
    """
    lock = hold(folder)
    if lock is None:
        return False
    try:
        if last_status(folder) not in ENDED:
            journal = Journal(folder)
            try:
                journal.append([{"status": "FAILED"}])
                journal.sync()
            finally:
                journal.close()
        Delivery(store, folder).everything()
    finally:
        lock.release()
    return True


def run_folders(store: Store) -> list[Path]:
    """Return the folders of all runs that were started on this machine."""
    return sorted({path.resolve() for path in (store.output_folder / "runs").glob("*") if read_start(path)})


def find_folder(store: Store, reference: str) -> Path:
    """Return the folder of a run; the store is only asked where no folder here answers to the reference.

    Args:
        store: The store the run is in.
        reference: Run id, prefix of one of at least six characters, name of a run, or folder of a run.

    Raises:
        StoreError: If no run, or more than one, fits, or the run has no folder here.
    """
    named = Path(reference).resolve() if os.sep in reference else None
    folders = run_folders(store)
    fitting = [folder for folder in folders if folder == named or _answers_to(folder, reference)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        listed = "\n".join(f"  {folder}" for folder in fitting)
        raise StoreError(f"'{reference}' stands for {len(fitting)} runs; give the folder of one of them:\n{listed}")
    run = store.find_run(reference)  # says so when there are several, or none
    found = store.folder(run.run_id)
    if not found.is_dir():
        raise StoreError(
            f"Run {run.run_id} has no folder {found}: it was started on another machine, or with another --output-dir."
        )
    return found


def _answers_to(folder: Path, reference: str) -> bool:
    start, run_id = read_start(folder), read_cursor(folder).run_id or ""
    by_prefix = len(reference) >= MINIMUM_PREFIX and (folder.name.startswith(reference) or run_id.startswith(reference))
    return by_prefix or (start is not None and start.name == reference)


def reconcile(store: Store, repair: bool = True) -> list[Leftover]:
    """Find the runs that a crash or a dead server left behind and, unless told otherwise, settle them.

    Args:
        store: The store to look through.
        repair: Deliver journals, and set runs whose process is gone to FAILED.
    """
    found: list[Leftover] = []
    running = {run.run_id: run for run in store.running_runs()}
    for folder in run_folders(store):
        missing = undelivered(folder)
        run = running.pop(read_cursor(folder).run_id or "", None)
        if run is None and not missing:
            continue
        lock = hold(folder)
        if lock is not None:
            lock.release()
        found.append(Leftover(run, folder, "dead" if lock else "alive", missing))
    found += [Leftover(run, None, "elsewhere", 0) for run in running.values()]
    return [_settled(store, leftover) for leftover in found] if repair else found


def _settled(store: Store, leftover: Leftover) -> Leftover:
    if leftover.state == "dead" and leftover.folder is not None:
        try:
            settle(store, leftover.folder)
        except StoreError as error:
            return replace(leftover, problem=str(error))  # the others may fare better
    return leftover

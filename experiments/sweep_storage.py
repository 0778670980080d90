"""Where the trials of a sweep are kept: sqlite beside the runs, a journal file on network filesystems, or PostgreSQL.

sqlite is put in WAL mode: at its defaults, eight workers finish a sixth of the trials that one does.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy import event

from tracking.addresses import sqlite_path
from tracking.errors import StoreError
from tracking.filesystems import network_filesystem
from tracking.redaction import redact_uri

optuna.logging.set_verbosity(optuna.logging.WARNING)  # a worker says how far the sweep has come

JOURNAL = "journal://"
STORAGE = "FONTANEL_STORAGE"  # environment variable
DATABASE, LOG = "optuna.db", "optuna.journal"
LOCK_TIMEOUT = 120.0  # seconds; making the tables takes about one
BUSY_TIMEOUT = 60_000  # milliseconds that a writer waits for another


def storage_uri(explicit: str | None, folder: Path) -> str:
    """Return the storage of a sweep: the given one, else `FONTANEL_STORAGE`, else a file in the output folder.

    Args:
        explicit: Value of `--storage`; an address with a password belongs in the environment, where nobody reads it.
        folder: Output folder; on a network filesystem the file is a journal, for the locks of sqlite do not hold there.

    Raises:
        StoreError: The given one is sqlite on a network filesystem, or no storage.
    """
    explicit = explicit or os.environ.get(STORAGE)
    if explicit is None:
        on_network = network_filesystem(folder) is not None
        return f"{JOURNAL}{folder / LOG}" if on_network else f"sqlite:///{folder / DATABASE}"
    if explicit.startswith(JOURNAL):
        return f"{JOURNAL}{Path(explicit.removeprefix(JOURNAL)).expanduser().absolute()}"
    if (path := sqlite_path(explicit)) is not None:
        if kind := network_filesystem(path):
            raise StoreError(
                f"{path} would lie on a network filesystem ({kind}), where the locks of sqlite do not hold. Give "
                f"--storage {JOURNAL}{path.with_suffix('.journal')}, or postgresql://..."
            )
        return f"sqlite:///{path}"
    if explicit.startswith("postgresql"):
        return explicit
    raise StoreError(
        f"'{redact_uri(explicit)}' is no storage of a sweep. Give sqlite:///FILE.db, {JOURNAL}FILE, or postgresql://..."
    )


@dataclass(frozen=True)
class SweepStorage:
    """An open storage.

    Args:
        uri: Its address.
        backend: As Optuna has it.
        lock: Held while a trial changes its state. sqlite has no rows that are locked for an update, so two workers
            would take the same trial; elsewhere it does nothing.
    """

    uri: str
    backend: BaseStorage
    lock: AbstractContextManager[Any] = field(default_factory=nullcontext)


def open_storage(uri: str) -> SweepStorage:
    """Open a storage; whoever comes first makes it, and the others wait.

    Args:
        uri: What `storage_uri` returned.

    Raises:
        StoreError: It cannot be opened.
    """
    if uri.startswith(JOURNAL):
        log = Path(uri.removeprefix(JOURNAL))
        log.parent.mkdir(parents=True, exist_ok=True)
        journal = JournalFileBackend(str(log), lock_obj=JournalFileSymlinkLock(str(log)))
        return SweepStorage(uri, JournalStorage(journal))
    path = sqlite_path(uri)
    try:
        if path is None:
            return SweepStorage(uri, get_storage(RDBStorage(uri, engine_kwargs={"pool_pre_ping": True})))
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=LOCK_TIMEOUT)
        with lock:
            storage = RDBStorage(uri, engine_kwargs={"connect_args": {"timeout": BUSY_TIMEOUT / 1000}})
            event.listen(storage.engine, "connect", _configure)
            storage.engine.dispose()  # connections that were opened before the listener
        return SweepStorage(uri, get_storage(storage), lock)  # one cache for all who ask
    except Exception as error:
        raise StoreError(f"The storage {redact_uri(uri)} cannot be opened: {_first_line(error)}") from error


def _configure(connection: Any, record: Any) -> None:  # noqa: ANN401 - of the database's driver
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", f"busy_timeout={BUSY_TIMEOUT}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""What `fontanel doctor` looks at: one function for each check."""

import argparse
import os
import shutil
import sqlite3
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datamodules.folders import cache_folder
from experiments.options import open_store
from tracking.addresses import output_folder, sqlite_path, tracking_uri
from tracking.errors import StoreError
from tracking.redaction import redact_text, redact_uri

if TYPE_CHECKING:
    from tracking.shipping import Leftover

Status = Literal["ok", "warning", "error", "not checked"]

GIGABYTE = 10**9
LITTLE_SPACE, NO_SPACE = 5 * GIGABYTE, GIGABYTE // 2  # bytes; a checkpoint of a wide network is a tenth of the latter
SERVER_TIMEOUT = 3.0  # seconds
LOCK_TIMEOUT = 5.0  # seconds; a training writes for milliseconds
MAXIMUM_ENTRIES = 200  # newest entries of the cache that are looked into
MAXIMUM_NAMES = 5  # broken entries that are named


@dataclass(frozen=True)
class Check:
    """What one check found.

    Args:
        name: What was looked at.
        status: Only `error` makes the installation unfit.
        message: What was found, and what to do about it.
    """

    name: str
    status: Status
    message: str


def attempt(name: str, check: Callable[[], Check]) -> Check:
    """Return what a check finds; where it cannot look because of the machine or the store, that is what was found."""
    try:
        return check()
    except (OSError, RuntimeError, StoreError) as error:
        return Check(name, "error", redact_text(str(error)).strip() or type(error).__name__)


def check_store(arguments: argparse.Namespace) -> Check:
    """Look whether the store is there, whole, and can be written; one that is not there is not made."""
    folder = output_folder(arguments.output_dir)
    uri = tracking_uri(arguments.tracking_uri, folder)
    if uri.startswith(("http://", "https://")):
        return _check_server(uri)
    if path := sqlite_path(uri):
        return _check_sqlite(path, arguments)
    return _check_database(uri, arguments)


def _check_server(uri: str) -> Check:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=SERVER_TIMEOUT) as answer:
            answer.read()
    except (OSError, HTTPException) as error:
        advice = "Start it, or name another store with --tracking-uri."
        return Check("store", "error", f"The server {uri} does not answer: {error}. {advice}")
    return Check("store", "ok", f"The server {uri} answers.")


def _check_sqlite(path: Path, arguments: argparse.Namespace) -> Check:
    if not path.is_file() or path.stat().st_size == 0:
        return Check("store", "not checked", f"no store yet at {path}")
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=LOCK_TIMEOUT)) as connection:
            complaint = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.Error as error:
        complaint = str(error)
    if complaint != "ok":
        return Check("store", "error", f"{path} is damaged ({complaint}). Move it away and bring back a copy.")
    open_store(arguments)
    try:
        with closing(sqlite3.connect(path, timeout=LOCK_TIMEOUT, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            runs = connection.execute("SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'").fetchone()[0]
            connection.execute("ROLLBACK")
            mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    except sqlite3.Error as error:
        return Check("store", "error", f"{path} cannot be written: {error}.")
    if mode != "wal":
        return Check(
            "store", "warning", f"{path} is in mode '{mode}' and not WAL: who reads it stops a training's writes."
        )
    return Check("store", "ok", f"{path}: {count_text(runs, 'run')}, whole and writable.")


def _check_database(uri: str, arguments: argparse.Namespace) -> Check:
    import sqlalchemy

    shown = redact_uri(uri)
    try:
        engine = sqlalchemy.create_engine(uri)
        try:
            is_made = sqlalchemy.inspect(engine).has_table("runs")
        finally:
            engine.dispose()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        return Check("store", "error", f"{shown} cannot be reached: {redact_text(str(error)).splitlines()[0]}")
    if not is_made:
        return Check("store", "not checked", f"no store yet at {shown}")
    open_store(arguments)
    return Check("store", "ok", f"{shown} answers.")


def check_runs(leftovers: Sequence["Leftover"], *, repaired: bool) -> Check:
    """Say what was found of runs that have not ended, or have not arrived in the store.

    Args:
        leftovers: What `tracking.shipping.reconcile` returned.
        repaired: Whether it was told to repair.
    """
    states = [leftover.state for leftover in leftovers]
    dead = [leftover for leftover in leftovers if leftover.state == "dead" and leftover.problem is None]
    problems = [
        f"{run_name(leftover)} could not be settled: {leftover.problem}" for leftover in leftovers if leftover.problem
    ]
    parts = [*problems]
    if alive := states.count("alive"):
        parts.append(f"{count_text(alive, 'run')} at work on this machine")
    if dead:
        size = sum(leftover.undelivered for leftover in dead)
        names = ", ".join(run_name(leftover) for leftover in dead)
        what = f"{count_text(len(dead), 'run')} left behind by processes that are gone ({names})"
        remedy = "without --check-only, doctor settles them"
        parts.append(f"{what}: settled, {size} bytes delivered" if repaired else f"{what}, {size} bytes: {remedy}")
    if elsewhere := states.count("elsewhere"):
        parts.append(
            f"{count_text(elsewhere, 'run')} without a folder here, which only the machine that started it can judge"
        )
    status: Status = "warning" if problems or (dead and not repaired) else "ok"
    return Check("runs", status, "; ".join(parts) or "none is left over")


def run_name(leftover: "Leftover") -> str:
    """Return the name of a run, or of its folder while no store has it."""
    if leftover.run is not None:
        return leftover.run.name
    return "?" if leftover.folder is None else leftover.folder.name


def check_cache() -> Check:
    """Look whether the cache can be written, and whether its newest entries are whole."""
    folder = cache_folder().absolute()
    place = existing_parent(folder)
    if not os.access(place, os.W_OK | os.X_OK) or not place.is_dir():
        return Check("cache", "error", f"{folder} cannot be written. Set FONTANEL_CACHE to a folder of yours.")
    free = size_text(shutil.disk_usage(place).free)
    entries = []
    for path in folder.glob("volumes/*/*.npy"):
        with suppress(FileNotFoundError):  # another process may make room meanwhile
            entries.append((path.stat(), path))
    entries.sort(key=lambda entry: -entry[0].st_mtime_ns)
    size = size_text(sum(status.st_size for status, _ in entries))
    found = f"{folder}: {len(entries)} {'entry' if len(entries) == 1 else 'entries'}, {size}; {free} free"
    if broken := [path for _, path in entries[:MAXIMUM_ENTRIES] if not _is_whole(path)]:
        more = f" and {len(broken) - MAXIMUM_NAMES} more" if len(broken) > MAXIMUM_NAMES else ""
        names = ", ".join(str(path.relative_to(folder)) for path in broken[:MAXIMUM_NAMES]) + more
        return Check("cache", "warning", f"{found}. Broken: {names}. They are computed again when they are needed.")
    return Check("cache", "ok", found)


def _is_whole(path: Path) -> bool:
    """Say whether an entry has a readable header and as many bytes as that promises."""
    import numpy as np

    from datamodules.upkeep import READ_ERRORS

    try:
        array = np.lib.format.open_memmap(path, mode="r")
        return path.stat().st_size == array.offset + array.nbytes
    except FileNotFoundError:
        return True  # removed meanwhile, which breaks nothing
    except READ_ERRORS:
        return False


def check_disk(arguments: argparse.Namespace) -> Check:
    """Look for room for checkpoints in the output folder and for what is written on the way."""
    folders = {"the output folder": output_folder(arguments.output_dir), "temporary files": Path(tempfile.gettempdir())}
    free = {f"{meaning} ({path})": shutil.disk_usage(existing_parent(path)).free for meaning, path in folders.items()}
    least = min(free.values())
    found = ", ".join(f"{size_text(size)} free for {place}" for place, size in free.items())
    if least >= LITTLE_SPACE:
        return Check("disk", "ok", found)
    remedy = "Free some, name another folder with --output-dir, or set TMPDIR."
    return Check("disk", "error" if least < NO_SPACE else "warning", f"{found}. {remedy}")


def existing_parent(path: Path) -> Path:
    """Return the path, or the nearest folder above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def size_text(size: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{size / GIGABYTE:.1f} GB" if size >= GIGABYTE else f"{size / 10**6:.0f} MB"


def count_text(number: int, thing: str) -> str:
    """Return a number with its noun."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"

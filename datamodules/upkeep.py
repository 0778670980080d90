"""What the cache of preprocessed volumes holds: listed, verified, limited and cleared, without what computes it."""

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import math
import mmap
import os
import re
import time
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from tracking.progress import progress

CACHE_VERSION = 1  # raise it whenever the same file and parameters give other voxels
COMPUTED_WITH = ("torchio", "SimpleITK", "nibabel", "numpy", "scipy", "torch")
IN_USE = 3600.0  # seconds since its last use in which no limit removes an entry: a training may be reading it
CLOCK_SKEW = 60.0  # seconds by which the clocks of machines that share a folder may differ
LOOKS_PER_LIMIT = 64  # a process that writes looks at the folder once for every such part of the limit
# What reading a damaged entry raises; the last two where a byte of an array's header has changed.
READ_ERRORS = (OSError, EOFError, ValueError, KeyError, TypeError, tokenize.TokenError, SyntaxError)
_NOT_OURS = {errno.EACCES, errno.EPERM, errno.EROFS}

_ENTRY_FILE = re.compile(r"[0-9a-f]{64}\.(npy|json)")
_NOTE = re.compile(r"[0-9a-f]{64}\.json")
_TEMPORARY = re.compile(r"[0-9a-f]{16}\.tmp")

_written: Counter[Path] = Counter()  # bytes since this process last looked at a folder
_warned: set[Path] = set()

HalfArray = npt.NDArray[np.float16]
Affine = npt.NDArray[np.float64]


class CacheError(ValueError):
    """A cache that cannot be read or changed; says which one and what to do."""


class CacheWarning(UserWarning):
    """A cache that cannot be kept below its limit."""


class EntryFacts(NamedTuple):
    """What is beside an entry's array: where it begins in its file in bytes, its shape (C, D, H, W), and its grids."""

    offset: int
    shape: tuple[int, ...]
    affine: Affine
    native_shape: tuple[int, int, int]
    native_affine: Affine
    array_sha256: str


@dataclass(frozen=True)
class Entry:
    """An entry in the folder.

    Args:
        path: Of its array.
        size: Of its array and facts, in bytes.
        used: When it was last used, in seconds since the epoch.
        is_whole: Whether both files are there.
    """

    path: Path
    size: int
    used: float
    is_whole: bool


@dataclass(frozen=True)
class Amount:
    """How many, and their bytes together."""

    number: int
    size: int


@dataclass(frozen=True)
class Recipe:
    """The entries of one preprocessing; without one where the facts cannot be read."""

    preprocessing: dict[str, Any] | None
    entries: Amount
    last_used: float


@dataclass(frozen=True)
class Summary:
    """What a cache holds.

    Args:
        entries: Whole ones.
        recipes: The same by preprocessing, the one used last first.
        outdated: Entries that were made by other versions, which are of no use to these.
        unfinished: Files of writers that are at work or were killed.
        oldest_use: In seconds since the epoch, as is `newest_use`; none without entries.
    """

    entries: Amount
    recipes: tuple[Recipe, ...]
    outdated: Amount
    unfinished: Amount
    oldest_use: float | None
    newest_use: float | None


@dataclass(frozen=True)
class Verification:
    """What a verification removed.

    Args:
        entries: How many were looked at.
        damaged: Arrays that were not what was written.
        damaged_size: Bytes of these entries.
        leftovers: Files of writers that were killed.
    """

    entries: int
    damaged: tuple[Path, ...]
    damaged_size: int
    leftovers: Amount


@dataclass(frozen=True)
class Eviction:
    """What a limit removed, and the bytes of the entries that are left."""

    removed: Amount
    size: int


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of what computes an entry."""
    return {name: importlib.metadata.version(name) for name in COMPUTED_WITH}


# Entries, as those who write and read them see them -------------------------------------------------------------------


def entry_lock(folder: Path, key: str) -> FileLock:
    """Return the lock that lets one process at a time write or remove entries below a prefix.

    The system frees the lock of a process that dies. Its file is never removed: who waits for it would be left alone
    with a lock that nobody else can see.
    """
    path = folder / "locks" / f"{key[:2]}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def read_facts(path: Path) -> EntryFacts:
    """Read what is beside an entry's array, and whether the array is of that form; its hash is not looked at here.

    Args:
        path: Of its array.

    Raises:
        READ_ERRORS: It is not there, or not what was written.
    """
    facts = json.loads(path.with_suffix(".json").read_bytes())
    array = np.lib.format.open_memmap(path, mode="r")
    if array.dtype != np.float16 or list(array.shape) != facts["shape"] or not array.flags.c_contiguous:
        raise ValueError(f"{path}: another shape or type than its facts say.")
    num_x, num_y, num_z = facts["native_shape"]
    affine, native_affine = np.array(facts["affine"]), np.array(facts["native_affine"])
    return EntryFacts(array.offset, array.shape, affine, (num_x, num_y, num_z), native_affine, facts["array_sha256"])


def map_array(path: Path, facts: EntryFacts) -> HalfArray:
    """Map an entry's array copy-on-write; three times as fast as numpy, which reads its header again.

    Args:
        path: Of its array.
        facts: What is known of it.

    Raises:
        READ_ERRORS: It is not there, or shorter.
    """
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    return np.frombuffer(mapped, np.float16, math.prod(facts.shape), facts.offset).reshape(facts.shape)


def mark_used(path: Path) -> None:
    """Note that an entry is used now: the time of its facts is the time of its last use.

    Args:
        path: Of its array.
    """
    try:
        os.utime(path.with_suffix(".json"))
    except OSError as error:
        if error.errno not in _NOT_OURS:  # a cache that may only be read is read all the same
            raise


def keep_limit(folder: Path, written: int | None = None, since: float = math.inf) -> None:
    """Remove what a limit no longer leaves room for; costs one look for the limit's file where there is none.

    A cache above its limit stops no training: what keeps it there is a warning, once a process.

    Args:
        folder: The cache.
        written: Bytes that were just written: the folder is looked at once enough of them came together. None looks.
        since: What was used since this time (seconds since the epoch) is needed by the caller, and stays.
    """
    try:
        limit = read_limit(folder)
        if limit is None:
            return
        if written is not None:
            _written[folder] += written
            if _written[folder] < limit / LOOKS_PER_LIMIT:
                return
        _written[folder] = 0
        size = evict(folder, limit, since).size
    except CacheError as error:
        problem = f"{error} Until then, its limit is not kept."
    else:
        if size <= limit:
            return
        problem = (
            f"The cache {folder} holds {size / 1e9:,.1f} GB, above its limit of {limit / 1e9:,.1f} GB, because what is "
            "left is in use. It shrinks when that is over; 'fontanel cache --limit SIZE' sets another limit."
        )
    if folder not in _warned:
        _warned.add(folder)
        warnings.warn(problem, CacheWarning, stacklevel=3)


# The limit ------------------------------------------------------------------------------------------------------------


def read_limit(folder: Path) -> int | None:
    """Return the most bytes that entries may take, None without a limit.

    Raises:
        CacheError: The file of the limit cannot be read.
    """
    path = folder / "limit.json"
    with _explained(folder):
        try:
            limit = json.loads(path.read_bytes())["limit"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            limit = None
    if type(limit) is not int or limit < 1:
        remedy = "Set it again with 'fontanel cache --limit SIZE', or remove it with 'fontanel cache --limit none'."
        raise CacheError(f"{path} holds no limit. {remedy}")
    return limit


def write_limit(folder: Path, limit: int | None) -> None:
    """Set the limit for every process that uses this folder, or remove it.

    Args:
        folder: The cache.
        limit: Bytes; None for no limit.

    Raises:
        CacheError: The folder cannot be written.
    """
    path = folder / "limit.json"
    with _explained(folder):
        if limit is None:
            path.unlink(missing_ok=True)
            return
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"limit.{os.getpid()}.tmp"
        temporary.write_text(json.dumps({"limit": limit}), encoding="utf-8")
        temporary.replace(path)


def evict(folder: Path, limit: int, since: float = math.inf) -> Eviction:
    """Remove the least recently used entries until the others fit, but none that is in use.

    Args:
        folder: The cache.
        limit: Bytes.
        since: What was used since this time (seconds since the epoch) is in use, as is what was used in the last hour.

    Raises:
        CacheError: The folder cannot be read or changed.
    """
    with _explained(folder):
        entries = sorted(_entries(folder), key=lambda entry: entry.used)
        size = sum(entry.size for entry in entries)
        idle_since = min(time.time() - IN_USE, since - CLOCK_SKEW)
        freed: list[int] = []
        for entry in entries:
            if size <= limit or entry.used >= idle_since:
                break
            if (gone := _remove(folder, entry.path, idle_since)) is not None:
                size -= entry.size
                freed.append(gone)  # nothing where another process was faster
    return Eviction(_amount(size for size in freed if size), size)


# What `fontanel cache` does -------------------------------------------------------------------------------------------


def summarise(folder: Path) -> Summary:
    """Say what a cache holds.

    Raises:
        CacheError: The folder cannot be read.
    """
    groups: dict[str, list[Entry]] = {}
    outdated: list[int] = []
    unfinished: list[int] = []
    with _explained(folder):
        for entry in _entries(folder):
            if not entry.is_whole:
                unfinished.append(entry.size)
                continue
            if (facts := _facts(entry.path)) is None:
                continue
            groups.setdefault(json.dumps(facts.get("preprocessing")), []).append(entry)
            if _is_outdated(facts):
                outdated.append(entry.size)
        unfinished.extend(status.st_size for _, status in _files(folder / "volumes", _TEMPORARY))
    listed = [
        Recipe(json.loads(preprocessing), _amount(e.size for e in entries), max(e.used for e in entries))
        for preprocessing, entries in groups.items()
    ]
    times = [entry.used for entries in groups.values() for entry in entries]
    return Summary(
        entries=_amount(entry.size for entries in groups.values() for entry in entries),
        recipes=tuple(sorted(listed, key=lambda recipe: -recipe.last_used)),
        outdated=_amount(outdated),
        unfinished=_amount(unfinished),
        oldest_use=min(times, default=None),
        newest_use=max(times, default=None),
    )


def verify(folder: Path) -> Verification:
    """Compare every entry with its hash; remove what is damaged, and what killed writers have left.

    Raises:
        CacheError: The folder cannot be read or changed.
    """
    damaged: dict[Path, int] = {}
    leftovers: list[int] = []
    with _explained(folder):
        entries = _entries(folder)
        with progress("Verifying entries", len(entries)) as advance:
            for entry in entries:
                if _state(entry.path) != "whole":
                    with entry_lock(folder, entry.path.name):
                        state = _state(entry.path)  # a writer may have been at work
                        if state == "damaged":
                            damaged[entry.path] = _unlink(entry.path)
                        elif state == "half":
                            leftovers.append(_unlink(entry.path))
                advance(1)
        leftovers.extend(_remove_temporaries(folder))
    return Verification(len(entries), tuple(damaged), sum(damaged.values()), _amount(leftovers))


def clear(folder: Path, *, unused_for: float | None = None, outdated: bool = False) -> Amount:
    """Remove entries; without a choice all, with the remembered hashes of files and what killed writers have left.

    Args:
        folder: The cache.
        unused_for: Only those that were not used for so many seconds.
        outdated: Only those that were made by other versions.

    Returns:
        What was removed; the hashes and leftovers are part of its bytes alone.

    Raises:
        CacheError: The folder cannot be read or changed.
    """
    idle_since = math.inf if unused_for is None else time.time() - unused_for
    with _explained(folder):
        chosen = [entry for entry in _entries(folder) if entry.used < idle_since]
        if outdated:
            chosen = [entry for entry in chosen if (facts := _facts(entry.path)) is not None and _is_outdated(facts)]
        freed = [size for entry in chosen if (size := _remove(folder, entry.path, idle_since))]
        others: list[int] = []
        if unused_for is None and not outdated:
            others.extend(_remove_temporaries(folder))
            for file, status in _files(folder / "hashes", _NOTE):
                Path(file).unlink(missing_ok=True)
                others.append(status.st_size)
    return Amount(len(freed), sum(freed) + sum(others))


def _amount(sizes: Iterable[int]) -> Amount:
    listed = list(sizes)
    return Amount(len(listed), sum(listed))


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"The cache {folder} cannot be read or changed ({error.strerror}: {error.filename or folder})."
        remedy = "Ask its owner, or use one of yours" if error.errno in _NOT_OURS else "Check the disk and the name"
        raise CacheError(f"{problem} {remedy} (--folder, FONTANEL_CACHE).") from error


def _files(folder: Path, name: re.Pattern[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files in the folder's folders of two digits that bear such a name; others are nobody's business here.

    What another process removes meanwhile is left out.
    """
    for prefix in (f"{number:02x}" for number in range(256)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder / prefix) as listing:
            for item in listing:
                if name.fullmatch(item.name) and item.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        yield item.path, item.stat(follow_symlinks=False)


def _entries(folder: Path) -> list[Entry]:
    found: dict[str, dict[str, os.stat_result]] = {}
    for file, status in _files(folder / "volumes", _ENTRY_FILE):
        stem, _, suffix = file.rpartition(".")
        found.setdefault(stem, {})[suffix] = status
    entries = [_entry(Path(f"{stem}.npy"), statuses) for stem, statuses in found.items()]
    return [entry for entry in entries if entry.path.name.startswith(entry.path.parent.name)]


def _entry(path: Path, statuses: dict[str, os.stat_result]) -> Entry:
    size = sum(status.st_size for status in statuses.values())
    used = (statuses.get("json") or statuses["npy"]).st_mtime
    return Entry(path, size, used, is_whole=len(statuses) == 2)


def _facts(path: Path) -> dict[str, Any] | None:
    """Return the facts of an entry, none of them where they are damaged; None where the entry is gone."""
    try:
        facts = json.loads(path.with_suffix(".json").read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _is_outdated(facts: dict[str, Any]) -> bool:
    return facts.get("computed_with") != versions() or facts.get("cache_version") != CACHE_VERSION


def _state(path: Path) -> Literal["whole", "damaged", "half", "gone"]:
    if not path.exists() or not path.with_suffix(".json").exists():
        return "half" if path.exists() or path.with_suffix(".json").exists() else "gone"
    try:
        facts = read_facts(path)
        with path.open("rb") as stream:  # a bad sector is an error when it is read, and kills who maps it
            stream.seek(facts.offset)
            is_whole = hashlib.file_digest(stream, "sha256").hexdigest() == facts.array_sha256
    except PermissionError:
        raise
    except READ_ERRORS:
        return "damaged"
    return "whole" if is_whole else "damaged"


def _remove(folder: Path, path: Path, idle_since: float) -> int | None:
    """Remove an entry and return its bytes, 0 where another process did, None where it has been used since."""
    with entry_lock(folder, path.name):
        facts = path.with_suffix(".json")
        with contextlib.suppress(FileNotFoundError):
            used = (facts if facts.exists() else path).stat().st_mtime
            return _unlink(path) if used < idle_since else None
    return 0


def _unlink(path: Path) -> int:
    """Remove the files of an entry, the facts first: who comes in between computes it again."""
    freed = 0
    for file in (path.with_suffix(".json"), path):
        with contextlib.suppress(FileNotFoundError):
            size = file.stat().st_size
            file.unlink()
            freed += size
    return freed


def _remove_temporaries(folder: Path) -> list[int]:
    """Remove what killed writers have left and return the bytes of each file.

    Who writes a volume holds its lock; who writes a hash does so in an instant.
    """
    removed = []
    for file, status in _files(folder / "volumes", _TEMPORARY):
        with entry_lock(folder, Path(file).parent.name), contextlib.suppress(FileNotFoundError):
            Path(file).unlink()
            removed.append(status.st_size)
    for file, status in _files(folder / "hashes", _TEMPORARY):
        if status.st_mtime < time.time() - IN_USE:
            Path(file).unlink(missing_ok=True)
            removed.append(status.st_size)
    return removed

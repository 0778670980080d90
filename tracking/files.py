"""Files that are whole or not there, and readable by their owner only."""

import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typing_extensions import override


class HashingWriter(io.BufferedWriter):
    """A new file that knows the hash of what was written to it, as long as nobody seeks.

    Args:
        descriptor: Open file descriptor, closed with the file.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(io.FileIO(descriptor, "wb"))
        self._digest = hashlib.sha256()

    @override
    def write(self, buffer: Any) -> int:
        """Write bytes and add them to the hash."""
        self._digest.update(buffer)
        return super().write(buffer)

    def hexdigest(self) -> str:
        """Return the sha256 of all bytes written so far."""
        return self._digest.hexdigest()


def is_url(reference: str | Path) -> bool:
    """Tell whether a reference names something that is not on this machine.

    Examples:
        >>> is_url("https://host/best.ckpt"), is_url("s3:/bucket/best.ckpt"), is_url("folder/best.ckpt")
        (True, True, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", str(reference)) is not None  # a Path has made one slash of "//"


def make_private_folder(folder: Path) -> Path:
    """Make a folder and the missing ones above it, readable by their owner only, and return it."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    return folder


def write_file(target: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with temporary_file(target) as (file, temporary):
        file.write(content)
        sync(file)
        replace(temporary, target)


def write_json(target: Path, content: Any) -> None:  # noqa: ANN401 - JSON
    """Write a file of JSON whole or not at all; what JSON does not know is written as text."""
    write_file(target, f"{json.dumps(content, indent=1, ensure_ascii=False, default=str)}\n".encode())


def read_json(path: Path) -> Any:  # noqa: ANN401 - JSON
    """Return what a file of JSON holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def json_hash(content: Any) -> str:  # noqa: ANN401 - JSON
    """Return the sha256 of a value written as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def temporary_file(target: Path) -> Iterator[tuple[HashingWriter, Path]]:
    """Open a new file beside a target, on the same filesystem; it is gone afterwards unless it was renamed.

    Args:
        target: File that the new one shall become.

    Yields:
        The open file and its path.
    """
    descriptor, name = tempfile.mkstemp(
        dir=make_private_folder(target.parent), prefix=f".{target.name}.", suffix=".tmp"
    )
    try:
        with HashingWriter(descriptor) as file:
            yield file, Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def sync(file: HashingWriter) -> None:
    """Make sure that what was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def replace(temporary: Path, target: Path) -> None:
    """Rename a synced file to its target, and make sure that the renaming is on the disk."""
    os.replace(temporary, target)  # noqa: PTH105 - Path.replace would hide where a test injects a fault
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # without this two renames may reach the disk in the other order
    finally:
        os.close(folder)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that killed writers left in a folder of which this process is the only writer."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

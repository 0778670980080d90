"""Which files a folder holds, without following links out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from datamodules.schema import IMAGE_SUFFIXES


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder below one, and its files, as paths relative to it in the order of their names.

    Hidden files and folders are passed over, and links to folders are not followed.
    """
    for top, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(top).relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        yield prefix.rstrip("/"), [f"{prefix}{name}" for name in sorted(files) if not name.startswith(".")]


def linked_folders(folder: Path) -> list[str]:
    """Return the links to folders below a folder, which `walk` does not follow."""
    found = []
    for top, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [Path(top) / name for name in folders if (Path(top) / name).is_symlink()]
        found += [link.relative_to(folder).as_posix() for link in links]
    return found


def is_image(path: str) -> bool:
    """Tell whether a file has the suffix of an image."""
    return path.casefold().endswith(IMAGE_SUFFIXES)

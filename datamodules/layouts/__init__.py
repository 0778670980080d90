"""Where the rows of a cohort come from: a TSV or CSV file, or a folder in a layout that a reader here knows.

A layout is a module with `recognises`, `holder` and `find`, and a line in `LAYOUTS`. `fontanel table` writes what it
finds into a table; a folder can also be used as a table itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from datamodules.layouts import bids, bonbid, brainiac, monai, nnunet, pattern
from datamodules.layouts.found import Found, assemble
from datamodules.problems import CohortError
from datamodules.raw_table import RawTable, read_text

__all__ = ["LAYOUTS", "find_rows", "read_table", "recognise", "table_file"]


class Layout(Protocol):
    """The reader of a layout."""

    SUMMARY: str

    def recognises(self, table: Path) -> bool:
        """Tell whether a folder has the layout, or a file stands for such a folder."""

    def holder(self, table: Path) -> Path:
        """Return the file that stands for the table of a folder."""

    def find(self, table: Path) -> Found:
        """Find the images and clinical tables."""


# The first that recognises a folder reads it.
LAYOUTS: dict[str, Layout] = {"bonbid": bonbid, "bids": bids, "nnunet": nnunet, "monai": monai, "brainiac": brainiac}


def recognise(table: Path) -> str | None:
    """Return the name of the layout of a folder, or of the folder that a file stands for; None where there is none."""
    return next((name for name, layout in LAYOUTS.items() if layout.recognises(table)), None)


def find_rows(table: Path, layout: str, patterns: Sequence[str] = ()) -> Found:
    """Find what a folder holds in a given layout.

    Args:
        table: A folder, or a file that stands for one.
        layout: One of `LAYOUTS`, or `pattern`.
        patterns: Patterns of file names, for the layout `pattern`.

    Raises:
        CohortError: When it is not in that layout, or cannot be read.
    """
    if layout == "pattern":
        return pattern.find(table, patterns)
    if not LAYOUTS[layout].recognises(table):
        raise CohortError.single(f"{table} is not {LAYOUTS[layout].SUMMARY}. Choose another layout.", "unreadable")
    return LAYOUTS[layout].find(table)


def table_file(table: Path) -> Path:
    """Return what holds the rows of a table: the file itself, or what stands for it in a folder of a layout.

    Raises:
        CohortError: When there is no such file.
    """
    layout = recognise(table)
    if layout is not None:
        return LAYOUTS[layout].holder(table)
    if table.is_file():
        return table
    what = "folder is in no known layout" if table.is_dir() else "cohort table does not exist"
    known = "; ".join(layout.SUMMARY for layout in LAYOUTS.values())
    raise CohortError.single(
        f"{table}: the {what}. Name a .tsv or .csv file, or a folder that is {known}. For any other folder, "
        "`fontanel table DIR --layout pattern PATTERN` writes a table.",
        "missing_file",
    )


def read_table(table: Path) -> RawTable:
    """Read the rows of a cohort in any of the layouts, as text.

    What a reader leaves out although it should be there becomes a problem, because nobody reads its remarks here.

    Args:
        table: A TSV or CSV file, or a folder of a layout, or the file that stands for such a folder.

    Raises:
        CohortError: When nothing can be read at all.
    """
    layout = recognise(table)
    if layout is None:
        return read_text(table_file(table))
    raw = assemble(find_rows(table, layout), layout)
    problems = [remark.problem for remark in raw.remarks if remark.problem is not None]
    return replace(raw, problems=[*raw.problems, *problems])

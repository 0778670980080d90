"""A table as text: read from a TSV or CSV file, with every fault of its form, before any column has a meaning."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from datamodules.problems import CohortError, Problem, ProblemCode
from datamodules.schema import Column

MAX_TABLE_BYTES = 256 * 2**20
SAFE_NAME = re.compile(r"[\w][\w.+=-]*")


@dataclass(frozen=True)
class Remark:
    """What the reader of a layout has left out or noticed.

    Args:
        what: A file, a folder or a participant.
        reason: Why it is left out, or what is odd about it; the same words for all that have the same reason.
        left_out: Whether it is absent from the table.
        problem: What `fontanel verify` says of it where a folder is used as a table, without anybody reading remarks.
    """

    what: str
    reason: str
    left_out: bool = True
    problem: Problem | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "what", printable(self.what))


@dataclass(frozen=True)
class RawTable:
    """A table as text, before any column has a meaning.

    Args:
        path: The table file, or what stands for it in a folder whose images are the rows: sidecar and manifest lie
            beside it.
        name: Name of the dataset when nothing else gives one.
        columns: The header.
        cells: One list of cells per row, as long as the header.
        numbers: The data row that each row comes from, counted from 1.
        problems: What is wrong with the text.
        described: Columns whose meaning the layout knows.
        remarks: What the layout's reader has left out or noticed.
        layout: Name of the layout that the rows were read from; "" for a table file.
    """

    path: Path
    name: str
    columns: list[str]
    cells: list[list[str]]
    numbers: list[int]
    problems: list[Problem]
    described: tuple[Column, ...] = ()
    remarks: tuple[Remark, ...] = ()
    layout: str = ""

    def values(self, column: str) -> list[str]:
        """Return the cells of a column."""
        index = self.columns.index(column)
        return [row[index] for row in self.cells]

    def to_tsv(self) -> str:
        """Return the text of a TSV file with these rows."""
        text = io.StringIO(newline="")
        csv.writer(text, delimiter="\t", lineterminator="\n").writerows([self.columns, *self.cells])
        return text.getvalue()


def printable(path: str) -> str:
    """Return a path with question marks for what is no text."""
    shown = path.encode("utf-8", "replace").decode("utf-8")
    return "".join("?" if unicodedata.category(mark) == "Cc" else mark for mark in shown)


def safe_name(text: str) -> str:
    r"""Return an identifier without spaces and other marks that no identifier may have.

    >>> safe_name("p 01 (left)"), safe_name("Jose\u0301")
    ('p-01-left', 'José')
    """
    return re.sub(r"[^\w.+=-]+", "-", unicodedata.normalize("NFC", text)).strip("-")


def read_text(path: Path) -> RawTable:
    """Read a TSV or CSV file; the header tells which of tab, semicolon and comma separates the cells.

    Raises:
        CohortError: When it is too large, no text or no table, or has no rows.
    """
    return _parse(path, _decode(path))


def _decode(path: Path) -> str:
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise CohortError.single(f"{path.name} is larger than {MAX_TABLE_BYTES >> 20} MiB; is it a table?", "too_large")
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise CohortError.single(
            f"{path.name} is not UTF-8 text (line {line}). Export it again as a TSV or CSV file in UTF-8.", "unreadable"
        ) from error


def _parse(path: Path, text: str) -> RawTable:
    header, _, _ = text.lstrip("\r\n").partition("\n")
    delimiter = max("\t;,", key=header.count)  # the first of equals: a tab before the others
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        lines = [[cell.strip() for cell in row] for row in rows]
    except csv.Error as error:
        raise CohortError.single(
            f"{path.name} cannot be read as a table ({error}). Export it again as TSV or CSV.", "unreadable"
        ) from error
    lines = [line for line in lines if any(line)]
    if len(lines) < 2:
        message = f"{path.name} has no data rows. Write a header and one row per image set."
        raise CohortError.single(message, "empty_table")
    columns, cells = lines[0], lines[1:]
    problems = [*_header_problems(columns), *_length_problems(columns, cells)]
    width = len(columns)
    cells = [(row + [""] * width)[:width] for row in cells]
    return RawTable(path, path.stem, columns, cells, list(range(1, len(cells) + 1)), problems)


def _header_problems(columns: list[str]) -> list[Problem]:
    problems = []
    for position, name in enumerate(columns, start=1):
        if not name:
            message = f"Column {position} has no name. Name it in the header, or remove it."
            problems.append(Problem(None, None, None, "unknown_column", message))
        elif name in columns[: position - 1]:
            message = "The name appears twice in the header. Rename or remove one of the two."
            problems.append(Problem(None, None, name, "unknown_column", message))
    return problems


def _length_problems(columns: list[str], cells: list[list[str]]) -> list[Problem]:
    problems = []
    for number, row in enumerate(cells, start=1):
        # Spreadsheets leave empty cells at the end of a line; they mean nothing.
        if len(row) < len(columns) or any(row[len(columns) :]):
            code: ProblemCode = "missing_column" if len(row) < len(columns) else "unknown_column"
            message = f"The row has {len(row)} cells, the header {len(columns)}. Look for a missing or stray separator."
            problems.append(Problem(number, None, None, code, message))
    return problems

"""Where the rows of a cohort come from: a TSV or CSV file, a BIDS folder, or the table of BrainIAC."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.problems import CohortError, Problem, ProblemCode
from datamodules.schema import IMAGE_SUFFIXES

MAX_TABLE_BYTES = 256 * 2**20
BIDS_IMAGE = "t1w"
BRAINIAC_IMAGE = "image"
SAFE_NAME = re.compile(r"[\w][\w.+=-]*")


@dataclass(frozen=True)
class RawTable:
    """A table as text, before any column has a meaning.

    Args:
        path: The table file.
        name: Name of the dataset when nothing else gives one.
        columns: The header.
        cells: One list of cells per row, as long as the header.
        numbers: The data row that each row comes from, counted from 1.
        problems: What is wrong with the text.
    """

    path: Path
    name: str
    columns: list[str]
    cells: list[list[str]]
    numbers: list[int]
    problems: list[Problem]

    def values(self, column: str) -> list[str]:
        """Return the cells of a column."""
        index = self.columns.index(column)
        return [row[index] for row in self.cells]


def table_file(table: Path) -> Path:
    """Return the file that holds the rows: `participants.tsv` of a BIDS folder, else the table itself.

    Raises:
        CohortError: When there is no such file.
    """
    path = table / "participants.tsv" if table.is_dir() else table
    if path.is_file():
        return path
    what = "folder has no participants.tsv" if table.is_dir() else "cohort table does not exist"
    raise CohortError.single(f"{path}: the {what}. Name a .tsv or .csv file, or a BIDS folder.", "missing_file")


def read_table(table: Path) -> RawTable:
    """Read the rows of a cohort in any of the layouts, as text.

    Args:
        table: A TSV or CSV file (told apart by its header), or a BIDS folder.

    Raises:
        CohortError: When nothing can be read at all.
    """
    path = table_file(table)
    raw = _parse(path, _decode(path))
    if path.name == "participants.tsv" and "participant_id" in raw.columns and not _has_images(raw):
        return _from_bids(raw)
    if "pat_id" in raw.columns and not _has_images(raw):
        return _from_brainiac(raw)
    return raw


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


def _has_images(raw: RawTable) -> bool:
    return any(cell.casefold().endswith(IMAGE_SUFFIXES) for row in raw.cells for cell in row)


def _from_brainiac(raw: RawTable) -> RawTable:
    participants = raw.values("pat_id")
    dates = raw.values("scandate") if "scandate" in raw.columns else [""] * len(participants)
    names = ["_".join(part for part in parts if part) for parts in zip(participants, dates, strict=True)]
    cells = [[*row, f"{name}.nii.gz"] for row, name in zip(raw.cells, names, strict=True)]
    return replace(raw, columns=[*raw.columns, BRAINIAC_IMAGE], cells=cells)


def _from_bids(raw: RawTable) -> RawTable:
    folder = raw.path.resolve().parent
    sessions = raw.values("session_id") if "session_id" in raw.columns else None
    cells: list[list[str]] = []
    numbers: list[int] = []
    for index, participant in enumerate(raw.values("participant_id")):
        for session, image in _bids_images(folder, participant, sessions[index] if sessions else ""):
            cells.append([*raw.cells[index], image] if sessions else [*raw.cells[index], session, image])
            numbers.append(raw.numbers[index])
    added = [BIDS_IMAGE] if sessions else ["session_id", BIDS_IMAGE]
    return replace(raw, name=folder.name, columns=[*raw.columns, *added], cells=cells, numbers=numbers)


def _bids_images(folder: Path, participant: str, session: str) -> list[tuple[str, str]]:
    """Return session and relative path of each T1 of a participant, of one session if the table names it."""
    subject = participant if participant.startswith("sub-") else f"sub-{participant}"
    wanted = session if session.startswith("ses-") or not session else f"ses-{session}"
    stem = "_".join(part for part in (subject, wanted) if part)
    found: list[tuple[str, str]] = []
    if SAFE_NAME.fullmatch(stem):
        for pattern in [f"{wanted}/anat"] if wanted else ["anat", "ses-*/anat"]:
            for image in sorted((folder / subject).glob(f"{pattern}/*_T1w.nii*")):
                if image.name.endswith(("_T1w.nii", "_T1w.nii.gz")):
                    parts = image.relative_to(folder).parts
                    found.append((parts[1] if len(parts) == 4 else "", "/".join(parts)))
    # Without an image the place where it belongs is kept, so that its absence is reported with the row.
    return found or [(wanted, "/".join(part for part in (subject, wanted, "anat", f"{stem}_T1w.nii.gz") if part))]

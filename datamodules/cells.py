"""Cell by cell: the text of a cohort table becomes numbers, names and paths, and what does not is listed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PureWindowsPath

import numpy as np
import pandas as pd

from datamodules.problems import Problem, ProblemCode
from datamodules.raw_table import SAFE_NAME, RawTable
from datamodules.schema import NAMED_ROLES, RESERVED, Column, Schema, is_known, parse_number, schema_path, strip_suffix

DERIVED = ("participant_id", "session_id", "site", "dataset")
NO_SITE = "unknown"


def escape_reason(root: Path, relative: str) -> str | None:
    """Say why a path must not be followed, or return None when it stays inside the root.

    Args:
        root: The cohort's folder.
        relative: A cell of the table.
    """
    if not relative:
        return "is empty; the row has no such image."
    if "\0" in relative:
        return "contains a NUL character. Correct the cell."
    windows = PureWindowsPath(relative)
    if relative.startswith("/") or windows.drive or windows.root:
        return "is an absolute path. Write it relative to the table's folder, or name that folder with --root."
    if "\\" in relative and ".." in windows.parts:
        return "leads out of the cohort's folder. Move the file into it."
    try:
        inside = (root / relative).resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return "cannot be a path: its links go in a circle, or it is too long. Put the file itself there."
    return None if inside else "leads out of the cohort's folder, by '..' or a link. Move the file into the folder."


def shorten(text: str) -> str:
    """Return a cell as an error message quotes it."""
    return text if len(text) <= 80 else text[:77] + "..."


class TableReader:
    """Parse the cells of one table by its schema and collect what is wrong in `problems`.

    Args:
        raw: The table as text.
        schema: What its columns mean.
        root: Folder that paths are relative to.
        dataset: Name of the dataset of rows that name none.
    """

    def __init__(self, raw: RawTable, schema: Schema, root: Path, dataset: str) -> None:
        self.raw = raw
        self.schema = schema
        self.root = root
        self.dataset = dataset
        self.sidecar = schema_path(raw.path).name
        self.problems: list[Problem] = list(raw.problems)
        self._escapes: dict[str, str | None] = {}
        id_column = schema.of_role("id")[0].name
        self.participants = raw.values(id_column) if id_column in raw.columns else [""] * len(raw.cells)

    def frame(self) -> pd.DataFrame | None:
        """Parse every column (see `Cohort.frame`); None without a column of identifiers."""
        self._check_header()
        parsed = {c.name: self._parse(c) for c in self.schema.columns if c.name in self.raw.columns}
        if self.schema.of_role("id")[0].name not in parsed:
            return None
        frame = pd.DataFrame(parsed)
        for name, role, default in zip(
            DERIVED, ("id", "session", "site", "dataset"), ("", "", NO_SITE, self.dataset), strict=True
        ):
            holder = next((c.name for c in self.schema.columns if c.role == role and c.name in parsed), None)
            values = frame[holder] if holder else pd.Series([""] * len(frame), dtype=str)
            frame[name] = values.where(values != "", default)
        frame["row"] = self.raw.numbers
        images = [c.name for c in self.schema.of_role("image") if c.name in parsed]
        frame["image_id"] = _image_ids(frame, images)
        self._check_repeats(frame, images)
        return frame

    def _report(self, index: int, column: str, code: ProblemCode, message: str) -> None:
        participant = self.participants[index] or None
        self.problems.append(Problem(self.raw.numbers[index], participant, column, code, message))

    def _check_header(self) -> None:
        described = {column.name: column for column in self.schema.columns}
        for name in dict.fromkeys(self.raw.columns):
            if name and name not in described:
                message = f"{self.sidecar} does not describe the column. Describe it, or remove it from the table."
                self.problems.append(Problem(None, None, name, "unknown_column", message))
        for name, column in described.items():
            if name not in self.raw.columns and column.required:
                present = ", ".join(self.raw.columns)
                message = f"{self.sidecar} requires the column, but the table has {present}. Add it, or rename one."
                self.problems.append(Problem(None, None, name, "missing_column", message))
            expected = NAMED_ROLES[name] if name in DERIVED else None
            if name in RESERVED or (expected and column.role != expected):
                meaning = f"always has the role {expected}" if expected else "is used by Fontanel itself"
                message = f"The name {meaning}. Rename the column in the table and in {self.sidecar}."
                self.problems.append(Problem(None, None, name, "bad_identifier", message))

    def _parse(self, column: Column) -> list[float] | list[str]:
        cells = self.raw.values(column.name)
        if column.kind == "number":
            return [self._number(index, cell, column) for index, cell in enumerate(cells)]
        if column.kind == "path":
            return [self._path(index, cell, column) for index, cell in enumerate(cells)]
        return [self._text(index, cell, column) for index, cell in enumerate(cells)]

    def _is_missing(self, index: int, cell: str, column: Column) -> bool:
        if is_known(cell):
            return False
        if column.required:
            message = f'There is no value. Fill it in, remove the row, or set "required": false in {self.sidecar}.'
            if column.role == "id":
                message = "There is no identifier. Give the row one, or remove it."
            self._report(index, column.name, "missing_value", message)
        return True

    def _number(self, index: int, cell: str, column: Column) -> float:
        if self._is_missing(index, cell, column):
            return np.nan
        value = parse_number(cell)
        if value is None:
            hint = " The decimal mark is a point." if re.fullmatch(r"[-+]?\d+,\d+", cell) else ""
            message = f"'{shorten(cell)}' is not a finite number.{hint} Correct it, or write n/a if it is not known."
            self._report(index, column.name, "not_a_number", message)
            return np.nan
        unit = f" {column.unit}" if column.unit else ""
        for limit, outside, word in ((column.minimum, "below", "minimum"), (column.maximum, "above", "maximum")):
            if limit is not None and (value < limit if word == "minimum" else value > limit):
                message = (
                    f"{value:g} is {outside} the {word} of {limit:g}{unit}. Correct the value (is it in another "
                    f"unit?), or the range in {self.sidecar}."
                )
                self._report(index, column.name, "out_of_range", message)
        return value

    def _text(self, index: int, cell: str, column: Column) -> str:
        if self._is_missing(index, cell, column):
            return ""
        if column.role in ("id", "session", "dataset") and not SAFE_NAME.fullmatch(cell):
            message = f"'{shorten(cell)}' is not an identifier. Use letters, digits and . _ + = - only, without spaces."
            self._report(index, column.name, "bad_identifier", message)
        elif column.role == "site" and not (cell.isprintable() and "/" not in cell):
            message = f"'{shorten(cell)}' is not a name of a site. Write it without slashes and control characters."
            self._report(index, column.name, "bad_identifier", message)
        return cell

    def _path(self, index: int, cell: str, column: Column) -> str:
        if self._is_missing(index, cell, column):
            return ""
        if cell not in self._escapes:  # a mask may be shared by everybody
            self._escapes[cell] = escape_reason(self.root, cell)
        reason = self._escapes[cell]
        if reason:
            self._report(index, column.name, "path_escape", f"'{shorten(cell)}' {reason}")
            return ""
        return cell

    def _check_repeats(self, frame: pd.DataFrame, images: list[str]) -> None:
        has_sessions = any(column.name in frame for column in self.schema.of_role("session"))
        id_column = self.schema.of_role("id")[0].name
        identity = ["dataset", "participant_id", "session_id"]
        seen: dict[tuple[str, ...], int] = {}
        for index, cells in enumerate(zip(*(frame[name] for name in [*identity, *images]), strict=True)):
            # Images of one session may have a row each, but only a table with sessions says that they belong together.
            key = cells if has_sessions else cells[: len(identity)]
            first = seen.setdefault(key, index)
            if first == index or not cells[1]:
                continue
            other = self.raw.numbers[first]
            message = f"The row repeats row {other}. Remove one of them."
            if any(frame[name].iloc[first] != frame[name].iloc[index] for name in images):
                message = (
                    f"{cells[1]} is already in row {other}, with another image. Correct the identifier, or tell the "
                    "scans apart in a column session_id."
                )
            self._report(index, id_column, "duplicate_row", message)


def _image_ids(frame: pd.DataFrame, images: list[str]) -> list[str]:
    """Return dataset/participant[/session], with the path of the first image where a session has several rows."""
    bases = [
        "/".join(part for part in parts if part)
        for parts in zip(frame["dataset"], frame["participant_id"], frame["session_id"], strict=True)
    ]
    rows = Counter(bases)
    names = [strip_suffix(name) for name in frame[images[0]]] if images else [""] * len(frame)
    return [f"{base}/{name}" if rows[base] > 1 and name else base for base, name in zip(bases, names, strict=True)]

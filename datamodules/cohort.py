"""The cohort table: who was scanned, where the images are, and what is known about each participant.

A TSV or CSV file with one row per image set; beside it a sidecar says what the columns mean (`datamodules.schema`).
Folders in the layout of BIDS, nnU-Net, BONBID-HIE, and others are read into the same frame (`datamodules.layouts`).
All faults come at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from datamodules.cells import TableReader, escape_reason, shorten
from datamodules.layouts import read_table
from datamodules.problems import CohortError, Problem, ProblemCode
from datamodules.raw_table import SAFE_NAME, RawTable, Remark
from datamodules.schema import NAMED_ROLES, Column, Kind, Role, Schema, schema_path

__all__ = [
    "Cohort",
    "CohortError",
    "Column",
    "Kind",
    "Problem",
    "ProblemCode",
    "Role",
    "Schema",
    "check_table",
    "participant_key",
    "participant_keys",
    "read_cohort",
    "schema_path",
    "stack_rows",
]


@dataclass(frozen=True)
class Cohort:
    """A cohort table that has been read.

    Args:
        table: The file that holds the rows, or the folder whose images are the rows.
        root: Folder that image paths are relative to.
        schema: What the columns mean.
        frame: One row per image set: every column of the schema (numbers as float64, the rest as text, "" where
            missing), and always `participant_id`, `session_id` ("" without), `site` ("unknown" without), `dataset`,
            `image_id` and `row` (1-based data row of the table).
        dataset: Name of the dataset of rows that name none themselves.
        layout: The layout whose folder was used as the table; "" for a table file.
        rows_sha256: Hash of the rows that were found in such a folder; None for a table file.
        remarks: What the layout's reader has left out or noticed.
    """

    table: Path
    root: Path
    schema: Schema
    frame: pd.DataFrame
    dataset: str
    layout: str = ""
    rows_sha256: str | None = None
    remarks: tuple[Remark, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of the table; of the rows that were found where it is a folder."""
        return self.rows_sha256 or hashlib.sha256(self.table.read_bytes()).hexdigest()

    def resolve(self, relative: str) -> Path:
        """Return the absolute path of an image of this cohort.

        Raises:
            CohortError: When the cell is empty or leads out of the cohort's root.
        """
        reason = escape_reason(self.root, relative)
        if reason:
            raise CohortError.single(f"{self.table.name}: '{shorten(relative)}' {reason}", "path_escape")
        return self.root / relative


def participant_keys(frame: pd.DataFrame) -> list[str]:
    """Return the key of the participant of each row."""
    return [participant_key(*pair) for pair in zip(frame["dataset"], frame["participant_id"], strict=True)]


def stack_rows(cohorts: Sequence[Cohort]) -> pd.DataFrame:
    """Return the rows of several cohorts, one cohort after the other, numbered from 0."""
    return pd.concat([cohort.frame for cohort in cohorts], ignore_index=True)


def participant_key(dataset: str, participant_id: str) -> str:
    """Return the identity of a participant for splits and audits.

    >>> participant_key("ixi", "IXI012")
    'ixi/IXI012'
    """
    return f"{dataset}/{participant_id}"


def read_cohort(
    table: Path | str, *, schema: Schema | None = None, root: Path | str | None = None, dataset: str | None = None
) -> Cohort:
    """Read a cohort table; files are not opened (that is what `fontanel verify` does).

    Args:
        table: A TSV or CSV file, or a folder in a known layout.
        schema: What the columns mean; from the sidecar by default, guessed without one.
        root: Folder that image paths are relative to; the table's own by default.
        dataset: Name of the dataset of rows that name none; the table's stem by default.

    Raises:
        CohortError: With every fault of the table.
    """
    cohort, problems = check_table(table, schema=schema, root=root, dataset=dataset)
    if cohort is None or problems:
        raise CohortError.of(Path(table).name, problems)
    return cohort


def check_table(
    table: Path | str, *, schema: Schema | None = None, root: Path | str | None = None, dataset: str | None = None
) -> tuple[Cohort | None, list[Problem]]:
    """Read a cohort table and list its faults instead of raising them.

    Args:
        table: A TSV or CSV file, or a folder in a known layout.
        schema: What the columns mean; from the sidecar by default, guessed without one.
        root: Folder that image paths are relative to; the table's own by default.
        dataset: Name of the dataset of rows that name none; the table's stem by default.

    Returns:
        The cohort (faulty cells are NaN or ""), or None when no column identifies the participants; and the problems.
    """
    try:
        raw = read_table(Path(table))
        folder = Path(root) if root is not None else raw.path.parent
        known = schema or _schema_of(raw, folder)
        name = _dataset_name(dataset, raw)
    except CohortError as error:
        return None, list(error.problems) or [Problem(None, None, None, "unreadable", str(error))]
    reader = TableReader(raw, known, folder, name)
    frame = reader.frame()
    if known.guessed and not known.of_role("image"):
        reader.problems.append(_no_images(raw))
    problems = sorted(reader.problems, key=lambda problem: problem.row or 0)
    if frame is None:
        return None, problems
    rows_sha256 = hashlib.sha256(raw.to_tsv().encode()).hexdigest() if raw.layout else None
    return Cohort(raw.path, folder, known, frame, name, raw.layout, rows_sha256, raw.remarks), problems


def _schema_of(raw: RawTable, root: Path) -> Schema:
    sidecar = schema_path(raw.path)
    if sidecar.is_file():
        try:
            return Schema.from_json(sidecar.read_text(encoding="utf-8"))
        except (CohortError, UnicodeDecodeError) as error:
            listed = error.problems if isinstance(error, CohortError) else ()
            faults = [(problem.column, problem.message) for problem in listed] or [(None, str(error))]
            problems = [Problem(None, None, column, "unreadable", f"{sidecar.name}: {text}") for column, text in faults]
            raise CohortError.of(sidecar.name, problems) from error
    if not any(NAMED_ROLES.get(name.casefold()) == "id" for name in raw.columns):
        message = (
            f"No column identifies the participant; the table has {', '.join(raw.columns)}. Rename the right one to "
            f"participant_id, or describe the columns in {sidecar.name}."
        )
        raise CohortError.of(raw.path.name, [Problem(None, None, "participant_id", "missing_column", message)])
    frame = pd.DataFrame({name: raw.values(name) for name in dict.fromkeys(raw.columns) if name}, dtype=str)
    return Schema.guess(frame, root, raw.described)


def _no_images(raw: RawTable) -> Problem:
    message = (
        f"No column holds paths of images; the table has {', '.join(raw.columns)}. Add one with paths relative to the "
        "table (.nii, .nii.gz, .mgz, .mha, .nrrd, .png or a DICOM folder), or describe the columns in "
        f"{schema_path(raw.path).name}."
    )
    return Problem(None, None, None, "missing_column", message)


def _dataset_name(given: str | None, raw: RawTable) -> str:
    name = re.sub(r"[^\w.+=-]", "-", raw.name) if given is None else given
    if not SAFE_NAME.fullmatch(name):
        message = f"'{shorten(name)}' is not a name of a dataset. Use letters, digits and . _ + = - only."
        raise CohortError.single(message, "bad_identifier")
    return name

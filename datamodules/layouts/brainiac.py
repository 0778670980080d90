"""The table of BrainIAC: a .csv file with `pat_id`, `scandate` and `label`; beside it, images called after them.

The image of a row is `<pat_id>_<scandate>.nii.gz`, or `<pat_id>.nii.gz` without `scandate`.

References:
    Tak et al. A foundation model for generalized brain MRI analysis. (2024). doi:10.1101/2024.12.02.24317992
"""

from __future__ import annotations

from pathlib import Path

from datamodules.layouts.files import is_image
from datamodules.layouts.found import Found, Scan, Visit
from datamodules.problems import CohortError
from datamodules.raw_table import RawTable, read_text
from datamodules.schema import Column, is_known

SUMMARY = "the table of BrainIAC (a .csv file with pat_id, scandate, label)"
IMAGE = Column("image", "image", "path")


def recognises(table: Path) -> bool:
    """Tell whether a file is such a table, or a folder holds exactly one."""
    return len(_tables(table)) == 1


def holder(table: Path) -> Path:
    """Return the table.

    Raises:
        CohortError: When a folder holds none, or several.
    """
    found = _tables(table)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        message = f"{table} should hold one .csv file with a column pat_id; it holds {names}. Name the file itself."
        raise CohortError.single(message, "unreadable")
    return found[0]


def find(table: Path) -> Found:
    """Return what the table names, whether or not the files are there."""
    path = holder(table)
    raw = read_text(path)
    people = raw.values("pat_id")
    dates = raw.values("scandate") if "scandate" in raw.columns else [""] * len(people)
    visits = [Visit(who, when if is_known(when) else "") for who, when in zip(people, dates, strict=True)]
    scans = [Scan(visit, IMAGE.name, f"{'_'.join(filter(None, visit))}.nii.gz") for visit in visits]
    return Found(path, scans, [IMAGE], name=path.stem, clinical=[raw])


def _tables(table: Path) -> list[Path]:
    files = sorted([*table.glob("*.csv"), *table.glob("*.tsv")]) if table.is_dir() else [table]
    return [file for file in files if _is_brainiac(file)]


def _is_brainiac(file: Path) -> bool:
    if file.suffix.casefold() not in (".csv", ".tsv") or not file.is_file():
        return False
    try:
        raw: RawTable = read_text(file)
    except CohortError:
        return False
    return "pat_id" in raw.columns and not any(is_image(cell) for row in raw.cells for cell in row)

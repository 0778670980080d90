"""Where the rows of a cohort come from: a TSV or CSV file, a folder of BIDS or BONBID-HIE, or the table of BrainIAC."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from datamodules.bonbid import bonbid_folder, bonbid_table, read_bonbid
from datamodules.problems import CohortError
from datamodules.raw_table import MAX_TABLE_BYTES, SAFE_NAME, RawTable, read_text
from datamodules.schema import IMAGE_SUFFIXES

__all__ = ["MAX_TABLE_BYTES", "SAFE_NAME", "RawTable", "read_table", "table_file"]

BIDS_IMAGE = "t1w"
BRAINIAC_IMAGE = "image"


def table_file(table: Path) -> Path:
    """Return what holds the rows: `participants.tsv` of a BIDS folder, else the table itself.

    Of a BONBID-HIE folder it is the clinical table, or the folder of ADC maps where there is none.

    Raises:
        CohortError: When there is no such file.
    """
    folder = bonbid_folder(table)
    if folder is not None:
        return bonbid_table(folder)
    path = table / "participants.tsv" if table.is_dir() else table
    if path.is_file():
        return path
    what = "folder has no participants.tsv" if table.is_dir() else "cohort table does not exist"
    remedy = "Name a .tsv or .csv file, or a folder of BIDS or BONBID-HIE."
    raise CohortError.single(f"{path}: the {what}. {remedy}", "missing_file")


def read_table(table: Path) -> RawTable:
    """Read the rows of a cohort in any of the layouts, as text.

    Args:
        table: A TSV or CSV file (told apart by its header), or a folder of BIDS or BONBID-HIE.

    Raises:
        CohortError: When nothing can be read at all.
    """
    folder = bonbid_folder(table)
    if folder is not None:
        return read_bonbid(folder)
    path = table_file(table)
    raw = read_text(path)
    if path.name == "participants.tsv" and "participant_id" in raw.columns and not _has_images(raw):
        return _from_bids(raw)
    if "pat_id" in raw.columns and not _has_images(raw):
        return _from_brainiac(raw)
    return raw


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

"""The layout of BIDS, read by bids2table: a folder for each participant, and in the names of files what they are.

A row is a participant's session. Anatomical images (`anat`) and maps of diffusion (`dwi`: ADC, FA, trace, ...) become
columns, called like their suffix: `t1w`, `flair`, `adc`. Entities that make another kind of image stand in the name of
the column (`t1w_ce_gadolinium`, `mp2rage_inv_1`); `acq`, `rec` and `run` do not: of several such scans the first is
taken, without `acq` and `rec` before with, the lowest run first. `participants.tsv` and `*_sessions.tsv` are joined.
What other software has derived (`derivatives`), and series over time, are left out.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.layouts.files import is_image
from datamodules.layouts.found import Found, Scan, Visit, column_name, keep_usable
from datamodules.problems import Problem
from datamodules.raw_table import RawTable, Remark, read_text
from datamodules.schema import Column

SUMMARY = "BIDS (sub-* folders, participants.tsv, *_sessions.tsv)"
TABLE = "participants.tsv"
REPEATS = ("acq", "rec", "run")
NO_KIND = ("sub", "ses", *REPEATS, "datatype", "suffix", "ext")
SERIES = ("dwi", "sbref")  # of the folder dwi; the others are maps
LABELS = ("dseg", "probseg", "defacemask")


def recognises(table: Path) -> bool:
    """Tell whether a folder has the layout, or a participants.tsv lies in such a folder."""
    if table.is_dir():
        return any(file.is_dir() for file in table.glob("sub-*"))
    return table.name == TABLE and recognises(table.parent) and not _names_images(table)


def holder(table: Path) -> Path:
    """Return `participants.tsv`, which stands for the table even where there is none."""
    return table / TABLE if table.is_dir() else table


def find(table: Path) -> Found:
    """Find the images of a folder.

    Raises:
        CohortError: When participants.tsv or a sessions.tsv cannot be read.
    """
    path = holder(table)
    remarks = [
        Remark(folder.name, "not raw data; to read what other software has made, name its folder as DIR")
        for folder in sorted(path.parent.iterdir())
        if folder.is_dir() and folder.name in ("derivatives", "sourcedata", "code")
    ]
    scans: list[Scan] = []
    columns: dict[str, Column] = {}
    for entry in sorted(_index(path.parent), key=lambda entry: str(entry["path"])):
        image = _image(entry, remarks)
        if image is not None:
            scan, column = image
            scans.append(scan)
            columns.setdefault(column.name, column)
    return Found(
        path,
        keep_usable(scans, path.parent, remarks),
        [columns[name] for name in sorted(columns, key=lambda name: (name != "t1w", name))],
        clinical=list(_clinical(path)),
        remarks=remarks,
    )


def _index(folder: Path) -> list[dict[str, Any]]:
    """Return what bids2table says of each file.

    It takes a folder whose name has a dot for a file, finds nothing where a path has brackets, and remembers folders
    that have changed since: a link with a new, plain name spares us all three.
    """
    from bids2table import index_dataset

    logging.getLogger("bids2table").setLevel(logging.ERROR)  # odd entities; they are kept all the same
    with tempfile.TemporaryDirectory(prefix="fontanel-") as temporary:
        link = Path(temporary) / "bids"
        link.symlink_to(folder.resolve(), target_is_directory=True)
        entries: list[dict[str, Any]] = index_dataset(link).to_pylist()
    return entries


def _image(entry: dict[str, Any], remarks: list[Remark]) -> tuple[Scan, Column] | None:
    path = Path(str(entry["path"])).as_posix()
    if not is_image(path):
        return None
    datatype, suffix = entry["datatype"] or "", entry["suffix"] or ""
    reason = None
    if datatype not in ("anat", "dwi"):
        reason = f"a file of {datatype or 'no data type'}; only images of anat and maps of dwi are read"
    elif datatype == "dwi" and suffix in SERIES:
        reason = "a series of diffusion images; only maps of dwi are read"
    elif suffix in LABELS:
        reason = "a map of labels"
    if reason:
        remarks.append(Remark(path, reason))
        return None
    folders = path.split("/")
    session = f"ses-{entry['ses']}" if entry["ses"] else ""
    sessions = [folder for folder in folders[1:-1] if folder.startswith("ses-")]
    if folders[0] != f"sub-{entry['sub']}" or sessions != [session] * bool(session):
        reason = "the name is of another participant or session than the folder"
        problem = Problem(None, folders[0], None, "bad_identifier", f"{path}: {reason}. Rename it, or move it.")
        remarks.append(Remark(path, reason, problem=problem))
        return None
    entities = {**entry, **dict(entry["extra_entities"] or [])}
    kinds = [f"{key}_{value}" for key, value in entities.items() if _is_kind(key, value)]
    name = column_name("_".join([suffix, *kinds]))
    rank = (*(str(entities.get(key) or "") for key in REPEATS[:2]), int(entry["run"] or 0))
    column = Column(name, "mask" if suffix == "mask" else "image", "path")
    return Scan(Visit(folders[0], session), name, path, rank), column


def _is_kind(key: str, value: object) -> bool:
    return value is not None and key not in (*NO_KIND, "dataset", "root", "path", "extra_entities")


def _clinical(path: Path) -> Iterator[RawTable]:
    """Yield participants.tsv, then one table of the sessions of all participants, as far as they are there."""
    if path.is_file():
        yield read_text(path)
    files = [read_text(file) for file in sorted(path.parent.glob("sub-*/sub-*_sessions.tsv"))]
    if not files:
        return
    columns = list(dict.fromkeys(["participant_id", *(name for raw in files for name in raw.columns)]))
    cells = [
        [raw.path.parent.name if name == "participant_id" else values.get(name, "") for name in columns]
        for raw in files
        for values in (dict(zip(raw.columns, row, strict=True)) for row in raw.cells)
    ]
    problems = [problem for raw in files for problem in raw.problems]
    yield RawTable(path.with_name("*_sessions.tsv"), "", columns, cells, list(range(1, len(cells) + 1)), problems)


def _names_images(table: Path) -> bool:
    return any(is_image(cell) for row in read_text(table).cells for cell in row)

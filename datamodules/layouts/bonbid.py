"""The layout of BONBID-HIE: a folder for each kind of map, and in the names of its files whose they are.

::

    1ADC_ss/MGHNICU_010-VISIT_01-ADC_ss.mha                           ADC without skull, in 1e-6 mm2/s
    2Z_ADC/Zmap_MGHNICU_010-VISIT_01-ADC_smooth2mm_clipped10.mha      z-scores against healthy newborns, -10 to 10
    3LABEL/MGHNICU_010-VISIT_01_lesion.mha                            lesions that experts drew
    clinical.csv or clinical.tsv                                      any columns, if it is there

A row is a visit. The capitals before NICU are the site (MGH, BCH); without them, the letters that the name begins with.
A kind of map whose folder is absent has no column; a map that one visit lacks is an empty cell, which `fontanel verify`
reports with the row. The clinical table names participants (`MGHNICU_010`), visits
(`MGHNICU_010-VISIT_01`) or files; whom it does not mention has no outcome. Rows are numbered as in the clinical table,
then on from its end; without one, in the order of their names.

References:
    Bao et al. BOston Neonatal Brain Injury Data for Hypoxic Ischemic Encephalopathy (BONBID-HIE): I. MRI and Lesion
    Labeling. Scientific Data 12, 53 (2025). doi:10.1038/s41597-024-03986-7
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the library's own idiom

from datamodules.itk_files import scan_file
from datamodules.layouts.found import Found, Scan, Visit, keep_usable
from datamodules.problems import CohortError, Problem
from datamodules.raw_table import Remark, read_text
from datamodules.schema import Column, is_known, strip_suffix
from datamodules.voxels import Limits

SUMMARY = "BONBID-HIE (1ADC_ss, 2Z_ADC, 3LABEL, clinical.csv)"
SUFFIX = ".mha"
GRID = "adc"
ML_PER_MM3 = 1e-3
VISIT = r"(?P<participant>.+)-(?P<session>VISIT_\d+)"
CLINICAL = ("clinical.csv", "clinical.tsv")


@dataclass(frozen=True)
class _Kind:
    """One kind of map.

    Args:
        column: What its column means.
        folders: Names that its folder may have: MGH's, then BCH's.
        before: What the name of a file begins with.
        after: What follows the visit.
    """

    column: Column
    folders: tuple[str, ...]
    before: str
    after: str

    def path(self, folder: str, visit: Visit) -> str:
        """Return the relative path of a visit's map."""
        return f"{folder}/{self.before}{visit.participant_id}-{visit.session_id}{self.after}{SUFFIX}"


ADC = _Kind(
    Column("adc", "image", "path", unit="1e-3 mm2/s", grid=GRID, scale=1e-3, description="the files hold 1e-6 mm2/s"),
    ("1ADC_ss",),
    "",
    "-ADC_ss",
)
ZADC = _Kind(
    Column("zadc", "image", "path", unit="z-score", grid=GRID, description="against healthy newborns, clipped at 10"),
    ("2Z_ADC", "2ZMAP"),
    "Zmap_",
    "-ADC_smooth2mm_clipped10",
)
LESION = _Kind(
    Column("lesion", "mask", "path", grid=GRID, required=True, may_be_empty=True), ("3LABEL", "3Label"), "", "_lesion"
)
KINDS = (ADC, ZADC, LESION)
VOLUME = Column("lesion_ml", "covariate", "number", unit="ml", minimum=0, description="voxels of the lesion above 0")
OUTCOME = Column("outcome", "target", "number", minimum=0, maximum=1, required=False, description="1 is adverse")


def recognises(table: Path) -> bool:
    """Tell whether a folder has the layout, or a table or its maps of ADC lie in such a folder."""
    return _folder(table) is not None


def holder(table: Path) -> Path:
    """Return what holds the rows: the clinical table, or the folder of ADC maps where there is none.

    Raises:
        CohortError: When there are two clinical tables.
    """
    folder = _folder(table) or table
    tables = [folder / name for name in CLINICAL if (folder / name).is_file()]
    if len(tables) > 1:
        message = f"{folder} has {' and '.join(CLINICAL)}. Keep one of them."
        raise CohortError.single(message, "unreadable")
    return tables[0] if tables else folder / ADC.folders[0]


def find(table: Path) -> Found:
    """Find maps, sites, lesion volumes, and the clinical table.

    Raises:
        CohortError: When there is no map at all, or the clinical table cannot be read.
    """
    path = holder(table)
    folder = path.parent
    folders = {kind: name for kind in KINDS for name in kind.folders[::-1] if (folder / name).is_dir()}
    remarks: list[Remark] = []
    scans = [scan for kind, name in folders.items() for scan in _scans(folder / name, kind, remarks)]
    if not scans:
        example = ADC.path(folders[ADC], Visit("MGHNICU_010", "VISIT_01"))
        raise CohortError.single(f"{folder} has no maps with names such as {example}.", "empty_table")
    scans = sorted(keep_usable(scans, folder, remarks))
    facts: dict[Visit, dict[str, str]] = {scan.visit: {"site": site_of(scan.visit.participant_id)} for scan in scans}
    for scan in scans:
        if scan.column == LESION.column.name:
            facts[scan.visit][VOLUME.name] = _volume_text(folder / scan.path)
    return Found(
        path,
        scans,
        [kind.column for kind in folders],
        facts=facts,
        described=[*([VOLUME] if LESION in folders else []), OUTCOME],
        clinical=[read_text(path)] if path.is_file() else [],
        names=_named,
        remarks=remarks,
        complete=True,
    )


def _folder(table: Path) -> Path | None:
    """Return the folder of the layout that a table is in: given itself, or by what holds its rows; None for others."""
    folder = table if (table / ADC.folders[0]).is_dir() else table.parent
    belongs = folder == table or table.name in (*CLINICAL, ADC.folders[0])
    return folder if belongs and (folder / ADC.folders[0]).is_dir() else None


def _scans(folder: Path, kind: _Kind, remarks: list[Remark]) -> Iterator[Scan]:
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or strip_suffix(file.name) == file.name:  # neither is a map
            continue
        visit = _visit_of(file.name, kind.before, kind.after + SUFFIX)
        path = f"{folder.name}/{file.name}"
        if visit is not None:
            yield Scan(visit, kind.column.name, path)
            continue
        example = kind.path(folder.name, Visit("MGHNICU_010", "VISIT_01"))
        reason = f"not named like {example}"
        message = f"{path} is {reason}. Rename it, or move it elsewhere."
        problem = Problem(None, None, kind.column.name, "bad_identifier", message)
        remarks.append(Remark(path, reason, problem=problem))


def site_of(participant_id: str) -> str:
    """Return the site that a participant's name tells, "" where it has no letters.

    >>> site_of("MGHNICU_010"), site_of("ward3_7"), site_of("010")
    ('MGH', 'ward', '')
    """
    match = re.match(r"([A-Z]+)NICU", participant_id) or re.match(r"([A-Za-z]+)", participant_id)
    return match[1] if match else ""


def _visit_of(stem: str, before: str, after: str) -> Visit | None:
    match = re.fullmatch(re.escape(before) + VISIT + re.escape(after), stem)
    return Visit(match["participant"], match["session"]) if match else None


def _named(name: str, session: str) -> tuple[str, str]:
    """Return the participant and, unless all of them are meant, the session that a cell names.

    >>> _named("MGHNICU_010-VISIT_01-ADC_ss.mha", ""), _named("MGHNICU_010", "n/a")
    (('MGHNICU_010', 'VISIT_01'), ('MGHNICU_010', ''))
    """
    stem = strip_suffix(name) if is_known(name) else ""
    for before, after in [("", ""), *((kind.before, kind.after) for kind in KINDS)]:
        if visit := _visit_of(stem, before, after):
            return visit.participant_id, visit.session_id
    return stem, session if is_known(session) else ""


def _volume_text(path: Path) -> str:
    """Return the volume of a lesion in ml, "" where it cannot be read; `fontanel verify` reads it too and says why."""
    try:
        status = path.stat()
        return f"{_volume(str(path), status.st_size, status.st_mtime_ns):.9g}"
    except (CohortError, OSError):
        return ""


@functools.lru_cache(maxsize=4096)
def _volume(path: str, _size: int, _mtime_ns: int) -> float:
    """Return the volume of the voxels above 0 in ml; a file is read once as long as it stays untouched."""
    for _ in scan_file(Path(path), hashlib.sha256(), Limits()):  # ITK fills a truncated file with zeros and is silent
        pass
    image = sitk.ReadImage(path)
    voxels = np.count_nonzero(sitk.GetArrayViewFromImage(image) > 0)
    return float(voxels * np.prod(image.GetSpacing()) * ML_PER_MM3)

"""The layout of BONBID-HIE: a folder for each kind of map, and in the names of its files whose they are.

::

    1ADC_ss/MGHNICU_010-VISIT_01-ADC_ss.mha                           ADC without skull, in 1e-6 mm2/s
    2Z_ADC/Zmap_MGHNICU_010-VISIT_01-ADC_smooth2mm_clipped10.mha      z-scores against healthy newborns, -10 to 10
    3LABEL/MGHNICU_010-VISIT_01_lesion.mha                            lesions that experts drew
    clinical.csv or clinical.tsv                                      any columns, if it is there

A row is a visit. The capitals before NICU are the site (MGH, BCH); without them, the letters that the name begins with.
A kind of map whose folder is absent has no column; a map that one visit lacks keeps its place in the row, so that its
absence is reported with the row. The clinical table names participants (`MGHNICU_010`), visits
(`MGHNICU_010-VISIT_01`) or files; whom it does not mention has no outcome. Rows are numbered as in the clinical table,
then on from its end; without one, in the order of their names.

References:
    Bao et al. BOston Neonatal Brain Injury Data for Hypoxic Ischemic Encephalopathy (BONBID-HIE): I. MRI and Lesion
    Labeling. Scientific Data 12, 53 (2025). doi:10.1038/s41597-024-03986-7
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the library's own idiom

from datamodules.itk_files import scan_file
from datamodules.problems import CohortError, Problem, ProblemCode
from datamodules.raw_table import RawTable, read_text
from datamodules.schema import NAMED_ROLES, Column, is_known, strip_suffix
from datamodules.voxels import Limits

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


class Visit(NamedTuple):
    """Somebody at one time."""

    participant_id: str
    session_id: str


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
LESION = _Kind(Column("lesion", "mask", "path", grid=GRID, may_be_empty=True), ("3LABEL", "3Label"), "", "_lesion")
KINDS = (ADC, ZADC, LESION)
VOLUME = Column("lesion_ml", "covariate", "number", unit="ml", minimum=0, description="voxels of the lesion above 0")
OUTCOME = Column("outcome", "target", "number", minimum=0, maximum=1, required=False, description="1 is adverse")
IDENTITY = (
    Column("participant_id", "id", "text"),
    Column("session_id", "session", "text"),
    Column("site", "site", "text"),
)


def bonbid_folder(table: Path) -> Path | None:
    """Return the folder of the layout that a table is in: given itself, or by what holds its rows; None for others."""
    folder = table if (table / ADC.folders[0]).is_dir() else table.parent
    belongs = folder == table or table.name in (*CLINICAL, ADC.folders[0])
    return folder if belongs and (folder / ADC.folders[0]).is_dir() else None


def bonbid_table(folder: Path) -> Path:
    """Return what holds the rows: the clinical table, or the folder of ADC maps where there is none.

    Raises:
        CohortError: When there are two clinical tables.
    """
    tables = [folder / name for name in CLINICAL if (folder / name).is_file()]
    if len(tables) > 1:
        message = f"{folder} has {' and '.join(CLINICAL)}. Keep one of them."
        raise CohortError.single(message, "unreadable")
    return tables[0] if tables else folder / ADC.folders[0]


def site_of(participant_id: str) -> str:
    """Return the site that a participant's name tells, "" where it has no letters.

    >>> site_of("MGHNICU_010"), site_of("ward3_7"), site_of("010")
    ('MGH', 'ward', '')
    """
    match = re.match(r"([A-Z]+)NICU", participant_id) or re.match(r"([A-Za-z]+)", participant_id)
    return match[1] if match else ""


def read_bonbid(folder: Path) -> RawTable:
    """Read the rows of a folder as text: identifiers, paths, lesion volumes, and what the clinical table knows.

    Raises:
        CohortError: When there is no map at all, or the clinical table cannot be read or names nobody.
    """
    found = {kind: name for kind in KINDS for name in kind.folders[::-1] if (folder / name).is_dir()}
    problems: list[Problem] = []
    visits = sorted({visit for kind, name in found.items() for visit in _visits(folder / name, kind, problems)})
    if not visits:
        example = ADC.path(found[ADC], Visit("MGHNICU_010", "VISIT_01"))
        raise CohortError.single(f"{folder} has no maps with names such as {example}.", "empty_table")
    table = bonbid_table(folder)
    clinical = _Clinical(read_text(table) if table.is_file() else None, visits)
    described = [*IDENTITY, *(kind.column for kind in found), *([VOLUME] if LESION in found else [])]
    others = clinical.columns({column.name for column in described})
    cells = []
    for visit in visits:
        paths = [kind.path(name, visit) for kind, name in found.items()]
        volume = [_volume_text(folder / paths[-1])] if LESION in found else []
        site = clinical.value(visit, "site")
        identity = [*visit, site if is_known(site) else site_of(visit.participant_id)]
        cells.append([*identity, *paths, *volume, *(clinical.value(visit, name) for name in others)])
    return RawTable(
        path=table,
        name=folder.resolve().name,
        columns=[column.name for column in described] + others,
        cells=cells,
        numbers=clinical.numbers(),
        problems=[*problems, *clinical.problems],
        described=(*described, OUTCOME),
    )


def _visits(folder: Path, kind: _Kind, problems: list[Problem]) -> Iterator[Visit]:
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or strip_suffix(file.name) == file.name:  # neither is a map
            continue
        visit = _visit_of(file.name, kind.before, kind.after + SUFFIX)
        if visit is not None:
            yield visit
            continue
        example = kind.path(folder.name, Visit("MGHNICU_010", "VISIT_01"))
        message = f"{folder.name}/{file.name} is not named like {example}. Rename it, or move it elsewhere."
        problems.append(Problem(None, None, kind.column.name, "bad_identifier", message))


class _Clinical:
    """What the clinical table says of each visit; nothing without a table.

    Args:
        raw: The table.
        visits: All visits that have a map.

    Raises:
        CohortError: When no column names participants, visits or files.
    """

    def __init__(self, raw: RawTable | None, visits: list[Visit]) -> None:
        self.raw = raw
        self.visits = visits
        self.problems: list[Problem] = [] if raw is None else list(raw.problems)
        self.rows: dict[Visit, int] = {}
        self.keys: tuple[str, ...] = ()
        if raw is not None:
            key = _key_column(raw, visits)
            self.keys = (key, "session_id", "site")
            sessions = raw.values("session_id") if "session_id" in raw.columns else [""] * len(raw.cells)
            for index, (name, session) in enumerate(zip(raw.values(key), sessions, strict=True)):
                self._place(index, *_named(name, session), key)

    def _place(self, index: int, participant_id: str, session_id: str, key: str) -> None:
        """Give a row to the visits that it names: one, or all of a participant."""
        assert self.raw is not None
        named = [v for v in self.visits if v.participant_id == participant_id and session_id in ("", v.session_id)]
        fault: tuple[ProblemCode, str] | None = None
        who = "-".join(part for part in (participant_id, session_id) if part)
        if not who:
            fault = "missing_value", "There is no identifier. Give the row one, or remove it."
        elif not named:
            fault = "missing_file", f"There is no map of {who}. Correct the name, add the maps, or remove the row."
        elif repeated := [self.rows[visit] for visit in named if visit in self.rows]:
            other = self.raw.numbers[repeated[0]]
            fault = "duplicate_row", f"{who} is already in row {other}. Remove one of them."
        if fault:
            self.problems.append(Problem(self.raw.numbers[index], participant_id or None, key, *fault))
            return
        self.rows |= dict.fromkeys(named, index)

    def columns(self, taken: set[str]) -> list[str]:
        """Return the columns that the layout does not make itself."""
        others = [] if self.raw is None else [name for name in self.raw.columns if name and name not in self.keys]
        for name in taken.intersection(others):
            message = f"The layout makes the column {name} itself, from the maps. Rename the one of the clinical table."
            self.problems.append(Problem(None, None, name, "bad_identifier", message))
        return [name for name in others if name not in taken]

    def value(self, visit: Visit, column: str) -> str:
        """Return what is known of a visit, "" where nothing is."""
        if self.raw is None or visit not in self.rows or column not in self.raw.columns:
            return ""
        return self.raw.cells[self.rows[visit]][self.raw.columns.index(column)]

    def numbers(self) -> list[int]:
        """Return the number of each visit's row."""
        known = [] if self.raw is None else self.raw.numbers
        after = itertools.count(len(known) + 1)
        return [known[self.rows[visit]] if visit in self.rows else next(after) for visit in self.visits]


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


def _key_column(raw: RawTable, visits: list[Visit]) -> str:
    """Return the column whose cells name participants, visits or files: the identifier, or the first that does."""
    for name in raw.columns:
        if NAMED_ROLES.get(name.casefold()) == "id":
            return name
    participants = {visit.participant_id for visit in visits}
    for name in raw.columns:
        if any(_named(cell, "")[0] in participants for cell in raw.values(name)):
            return name
    message = (
        f"No column of {raw.path.name} names participants or files of {raw.path.parent}; it has "
        f"{', '.join(raw.columns)}. Add a column participant_id with names such as {visits[0].participant_id}."
    )
    raise CohortError.single(message, "missing_column")


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

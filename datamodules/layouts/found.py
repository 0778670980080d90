"""From what a layout's reader has found, scan by scan, to rows: one for each participant and session."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.cells import escape_reason
from datamodules.layouts.clinical import ClinicalTable, plain_names
from datamodules.problems import Problem
from datamodules.raw_table import RawTable, Remark, printable
from datamodules.schema import Column, is_known, strip_suffix

OTHER_SCAN = "another scan of an image that the session has; the first by name is taken"
OTHER_FORMAT = "the same image once more, in another file format; the first by name is taken"


class Visit(NamedTuple):
    """Somebody at one time."""

    participant_id: str
    session_id: str = ""


class Scan(NamedTuple):
    """A file that a layout's reader takes for an image of somebody.

    Args:
        visit: Whose it is.
        column: Which kind of image it is.
        path: Relative to the folder, with slashes.
        rank: Comes before the name where a session has several of a kind.
    """

    visit: Visit
    column: str
    path: str
    rank: tuple[Any, ...] = ()


@dataclass
class Found:
    """What a layout's reader has found in a folder.

    Args:
        path: What stands for the table: sidecar and manifest of a folder that is used as a table lie beside it.
        scans: The images; visits are in the order of their first scan.
        columns: What the columns of images mean.
        name: Name of the dataset; that of the folder by default.
        facts: What is known of a visit from the layout itself, such as its site.
        described: What the columns of facts and of clinical tables mean, as far as the layout knows.
        clinical: Clinical tables; where two have a column, a known value of the later one counts.
        names: Participant and session that a cell of a clinical table means.
        remarks: What was left out, and what is odd.
        complete: Whether the layout promises every image of every visit, so that a gap is a fault.
    """

    path: Path
    scans: list[Scan]
    columns: list[Column]
    name: str = ""
    facts: dict[Visit, dict[str, str]] = field(default_factory=dict)
    described: list[Column] = field(default_factory=list)
    clinical: list[RawTable] = field(default_factory=list)
    names: Callable[[str, str], tuple[str, str]] = plain_names
    remarks: list[Remark] = field(default_factory=list)
    complete: bool = False

    @property
    def folder(self) -> Path:
        """The folder that paths are relative to."""
        return self.path.parent


def assemble(found: Found, layout: str) -> RawTable:
    """Return one row per participant and session.

    Of several files of one kind in a session the first is taken, by rank and name; a kind that a session lacks is an
    empty cell.

    Args:
        found: What the layout's reader has found.
        layout: Its name.
    """
    images, remarks = _choose(found.scans)
    visits = list(images)
    clinical = [ClinicalTable(raw, visits, found.names) for raw in found.clinical]
    columns = [_relaxed(column, images, complete=found.complete) for column in found.columns]
    facts = list(dict.fromkeys(name for visit in visits for name in found.facts.get(visit, {}) if name != "site"))
    made = {"participant_id", "session_id", *(column.name for column in columns), *facts}
    others = list(dict.fromkeys(name for table in clinical for name in table.columns))
    problems = [
        *(problem for table in clinical for problem in table.problems),
        *(_taken(name) for name in others if name in made),
    ]
    others = [name for name in others if name not in made]
    identity = _identity(visits, [_site(found, clinical, visit) for visit in visits])
    names = [column.name for column in columns]
    cells = [
        [
            *(values[index] for values in identity.values()),
            *(images[visit].get(name, "") for name in names),
            *(found.facts.get(visit, {}).get(name, "") for name in facts),
            *(_known(clinical, visit, name) for name in others),
        ]
        for index, visit in enumerate(visits)
    ]
    return RawTable(
        path=found.path,
        name=found.name or found.folder.resolve().name,
        columns=[*identity, *names, *facts, *others],
        cells=cells,
        numbers=_numbers(clinical, visits),
        problems=problems,
        described=(*(ROLES[name] for name in identity), *columns, *found.described),
        remarks=(*found.remarks, *remarks, *(remark for table in clinical for remark in table.remarks)),
        layout=layout,
    )


def keep_usable(scans: Iterable[Scan], folder: Path, remarks: list[Remark]) -> list[Scan]:
    """Return the scans whose files are there and can stand in a table; the others become remarks.

    Args:
        scans: The scans.
        folder: The folder that paths are relative to, and that they must not leave.
        remarks: Where the others are listed.
    """
    kept = []
    for scan in scans:
        reason = unusable(scan.path, folder)
        if reason is None:
            kept.append(scan)
        else:
            remarks.append(Remark(scan.path, reason))
    return kept


def unusable(path: str, folder: Path) -> str | None:
    """Say why a file cannot stand in a table, or return None when it can.

    Args:
        path: Relative to the folder.
        folder: The cohort's folder.
    """
    if printable(path) != path or path != path.strip():
        return "the name cannot stand in a table (not UTF-8, a control character, or a space at an end); rename it"
    if escape_reason(folder, path):
        return "an absolute path, or a link or '..' out of the folder"
    return None if (folder / path).exists() else "named, but not there"


def column_name(text: str) -> str:
    """Return a name for a column, in lower case, that an expression such as that of `data.rows` can use.

    >>> column_name("_T1w"), column_name("ce-gad T1w"), column_name("")
    ('t1w', 'ce_gad_t1w', 'image')
    """
    return re.sub(r"\W+|_+", "_", text).strip("_").lower() or "image"


ROLES = {
    "participant_id": Column("participant_id", "id", "text"),
    "session_id": Column("session_id", "session", "text"),
    "site": Column("site", "site", "text"),
}


def _choose(scans: Sequence[Scan]) -> tuple[dict[Visit, dict[str, str]], list[Remark]]:
    images: dict[Visit, dict[str, str]] = {scan.visit: {} for scan in scans}
    remarks = []
    for scan in sorted(scans, key=lambda scan: (scan.rank, _natural(scan.path))):
        first = images[scan.visit].setdefault(scan.column, scan.path)
        if first != scan.path:
            twin = strip_suffix(first) == strip_suffix(scan.path)
            remarks.append(Remark(scan.path, OTHER_FORMAT if twin else OTHER_SCAN))
    return images, remarks


def _natural(path: str) -> list[tuple[int, str]]:
    """Return a key that puts run-2 before run-10."""
    parts = re.split(r"(\d+)", path)
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)]


def _relaxed(column: Column, images: dict[Visit, dict[str, str]], *, complete: bool) -> Column:
    gaps = any(column.name not in row for row in images.values())
    return replace(column, required=False) if gaps and not complete else column


def _taken(name: str) -> Problem:
    message = f"The layout makes the column {name} itself. Rename the one of the clinical table."
    return Problem(None, None, name, "bad_identifier", message)


def _site(found: Found, clinical: list[ClinicalTable], visit: Visit) -> str:
    known = [site for table in clinical if is_known(site := table.site(visit))]
    return known[-1] if known else found.facts.get(visit, {}).get("site", "")


def _identity(visits: list[Visit], sites: list[str]) -> dict[str, list[str]]:
    columns = {"participant_id": [visit.participant_id for visit in visits]}
    if any(visit.session_id for visit in visits):
        columns["session_id"] = [visit.session_id for visit in visits]
    if any(sites):
        columns["site"] = sites
    return columns


def _known(clinical: list[ClinicalTable], visit: Visit, name: str) -> str:
    values = [table.value(visit, name) for table in clinical if name in table.columns]
    known = [value for value in values if is_known(value)]
    return known[-1] if known else values[0]


def _numbers(clinical: list[ClinicalTable], visits: list[Visit]) -> list[int]:
    """Return the number of each visit's row: that of the clinical table, then on from its end."""
    known = {} if not clinical else {visit: clinical[0].raw.numbers[row] for visit, row in clinical[0].rows.items()}
    after = itertools.count(max((clinical[0].raw.numbers if clinical else []), default=0) + 1)
    return [known[visit] if visit in known else next(after) for visit in visits]

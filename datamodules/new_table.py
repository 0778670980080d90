"""From a folder in some layout to a cohort table on disk: rows, sidecar, and what was left out and why."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from datamodules.layouts import LAYOUTS, find_rows, recognise
from datamodules.layouts.files import is_image, walk
from datamodules.layouts.found import Found, assemble, keep_usable
from datamodules.problems import CohortError
from datamodules.raw_table import RawTable, Remark, printable, read_text, safe_name
from datamodules.schema import Column, Schema, schema_path

NOT_IN_LAYOUT = "not where the layout has images"
LONGER_NAME = "its name is another participant's with more behind it; is it another scan of the same person?"
DATASET = Column("dataset", "dataset", "text")


@dataclass(frozen=True)
class NewTable:
    """A cohort table that can be written.

    Args:
        table: Where it goes.
        folder: The folder that was read.
        raw: Its rows, with paths relative to `root`.
        root: The folder that paths start from.
        schema: What the columns mean.
        layout: The layout that the folder was read in.
    """

    table: Path
    folder: Path
    raw: RawTable
    root: Path
    schema: Schema
    layout: str

    @property
    def needs_root(self) -> bool:
        """Whether paths start from another folder than the table's."""
        return self.root.resolve() != self.table.resolve().parent

    @property
    def images(self) -> dict[str, int]:
        """How many files each column of images, masks and label maps has."""
        return {column.name: sum(map(bool, self.raw.values(column.name))) for column in self._files}

    @property
    def gaps(self) -> dict[str, list[str]]:
        """Who lacks a file, by column."""
        who = self._who
        gaps = {c.name: [who[i] for i, cell in enumerate(self.raw.values(c.name)) if not cell] for c in self._files}
        return {name: lacking for name, lacking in gaps.items() if lacking}

    @property
    def participants(self) -> int:
        """How many people there are."""
        return len(set(self.raw.values("participant_id")))

    @property
    def sites(self) -> dict[str, int]:
        """How many people each site has; nothing where no site is known."""
        if "site" not in self.raw.columns:
            return {}
        pairs = set(zip(self.raw.values("site"), self.raw.values("participant_id"), strict=True))
        sites = [site or "unknown" for site, _ in pairs]
        return {site: sites.count(site) for site in sorted(set(sites))}

    def write(self, *, force: bool = False) -> None:
        """Write the table and its sidecar.

        Args:
            force: Replace files that are there.

        Raises:
            CohortError: When there is such a file already, or the folder cannot be written to.
        """
        sidecar = schema_path(self.table)
        present = [path.name for path in (self.table, sidecar) if path.exists()]
        if present and not force:
            raise CohortError.single(
                f"{self.table.parent} has {' and '.join(present)} already. Name another file with --output, or replace "
                "what is there with --force."
            )
        try:
            self.table.write_text(self.raw.to_tsv(), encoding="utf-8")
            sidecar.write_text(self.schema.to_json(), encoding="utf-8")
        except OSError as error:
            raise CohortError.single(
                f"{self.table} cannot be written ({error.strerror}). Name a file in a folder of yours with --output."
            ) from error

    def as_json(self) -> dict[str, Any]:
        """Return everything there is to say, without shortening."""
        return {
            "table": str(self.table),
            "root": str(self.root) if self.needs_root else None,
            "layout": self.layout,
            "rows": len(self.raw.cells),
            "participants": self.participants,
            "sites": self.sites,
            "images": self.images,
            "gaps": self.gaps,
            "left_out": [{"what": r.what, "reason": r.reason} for r in self.raw.remarks if r.left_out],
            "noticed": [{"what": r.what, "reason": r.reason} for r in self.raw.remarks if not r.left_out],
        }

    @property
    def _files(self) -> list[Column]:
        return [column for column in self.raw.described if column.kind == "path" and column.name in self.raw.columns]

    @property
    def _who(self) -> list[str]:
        sessions = self.raw.values("session_id") if "session_id" in self.raw.columns else [""] * len(self.raw.cells)
        pairs = zip(self.raw.values("participant_id"), sessions, strict=True)
        return ["/".join(filter(None, pair)) for pair in pairs]


def make_table(
    folder: Path,
    *,
    layout: str | None = None,
    patterns: Sequence[str] = (),
    participants: Path | None = None,
    output: Path | None = None,
    dataset: str | None = None,
) -> NewTable:
    """Read a folder and return the table that describes it, without writing anything.

    Args:
        folder: The folder, or a file that stands for one (a datalist, a table of BrainIAC).
        layout: One of `LAYOUTS`, or `pattern`; recognised by default.
        patterns: Patterns of file names, for the layout `pattern`.
        participants: A clinical table to join.
        output: Where the table goes; `cohort.tsv` in the folder by default.
        dataset: Name of the dataset; the folder's by default.

    Raises:
        CohortError: When the folder or a clinical table cannot be read or joined.
    """
    if not folder.exists():
        raise CohortError.single(f"There is no folder {folder}. Correct the path.", "missing_file")
    layout = layout or _recognised(folder)
    found = find_rows(folder, layout, patterns)
    found.scans = keep_usable(found.scans, found.folder, found.remarks)
    if not found.scans:
        message = f"No image of {folder} can be used: {_reasons(found.remarks)}."
        raise CohortError.single(message, "empty_table")
    if participants is not None:
        _join(found, participants)
    raw = assemble(replace(found, complete=False), layout)
    if raw.problems:
        advice = "Nothing was written. Mend them, then type the command again."
        raise CohortError.of(f"{folder} (as {layout})", raw.problems, advice)
    remarks = [*raw.remarks, *_not_read(raw), *_longer_names(raw)]
    table = output or found.folder / "cohort.tsv"
    name = dataset or safe_name(found.folder.resolve().name) or "cohort"
    raw = _named(replace(raw, remarks=tuple(remarks)), name)
    root = _root(found.folder, table)
    raw = _relative_to(raw, found.folder, root)
    frame = pd.DataFrame({column: raw.values(column) for column in raw.columns}, dtype=str)
    return NewTable(table, found.folder, raw, root, Schema.guess(frame, root, raw.described), layout)


def _recognised(folder: Path) -> str:
    layout = recognise(folder)
    if layout is None:
        known = "\n".join(f"  {name:<9} {reader.SUMMARY}" for name, reader in LAYOUTS.items())
        images = next((path for _, files in walk(folder) for path in files if is_image(path)), None)
        example = f"the first image in it is {printable(images)}" if images else "there is no image in it"
        raise CohortError.single(
            f"{folder} has no layout that is recognised; {example}. Say how its files are called, such as\n"
            f"  fontanel table {shlex.quote(str(folder))} --layout pattern '{{site}}/{{participant_id}}_T1w.nii.gz'\n"
            f"or choose a layout with --layout:\n{known}",
            "unreadable",
        )
    return layout


def _join(found: Found, participants: Path) -> None:
    """Add a clinical table to what was found.

    Raises:
        CohortError: When it cannot be read, has columns of another clinical table, or names nobody who has images.
    """
    if not participants.is_file():
        raise CohortError.single(f"There is no file {participants}. Correct --participants.", "missing_file")
    raw = read_text(participants)
    if any(table.path.resolve() == participants.resolve() for table in found.clinical):
        return
    found.clinical.append(raw)
    joined = assemble(found, "")
    known = {"participant_id", "session_id", "site", "dataset"}
    for table in found.clinical[:-1]:
        shared = sorted(set(table.columns) & set(raw.columns) - known)
        if shared:
            message = f"{table.path.name} and {participants.name} both have {', '.join(shared)}. Remove one of the two."
            raise CohortError.single(message, "bad_identifier")
    nobody = f"has images, but no row in {participants.name}; its columns are empty"
    if sum(remark.reason == nobody for remark in joined.remarks) == len(joined.cells):
        names = ", ".join(list(dict.fromkeys(joined.values("participant_id")))[:3])
        rows = ", ".join(dict.fromkeys(next(iter(row), "") for row in raw.cells[:3]))
        raise CohortError.single(
            f"{participants} names nobody who has images: its rows begin with {rows}, and the images are of {names}. "
            "Write the names in one way, in a column participant_id.",
            "bad_identifier",
        )


def _named(raw: RawTable, name: str) -> RawTable:
    """Return the rows with the name of their dataset, so that tables can be read together."""
    if "dataset" in raw.columns:
        return raw
    place = raw.columns.index("participant_id") + 1
    cells = [[*row[:place], name, *row[place:]] for row in raw.cells]
    columns = [*raw.columns[:place], DATASET.name, *raw.columns[place:]]
    return replace(raw, columns=columns, cells=cells, described=(*raw.described, DATASET))


def _root(folder: Path, table: Path) -> Path:
    """Return where paths start: the table's folder if the images lie below it, else that of the images."""
    above = table.resolve().parent
    return above if folder.resolve().is_relative_to(above) else folder


def _relative_to(raw: RawTable, folder: Path, root: Path) -> RawTable:
    inside = folder.resolve().relative_to(root.resolve()).as_posix()
    if inside == ".":
        return raw
    files = {raw.columns.index(c.name) for c in raw.described if c.kind == "path" and c.name in raw.columns}
    cells = [
        [f"{inside}/{cell}" if index in files and cell else cell for index, cell in enumerate(row)] for row in raw.cells
    ]
    return replace(raw, cells=cells)


def _not_read(raw: RawTable) -> list[Remark]:
    """Return the images that nobody has looked at, nor said why."""
    files = [column.name for column in raw.described if column.kind == "path" and column.name in raw.columns]
    told = {cell for name in files for cell in raw.values(name)} | {remark.what for remark in raw.remarks}
    return [
        Remark(path, NOT_IN_LAYOUT)
        for inside, paths in walk(raw.path.parent)
        if not told.intersection([inside, *(parent.as_posix() for parent in Path(inside).parents)])
        for path in paths
        if is_image(path) and printable(path) not in told
    ]


def _longer_names(raw: RawTable) -> list[Remark]:
    """Return participants whose names look like further scans of others: a split would tear them apart."""
    names = set(raw.values("participant_id"))
    return [
        Remark(f"{name} beside {short}", LONGER_NAME, left_out=False)
        for name in sorted(names)
        if (match := re.match(r"(.+?)[_-](run|ses|visit|scan|rep|t|v|tp)-?\d+$", name, re.I))
        and (short := match[1]) in names
    ]


def _reasons(remarks: Sequence[Remark]) -> str:
    return "; ".join(dict.fromkeys(f"{remark.what}: {remark.reason}" for remark in remarks[:3])) or "there is none"

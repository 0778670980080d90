"""Check every file of a cohort before anything is trained on it, and report all faults at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.cohort import Cohort, check_table
from datamodules.inspection import FileFacts, Finding, Inspection, inspect_image
from datamodules.manifest import Manifest, check_manifest, manifest_path, save_manifest
from datamodules.problems import CohortError, Problem, ProblemCode
from datamodules.schema import Column
from datamodules.voxels import Affine, Limits

__all__ = [
    "FileFacts",
    "Limits",
    "Manifest",
    "Verification",
    "check_manifest",
    "manifest_path",
    "verify_cohort",
    "write_manifest",
]

GRID_TOLERANCE = 1e-3  # mm, between the corners of two grids


@dataclass(frozen=True)
class Verification:
    """What was found in a cohort.

    Args:
        table: The table that was given.
        cohort: The cohort; None when no column identifies the participants.
        problems: Every fault of the table and its files, by row.
        files: What each file holds that could be read to its end, by its path in the table.
        schema_guessed: Whether there was no sidecar.
    """

    table: Path
    cohort: Cohort | None
    problems: tuple[Problem, ...]
    files: dict[str, FileFacts] = field(repr=False)
    schema_guessed: bool

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """Return what `fontanel verify --json` prints."""
        return {"ok": self.ok, "problems": [problem.as_dict() for problem in self.problems]}


@dataclass(frozen=True)
class _Cell:
    """A path in the table, and whose it is."""

    index: int
    row: int
    participant_id: str
    column: Column
    path: str

    def problem(self, code: ProblemCode, message: str) -> Problem:
        return Problem(self.row, self.participant_id or None, self.column.name, code, f"{self.path}: {message}")


def verify_cohort(
    table: Path | str,
    *,
    root: Path | str | None = None,
    limits: Limits | None = None,
    num_workers: int = 0,
    on_file: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check a cohort table and read every file it names to the end.

    Args:
        table: A TSV or CSV file, or a folder in a known layout.
        root: Folder that image paths are relative to; the table's own by default.
        limits: What is refused unread; generous defaults.
        num_workers: Threads that read files; 0 reads in this one.
        on_file: Called after each file with the number of files done and the number of all.
    """
    cohort, problems = check_table(table, root=root)
    if cohort is None:
        return Verification(Path(table), None, tuple(problems), {}, schema_guessed=False)
    cells = list(_cells(cohort))
    inspections = _inspect(cohort, cells, limits or Limits(), num_workers, on_file)
    repeated = {problem.row for problem in problems if problem.code == "duplicate_row"}
    problems += [
        *_file_problems(cells, inspections),
        *_duplicates([cell for cell in cells if cell.row not in repeated], inspections),
        *_grid_mismatches(cells, inspections),
    ]
    problems.sort(key=lambda problem: problem.row or 0)
    files = {path: result.facts for path, result in inspections.items() if result.facts}
    return Verification(Path(table), cohort, tuple(problems), files, cohort.schema.guessed)


def write_manifest(verification: Verification) -> Path:
    """Write what was verified to `<table>.manifest.json`, problems included, and return its path.

    Raises:
        CohortError: When the table could not be read at all, so that there is nothing to record.
    """
    if verification.cohort is None:
        raise CohortError.of(verification.table.name, verification.problems)
    return save_manifest(verification.cohort, verification.files, verification.problems)


def _cells(cohort: Cohort) -> Iterator[_Cell]:
    columns = [c for c in cohort.schema.columns if c.kind == "path" and c.name in cohort.frame]
    for index, row in enumerate(cohort.frame.to_dict("records")):
        for column in columns:
            if row[column.name]:
                yield _Cell(index, int(row["row"]), row["participant_id"], column, row[column.name])


def _inspect(
    cohort: Cohort, cells: Iterable[_Cell], limits: Limits, num_workers: int, on_file: Callable[[int, int], None] | None
) -> dict[str, Inspection]:
    paths = list(dict.fromkeys(cell.path for cell in cells))
    found: dict[str, Inspection] = {}

    def inspect(path: str) -> Inspection:
        return inspect_image(cohort.root / path, cohort.root, limits)

    with ExitStack() as stack:
        # Threads suffice: decompression, hashing and reductions run outside the interpreter's lock.
        run = stack.enter_context(ThreadPoolExecutor(num_workers)).map if num_workers > 0 else map
        for path, result in zip(paths, run(inspect, paths), strict=True):
            found[path] = result
            if on_file:
                on_file(len(found), len(paths))
    return found


def _file_problems(cells: Sequence[_Cell], inspections: dict[str, Inspection]) -> Iterator[Problem]:
    users: dict[tuple[str, str], list[_Cell]] = {}
    for cell in cells:
        users.setdefault((cell.path, cell.column.name), []).append(cell)
    for (path, _), sharing in users.items():
        result = inspections[path]
        others = f" The file stands in {len(sharing) - 1} more rows." if len(sharing) > 1 else ""
        for finding in _findings(result, sharing[0].column):
            yield sharing[0].problem(finding.code, finding.message + others)
        role = sharing[0].column.role
        # An empty lesion map is a healthy participant; an empty image or brain mask is a failed export.
        empty = role == "mask" and result.constant == 0 and not sharing[0].column.may_be_empty
        if result.constant is not None and (role == "image" or empty):
            message = (
                f"Every voxel has the value {result.constant:g}. Export the image again, or remove the row.{others}"
            )
            yield sharing[0].problem("constant_image", message)


def _findings(result: Inspection, column: Column) -> Iterator[Finding]:
    """Yield what is wrong with a file as a column uses it: of four axes, a column may mean one volume."""
    shape = result.shape
    chosen = column.volume is not None and len(shape) in (3, 4)
    yield from (finding for finding in result.findings if not (chosen and finding.code == "not_3d"))
    count = shape[3] if len(shape) == 4 else 1
    if chosen and column.volume is not None and column.volume >= count:
        held = f"{count} volumes, 0 to {count - 1}" if count > 1 else "a single volume, 0"
        message = f"The sidecar says volume {column.volume}, but the file holds {held}. Correct one of them."
        yield Finding("out_of_range", message)


def _duplicates(cells: Sequence[_Cell], inspections: dict[str, Inspection]) -> Iterator[Problem]:
    """Find scans that stand in the table twice; masks and label maps may well be shared or alike."""
    first_of: dict[tuple[str, int | None], _Cell] = {}
    for cell in cells:
        result = inspections[cell.path]
        if cell.column.role != "image" or result.facts is None or result.constant is not None:
            continue
        first = first_of.setdefault((result.facts.voxel_sha256, cell.column.volume), cell)
        if first is not cell:
            whose = f"{first.participant_id} (row {first.row}, column {first.column.name}, {first.path})"
            message = (
                f"{cell.participant_id} has the same scan as {whose}, voxel for voxel. Find out whose it is, and "
                "correct or remove the other row."
            )
            yield cell.problem("duplicate_content", message)


def _grid_mismatches(cells: Sequence[_Cell], inspections: dict[str, Inspection]) -> Iterator[Problem]:
    """Compare the grids of the files that a row keeps in one grid group."""
    reference: dict[tuple[int, str], tuple[_Cell, tuple[int, ...], Affine]] = {}
    for cell in cells:
        result = inspections[cell.path]
        if cell.column.grid is None or result.facts is None or result.affine is None:
            continue
        shape = result.facts.shape if cell.column.volume is None else result.facts.shape[:3]
        own = (cell, shape, result.affine)
        first, first_shape, affine = reference.setdefault((cell.index, cell.column.grid), own)
        if first is cell:
            continue
        difference = _grid_difference((first_shape, affine), (shape, result.affine))
        if difference:
            message = (
                f"The grid is not that of {first.path} (column {first.column.name}): {difference}. Resample one to the "
                f"other, or take the columns out of the grid group '{cell.column.grid}' in the sidecar."
            )
            yield cell.problem("grid_mismatch", message)


def _grid_difference(first: tuple[tuple[int, ...], Affine], second: tuple[tuple[int, ...], Affine]) -> str | None:
    (shape, affine), (other_shape, other_affine) = first, second
    if shape != other_shape:
        return f"{'x'.join(map(str, other_shape))} against {'x'.join(map(str, shape))} voxels"
    # The corners, because an error of the axes grows with the distance from the origin.
    ends = [(0, length - 1) for length in (*shape, 1, 1)[:3]]
    corners = np.array([[*corner, 1] for corner in np.stack(np.meshgrid(*ends), -1).reshape(-1, 3)], np.float64)
    distance = float(np.linalg.norm((corners @ (other_affine - affine).T)[:, :3], axis=1).max())
    return f"its corners lie up to {distance:.3g} mm apart" if distance > GRID_TOLERANCE else None

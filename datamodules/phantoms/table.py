"""Writing a phantom cohort: images in parallel, then the table, its sidecar and its manifest."""

import csv
import gzip
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from datamodules.phantoms import PhantomError

if TYPE_CHECKING:  # workers render without pandas
    import nibabel as nib

    from datamodules.schema import Column

TABLE = "cohort.tsv"
ITEMS_PER_WORKER = 16  # below this, starting a process costs more than it saves

Row = dict[str, str | float]
Report = Callable[[int, int], None]


class Generator(Protocol):
    """What a study's phantom offers; it is sent to worker processes, so it holds plain values."""

    @property
    def num_participants(self) -> int:
        """Number of rows."""

    def columns(self) -> "tuple[Column, ...]":
        """Return the meaning of every column of the table, in order."""

    def order(self) -> Sequence[int]:
        """Return all indices of participants in the order that is cheapest to make."""

    def make(self, index: int, folder: Path) -> Row:
        """Write a participant's images under the folder and return the row of the table."""


def write_cohort(
    phantom: Generator,
    folder: Path,
    *,
    num_workers: int = 0,
    overwrite: bool = False,
    on_image: Report | None = None,
    on_check: Report | None = None,
) -> Path:
    """Make every participant and write `cohort.tsv` with its sidecar and manifest.

    The bytes do not depend on the number of workers. The table is written last, so a folder with a table is complete.

    Args:
        phantom: The generator.
        folder: Where to write; made if absent.
        num_workers: Processes to render in; 0 renders in this one.
        overwrite: Replace a cohort that is already there.
        on_image: Called with the participants rendered and in all.
        on_check: Called with the files verified and in all.

    Returns:
        The table.

    Raises:
        PhantomError: The folder already has a cohort, or what was written does not verify.
    """
    table = folder / TABLE
    if table.exists() and not overwrite:
        raise PhantomError(f"{table} is already there. Name another folder, or replace it with --overwrite.")
    table.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    rows = _render(phantom, folder, num_workers, on_image)
    write_table(phantom.columns(), rows, table, num_workers=num_workers, on_check=on_check)
    return table


def write_table(
    columns: "Sequence[Column]",
    rows: Iterable[Row],
    table: Path,
    *,
    num_workers: int = 0,
    on_check: Report | None = None,
) -> None:
    """Write a table over images that are there, with its sidecar and manifest.

    Args:
        columns: Meaning of every column, in order.
        rows: Cells by column.
        table: The file to write.
        num_workers: Threads that verify.
        on_check: Called with the files verified and in all.

    Raises:
        PhantomError: What was written does not verify.
    """
    from datamodules.schema import Schema, schema_path
    from datamodules.verify import verify_cohort, write_manifest

    schema = Schema(tuple(columns))
    schema_path(table).write_text(schema.to_json(), encoding="utf-8")
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [column.name for column in schema.columns], delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    verification = verify_cohort(table, num_workers=num_workers, on_file=on_check)
    write_manifest(verification)
    if not verification.ok:
        problems = "\n".join(map(str, verification.problems[:20]))
        raise PhantomError(f"The table {table} was written but does not verify; is the disk full?\n{problems}")


def by_anatomy(names: Iterable[str]) -> list[int]:
    """Return all indices of participants, those of one anatomy together so that its geometry is loaded once.

    >>> by_anatomy(["b", "a", "b"])
    [1, 0, 2]
    """
    return [index for index, _ in sorted(enumerate(names), key=lambda pair: pair[1])]


def save_image(image: "nib.Nifti1Image", path: Path) -> None:
    """Write a `.nii.gz` whose bytes depend on the image only: no file name and no time in the gzip header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as stream:
        stream.write(image.to_bytes())


def _render(phantom: Generator, folder: Path, num_workers: int, on_image: Report | None) -> list[Row]:
    order = phantom.order()
    rows: dict[int, Row] = {}
    for index, row in zip(order, _rows(phantom, folder, order, num_workers), strict=True):
        rows[index] = row
        if on_image is not None:
            on_image(len(rows), len(order))
    return [rows[index] for index in sorted(rows)]


def _rows(phantom: Generator, folder: Path, order: Sequence[int], num_workers: int) -> Iterator[Row]:
    num_workers = min(num_workers, len(order) // ITEMS_PER_WORKER)
    if num_workers < 1:
        yield from (phantom.make(index, folder) for index in order)
        return
    # spawn: a forked copy of a process that has run torch or SimpleITK threads may hang
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(_make, phantom, folder), order, chunksize=4)


def _make(phantom: Generator, folder: Path, index: int) -> Row:
    return phantom.make(index, folder)

"""Check every file of a cohort table and write its manifest; or check a pack.

TABLE is a .tsv or .csv file, or a folder in a layout such as BIDS (`fontanel table` makes a table of such a folder).
What its columns mean stands in TABLE.json; without that file it is guessed, and --write-schema writes the guess down
for you to correct. The manifest TABLE.manifest.json, which `fontanel fit` asks for, is written beside the table, with
the problems if there are any. Exit code 1 means that there are problems.

A pack (model.fontanel) is told by its ending, or by its seal. Then the hashes are checked, and what the model wants and
gives is printed; nothing of it is run. The command fails where a byte of the file was changed.

Examples:
  fontanel verify cohort.tsv --num-workers 4
  fontanel verify model.fontanel
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datamodules.verify import Verification


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "table", type=Path, metavar="TABLE", help="cohort table (.tsv or .csv), a folder such as BIDS, or a pack"
    )
    parser.add_argument("--json", action="store_true", help="print the problems as JSON")
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="folder that image paths start from (default: the table's)"
    )
    parser.add_argument(
        "--write-schema", action="store_true", help="write the guessed meaning of the columns to TABLE.json"
    )
    parser.add_argument("--num-workers", type=int, default=0, metavar="N", help="threads that read files (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Verify a cohort or a pack and return 0 when nothing is wrong with it."""
    from tracking.packs import is_pack

    if is_pack(arguments.table):
        from experiments.pack_check import check

        return check(arguments.table, as_json=arguments.json)
    from datamodules.verify import verify_cohort, write_manifest

    if arguments.num_workers < 0:
        from datamodules.problems import CohortError

        raise CohortError.single(f"--num-workers {arguments.num_workers} is below 0. Give the number of threads.")
    if arguments.write_schema:
        _write_schema(arguments.table, arguments.root)
    with _counter() as on_file:
        verification = verify_cohort(
            arguments.table, root=arguments.root, num_workers=arguments.num_workers, on_file=on_file
        )
    if verification.schema_guessed:
        _say(_guess_notice(verification))
    if verification.cohort is not None and verification.cohort.remarks:
        from experiments.table import list_remarks

        lines = list_remarks(verification.cohort.remarks)
        _say("\n".join([f"{arguments.table} was read as {verification.cohort.layout}.", *lines]))
    print(json.dumps(verification.as_json()) if arguments.json else _summary(verification))
    if verification.cohort is not None:
        manifest = write_manifest(verification)
        if not arguments.json:
            print(f"Manifest: {manifest}")
    return 0 if verification.ok else 1


def _write_schema(table: Path, root: Path | None) -> None:
    from datamodules.cohort import CohortError, check_table, schema_path
    from datamodules.layouts import table_file

    sidecar = schema_path(table_file(table))
    if sidecar.exists():
        message = f"{sidecar} is there already. Edit it, or remove it to have it guessed again."
        raise CohortError.single(message)
    cohort, problems = check_table(table, root=root)
    if cohort is None:
        raise CohortError.of(table.name, problems)
    sidecar.write_text(cohort.schema.to_json(), encoding="utf-8")
    _say(f"wrote {sidecar}. Correct roles, units and ranges there, then verify again.")


@contextmanager
def _counter() -> Iterator[Callable[[int, int], None]]:
    """Show progress from the first file on; how many there are is known only when the table has been read."""
    from tracking.progress import progress

    with ExitStack() as stack:
        advance: Callable[[int], None] | None = None

        def on_file(_done: int, total: int) -> None:
            nonlocal advance
            if advance is None:
                advance = stack.enter_context(progress("Verifying images", total))
            advance(1)

        yield on_file


def _guess_notice(verification: "Verification") -> str:
    assert verification.cohort is not None
    roles = ", ".join(f"{column.name} ({column.role})" for column in verification.cohort.schema.columns)
    return (
        f"{verification.cohort.table.name} has no sidecar, so the meaning of its columns was guessed: {roles}. "
        "--write-schema writes it down for you to correct."
    )


def _summary(verification: "Verification") -> str:
    from datamodules.problems import CohortError

    if verification.problems or verification.cohort is None:
        return str(CohortError.of(verification.table.name, verification.problems))
    frame = verification.cohort.frame
    participants = len(frame[["dataset", "participant_id"]].drop_duplicates())
    counts = f"{len(frame)} rows, {participants} participants, {len(verification.files)} files"
    return f"{verification.table.name}: {counts}, no problems."


def _say(notice: str) -> None:
    sys.stderr.write(f"fontanel: {notice}\n")

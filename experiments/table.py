"""Write the cohort table of a folder: who was scanned, where, which images there are, and what is known clinically.

The folder is in a layout that is recognised (BIDS, nnU-Net, a datalist of MONAI, BONBID-HIE, the table of BrainIAC), or
you say how its files are called. It is only read; the table and its sidecar, which says what the columns mean, are new
files. What was left out is said with the reason; --json prints all of it. Examples:

  fontanel table data/ds000228
  fontanel table data/lab --layout pattern '{site}/{participant_id}_T1w.nii.gz' --participants clinical.csv
  fontanel table data/lab --layout pattern '{participant_id}[_ses-{session_id}]_{image}.nii.gz' -o tables/lab.tsv

In a pattern {participant_id}, {session_id} and {site} say whose an image is, when and where. {image} names its column;
else what follows the last field does, or a name before the pattern ('mask:masks/{participant_id}.nii.gz'). {run} counts
repeated scans, other fields become columns, * is any text, and [...] may be absent. Without a suffix a pattern is of
DICOM: folders of one series each, or files. Of several scans of one kind in a session the first by name is taken, and a
kind that is missing leaves an empty cell.
"""

import argparse
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.new_table import NewTable
    from datamodules.raw_table import Remark

LAYOUTS = ("bids", "nnunet", "monai", "bonbid", "brainiac", "pattern")
SHOWN = 3  # examples of each reason


class _Layout(argparse.Action):
    """The name of a layout, and after `pattern` the patterns."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        name, *patterns = [str(value) for value in values or ()]
        if name not in LAYOUTS:
            parser.error(f"there is no layout '{name}'; choose from {', '.join(LAYOUTS)}")
        if name == "pattern" and not patterns:
            parser.error("--layout pattern needs a pattern, such as '{site}/{participant_id}_T1w.nii.gz'")
        if name != "pattern" and patterns:
            parser.error(f"--layout {name} takes no pattern; write DIR before --layout")
        namespace.layout, namespace.patterns = name, patterns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.set_defaults(patterns=[])
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder, or a datalist or table of BrainIAC in it")
    parser.add_argument(
        "--layout",
        action=_Layout,
        nargs="+",
        metavar=("LAYOUT", "PATTERN"),
        help=f"how the folder is arranged: {', '.join(LAYOUTS)} (default: recognised); after pattern, the patterns",
    )
    parser.add_argument(
        "--participants", type=Path, metavar="FILE", help="clinical table (.tsv or .csv) to join, by participant"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="TABLE", help="where to write (default: DIR/cohort.tsv)")
    parser.add_argument("--dataset", metavar="NAME", help="name of the dataset (default: that of DIR)")
    parser.add_argument("--force", action="store_true", help="replace a table that is there")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, not only examples")


def run(arguments: argparse.Namespace) -> int:
    """Read the folder, write the table, and say what is in it, what is not, and what to type next."""
    from datamodules.new_table import make_table

    made = make_table(
        arguments.folder,
        layout=arguments.layout,
        patterns=arguments.patterns,
        participants=arguments.participants,
        output=arguments.output,
        dataset=arguments.dataset,
    )
    made.write(force=arguments.force)
    if arguments.json:
        print(json.dumps(made.as_json() | {"next": list(_next(made))}, ensure_ascii=False))
        return 0
    for line in _summary(made, recognised=arguments.layout is None):
        print(line)
    return 0


def _summary(made: "NewTable", *, recognised: bool) -> Iterator[str]:
    how = "recognised; another with --layout" if recognised else "as you said"
    yield f"{made.folder} was read as {made.layout} ({how})."
    sites = ", ".join(f"{site} {count}" for site, count in made.sites.items())
    people, sessions = _number(made.participants, "participant"), _number(len(made.raw.cells), "session")
    yield f"{people}, {sessions} (the rows); sites: {sites or 'not known'}."
    for name, count in made.images.items():
        lacking = made.gaps.get(name, [])
        yield f"  {name}: {count}" + (f"; missing in {len(lacking)}: {_examples(lacking)}" if lacking else "")
    others = [column.name for column in made.schema.columns if column.kind != "path" and column.name not in IDENTITY]
    yield f"Other columns: {', '.join(others) or 'none (join a clinical table with --participants FILE)'}."
    yield from list_remarks(made.raw.remarks)
    yield f"Wrote {made.table} and {made.table.name}.json, which says what the columns mean; correct it. Next:"
    for command in _next(made):
        yield f"  {command}"


def list_remarks(remarks: "Sequence[Remark]") -> Iterator[str]:
    """Yield lines that say what was left out of a table and what is odd, by reason, with the first examples."""
    for title, left_out in (("Left out:", True), ("Look at:", False)):
        chosen = [remark for remark in remarks if remark.left_out == left_out]
        if chosen:
            yield title
        for reason in dict.fromkeys(remark.reason for remark in chosen):
            same = [remark.what for remark in chosen if remark.reason == reason]
            yield f"  {len(same)}: {reason}: {_examples(same)}"


def _next(made: "NewTable") -> Iterator[str]:
    words = [str(made.table), *(["--root", str(made.root)] if made.needs_root else [])]
    for verb in ("verify", "preview"):
        yield shlex.join(["fontanel", verb, *words])


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


IDENTITY = ("participant_id", "session_id", "site", "dataset")

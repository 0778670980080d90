"""Show every image of a cohort on one page: in its file, as the network sees it, and augmented.

TABLE is a .tsv or .csv file, or a folder. The page opens in any browser and holds everything it shows. What stands out
most comes first: each image is compared with the others by a few measures (volume of the foreground, intensities,
roughness, similarity to the median image), and the page says by which it stands out. Beside each image is what its
header and `fontanel verify` say about it; the sites are compared by their intensities. Examples:

  fontanel preview cohort.tsv                                       by the default preprocessing, each image by itself
  fontanel preview cohort.tsv --config fit.yaml                     what this configuration gives its network
  fontanel preview cohort.tsv --config study.yaml --data.rows 'age > 60'
  fontanel preview cohort.tsv --output pages/cohort.html --json > scores.json

The page holds identifiers and slices of heads: share it as you would share the images.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datamodules.channel_view import ChannelView
    from datamodules.cohort import Cohort
    from datamodules.inspection import FileFacts
    from datamodules.preview import Recipe
    from datamodules.problems import Problem
    from evaluation.contact_sheet import Card

PASSES_ON = True  # words this parser does not know belong to the configuration
OUTPUT = "preview.html"
MAX_NAMED = 10  # outlying rows that are named on the terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel preview`."""
    parser.add_argument("table", type=Path, metavar="TABLE", help="cohort table (.tsv or .csv), or a folder of images")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="fit or study file whose images, preprocessing and augmentation are shown; later files and words win",
    )
    parser.add_argument(
        "--output", type=Path, default=Path(OUTPUT), metavar="FILE", help=f"page to write (default: {OUTPUT})"
    )
    parser.add_argument("--json", action="store_true", help="print the scores and problems of every row as JSON")
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="folder that image paths start from (default: the table's)"
    )
    parser.set_defaults(refuse=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Look at every row, write the page, and say what stands out."""
    from experiments.preview_page import build_page, make_cards

    if arguments.rest and not arguments.config:
        arguments.refuse(f"{arguments.rest[0]} belongs to a configuration. Name one with --config.")
    material = gather(arguments)
    views = look(material)
    cards = make_cards(material, views)
    page = build_page(material, views, cards).encode()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_bytes(page)
    if arguments.json:
        print(json.dumps(as_json(arguments.output, cards)))
    else:
        say(arguments.output, len(page), cards)
    return 0


@dataclass(frozen=True)
class Material:
    """What is looked at, and what is known of it beforehand.

    Args:
        cohort: The rows.
        recipe: What is done to their images.
        files: What each file holds that could be read to its end, by its path in the table.
        problems: What `fontanel verify` has to say.
        source: Name of the configuration, empty without one.
    """

    cohort: "Cohort"
    recipe: "Recipe"
    files: "Mapping[str, FileFacts]"
    problems: "Sequence[Problem]"
    source: str


def gather(arguments: argparse.Namespace) -> Material:
    """Read table and configuration, and verify the files unless a manifest still describes them."""
    from datamodules.cohort import CohortError, check_table
    from datamodules.preview import Recipe
    from datamodules.selection import require_columns, select_rows
    from experiments.verify import guess_notice

    recipe = _configured(arguments) if arguments.config else None
    data = None if recipe is None else recipe.datamodule
    root = arguments.root if data is None else data.root
    cohort, problems = check_table(arguments.table, root=root)
    if cohort is None or cohort.frame.empty:
        raise CohortError.of(arguments.table.name, problems)
    if cohort.schema.guessed:
        sys.stderr.write(f"fontanel: {guess_notice(cohort)}\n")
    if recipe is not None:
        require_columns(cohort, files=[*recipe.images, *filter(None, [recipe.mask])], targets=[], covariates=[])
    files, findings = _verified(cohort, arguments.table, root)
    if recipe is None:
        recipe = Recipe.of_table(cohort, files)
        if not recipe.images:
            raise CohortError.of(arguments.table.name, findings)
    if data is not None and data.rows is not None:
        cohort = select_rows([cohort], data.rows)[0]
    return Material(cohort, recipe, files, findings, " ".join(Path(name).name for name in arguments.config))


def _verified(cohort: "Cohort", table: Path, root: Path | None) -> "tuple[Mapping[str, FileFacts], Sequence[Problem]]":
    """Return what each file holds and what is wrong: from the manifest while it is true, else all files are read."""
    from datamodules.manifest import known_manifest
    from datamodules.verify import verify_cohort
    from experiments.verify import file_counter

    if (manifest := known_manifest(cohort)) is not None:
        return manifest.files, manifest.problems
    with file_counter() as on_file:
        verification = verify_cohort(table, root=root, on_file=on_file)
    return verification.files, verification.problems


def look(material: Material) -> list[list["ChannelView"]]:
    """Return what is shown of each image of every row, one row in memory at a time."""
    from datamodules.channel_view import compare
    from datamodules.preview import Previewer
    from tracking.progress import progress

    previewer = Previewer(material.cohort, material.files, material.recipe)
    rows = material.cohort.frame.to_dict("records")
    views = []
    with progress("Drawing images", len(rows)) as advance:
        for row in rows:
            views.append(previewer.look(row))
            advance(1)
    compare(views, list(material.cohort.frame["site"]))
    return views


def as_json(output: Path, cards: Sequence["Card"]) -> dict[str, object]:
    """Return what `--json` prints, the most outlying row first."""
    from evaluation.contact_sheet import order
    from evaluation.outliers import LIMIT

    return {"output": str(output), "limit": LIMIT, "rows": [_row_json(card) for card in order(cards)]}


def _row_json(card: "Card") -> dict[str, object]:
    largest = card.score.deviations[0] if card.score.deviations else None
    return {
        "row": card.row,
        "participant_id": card.participant_id,
        "session_id": card.session_id,
        "image_id": card.image_id,
        "site": card.site,
        "readable": card.is_readable,
        "score": None if largest is None else round(largest.stands_out, 3),
        "column": None if largest is None else largest.column,
        "measure": None if largest is None else largest.measure,
        "outlying": card.score.is_outlying,
        "problems": sorted({code for code, _ in card.problems}),
    }


def say(output: Path, size: int, cards: Sequence["Card"]) -> None:
    """Print where the page is, and what comes first on it."""
    from evaluation.contact_sheet import order, summary

    print(summary(cards))
    for card in [card for card in order(cards) if card.score.is_outlying][:MAX_NAMED]:
        print(f"  {card.score_text:>5}  {card.name} ({card.site}): {card.reason()}")
    print(f"Page: {output}, {size / 1e6:.1f} MB, {size / 1e3 / len(cards):.0f} kB a row. Open it in a browser.")


def _configured(arguments: argparse.Namespace) -> "Recipe":
    """Return what a configuration does to images; the table is the given one, and needs no manifest."""
    from datamodules.preview import Recipe
    from experiments.runtime import FontanelCLI
    from experiments.study import read_study

    files = [*arguments.config[:-1], str(read_study(Path(arguments.config[-1])).base)]
    words = [word for name in files for word in ("--config", name)]
    words += [*arguments.rest, "--data.table", str(arguments.table), "--data.allow_unverified", "true"]
    if arguments.root is not None:
        words += ["--data.root", str(arguments.root)]
    return Recipe.of(FontanelCLI(words).datamodule)

"""Options that several verbs share, and what they stand for."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracking.store import Store

STEP_TIMEOUT = 600.0  # seconds; a batch of large volumes on a CPU takes tens of them


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two options that every verb with a store has."""
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="folder for runs (FONTANEL_OUTPUT, else ./outputs)"
    )
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow store (MLFLOW_TRACKING_URI, else sqlite in the output folder)"
    )


def add_image_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that lets images of participants leave this machine."""
    parser.add_argument(
        "--share-images",
        action="store_true",
        default=None,
        help="send images of participants to a server of another machine, too (FONTANEL_SHARE_IMAGES=1)",
    )


def add_storage_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that names where trials are kept."""
    parser.add_argument(
        "--storage",
        metavar="URI",
        help="where trials are kept: sqlite:///FILE.db, journal://FILE or postgresql://... (FONTANEL_STORAGE, else a "
        "file in the output folder)",
    )


def open_store(arguments: argparse.Namespace) -> "Store":
    """Open the store that the options name, making a fresh one where there is none."""
    from tracking.addresses import output_folder, tracking_uri
    from tracking.store import Store

    folder = output_folder(arguments.output_dir)
    return Store(tracking_uri(arguments.tracking_uri, folder), folder, getattr(arguments, "share_images", None))


@contextmanager
def store_to_read(arguments: argparse.Namespace) -> "Iterator[Store]":
    """Open the store that the options name; where there is none yet, an empty one that disappears again."""
    import tempfile

    from tracking.addresses import output_folder, sqlite_path, tracking_uri
    from tracking.store import Store

    database = sqlite_path(tracking_uri(arguments.tracking_uri, output_folder(arguments.output_dir)))
    if database is None or database.is_file():
        yield open_store(arguments)
        return
    with tempfile.TemporaryDirectory(prefix="fontanel-") as name:
        yield Store(f"sqlite:///{Path(name) / 'mlflow.db'}", Path(name))


def add_dry_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a verb that can say what it would do, and what that can show."""
    from experiments.expectation import add_expectation_arguments

    parser.add_argument("--dry-run", action="store_true", help="print jobs, power and cost, and stop; nothing is kept")
    parser.add_argument("--time", action="store_true", help="with --dry-run: time a training for a few steps")
    parser.add_argument("--json", action="store_true", help="with --dry-run: print it as JSON")
    add_expectation_arguments(parser, "what is expected (with --dry-run)")


def add_configuration_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that lead to a configuration."""
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="fit file; later files and words win"
    )
    parser.add_argument(
        "--allow-unverified", action="store_true", help="use a cohort without a fitting manifest; the run says so"
    )
    parser.add_argument(
        "--help-all", action="store_true", help="list every argument of a fit file (takes some seconds)"
    )


def configuration_words(arguments: argparse.Namespace) -> list[str]:
    """Return the words for the configuration's own parser, in the order that lets later ones win."""
    if arguments.help_all:
        return ["--help"]
    words = [word for name in arguments.config for word in ("--config", name)]
    words += arguments.rest
    if arguments.allow_unverified:
        words += ["--data.allow_unverified", "true"]
    return words


def add_assessment_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of validate and test."""
    parser.add_argument("reference", nargs="?", metavar="RUN", help="run id, run name, run folder, or checkpoint file")
    add_configuration_arguments(parser)
    add_store_arguments(parser)

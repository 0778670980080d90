"""Write a phantom cohort with known ground truth.

The folder gets images, the table cohort.tsv, its sidecar cohort.tsv.json and its manifest, ready for `fontanel fit`.
The same seed gives the same bytes, and a participant is the same however many are made. Examples:

  fontanel make-cohort brain-age cohorts/brain-age --num-participants 320 --seed 0
  fontanel make-cohort hie-outcome cohorts/hie --num-participants 160 --seed 0
  fontanel make-cohort hie-outcome cohorts/hie --num-participants 160 --seed 0 --shared-factor off --reuse-images
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMMON = ("folder", "num_workers", "overwrite", "phantom", "reuse_images")  # what is not an argument of a generator
STUDIES = {  # the study that trains on a phantom
    "brain-age": "age2hie/phantom_pretrain.yaml",
    "hie-outcome": "age2hie/phantom_finetune.yaml",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one subcommand per phantom."""
    from datamodules.phantoms import PHANTOMS

    choices = parser.add_subparsers(dest="phantom", metavar="PHANTOM", required=True)
    for name, phantom in PHANTOMS.items():
        chosen = choices.add_parser(name, help=phantom.summary, description=f"{phantom.summary}.", allow_abbrev=False)
        chosen.add_argument("folder", type=Path, metavar="DIR", help="where to write; made if absent")
        chosen.add_argument(
            "--num-participants",
            type=int,
            default=320,
            metavar="N",
            help="number of participants (default: %(default)s)",
        )
        chosen.add_argument("--seed", type=int, default=0, metavar="S", help="seed of people and scanners (default: 0)")
        chosen.add_argument(
            "--num-workers",
            type=int,
            default=os.cpu_count() or 1,
            metavar="N",
            help="processes (default: one per core)",
        )
        chosen.add_argument("--overwrite", action="store_true", help="replace a cohort that is already in DIR")
        OPTIONS[name](chosen)


def run(arguments: argparse.Namespace) -> int:
    """Make the cohort, say what is known about it and name the next command."""
    phantom = _generator(arguments)
    table = _write(phantom, arguments)
    config = Path(__file__).parent / STUDIES[arguments.phantom]
    shown = config.relative_to(Path.cwd()) if config.is_relative_to(Path.cwd()) else config
    for line in phantom.findings(table):
        print(line)
    print(f"{arguments.num_participants} participants in {table}. Next:")
    print(f"  fontanel fit --config {shown} --data.table {table}")
    return 0


def make(arguments: argparse.Namespace) -> Path:
    """Make the cohort and return its table."""
    return _write(_generator(arguments), arguments)


def _generator(arguments: argparse.Namespace) -> Any:  # noqa: ANN401 - phantoms are loaded by name
    from datamodules.phantoms import PHANTOMS, PhantomError

    options = {name: value for name, value in vars(arguments).items() if name not in COMMON}
    options |= {name: tuple(value) for name, value in options.items() if isinstance(value, list)}
    phantom = PHANTOMS[arguments.phantom].load()(**options)
    if arguments.num_workers < 0:
        raise PhantomError(f"There is no number of processes below 0. Change --num-workers {arguments.num_workers}.")
    return phantom


def _write(phantom: Any, arguments: argparse.Namespace) -> Path:  # noqa: ANN401 - phantoms are loaded by name
    from tracking.progress import progress

    reuse = getattr(arguments, "reuse_images", False)
    rendered = 0 if reuse else phantom.num_participants
    what = "Verifying images" if reuse else "Rendering and verifying images"
    with progress(what, rendered + phantom.num_files) as advance:
        options = {
            "num_workers": arguments.num_workers,
            "overwrite": arguments.overwrite,
            "on_check": lambda _done, _total: advance(1),
        }
        if reuse:
            again: Path = phantom.relabel(arguments.folder, **options)
            return again
        table: Path = phantom.write(arguments.folder, on_image=lambda _done, _total: advance(1), **options)
        return table


def _add_brain_age(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scenario",
        choices=("independent", "confounded"),
        default="independent",
        help="whether age is independent of the site or rises from the first site to the last (default: independent)",
    )
    parser.add_argument(
        "--sites", type=int, default=3, dest="num_sites", metavar="N", help="number of sites (default: 3)"
    )
    parser.add_argument(
        "--skull",
        choices=("mixed", "on", "off"),
        default="mixed",
        help="whole heads, skull-stripped images, or both by turns from site to site (default: mixed)",
    )
    _add_geometry(parser, shape=(48, 56, 48), field_of_view="192 x 224 x 192")
    parser.add_argument(
        "--age-range",
        type=float,
        nargs=2,
        default=(20.0, 90.0),
        metavar="YEARS",
        help="youngest and oldest age, within 0 to 100 (default: 20 90)",
    )


def _add_hie_outcome(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(num_participants=160)
    parser.add_argument(
        "--shared-factor",
        choices=("on", "off"),
        default="on",
        help="whether the outcome depends on the anatomy that age changes too; the images do not (default: on)",
    )
    parser.add_argument(
        "--reuse-images",
        action="store_true",
        help="write cohort_shared-factor-on.tsv or -off.tsv over the images of the cohort in DIR, without rendering",
    )
    parser.add_argument(
        "--images",
        choices=("adc", "zadc", "t1w"),
        nargs="+",
        default=("adc", "zadc"),
        help="images to render beside the lesion map (default: adc zadc)",
    )
    parser.add_argument(
        "--sites", type=int, default=2, dest="num_sites", metavar="N", help="number of sites (default: 2)"
    )
    _add_geometry(parser, shape=(40, 48, 40), field_of_view="120 x 140 x 120")


def _add_geometry(parser: argparse.ArgumentParser, shape: tuple[int, int, int], field_of_view: str) -> None:
    parser.add_argument(
        "--shape",
        type=int,
        nargs=3,
        default=shape,
        metavar="N",
        help=f"voxels left-right, back-front, bottom-top (default: {' '.join(map(str, shape))})",
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar="MM",
        help=f"voxel size (default: the shape covers {field_of_view} mm); sites vary it by 6 %%",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FOLDER",
        help="deform these FreeSurfer label maps of whole heads instead of ICBM152",
    )
    parser.add_argument(
        "--anatomies",
        nargs="+",
        metavar="NAME",
        help="use only these label maps (file names without suffix)",
    )


OPTIONS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "brain-age": _add_brain_age,
    "hie-outcome": _add_hie_outcome,
}

"""Write a phantom cohort with known ground truth.

The folder gets images, the table cohort.tsv, its sidecar cohort.tsv.json and its manifest, ready for `fontanel fit`.
The same seed gives the same bytes, and a participant is the same however many are made. Example:

  fontanel make-cohort brain-age cohorts/brain-age --num-participants 320 --seed 0
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

COMMON = ("folder", "num_workers", "overwrite", "phantom")  # what is not an argument of a generator
STUDIES = {"brain-age": "age2hie/phantom_pretrain.yaml"}  # the study that trains on a phantom


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one subcommand per phantom."""
    from datamodules.phantoms import PHANTOMS

    choices = parser.add_subparsers(dest="phantom", metavar="PHANTOM", required=True)
    for name, phantom in PHANTOMS.items():
        chosen = choices.add_parser(name, help=phantom.summary, description=f"{phantom.summary}.", allow_abbrev=False)
        chosen.add_argument("folder", type=Path, metavar="DIR", help="where to write; made if absent")
        chosen.add_argument(
            "--num-participants", type=int, default=320, metavar="N", help="number of participants (default: 320)"
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
    """Make the cohort and name the next command."""
    table = make(arguments)
    config = Path(__file__).parent / STUDIES[arguments.phantom]
    shown = config.relative_to(Path.cwd()) if config.is_relative_to(Path.cwd()) else config
    print(f"{arguments.num_participants} participants in {table}. Next:")
    print(f"  fontanel fit --config {shown} --data.table {table}")
    return 0


def make(arguments: argparse.Namespace) -> Path:
    """Make the cohort and return its table."""
    from datamodules.phantoms import PHANTOMS, PhantomError
    from tracking.progress import progress

    options = {name: value for name, value in vars(arguments).items() if name not in COMMON}
    options |= {name: tuple(value) for name, value in options.items() if isinstance(value, list)}
    phantom = PHANTOMS[arguments.phantom].load()(**options)
    if arguments.num_workers < 0:
        raise PhantomError(f"There is no number of processes below 0. Change --num-workers {arguments.num_workers}.")
    total = phantom.num_participants
    with progress("Rendering and verifying images", 2 * total) as advance:
        table: Path = phantom.write(
            arguments.folder,
            num_workers=arguments.num_workers,
            overwrite=arguments.overwrite,
            on_image=lambda _done, _total: advance(1),
            on_check=lambda _done, _total: advance(1),
        )
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
    parser.add_argument(
        "--shape",
        type=int,
        nargs=3,
        default=(48, 56, 48),
        metavar="N",
        help="voxels left-right, back-front, bottom-top (default: 48 56 48)",
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar="MM",
        help="voxel size (default: the shape covers 192 x 224 x 192 mm); sites vary it by 6 %%",
    )
    parser.add_argument(
        "--age-range",
        type=float,
        nargs=2,
        default=(20.0, 90.0),
        metavar="YEARS",
        help="youngest and oldest age, within 0 to 100 (default: 20 90)",
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


OPTIONS: dict[str, Callable[[argparse.ArgumentParser], None]] = {"brain-age": _add_brain_age}

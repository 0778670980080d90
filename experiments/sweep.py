"""Search for the best arguments of a training, or of a whole cross-validation, with Optuna.

Examples:
  fontanel sweep --config experiments/age2hie/phantom_sweep.yaml --num-trials 50 --num-workers 4
  FONTANEL_STORAGE=postgresql+psycopg2://USER:PASSWORD@HOST/optuna fontanel sweep --config SWEEP
  fontanel sweep --join age2hie/phantom_sweep                      work on a sweep that is going on, also elsewhere
  fontanel sweep --config SWEEP --launcher slurm --num-workers 8   workers are jobs of a cluster
  fontanel sweep --config SWEEP --outer-protocol cross-site        one sweep for each site, without its participants
  fontanel best age2hie/phantom_sweep > best.yaml                  the best configuration; fit takes it

The sweep file names a base (a fit file, or a study file whose folds every trial is judged by), the space by dotted
argument, what is optimised, and for how long. Every argument of the fit file may follow (--data.table my.tsv).

Every trial is a process of its own. Any number of workers may join, leave, or be killed: what they leave is taken up
by another, from its last checkpoint. After Ctrl-C or a kill, repeat the same command. Give --num-trials more to go on.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.sweep_file import Sweep
    from experiments.sweep_plan import SweepPlan
    from tracking.store import Store

LAUNCHERS = ("processes", "slurm")
PASSES_ON = True  # words this parser does not know belong to the configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel sweep` that are not part of a fit file."""
    from experiments.options import add_dry_run_arguments, add_storage_argument, add_store_arguments

    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", type=Path, metavar="SWEEP", help="sweep file")
    which.add_argument("--join", metavar="NAME", help="work on a sweep that somebody has started")
    parser.add_argument("--num-trials", type=int, metavar="N", help="trials in all, those that are done included")
    parser.add_argument("--max-hours", type=float, metavar="H", help="start no trial after so long")
    parser.add_argument(
        "--num-workers",
        type=int,
        metavar="N",
        help="trials at once (default: one per GPU or core; on a cluster 1)",
    )
    parser.add_argument(
        "--outer-protocol",
        metavar="NAME",
        help="search within each training part of a protocol, such as cross-site: its test participants are never seen",
    )
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="processes",
        help="processes of this machine (default), or slurm: workers are jobs of a cluster, and join from there",
    )
    parser.add_argument("--num-threads", type=int, default=1, metavar="N", help="threads of each trial (default: 1)")
    parser.add_argument("--study", metavar="NAME", help="name of the sweep (default: folder/name of the sweep file)")
    add_storage_argument(parser)
    add_dry_run_arguments(parser)
    parser.add_argument("--allow-unverified", action="store_true", help="use a cohort without a fitting manifest")
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Plan or join, work until nothing is left to do, and say what was found."""
    from experiments.options import open_store, store_to_read
    from experiments.sweep_campaign import SweepCampaign
    from experiments.sweep_file import read_sweep
    from experiments.sweep_storage import open_storage, storage_uri
    from tracking.addresses import output_folder

    uri = storage_uri(arguments.storage, output_folder(arguments.output_dir))
    if arguments.join is not None:
        campaign = SweepCampaign.join(arguments.join, open_storage(uri), open_store(arguments), arguments.max_hours)
        return campaign.run(arguments.num_workers, arguments.launcher)
    sweep = configured_sweep(read_sweep(arguments.config), arguments)
    words = [*arguments.rest, *(["--data.allow_unverified", "true"] if arguments.allow_unverified else [])]
    if arguments.dry_run:
        from experiments.dry_run import show_sweep

        with store_to_read(arguments) as store:
            return show_sweep(_plans(sweep, words, store, arguments), store, arguments)
    store = open_store(arguments)
    plans = _plans(sweep, words, store, arguments)
    storage = open_storage(uri)
    how = (arguments.num_workers, arguments.launcher)
    return max(SweepCampaign.create(plan, storage, store).run(*how) for plan in plans)


def configured_sweep(sweep: "Sweep", arguments: argparse.Namespace) -> "Sweep":
    """Return the sweep of the command line: its file, and what the options change."""
    from dataclasses import replace

    changes = {"num_trials": arguments.num_trials, "max_hours": arguments.max_hours, "name": arguments.study}
    return replace(sweep, **{name: value for name, value in changes.items() if value is not None})


def _plans(sweep: "Sweep", words: list[str], store: "Store", arguments: argparse.Namespace) -> "list[SweepPlan]":
    """Return the sweep, or one for each training part of the outer protocol."""
    from experiments.sweep_plan import plan_nested, plan_sweep

    if arguments.outer_protocol is None:
        return [plan_sweep(sweep, words, store, arguments.num_threads)]
    return plan_nested(sweep, words, store, arguments.outer_protocol, arguments.num_threads)

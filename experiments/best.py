"""Print the best configuration that a sweep has found so far; `fontanel fit --config` takes it.

Examples:
  fontanel best age2hie/phantom_sweep > best.yaml
  fontanel fit --config best.yaml
"""

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fontanel best`."""
    from experiments.options import add_storage_argument, add_store_arguments

    parser.add_argument("name", metavar="SWEEP", help="name of the sweep")
    add_storage_argument(parser)
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the configuration, and on standard error what it reached."""
    from experiments.sweep_conclusion import SweepConclusion
    from experiments.sweep_plan import SweepPlan
    from experiments.sweep_queue import TrialQueue, slot_of
    from experiments.sweep_storage import open_storage, storage_uri
    from tracking.addresses import output_folder

    storage = open_storage(storage_uri(arguments.storage, output_folder(arguments.output_dir)))
    queue, definition = TrialQueue.join(arguments.name, storage)
    plan = SweepPlan.from_json(definition, *queue.budget())
    found = SweepConclusion(plan, queue)
    best = found.best
    shown = ", ".join(f"{name} {value:.4g}" for name, value in zip(plan.sweep.metric, best.values, strict=True))
    sys.stderr.write(f"trial {slot_of(best)} of {len(found.completed)} completed: {shown}\n")
    print(found.best_config(), end="")
    return 0

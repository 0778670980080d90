"""Deliver to the store what runs have left on this machine while it was away.

Examples:
  fontanel sync                                          every run of the output folder
  fontanel sync RUN
  fontanel sync --tracking-uri http://127.0.0.1:5000

Metrics, parameters, files and the status of a run wait in its folder until the store has taken them. What was
delivered before is not delivered twice. A run that a process is still working on is left to that process.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run and the options of the store."""
    from experiments.options import add_store_arguments

    parser.add_argument("reference", nargs="?", metavar="RUN", help="run id, run name, or run folder (default: all)")
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Deliver, and say what."""
    from experiments.options import open_store
    from tracking.journal import read_cursor, read_start, undelivered
    from tracking.progress import progress
    from tracking.shipping import find_folder, run_folders, settle

    store = open_store(arguments)
    folders = run_folders(store) if arguments.reference is None else [find_folder(store, arguments.reference)]
    waiting = [folder for folder in folders if undelivered(folder)]
    with progress("Delivering runs", len(waiting)) as advance:
        for folder in waiting:
            delivered = settle(store, folder)
            advance(1)
            start = read_start(folder)
            state = "delivered" if delivered else "left to the process that works on it"
            print(f"Run {read_cursor(folder).run_id or folder.name} ({start.name if start else '?'}): {state}.")
    if not waiting:
        print(f"Everything is in {store.shown_uri} already.")
    return 0

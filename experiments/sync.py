"""Deliver to the store what runs have left on this machine while it was away.

Examples:
  fontanel sync                                          every run of the output folder
  fontanel sync RUN
  fontanel sync --tracking-uri http://127.0.0.1:5000
  fontanel sync RUN --share-images                       also images of participants that were kept back

Metrics, parameters, files and the status of a run wait in its folder until the store has taken them. What was
delivered before is not delivered twice. A run that a process is still working on is left to that process.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run and the options of the store."""
    from experiments.options import add_image_argument, add_store_arguments

    parser.add_argument("reference", nargs="?", metavar="RUN", help="run id, run name, or run folder (default: all)")
    add_image_argument(parser)
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Deliver, and say what."""
    from evaluation.wording import count_text
    from experiments.options import open_store
    from tracking.images import read_withheld
    from tracking.journal import read_cursor, read_start, undelivered
    from tracking.progress import progress
    from tracking.shipping import find_folder, kept_text, run_folders, send_withheld, settle

    store = open_store(arguments)
    folders = run_folders(store) if arguments.reference is None else [find_folder(store, arguments.reference)]
    waiting = [folder for folder in folders if undelivered(folder) or (store.share_images and read_withheld(folder))]
    with progress("Delivering runs", len(waiting)) as advance:
        for folder in waiting:
            delivered = settle(store, folder) if undelivered(folder) else True
            sent = send_withheld(store, folder) if store.share_images else 0
            advance(1)
            start = read_start(folder)
            state = "delivered" if delivered else "left to the process that works on it"
            images = f", with {count_text(sent, 'image')} that had been kept back" if sent else ""
            run_id = read_cursor(folder).run_id or folder.name
            print(f"Run {run_id} ({start.name if start else '?'}): {state}{images}.")
    kept = {folder: [Path(one.path).name for one in read_withheld(folder)] for folder in folders}
    for folder, names in kept.items():
        if names:
            print(kept_text(names, store.shown_uri, read_cursor(folder).run_id or folder.name))
    if not waiting and not any(kept.values()):
        print(f"Everything is in {store.shown_uri} already.")
    return 0

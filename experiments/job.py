"""Run one job of a cross-validation; launchers call this, and so may you.

A job is a folder that 'fontanel crossval' has prepared (<output>/crossval/NAME/jobs/JOB). One that is done is not done
again; one that was interrupted goes on where it was.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    from experiments.options import add_store_arguments

    parser.add_argument("folder", type=Path, metavar="JOB", help="folder of the job")
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do the job."""
    from experiments.jobs import read_job
    from experiments.options import open_store

    read_job(arguments.folder).run(open_store(arguments))
    return 0

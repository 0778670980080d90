"""Write report.html for a run, a cross-validation, or a predictions table.

Examples:
  fontanel report RUN                                the run's report, written again from what it holds
  fontanel report crossval-cross-site-0a1b2c3d       does the transfer help: the report of a cross-validation
  fontanel report predictions.csv --output r.html    a table from any software, with participant_id, target, prediction
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel report`."""
    from experiments.options import add_store_arguments

    parser.add_argument(
        "source", metavar="RUN|TABLE", help="run id, run name or run folder; or a CSV, TSV or Parquet file"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="page to write (default: the run's folder; beside a table)"
    )
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the page and print where it is."""
    from experiments.options import open_store
    from experiments.reporting import write_run_report, write_table_report

    table = Path(arguments.source)
    if table.is_file():
        print(write_table_report(table, arguments.output or table.with_suffix(".report.html")))
        return 0
    store = open_store(arguments)
    run_id = store.find_run(arguments.source).run_id
    print(write_run_report(store, run_id, arguments.output or store.folder(run_id) / "report.html"))
    return 0

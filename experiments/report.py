"""Write report.html for a run, a cross-validation, or a predictions table.

Examples:
  fontanel report RUN                                the run's report, written again from what it holds
  fontanel report crossval-cross-site-0a1b2c3d       does the transfer help: the report of a cross-validation
  fontanel report predictions.csv --output r.html    a table from any software, with participant_id, target, prediction
  fontanel report RUN --share                        a form that may be sent away: report-shared.html

With --share, participants are named by codes, ages over 89 are given as 90+, counts under five as <5 (and others where
these would follow from them), and images of participants are left out; the statistics are unchanged. The key of the
codes and the list of them stay beside the run, in its folder sharing/, or beside the table: send neither.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel report`."""
    from evaluation.tasks import TASKS
    from experiments.options import add_store_arguments

    parser.add_argument(
        "source", metavar="RUN|TABLE", help="run id, run name or run folder; or a CSV, TSV or Parquet file"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="page to write (default: the run's folder; beside a table)"
    )
    parser.add_argument(
        "--share", action="store_true", help="write the form that may be sent away: no identifiers, no small counts"
    )
    parser.add_argument(
        "--task", choices=tuple(TASKS), help="kind of outcome of a TABLE (default: binary where targets are 0 and 1)"
    )
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the page and print where it is."""
    from experiments.options import open_store
    from experiments.reporting import write_run_report, write_table_report

    kind = "report-shared" if arguments.share else "report"
    table = Path(arguments.source)
    if table.is_file():
        home = table.with_suffix(".sharing") if arguments.share else None
        page = arguments.output or table.with_suffix(f".{kind}.html")
        print(write_table_report(table, page, home, arguments.task))
    else:
        store = open_store(arguments)
        run_id = store.find_run(arguments.source).run_id
        if arguments.task is not None:
            from experiments.runtime import ConfigurationError

            raise ConfigurationError("What a run predicts is known: --task is for tables. Leave it out.")
        home = store.folder(run_id) / "sharing" if arguments.share else None
        print(write_run_report(store, run_id, arguments.output or store.folder(run_id) / f"{kind}.html", home))
    if home is not None:
        print(f"Who is behind the codes stays here, send it to nobody: {home}")
    return 0

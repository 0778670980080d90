"""Compute metrics with intervals from a predictions table of any software.

The table (CSV, TSV or Parquet) needs only the columns participant_id, target and prediction. A table with
several protocols, arms, splits or outputs needs the options that choose one of each. Nothing is written; the
numbers go to standard output.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluation.assessment import Assessment

FILTERS = {
    "protocol": "rows of this protocol",
    "arm": "rows of this arm",
    "train_sites": "rows of models trained on these sites",
    "split": "rows of this split (test, external, val, ...)",
    "output": "rows of this output (age, ...)",
    "site": "rows of this site; may be repeated",
    "dataset": "rows of this dataset; may be repeated",
}
REPEATABLE = ("site", "dataset")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    from evaluation.tasks import TASKS

    parser.add_argument("table", type=Path, metavar="TABLE", help="predictions table: CSV, TSV or Parquet")
    parser.add_argument("--task", choices=tuple(TASKS), required=True, help="kind of outcome")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON (undefined values are null)")
    parser.add_argument("--unit", help="unit of the target (default: years for the output 'age')")
    parser.add_argument(
        "--num-replicates", type=_count, default=2000, metavar="N", help="bootstrap replicates; 0: no intervals"
    )
    parser.add_argument("--seed", type=_count, default=0, metavar="S", help="seed of the bootstrap (default 0)")
    chosen = parser.add_argument_group("choose rows")
    for name, text in FILTERS.items():
        flag = f"--{name.replace('_', '-')}"
        chosen.add_argument(flag, action="append" if name in REPEATABLE else "store", metavar=name.upper(), help=text)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate the table and print the metrics."""
    from evaluation.assessment import assess
    from evaluation.predictions import PredictionsError, read_predictions, select

    try:
        frame = select(read_predictions(arguments.table), **{name: getattr(arguments, name) for name in FILTERS})
        assessment = assess(
            frame, arguments.task, num_replicates=arguments.num_replicates, seed=arguments.seed, unit=arguments.unit
        )
    except PredictionsError as error:
        raise PredictionsError(error.problems, arguments.table) from None
    if arguments.json:
        print(json.dumps(assessment.as_json(), indent=2, allow_nan=False))
    else:
        print(describe(assessment))
    return 0


def describe(assessment: "Assessment") -> str:
    """Return the metrics as a table for a terminal, with what they rest on."""
    from evaluation.regression import METRICS
    from evaluation.wording import count_text, with_unit

    rows = assessment.rows
    named = [f"{name} {value}" for name in ("output", "split", "arm", "protocol") if (value := rows[name].iloc[0])]
    counts = (
        count_text(assessment.num_participants, "participant"),
        count_text(len(rows.drop_duplicates(["participant", "session_id"])), "session"),
        count_text(int(rows["num_images"].sum()), "row"),
    )
    lines = [", ".join([assessment.task.capitalize(), *named]), ", ".join(counts)]
    if assessment.num_runs > 1:
        lines.append(f"Each metric is the mean over {assessment.num_runs} runs (repeat x seed).")
    if assessment.num_missing_target:
        lines.append(f"Left out because the target is missing: {count_text(assessment.num_missing_target, 'row')}.")
    labels = {
        name: with_unit(METRICS[name].label, assessment.unit if METRICS[name].in_unit else None)
        for name in assessment.metrics
    }
    width = max(map(len, labels.values()))
    lines += ["", f"{'Metric':<{width}}  {'Name':<18}  {'Estimate':>9}  95 % interval"]
    for name, value in assessment.metrics.items():
        number = f"{value.estimate:.3f}" if value.defined else "undefined"
        interval = "" if value.low is None or value.high is None else f"{value.low:.3f} to {value.high:.3f}"
        lines.append(f"{labels[name]:<{width}}  {name:<18}  {number:>9}  {interval}".rstrip())
    lines += ["", f"Null model: predicts {assessment.null_model_text}."]
    if assessment.num_replicates:
        lines.append(
            f"Intervals: percentiles of {assessment.num_replicates} bootstrap replicates over participants, "
            f"seed {assessment.seed}."
        )
    return "\n".join(lines)


def _count(text: str) -> int:
    """Parse a whole number that is not negative."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number

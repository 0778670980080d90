"""Test what one run or table gains over another, on the participants they share.

A and B are predictions tables (CSV, TSV, Parquet) or runs (run id, name or folder). Both must score the same
participants, sessions and targets; a difference is always B - A. Each metric is computed per run (repeat x seed),
then averaged. Intervals are those of a bootstrap that draws participants, and runs where there are several, the
same for A and B; the AUC of two fixed models is tested by DeLong's method. Holm's p-values are adjusted for all
metrics that are printed and have a better direction: name the one that decides with --metric.

Examples:
  fontanel compare ours.csv theirs.csv --task binary                      two tables of any software
  fontanel compare scratch-holdout-0-r0-s0 tuned-holdout-0-r0-s0 --split test --metric auroc
  fontanel compare predictions.parquet predictions.parquet --arm-a scratch --arm-b pretrained --split external
"""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.evaluate import FILTERS, REPEATABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from evaluation.paired import Comparison

OUTCOME = "outcome"  # `--output` is the file that is written
TABLES = {".csv", ".tsv", ".txt", ".parquet"}
FOOT = 112  # characters of a line of text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel compare`."""
    from evaluation.tasks import TASKS
    from experiments.evaluate import _count as count
    from experiments.options import add_store_arguments

    parser.add_argument("a", metavar="A", help="predictions table, or run id, run name or run folder")
    parser.add_argument("b", metavar="B", help="the same; differences are B - A")
    parser.add_argument("--task", choices=tuple(TASKS), help="kind of outcome (default: told from the table)")
    parser.add_argument(
        "--metric", action="append", metavar="NAME", help="compare this metric only; may be repeated (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON (undefined values are null)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON to this file too")
    parser.add_argument(
        "--num-replicates", type=count, default=2000, metavar="N", help="bootstrap replicates; 0: no intervals"
    )
    parser.add_argument("--seed", type=count, default=0, metavar="S", help="seed of the bootstrap (default 0)")
    chosen = parser.add_argument_group("choose rows")
    for side in ("a", "b"):
        chosen.add_argument(f"--arm-{side}", metavar="ARM", help=f"rows of this arm in {side.upper()}")
    for name, text in FILTERS.items():
        if name != "arm":
            flag = OUTCOME if name == "output" else name.replace("_", "-")
            action = "append" if name in REPEATABLE else "store"
            chosen.add_argument(f"--{flag}", action=action, metavar=flag.upper(), help=f"{text}, in A and B")
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare B with A and print the differences."""
    from evaluation.paired import compare
    from experiments.effort import effort_of

    comparison = compare(
        side(arguments, "a"),
        side(arguments, "b"),
        arguments.task,
        metrics=arguments.metric,
        num_replicates=arguments.num_replicates,
        seed=arguments.seed,
    )
    efforts = {name: effort_of(rows, arguments) for name, rows in zip("ab", comparison.rows, strict=True)}
    known = {"effort": efforts} if any(efforts.values()) else {}
    document = json.dumps({**comparison.as_json(), **known}, indent=2, allow_nan=False)
    if arguments.output is not None:
        from tracking.files import write_file

        write_file(arguments.output, f"{document}\n".encode())
    if arguments.json:
        print(document)
    else:
        print(describe(comparison, arguments, efforts))
    return 0


def side(arguments: argparse.Namespace, name: str) -> "pd.DataFrame":
    """Read one side and choose its rows.

    Args:
        arguments: The parsed words.
        name: `a` or `b`.

    Raises:
        PredictionsError: The table cannot be used, or holds several arms, outputs, protocols or splits.
        StoreError: There is no such run, or it has no predictions.
    """
    from evaluation.prediction_checks import listed
    from evaluation.predictions import PredictionsError, read_predictions, select

    path = table_of(arguments, getattr(arguments, name))
    wanted = {column: getattr(arguments, OUTCOME if column == "output" else column, None) for column in FILTERS}
    wanted["arm"] = getattr(arguments, f"arm_{name}")
    try:
        frame = select(read_predictions(path), **wanted)
        flags = {"protocol": "--protocol", "arm": f"--arm-{name}", "split": "--split", "output": f"--{OUTCOME}"}
        mixed = [
            f"it holds several values of '{column}': {listed(sorted(frame[column].unique()))}. Choose one with {flag}."
            for column, flag in flags.items()
            if frame[column].nunique() > 1
        ]
    except PredictionsError as error:
        raise PredictionsError(error.problems, path) from None
    if mixed:
        raise PredictionsError(mixed, path)
    return frame


def table_of(arguments: argparse.Namespace, reference: str) -> Path:
    """Return the file of a predictions table, fetched from the store where the reference is a run."""
    path = Path(reference)
    if path.is_file() or path.suffix.lower() in TABLES:
        return path
    from experiments.options import open_store
    from tracking.errors import StoreError

    store = open_store(arguments)
    run_id = store.find_run(reference).run_id
    try:
        return store.download(run_id, "predictions.parquet")
    except StoreError as error:
        raise StoreError(f"Run {run_id} has no predictions to compare. Make some: fontanel test {run_id}") from error


def describe(comparison: "Comparison", arguments: argparse.Namespace, efforts: "Mapping[str, str | None]") -> str:
    """Return the comparison as a table for a terminal, with what it rests on."""
    from evaluation.tasks import metrics_of
    from evaluation.wording import count_text
    from experiments.effort import unequal

    rows = comparison.rows
    named = [f"{name} {value}" for name in ("output", "split") if (value := rows[0][name].iloc[0])]
    lines = [", ".join([comparison.task.capitalize(), *named, count_text(comparison.num_participants, "participant")])]
    for number, name in enumerate("ab"):
        told = [f"{column} {value}" for column in ("arm", "protocol") if (value := rows[number][column].iloc[0])]
        runs = count_text(comparison.num_runs[number], "run")
        effort = [f"effort: {efforts[name]}"] if efforts[name] else []
        lines.append(f"{name.upper()}: {', '.join([getattr(arguments, name), *told, runs, *effort])}")
    labels = {name: metrics_of(comparison.task)[name].label for name in comparison.tests}
    width = max(map(len, labels.values()))
    heads = ("A", "B", "B - A", "95 % interval", "p", "p, Holm", "detectable")
    lines += ["", _row("Metric", heads, width)]
    for name, test in comparison.tests.items():
        a, b = (value.estimate for value in comparison.values[name])
        interval = "" if test.low is None or test.high is None else f"{test.low:.3f} to {test.high:.3f}"
        holm = comparison.adjusted.get(name)
        p_values = [_p(test.p_value), "" if holm is None else _p(holm)]
        cells = [_number(a), _number(b), _number(test.difference), interval, *p_values]
        lines.append(_row(labels[name], [*cells, _number(comparison.detectable[name], "")], width))
    flag = [line for line in [unequal(efforts["a"], efforts["b"])] if line]
    return "\n".join([*lines, "", *flag, *notes(comparison, arguments)])


def notes(comparison: "Comparison", arguments: argparse.Namespace) -> list[str]:
    """Say which tests were used, and what a reader must know to read them."""
    import textwrap

    from evaluation.paired import corrected_t_refusal
    from evaluation.tasks import primary_of
    from evaluation.wording import join_words

    by_test: dict[str, list[str]] = {}
    for name, paired in comparison.tests.items():
        by_test.setdefault(paired.test, []).append(name)
    found = []
    if arguments.num_replicates:
        draws = f"{arguments.num_replicates} replicates, seed {arguments.seed}, drawn alike in A and B"
        tests = [
            f"{test} ({draws}){' for all others' if len(by_test) > 1 else ''}"
            if "bootstrap" in test
            else f"{test}, for {join_words(names)}"
            for test, names in by_test.items()
        ]
        found.append(f"Test: {'; '.join(tests)}.")
        found.append(
            f"p, Holm: adjusted for the {len(comparison.adjusted)} metrics with a better direction printed here. "
            "Detectable: smallest difference that was to be found with a power of 80 %, 2.8 standard errors."
        )
    if max(comparison.num_runs) == 1:
        found.append("One run on each side: intervals hold the chance of the participants, not that of the training.")
    elif not comparison.shared_runs:
        found.append("A and B have other repeats and seeds, so their runs are drawn apart.")
    if comparison.sites:
        sites = join_words([*comparison.sites])
        found.append(f"Each site was scored by a model of its own; values are means of the sites {sites}.")
    if comparison.assumed_threshold:
        found.append("Decisions are taken at 0.5 where a table has no column threshold.")
    if (mcnemar := comparison.mcnemar) is not None:
        found.append(
            f"McNemar: A alone is right in {mcnemar.only_a}, B alone in {mcnemar.only_b} participants; corrected chi2 "
            f"{mcnemar.statistic:.3f}, {_is(mcnemar.p_value)}; exact {_is(mcnemar.p_exact)}."
        )
    if (test := comparison.corrected_t) is not None:
        found.append(
            f"Nadeau-Bengio corrected resampled t over folds and repeats, {primary_of(comparison.task)}: difference "
            f"{test.difference:.3f} ({test.low:.3f} to {test.high:.3f}), t({test.degrees}) = {test.statistic:.3f}, "
            f"{_is(test.p_value)}."
        )
    elif {"k-fold", "cross-site"} & set(comparison.rows[0]["protocol"]):
        undefined = f"No corrected resampled t test: {primary_of(comparison.task)} is undefined in a fold."
        found.append(corrected_t_refusal(*comparison.rows) or undefined)
    return [line for text in found for line in textwrap.wrap(text, FOOT)]


def _row(first: str, cells: "list[str] | tuple[str, ...]", width: int) -> str:
    sizes = (9, 9, 9, 16, 7, 7, 10)
    shown = [f"{cell:>{size}}" for cell, size in zip(cells, sizes, strict=True)]
    return "  ".join([f"{first:<{width}}", *shown]).rstrip()


def _number(value: float, otherwise: str = "undefined") -> str:
    return f"{value + 0.0:.3f}" if math.isfinite(value) else otherwise


def _p(value: float) -> str:
    return "" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _is(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"

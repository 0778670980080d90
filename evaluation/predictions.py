"""The predictions table: the only source of every reported number.

One row per image and output. Its key is `KEY`; then `site, target, prediction, score_0..score_{K-1}` (classes only),
`threshold` (the prediction from which on the decision is 1), `decision`, `baseline` (the null model fitted on training
rows) and `run_id`. A table of other software needs only `participant_id, target, prediction`.
"""

import csv
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.prediction_checks import (
    FLAGS,
    KEY,
    NUMBER_KEY,
    SCORE,
    TEXT_KEY,
    UNIT,
    PredictionsError,
    as_numbers,
    as_text,
    column_problems,
    key_problems,
    listed,
    value_problems,
)

__all__ = [
    "FLAGS",
    "KEY",
    "UNIT",
    "PredictionsError",
    "by_participant",
    "normalise_predictions",
    "read_predictions",
    "require_single",
    "scored_rows",
    "select",
    "write_predictions",
]


def read_predictions(path: Path | str) -> pd.DataFrame:
    """Read and normalise a predictions table.

    Args:
        path: A Parquet file, or text with tabs, commas or semicolons; told by content.

    Returns:
        The table as `normalise_predictions` gives it.

    Raises:
        PredictionsError: The file is absent or unreadable, or the table has problems (all of them are named).
    """
    source = Path(path)
    if not source.is_file():
        raise PredictionsError(["there is no such file. Give a CSV, TSV or Parquet file."], source)
    with source.open("rb") as stream:
        is_parquet = stream.read(4) == b"PAR1"
    try:
        frame = pd.read_parquet(source) if is_parquet else _read_text(source)
        return normalise_predictions(frame)
    except PredictionsError as error:
        raise PredictionsError(error.problems, source) from None
    except (OSError, ValueError) as error:
        raise PredictionsError([f"it does not read as CSV, TSV or Parquet ({error})."], source) from error


def write_predictions(frame: pd.DataFrame, path: Path | str) -> Path:
    """Write a predictions table atomically, columns in the order of the contract.

    Args:
        frame: The table; normalised first.
        path: `.parquet`, `.csv` or `.tsv`.

    Returns:
        The path written.

    Raises:
        PredictionsError: The table has problems, or the ending is another one.
    """
    destination = Path(path)
    if destination.suffix not in {".parquet", ".csv", ".tsv"}:
        raise PredictionsError(
            [f"the ending '{destination.suffix}' is unknown. Use .parquet, .csv or .tsv."], destination
        )
    table = normalise_predictions(frame)
    destination.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=destination.parent, prefix=f".{destination.name}.")
    temporary = Path(name)
    try:
        os.close(handle)
        if destination.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, index=False, sep="\t" if destination.suffix == ".tsv" else ",")
        temporary.replace(destination)
    finally:
        temporary.unlink(missing_ok=True)
    return destination


def normalise_predictions(frame: pd.DataFrame) -> pd.DataFrame:
    """Add missing key columns with their defaults, check types, and report every problem at once.

    Args:
        frame: Any table with at least `participant_id`, `target` and `prediction`.

    Returns:
        A new table: key columns, `site`, `target`, `prediction`, `score_k`, `threshold`, `decision`, `baseline`,
        `run_id` and whatever else there was; `repeat` and `seed` are integers, the other keys text, numbers double
        precision.

    Raises:
        PredictionsError: Columns are missing, numbers are not numbers (rows named, 1-based), keys are repeated, a
            prediction is missing, or the images of one session differ in their target.
    """
    table = frame.reset_index(drop=True)
    table.columns = pd.Index([str(name).strip() for name in table.columns])
    problems = column_problems(table)
    if len(table) == 0:
        problems.append("it has no rows.")
    numeric = {*NUMBER_KEY, "target", "prediction", "threshold", "baseline"}
    numbers = [name for name in table.columns if name in numeric or SCORE.fullmatch(name)]
    for name in numbers:
        table[name], found = as_numbers(table[name])
        problems += found
    if problems:
        raise PredictionsError(problems)
    for name in NUMBER_KEY:
        table[name] = (table[name] if name in table else pd.Series(0, index=table.index)).astype(np.int64)
    for name in (*TEXT_KEY, "site", "run_id"):
        default = "unknown" if name == "site" else ""
        table[name] = as_text(table[name], default) if name in table else default
    if "baseline" not in table:
        table["baseline"] = np.nan
    problems = [*value_problems(table), *key_problems(table)]
    if problems:
        raise PredictionsError(problems)
    return table[_ordered(table.columns)]


def select(frame: pd.DataFrame, **filters: str | Sequence[str] | None) -> pd.DataFrame:
    """Return the rows that have the wanted values.

    Args:
        frame: A normalised table.
        **filters: Column -> value or values; None means all.

    Raises:
        PredictionsError: A column or a value does not occur; those that do are named.
    """
    problems: list[str] = []
    keep = pd.Series(True, index=frame.index)
    for column, wanted in filters.items():
        if wanted is None:
            continue
        if column not in frame:
            problems.append(f"it has no column '{column}'.")
            continue
        values = [wanted] if isinstance(wanted, str) else [str(value) for value in wanted]
        present = frame[column].astype(str)
        absent = sorted(set(values) - set(present))
        if absent:
            problems.append(f"no row has {column} {listed(absent)}. There are: {listed(sorted(present.unique()))}.")
        keep &= present.isin(values)
    if not problems and not keep.any():
        problems.append("no row has all the values asked for.")
    if problems:
        raise PredictionsError(problems)
    return frame[keep]


def require_single(frame: pd.DataFrame) -> pd.DataFrame:
    """Refuse a table in which one number would mix several protocols, arms, outputs or splits.

    Returns:
        The same table.

    Raises:
        PredictionsError: There are several; the choices and the flags that choose are named.
    """
    mixed = [column for column in ("protocol", "arm", "split", "output") if frame[column].nunique() > 1]
    without = [name for name in KEY if name != "train_sites"]
    if not mixed and frame.duplicated(without).any():
        mixed.append("train_sites")
    if mixed:
        raise PredictionsError(
            [
                f"it holds several values of '{column}': {listed(sorted(frame[column].unique()))}. "
                f"Choose one with {FLAGS[column]} (in Python: select(frame, {column}=...))."
                for column in mixed
            ]
        )
    return frame


def by_participant(frame: pd.DataFrame) -> pd.DataFrame:
    """Average images inside (participant, session), and over nothing else.

    Args:
        frame: A normalised table.

    Returns:
        One row per key without `image_id`, with the number of images in `num_images`. `decision` is taken again: 1 from
        the averaged threshold on, none where there is no threshold.
    """
    keys = [name for name in KEY if name != "image_id"]
    numbers = ["target", "prediction", "baseline"]
    numbers += [name for name in frame.columns if SCORE.fullmatch(name) or name == "threshold"]
    groups = frame.groupby(keys, sort=True)
    table = groups[numbers].mean()
    table.insert(0, "site", groups["site"].first())
    table["run_id"] = groups["run_id"].first()
    table["num_images"] = groups.size()
    if "threshold" in table:
        reached = (table["prediction"] >= table["threshold"]).astype(np.float64)
        table["decision"] = reached.where(table["threshold"].notna())
    return table.reset_index()


def scored_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that count: those with a target, one per participant, session and run.

    Args:
        frame: A normalised table of one protocol, arm, split and output.

    Returns:
        The table of `by_participant` with `participant` (the resampled unit) and `run`. A run is a repeat x seed with
        its folds pooled; where folds score the same participants, each fold is a model, hence a run, of its own.

    Raises:
        PredictionsError: No row has a target, or the table mixes what may not be mixed.
    """
    known = require_single(frame)[frame["target"].notna()]
    if known.empty:
        raise PredictionsError(["no row has a target, so there is nothing to evaluate. Fill the column 'target'."])
    table = by_participant(known)
    model = ["repeat", "seed"]
    if table.duplicated([*model, *UNIT]).any():
        model.append("fold")
    table["run"] = table.groupby(model, sort=True).ngroup()
    table["participant"] = table["dataset"] + "/" + table["participant_id"]
    return table


def _read_text(path: Path) -> pd.DataFrame:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        header = stream.readline()
        stream.seek(0)
        delimiter = max("\t,;", key=header.count)
        rows = [row for row in csv.reader(stream, delimiter=delimiter) if any(row)]
    if not rows:
        raise PredictionsError(["it is empty."])
    names, body = [name.strip() for name in rows[0]], rows[1:]
    problems = [
        f"row {number} has {len(row)} fields where the header has {len(names)}."
        for number, row in enumerate(body, start=1)
        if len(row) != len(names)
    ]
    problems += [
        f"the column '{name}' occurs twice." for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if problems:
        raise PredictionsError(problems)
    return pd.DataFrame(body, columns=names, dtype=str)


def _ordered(columns: Iterable[str]) -> list[str]:
    names = list(columns)
    scores = sorted(
        (name for name in names if SCORE.fullmatch(name)), key=lambda name: int(name.removeprefix("score_"))
    )
    contract = [*KEY, "site", "target", "prediction", *scores, "threshold", "decision", "baseline", "run_id"]
    return [*(name for name in contract if name in names), *(name for name in names if name not in contract)]

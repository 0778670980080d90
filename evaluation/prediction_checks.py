"""What a predictions table must hold, and what is wrong with one: every problem, in sentences that name the rows."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

KEY = (
    "protocol",
    "repeat",
    "fold",
    "seed",
    "arm",
    "train_sites",
    "split",
    "dataset",
    "participant_id",
    "session_id",
    "image_id",
    "output",
)
NUMBER_KEY = ("repeat", "seed")
TEXT_KEY = tuple(name for name in KEY if name not in NUMBER_KEY)
OBLIGATORY = ("participant_id", "target", "prediction")
UNIT = ("dataset", "participant_id", "session_id")
FLAGS = {
    "protocol": "--protocol",
    "arm": "--arm",
    "train_sites": "--train-sites",
    "split": "--split",
    "output": "--output",
    "site": "--site",
    "dataset": "--dataset",
}
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
TARGET_TOLERANCE = 1e-5  # relative: targets travel through single precision
SHOWN = 8  # rows or choices named in a message
SCORE = re.compile(r"score_\d+")


class PredictionsError(ValueError):
    """A predictions table, or a choice from it, cannot be used.

    Args:
        problems: What is wrong, one sentence each, all at once.
        source: The file, where there is one.
    """

    def __init__(self, problems: Sequence[str], source: Path | None = None) -> None:
        self.problems = tuple(problems)
        self.source = source
        where = "The predictions table" if source is None else f"The predictions table {source}"
        listed = self.problems[0] if len(self.problems) == 1 else "".join(f"\n  - {text}" for text in self.problems)
        count = "" if len(self.problems) == 1 else f" ({len(self.problems)} problems)"
        super().__init__(f"{where} cannot be used{count}: {listed}")


def column_problems(table: pd.DataFrame) -> list[str]:
    """Name the obligatory columns that are missing, and what they may be called here."""
    problems = []
    for name in OBLIGATORY:
        if name in table:
            continue
        close = difflib.get_close_matches(name, table.columns, n=1)
        hint = f"Rename '{close[0]}' to it" if close else f"The columns are {listed(table.columns)}"
        problems.append(f"the column '{name}' is missing. {hint}.")
    return problems


def as_numbers(column: pd.Series) -> tuple[pd.Series, list[str]]:
    """Parse a column; name the rows that hold text, an infinite number, or no whole number where a key needs one."""
    name = str(column.name)
    if pd.api.types.is_numeric_dtype(column):
        numbers = column.astype(np.float64)
        text = pd.Series(False, index=column.index)
    else:
        words = as_text(column, "").str.strip()
        numbers = pd.to_numeric(words, errors="coerce").astype(np.float64)
        text = numbers.isna() & ~words.str.lower().isin(MISSING)
    infinite = numbers.abs() == np.inf
    broken = (numbers.isna() | (numbers % 1 != 0)) & ~text & ~infinite
    problems = []
    if text.any():
        shown = _some([f"row {index + 1} '{column[index]}'" for index in column.index[text]])
        problems.append(f"the column '{name}' holds text where a number belongs: {shown}. Correct or empty them.")
    if infinite.any():
        problems.append(f"the column '{name}' is infinite in {_rows(infinite)}.")
    if name in NUMBER_KEY and broken.any():
        problems.append(f"the column '{name}' needs whole numbers and has none in {_rows(broken)}.")
    return numbers, problems


def as_text(column: pd.Series, default: str) -> pd.Series:
    """Return text; whole numbers without a decimal point, the default where nothing stands."""
    if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")
    empty = column.isna()
    words = column.astype(object).where(~empty, default).map(str)
    return words.where(words != "", default).astype(str)


def value_problems(table: pd.DataFrame) -> list[str]:
    """Name the rows without a participant, and those with a target but without a prediction."""
    problems = []
    nameless = table["participant_id"] == ""
    if nameless.any():
        problems.append(f"the participant_id is missing in {_rows(nameless)}.")
    unpredicted = table["prediction"].isna() & table["target"].notna()
    if unpredicted.any():
        problems.append(
            f"there is a target but no prediction in {_rows(unpredicted)}. A participant whom a model could not score "
            "must not vanish from its error: predict it, or remove the row and report it."
        )
    return problems


def binary_problems(table: pd.DataFrame) -> list[str]:
    """Name the rows that cannot belong to a binary outcome.

    Args:
        table: A normalised table of one output; rows are named by its index, counted from 1.
    """
    known = table["target"].notna()
    checks = {
        "the target of a binary outcome is neither 0 nor 1": known & ~table["target"].isin([0, 1]),
        "the prediction is no probability between 0 and 1": ~table["prediction"].between(0, 1) & known,
    }
    if "threshold" in table and table["threshold"].notna().any():
        checks["the threshold is no probability between 0 and 1"] = ~table["threshold"].between(0, 1) & known
    remedy = "Correct them, or evaluate another task (--task regression)."
    return [f"{text} in {_rows(wrong)}. {remedy}" for text, wrong in checks.items() if wrong.any()]


def key_problems(table: pd.DataFrame) -> list[str]:
    """Name the rows whose key is repeated, and those of one session that differ in their target."""
    problems = []
    repeated = table.duplicated(list(KEY), keep=False)
    if repeated.any():
        problems.append(
            f"the same key occurs more than once in {_rows(repeated)}. Remove the copies, or tell visits and images "
            "apart with the columns session_id and image_id."
        )
    target = table.groupby([*UNIT, "arm", "split", "output"], sort=False)["target"]
    largest = target.transform("max")
    differs = (largest - target.transform("min")) > TARGET_TOLERANCE * largest.abs().clip(lower=1)
    if differs.any():
        problems.append(
            f"the target differs within one participant and session in {_rows(differs)}. Tell visits apart with the "
            "column session_id."
        )
    return problems


def _rows(mask: pd.Series) -> str:
    numbers = [str(index + 1) for index in mask.index[mask]]
    return ("row " if len(numbers) == 1 else "rows ") + _some(numbers)


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def listed(values: Iterable[str]) -> str:
    """Return values in quotation marks, the first few of many."""
    return _some([f"'{value}'" for value in values])

"""What is taken from cohorts: the columns that are asked for, a part of the rows, a table for models without images."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from datamodules.cells import shorten
from datamodules.cohort import Cohort, CohortError, read_cohort
from datamodules.dataset import Sample

KEYS = ("dataset", "participant_id", "session_id", "image_id", "site", "split")
# What pandas raises for an expression that it cannot parse, or that does not fit the columns.
EXPRESSION_ERRORS = (ArithmeticError, AttributeError, LookupError, NameError, SyntaxError, TypeError, ValueError)


def read_cohorts(tables: Sequence[Path], root: Path | None, phantom: str) -> list[Cohort]:
    """Read several tables as one cohort.

    Args:
        tables: The tables.
        root: Folder that image paths are relative to; that of each table by default.
        phantom: What `fontanel make-cohort` calls a cohort that would do.

    Raises:
        CohortError: A table is absent, cannot be read, or has the dataset name of another.
    """
    absent = [table for table in tables if not table.exists()]
    if absent:
        raise CohortError(
            f"There is no cohort table {absent[0]}. Name yours with --data.table, or make a phantom: "
            f"fontanel make-cohort {phantom} {absent[0].parent}"
        )
    cohorts = [read_cohort(table, root=root) for table in tables]
    first: dict[str, int] = {}
    for index, cohort in enumerate(cohorts):
        for name in sorted(set(cohort.frame["dataset"])):
            if first.setdefault(name, index) != index:
                one, other = tables[first[name]], tables[index]
                raise CohortError(
                    f"{one} and {other} are both of the dataset {name}, so their participants cannot be told "
                    "apart. Give each table a column `dataset` with a name of its own (fontanel table --dataset NAME "
                    "writes it), or rename one; if they are of the same people, make one table of them."
                )
    return cohorts


def require_columns(
    cohort: Cohort,
    *,
    files: Sequence[str],
    targets: Sequence[str],
    covariates: Sequence[str],
    labels_required: bool = True,
) -> None:
    """Refuse a cohort that lacks a column, or whose column cannot be used as it is asked to be.

    Args:
        cohort: The cohort.
        files: Columns with images and masks.
        targets: Columns with numbers to predict; absent ones do where no labels are required.
        covariates: Columns with numbers to predict from.
        labels_required: Whether the targets must be there.

    Raises:
        CohortError: A column is absent, a hidden truth, or holds something else.
    """
    wanted = [*files, *(targets if labels_required else []), *covariates]
    absent = [name for name in wanted if name not in cohort.frame.columns]
    if absent:
        raise CohortError(
            f"{cohort.table.name} has no column {', '.join(absent)}; it has {_names(cohort)}. "
            "Name its columns in the configuration (data.images, data.targets, data.mask, data.covariates)."
        )
    _refuse_truth(cohort, [*targets, *covariates])
    for name in [name for name in (*targets, *covariates) if name in cohort.frame.columns]:
        if not pd.api.types.is_numeric_dtype(cohort.frame[name]):
            values = sorted({shorten(str(value)) for value in cohort.frame[name]} - {""})
            listed = ", ".join(values[:5]) + (", ..." if len(values) > 5 else "")
            what = "target" if name in targets else "covariate"
            raise CohortError(
                f"The {what} {name} of {cohort.table.name} is text ({listed}), but a network takes numbers. Add a "
                "column with a number for each value, such as 0 and 1; if it does hold numbers, its sidecar has to say "
                '"kind": "number".'
            )


def select_rows(cohorts: Sequence[Cohort], expression: str) -> list[Cohort]:
    """Return the cohorts with only the rows for which an expression is true.

    Args:
        cohorts: The cohorts, each of which must have the columns.
        expression: In the syntax of pandas' query; it sees every column but hidden truths.

    Raises:
        CohortError: The expression cannot be evaluated, is neither true nor false, or leaves nobody.
    """
    kept = [replace(cohort, frame=_select(cohort, expression)) for cohort in cohorts]
    if not any(len(cohort.frame) for cohort in kept):
        names = " and ".join(cohort.table.name for cohort in cohorts)
        raise CohortError(f"data.rows `{expression}` is true for no row of {names}. Change it.")
    return kept


def _select(cohort: Cohort, expression: str) -> pd.DataFrame:
    hidden = [column.name for column in cohort.schema.of_role("truth") if column.name in cohort.frame]
    visible = cohort.frame.drop(columns=hidden)
    reason = "the result is not true or false for each row"
    try:
        if "@" in expression or "__" in expression:  # pandas' way to the variables of a program
            raise ValueError("@ and __ are not part of it")
        chosen = visible.eval(expression, engine="python", parser="pandas", local_dict={}, global_dict={})
    except EXPRESSION_ERRORS as error:
        chosen, reason = None, str(error) or type(error).__name__
    if not isinstance(chosen, pd.Series) or not pd.api.types.is_bool_dtype(chosen):
        raise CohortError(
            f"data.rows `{expression}` cannot choose rows of {cohort.table.name}: {reason}. Write a condition on its "
            f"columns such as `age <= 5`; it has {', '.join(map(str, visible))}."
        )
    return cohort.frame[chosen].reset_index(drop=True)


def tabulate(
    cohorts: Sequence[Cohort], samples: Sequence[Sample], columns: Sequence[str], *, allow_truth: bool = False
) -> pd.DataFrame:
    """Return columns of the cohorts beside who each row is.

    Args:
        cohorts: The cohorts.
        samples: One per row of the cohorts, in the same order; targets are taken from them.
        columns: What to return.
        allow_truth: Give out hidden truths, too.

    Raises:
        CohortError: A cohort has no such column, or it is a hidden truth.
    """
    named = [name for name in dict.fromkeys(columns) if name not in KEYS]
    for cohort in cohorts:
        absent = [name for name in named if name not in cohort.frame.columns]
        if absent:
            raise CohortError(f"{cohort.table.name} has no column {', '.join(absent)}; it has {_names(cohort)}.")
        if not allow_truth:
            _refuse_truth(cohort, named)
    values = pd.concat([cohort.frame[named] for cohort in cohorts], ignore_index=True)
    trained = {name for sample in samples for name in sample.targets}.intersection(named)
    values = values.assign(
        **{name: np.array([sample.targets[name] for sample in samples], np.float64) for name in trained}
    )
    keys = pd.DataFrame([{name: getattr(sample, name) for name in KEYS} for sample in samples], columns=list(KEYS))
    return pd.concat([keys, values], axis=1)


def _refuse_truth(cohort: Cohort, names: Sequence[str]) -> None:
    truths = {column.name for column in cohort.schema.of_role("truth")}
    hidden = [name for name in names if name in truths]
    if hidden:
        raise CohortError(
            f"{', '.join(hidden)} in {cohort.table.name} is a hidden truth of a phantom; a model must not see it."
        )


def _names(cohort: Cohort) -> str:
    return ", ".join(map(str, cohort.frame))

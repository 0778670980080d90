"""The kinds of outcome that can be evaluated; light, so that a command line can list them."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import pandas as pd

    from evaluation.estimate import Statistic
    from evaluation.regression import Metric

    MakeStatistic = Callable[..., Statistic]

BINARY_COLUMNS = ("score_1", "threshold")  # only a classifier writes them


@dataclass(frozen=True)
class Task:
    """A kind of outcome. A new task is one module and one line in `TASKS`.

    Args:
        module: Module with `METRICS`, `PRIMARY` and `statistic`.
        assessor: `module:function` that takes the rows of `scored_rows` and, by name, `num_replicates`, `seed`, `unit`
            and `design`, and returns estimates by name.
    """

    module: str
    assessor: str


TASKS: Mapping[str, Task] = {
    "regression": Task("evaluation.regression", "evaluation.assessment:assess_regression"),
    "binary": Task("evaluation.binary", "evaluation.binary:assess_binary"),
}


def statistic_of(task: str) -> "MakeStatistic":
    """Return the function that makes a statistic: the metrics of one run for any weights of its rows.

    It takes the run's rows as `scored_rows` gives them, the `names` of the metrics wanted (by default all that are
    quick enough to resample; only what is wanted is computed), and the `design` of the study (by default a cohort).

    Args:
        task: A name in `TASKS`.

    >>> import numpy as np, pandas as pd
    >>> rows = pd.DataFrame({"target": [0.0, 1.0, 1.0], "prediction": [0.2, 0.1, 0.9], "baseline": np.nan})
    >>> statistic_of("binary")(rows, ["auroc"])(np.ones((1, 3)))["auroc"]
    array([0.5])
    """
    return cast("MakeStatistic", _part(task, "statistic"))


def metrics_of(task: str) -> "Mapping[str, Metric]":
    """Return how each metric of a task is shown, in the order in which they are.

    >>> metrics_of("binary")["auroc"].larger_is_better
    True
    """
    return cast("Mapping[str, Metric]", _part(task, "METRICS"))


def primary_of(task: str) -> str:
    """Return the metric that decides unless a study names another.

    >>> primary_of("regression"), primary_of("binary")
    ('mae', 'auroc')
    """
    return str(_part(task, "PRIMARY"))


def task_of(frame: "pd.DataFrame") -> str:
    """Return the task that a predictions table of one output belongs to.

    It is binary where a classifier's columns hold something and every known target is 0 or 1; a table without these
    columns may mean anything by 0 and 1, and is taken for a regression.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"target": [0.0, 1.0], "prediction": [0.2, 0.9]})
    >>> task_of(table), task_of(table.assign(score_1=0.5))
    ('regression', 'binary')
    """
    classified = any(name in frame and frame[name].notna().any() for name in BINARY_COLUMNS)
    known = frame["target"].dropna()
    return "binary" if classified and len(known) and known.astype(float).isin([0, 1]).all() else "regression"


def told_task(frame: "pd.DataFrame") -> str:
    """Return the task of a table of any software: targets 0 and 1 with predictions between them are binary, too.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"target": [0.0, 1.0, None], "prediction": [0.2, 0.9, 0.3]})
    >>> told_task(table), told_task(table.assign(prediction=1.4))
    ('binary', 'regression')
    """
    of_two_classes = set(frame["target"].dropna()) == {0.0, 1.0}
    return "binary" if of_two_classes and frame["prediction"].between(0, 1).all() else task_of(frame)


def _part(task: str, name: str) -> object:
    found: object = getattr(importlib.import_module(TASKS[task].module), name)
    return found

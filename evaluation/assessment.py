"""From a predictions table to the numbers that are reported."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from evaluation.design import Design, DesignError, DesignKind
from evaluation.estimate import NUM_REPLICATES, Estimate, as_json
from evaluation.prediction_checks import binary_problems
from evaluation.predictions import PredictionsError, normalise_predictions, scored_rows
from evaluation.regression import INFANT_YEARS, WEEKS_PER_YEAR, regression_metrics
from evaluation.tasks import TASKS, statistic_of

Assessor = Callable[..., dict[str, Estimate]]
YEARS = "years"
UNITS = {"age": YEARS}  # outputs whose unit the contract fixes


@dataclass(frozen=True)
class Assessment:
    """What one arm, output and split of a predictions table shows.

    Args:
        task: Kind of outcome.
        metrics: Estimates by name.
        rows: The rows that counted, as `scored_rows` gives them.
        num_missing_target: Table rows left out because their target is missing.
        null_model: Where the null model's prediction comes from: the training rows (column `baseline`) or this table.
        unit: Unit of the target, where it is known.
        num_replicates: Bootstrap replicates.
        seed: Seed of the bootstrap.
        design: How the participants came to be studied; it matters to a binary outcome.
    """

    task: str
    metrics: Mapping[str, Estimate]
    rows: pd.DataFrame
    num_missing_target: int
    null_model: Literal["training", "table"]
    unit: str | None
    num_replicates: int
    seed: int
    design: Design = field(default_factory=Design)

    @property
    def num_participants(self) -> int:
        """Number of participants scored."""
        return int(self.rows["participant"].nunique())

    @property
    def num_runs(self) -> int:
        """Number of models (repeat x seed) over which each metric is averaged."""
        return int(self.rows["run"].nunique())

    @property
    def null_model_text(self) -> str:
        """Say what predict-the-mean predicts."""
        if self.null_model == "training":
            return "the mean of the training targets (column baseline)"
        return "the mean of this table's own targets (no column baseline), which a model cannot know beforehand"

    def between_runs(self, metric: str) -> float:
        """Return the standard deviation of a metric between runs, NaN for fewer than two runs."""
        values = self._of_runs(metric)
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")

    def over_runs(self, metric: str) -> float:
        """Return the mean of a metric over the runs, from the rows as they are now."""
        return float(np.mean(self._of_runs(metric)))

    def _of_runs(self, metric: str) -> list[float]:
        make = statistic_of(self.task)
        runs = [run for _, run in self.rows.groupby("run")]
        return [float(make(run, [metric], self.design)(np.ones((1, len(run))))[metric][0]) for run in runs]

    def as_json(self) -> dict[str, Any]:
        """Return the JSON contract of `fontanel evaluate --json`."""
        return as_json(self.metrics, self.num_participants)


def assess(
    frame: pd.DataFrame,
    task: str = "regression",
    *,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
    unit: str | None = None,
    design: DesignKind = "cohort",
    prevalence: float | None = None,
) -> Assessment:
    """Compute every metric of a task from a predictions table.

    Args:
        frame: A predictions table of one protocol, arm, output and split; normalised first.
        task: A name in `evaluation.tasks.TASKS`.
        num_replicates: Bootstrap replicates; 0 gives no intervals.
        seed: Seed of the bootstrap.
        unit: Unit of the target; years for the output `age`.
        design: For a binary outcome, how the participants came to be studied. What a case-control study cannot give
            without the prevalence (the observed risk, and all that is compared with it) is undefined there.
        prevalence: For a binary outcome, the share of events in the population meant; rows are re-weighted to it.

    Raises:
        PredictionsError: The table has problems, mixes what may not be mixed, holds no target, or does not fit the
            task.
        DesignError: Design or prevalence are wrong, or given for an outcome that is not binary.
    """
    if task not in TASKS:
        raise PredictionsError([f"the task '{task}' is unknown. There are: {', '.join(TASKS)}."])
    table = normalise_predictions(frame)
    rows = scored_rows(table)
    plan = Design(design, prevalence)
    if task == "binary":
        _require_binary(table, frame.index)
    elif plan != Design():
        raise DesignError(f"Design and prevalence belong to a binary outcome; the task is '{task}'. Leave them out.")
    unit = UNITS.get(rows["output"].iloc[0]) if unit is None else unit
    module, _, function = TASKS[task].assessor.partition(":")
    assessor = cast(Assessor, getattr(importlib.import_module(module), function))
    return Assessment(
        task=task,
        metrics=assessor(rows, num_replicates=num_replicates, seed=seed, unit=unit, design=plan),
        rows=rows,
        num_missing_target=int(table["target"].isna().sum()),
        null_model="table" if rows["baseline"].isna().any() else "training",
        unit=unit,
        num_replicates=num_replicates,
        seed=seed,
        design=plan,
    )


def evaluate(
    frame: pd.DataFrame, task: str = "regression", seed: int = 0, num_replicates: int = NUM_REPLICATES
) -> dict[str, Any]:
    """Return the metrics of a predictions table in the form of the JSON contract.

    Args:
        frame: A predictions table of one protocol, arm, output and split.
        task: A name in `evaluation.tasks.TASKS`.
        seed: Seed of the bootstrap.
        num_replicates: Bootstrap replicates.

    Returns:
        `{"metrics": {NAME: {"estimate", "low", "high"}}, "num_participants": N}`; undefined values are None.

    >>> table = pd.DataFrame({"participant_id": ["a", "b"], "target": [1.0, 2.0], "prediction": [1.0, 2.5]})
    >>> evaluate(table)["metrics"]["mae"]["estimate"], evaluate(table)["num_participants"]
    (0.25, 2)
    """
    return assess(frame, task, num_replicates=num_replicates, seed=seed).as_json()


def assess_regression(
    rows: pd.DataFrame, *, num_replicates: int, seed: int, unit: str | None, design: Design | None = None
) -> dict[str, Estimate]:
    """Compute the metrics of a continuous outcome; errors of infants in weeks too where the unit is years.

    Args:
        rows: As `scored_rows` gives them.
        num_replicates: Bootstrap replicates.
        seed: Seed of the bootstrap.
        unit: Unit of the target.
        design: It changes nothing where the outcome is continuous.
    """
    metrics = _metrics(rows, num_replicates, seed)
    infants = rows[rows["target"] < INFANT_YEARS]
    if unit == YEARS and len(infants):
        weeks = infants.assign(
            **{name: infants[name] * WEEKS_PER_YEAR for name in ("target", "prediction", "baseline")}
        )
        metrics["mae_weeks_under_2y"] = _metrics(weeks, num_replicates, seed)["mae"]
    return metrics


def _metrics(rows: pd.DataFrame, num_replicates: int, seed: int) -> dict[str, Estimate]:
    return regression_metrics(
        rows["target"],
        rows["prediction"],
        participant_id=rows["participant"],
        run=rows["run"],
        baseline=None if rows["baseline"].isna().any() else rows["baseline"],
        num_replicates=num_replicates,
        seed=seed,
    )


def _require_binary(table: pd.DataFrame, index: pd.Index) -> None:
    """Refuse targets and predictions that are not binary, by the row numbers that a selection kept where it did."""
    kept = pd.api.types.is_integer_dtype(index)
    if problems := binary_problems(table.set_axis(index) if kept else table):
        raise PredictionsError(problems)

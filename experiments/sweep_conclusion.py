"""What a sweep has found: table of its trials, best configuration, importances and figures, in its parent run."""

import math
import tempfile
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import optuna
import pandas as pd
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from evaluation.figures.sweep import history, importances, parallel_coordinates
from experiments.runtime import ConfigurationError, FontanelCLI
from experiments.study import as_words
from experiments.sweep_file import best_of
from experiments.sweep_plan import SweepPlan
from experiments.sweep_queue import ATTEMPT, WHY, TrialQueue, slot_of
from tracking.logger import RunLogger

TABLE, BEST = "trials.csv", "best.yaml"
DPI = 200
MIN_TRIALS = 5  # completed ones, below which no importance means anything


@dataclass(frozen=True)
class SweepConclusion:
    """The end of a sweep, or its state so far.

    Args:
        plan: What was planned.
        queue: Its trials.
    """

    plan: SweepPlan
    queue: TrialQueue

    @cached_property
    def trials(self) -> list[FrozenTrial]:
        """Every attempt at a trial."""
        return self.queue.trials()

    @cached_property
    def completed(self) -> list[FrozenTrial]:
        """The trials that came to their end."""
        return [trial for trial in self.trials if trial.state == TrialState.COMPLETE]

    @property
    def best(self) -> FrozenTrial:
        """The best trial; of several metrics, the one that is best in the first.

        Raises:
            ConfigurationError: No trial was completed.
        """
        if not self.completed:
            reasons = {trial.user_attrs.get(WHY, "") for trial in self.trials} - {""}
            said = f" {next(iter(reasons))}" if reasons else ""
            raise ConfigurationError(f"No trial of {self.plan.sweep.name} was completed.{said}")
        return best_of(self.completed, self.plan.sweep)

    def best_config(self) -> str:
        """Return the configuration of the best trial as YAML, every default written out."""
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder) / "base.yaml"
            base.write_text(self.plan.config, encoding="utf-8")
            return FontanelCLI(["--config", str(base), *as_words(self.best.params)]).resolved()

    def table(self) -> pd.DataFrame:
        """Return a row for each attempt at a trial: state, values, seconds, why it failed, and what was chosen."""
        metric, names = self.plan.sweep.metric, self._arguments()
        rows = [
            {
                "trial": slot_of(trial),
                "attempt": int(trial.user_attrs.get(ATTEMPT, 0)),
                "state": trial.state.name.lower(),
                **dict(zip(metric, self._values(trial), strict=True)),
                "seconds": math.nan if trial.duration is None else trial.duration.total_seconds(),
                "why": trial.user_attrs.get(WHY, ""),
                **{name: trial.params.get(name) for name in names},
            }
            for trial in self.trials
        ]
        return pd.DataFrame(rows, columns=["trial", "attempt", "state", *metric, "seconds", "why", *names])

    def importances(self) -> dict[str, float]:
        """Return how much of the variance of the first metric each argument explains; empty with too few trials."""
        if len(self.completed) < MIN_TRIALS:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                study = self.queue.study()
                found = optuna.importance.get_param_importances(study, target=lambda trial: trial.values[0])
            except (ValueError, RuntimeError):  # no argument that all trials have, or all values alike
                return {}
        return {name: float(share) for name, share in found.items() if math.isfinite(share)}

    def write(self, parent: RunLogger) -> None:
        """Write table, best configuration, aggregates and figures into the parent run.

        Args:
            parent: The run, which is still open.
        """
        table = self.table()
        path = parent.folder / TABLE
        table.to_csv(path, index=False)
        parent.log_artifact(path)
        states = table.sort_values("attempt").drop_duplicates("trial", keep="last")["state"]
        metrics = {f"trials/{state}": float((states == state).sum()) for state in ("complete", "pruned", "fail")}
        if self.completed:
            parent.log_text(BEST, self.best_config())
            metrics |= {
                f"best/{name}": value for name, value in zip(self.plan.sweep.metric, self.best.values, strict=True)
            }
            shares = self.importances()
            metrics |= {f"importance/{name}": share for name, share in shares.items()}
            self._draw(parent, table, shares)
        parent.log_metrics(metrics, step=0)
        parent.release()

    def _draw(self, parent: RunLogger, table: pd.DataFrame, shares: dict[str, float]) -> None:
        metric, maximize = self.plan.sweep.metric[0], self.plan.sweep.directions[0] == "maximize"
        shown = table.rename(columns={metric: "value"})
        _save(parent, history(shown, metric=metric, maximize=maximize), "history.png")
        if shares:
            _save(parent, importances(shares), "importances.png")
        done = shown[shown["state"] == "complete"]
        _save(parent, parallel_coordinates(done, self._arguments(), metric=metric, maximize=maximize), "parallel.png")

    def _arguments(self) -> list[str]:
        return [one.name for one in self.plan.sweep.searched.parameters]

    def _values(self, trial: FrozenTrial) -> list[float]:
        """Return the values of a trial; of a pruned one the last that it reported."""
        missing = [math.nan] * len(self.plan.sweep.metric)
        if trial.state == TrialState.COMPLETE:
            return list(trial.values)
        if trial.state == TrialState.PRUNED and trial.intermediate_values:
            return [trial.intermediate_values[max(trial.intermediate_values)], *missing[1:]]
        return missing


def _save(parent: RunLogger, figure: Figure, name: str) -> None:
    path = parent.folder / name
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    parent.log_artifact(path)

"""A sweep file: what a sweep starts from, what it searches, what it optimises, and for how long.

base: phantom_finetune.yaml          # a fit file: one training a trial; a study file: one training for each fold
metric: val/auroc                    # with a study file, a metric of the predictions table, such as auroc
direction: maximize
space:
model.optimizer.lr: {low: 1e-4, high: 1e-2, log: true}
model.network.dropout: {low: 0.0, high: 0.5}
num_trials: 30
sampler: TPESampler                  # any class of optuna.samplers, {class_path: ..., init_args: {...}} with arguments
pruner: {class_path: MedianPruner, init_args: {n_startup_trials: 8}}
"""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial

from evaluation.tasks import metrics_of
from experiments.runtime import ConfigurationError
from experiments.study import checked_base, closest, read_mapping
from experiments.sweep_space import Space

Direction = Literal["minimize", "maximize"]
DIRECTIONS: tuple[Direction, ...] = ("minimize", "maximize")
LISTS = ("metric", "direction")
SEED = "seed"
FOLD_PRUNER = {"class_path": "WilcoxonPruner", "init_args": {}}  # of the scores of folds, paired with the best trial's


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Args:
        name: Folder and name of the file: the MLflow experiment, and the name by which others join.
        base: The fit file, or the study file, that every trial starts from.
        space: What is searched: the entry of the file.
        metric: What is optimised, one name or more.
        direction: `minimize` or `maximize`, one for each metric; known for metrics of the predictions table and losses.
        num_trials: Trials in all; retries of what was killed do not count.
        max_hours: No trial is started after so long.
        sampler: Class of `optuna.samplers` and its arguments.
        pruner: Class of `optuna.pruners` and its arguments; by default none for one training, and Wilcoxon's test for
            the scores of folds.
        arm: The arm of the study file whose arguments the trials have.
        slurm: What each worker needs of a cluster, by the names of `sbatch`; see `experiments.slurm`.
    """

    name: str
    base: Path
    space: Mapping[str, Any]
    metric: tuple[str, ...]
    direction: tuple[Direction, ...] = ()
    num_trials: int | None = 20
    max_hours: float | None = None
    sampler: Mapping[str, Any] = field(default_factory=lambda: {"class_path": "TPESampler", "init_args": {}})
    pruner: Mapping[str, Any] | None = None
    arm: str | None = None
    slurm: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.metric:
            raise ConfigurationError(f"{self.name} optimises nothing. Name a metric, such as metric: val/loss.")
        if self.num_trials is None and self.max_hours is None:
            raise ConfigurationError(f"{self.name} has no end. Give num_trials, max_hours, or both.")
        if self.num_trials is not None and self.num_trials < 1:
            raise ConfigurationError(f"{self.name} has num_trials {self.num_trials}; one trial at least is needed.")
        if len(self.directions) != len(self.metric):
            raise ConfigurationError(
                f"{self.name} has {len(self.metric)} metrics and {len(self.direction)} directions."
            )
        for direction in self.direction:
            if direction not in DIRECTIONS:
                raise ConfigurationError(f"{direction} is no direction.{closest(direction, DIRECTIONS)}")
        if self.pruner is not None and len(self.metric) > 1:
            raise ConfigurationError(
                f"{self.name} has several metrics, and such a sweep cannot prune. Leave `pruner` out."
            )
        make_sampler(self.sampler, 0)
        make_pruner(self.pruner)
        _ = self.searched

    @property
    def searched(self) -> Space:
        """What is searched.

        Raises:
            ConfigurationError: An entry cannot be searched.
        """
        return Space.read(self.space)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Which way each metric is better."""
        return self.direction or tuple(map(_direction_of, self.metric))

    def as_json(self) -> dict[str, Any]:
        """Return JSON types, from which `from_json` makes the same sweep."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Sweep":
        """Return the sweep that `as_json` was taken from."""
        lists = {name: tuple(content[name]) for name in LISTS}
        return cls(**{**content, **lists, "base": Path(content["base"])})


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        ConfigurationError: It is none, or has keys that no sweep has; says which were probably meant.
    """
    content = read_mapping(path)
    if "space" not in content or "base" not in content:
        raise ConfigurationError(f"{path} is not a sweep file: it needs `base`, `space` and `metric`.")
    base = checked_base(path, content, Sweep)
    for key in LISTS:
        value = content.get(key) or ()
        content[key] = tuple(value) if isinstance(value, list) else (value,) if value else ()
    for key in ("sampler", "pruner"):
        if content.get(key):
            content[key] = named_class(content[key])
    return Sweep(**{**content, "name": f"{path.resolve().parent.name}/{path.stem}", "base": base})


def named_class(content: Any) -> Any:  # noqa: ANN401 - YAML
    """Return a class with its arguments, where a file may give its name alone."""
    return {"class_path": content} if isinstance(content, str) else content


def best_of(trials: Sequence[FrozenTrial], sweep: Sweep) -> FrozenTrial:
    """Return the best of some completed trials; of several metrics, the one that is best in the first."""
    best = min if sweep.directions[0] == "minimize" else max
    return best(trials, key=lambda trial: trial.values[0])


def make_sampler(content: Mapping[str, Any], seed: int) -> optuna.samplers.BaseSampler:
    """Return a sampler; one that takes a seed and was given none gets this one."""
    kind = _class(optuna.samplers, content)
    takes_seed = SEED in inspect.signature(kind).parameters
    arguments = {**({SEED: seed} if takes_seed else {}), **(content.get("init_args") or {})}
    sampler: optuna.samplers.BaseSampler = _make(kind, arguments)
    return sampler


def make_pruner(content: Mapping[str, Any] | None) -> optuna.pruners.BasePruner:
    """Return a pruner, one that never prunes where none is wanted."""
    if content is None:
        return optuna.pruners.NopPruner()
    pruner: optuna.pruners.BasePruner = _make(_class(optuna.pruners, content), content.get("init_args") or {})
    return pruner


def _class(module: ModuleType, content: Mapping[str, Any]) -> type:
    name = str(content.get("class_path", "")).rpartition(".")[2]
    known = [known for known in module.__all__ if known[0].isupper()]
    if name not in known:
        raise ConfigurationError(f"{module.__name__} has no '{name}'.{closest(name, known)}")
    found: type = getattr(module, name)
    return found


def _make(kind: type, arguments: Mapping[str, Any]) -> Any:  # noqa: ANN401 - of the class
    known = inspect.signature(kind).parameters
    for name in arguments:
        if name not in known:
            raise ConfigurationError(f"{kind.__name__} has no argument '{name}'.{closest(name, known)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return kind(**arguments)
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigurationError(f"{kind.__name__} does not take {dict(arguments)}: {error}") from error


def _direction_of(metric: str) -> Direction:
    """Return which way a metric is better.

    Raises:
        ConfigurationError: That is not known.
    """
    name = metric.rpartition("/")[2]
    if name == "loss":
        return "minimize"
    for task in ("binary", "regression"):
        known = metrics_of(task).get(name)
        if known is not None and known.larger_is_better is not None:
            return "maximize" if known.larger_is_better else "minimize"
    raise ConfigurationError(
        f"Whether a large {metric} is good is not known. Say so: direction: maximize (or minimize)."
    )


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, Sequence) and not isinstance(value, str) else value

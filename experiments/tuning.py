"""Tuning within a job: every arm chooses from the same space, with as many trials, on the same inner folds.

A study file says what is searched:

    tune:
      space: {model.optimizer.lr: {low: 1e-5, high: 1e-2, log: true}}
      num_trials: 10
      num_folds: 3                     # dealt from the training and validation participants of each job
      metric: auroc                    # that of the study by default

The search is part of the pipeline that the job stands for: it sees the participants whom the job trains on, nobody
else, and is repeated for every test set and seed. What is done of it is not done again: an interrupted job replays
its trials from the scores that lie in its folder.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from datamodules.splits import Split
from experiments.inner import FOLDS, best_rows, write_inner_folds
from experiments.runtime import ConfigurationError, FontanelCLI
from experiments.study import as_words, closest
from experiments.sweep_file import FOLD_PRUNER, Sweep, best_of, make_pruner, make_sampler, named_class
from experiments.sweep_trial import score
from tracking.files import json_hash, make_private_folder, read_json, write_json
from tracking.store import Store

FOLDER, CHOICE, SCORE = "tuning", "choice.json", "trial-{}-fold-{}.json"
KEYS = ("space", "num_trials", "num_folds", "metric", "sampler", "pruner")  # of the entry `tune`
NUM_FOLDS = 3


@dataclass(frozen=True)
class Tuning:
    """How the jobs of a study are tuned.

    Args:
        sweep: What is searched, and for how long.
        num_folds: Inner folds that each trial is judged by.
    """

    sweep: Sweep
    num_folds: int

    @classmethod
    def read(cls, content: Mapping[str, Any], name: str, base: Path, metric: str) -> "Tuning":
        """Make it of the entry `tune` of a study file.

        Args:
            content: The entry.
            name: Name of the study.
            base: Its fit file.
            metric: Its primary metric.

        Raises:
            ConfigurationError: The entry has other keys, or values that cannot be used.
        """
        for key in content:
            if key not in KEYS:
                raise ConfigurationError(f"`tune` of {name} has the key '{key}'.{closest(str(key), KEYS)}")
        number = content.get("num_folds", NUM_FOLDS)
        if not isinstance(number, int) or number < 2:
            raise ConfigurationError(f"`tune` of {name} has num_folds {number}; two inner folds at least are needed.")
        classes = {key: named_class(content[key]) for key in ("sampler", "pruner") if content.get(key)}
        given = {key: content[key] for key in ("space", "num_trials") if key in content}
        values = {"space": {}, "pruner": FOLD_PRUNER, **given, **classes}
        return cls(Sweep(name, base, metric=(str(content.get("metric", metric)),), **values), number)

    def as_json(self) -> dict[str, Any]:
        """Return JSON types, from which `from_json` makes the same."""
        return {"sweep": self.sweep.as_json(), "num_folds": self.num_folds}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Tuning":
        """Return what `as_json` was taken from."""
        return cls(Sweep.from_json(content["sweep"]), content["num_folds"])

    @property
    def num_trainings(self) -> int:
        """Trainings of a job, its own included, where nothing is pruned."""
        return 1 + (self.sweep.num_trials or 0) * self.num_folds

    @property
    def effort(self) -> str:
        """What an arm was given, for comparisons: equal texts are equal effort."""
        sweep = self.sweep
        space = json_hash([sweep.space, sweep.sampler, sweep.pruner])[:8]
        return f"{sweep.num_trials} trials x {self.num_folds} folds, {sweep.metric[0]}, space {space}"


def tuned_words(words: Sequence[str], folder: Path, tuning: Tuning, store: Store) -> list[str]:
    """Return the words of a job with what its tuning has chosen.

    Args:
        words: Configuration of the job.
        folder: Folder of the job, with its `folds.json`.
        tuning: What is searched.
        store: Where pretrained weights are looked up.
    """
    place = make_private_folder(folder / FOLDER)
    if not (place / CHOICE).is_file():
        cli = FontanelCLI(words)
        folds = write_inner_folds(cli, Split.read(folder / FOLDS), place, tuning.num_folds)
        write_json(place / CHOICE, _Search(tuning, words, folds, place, store, cli.seed).run())
    return [*words, *as_words(read_json(place / CHOICE)["chosen"])]


@dataclass(frozen=True)
class _Search:
    """The search of one job; the same each time, whatever was interrupted.

    Args:
        tuning: What is searched.
        words: Configuration that every trial starts from.
        folds: Files of the inner folds.
        folder: Where scores are kept.
        store: Where pretrained weights are looked up.
        seed: Seed of the sampler.
    """

    tuning: Tuning
    words: Sequence[str]
    folds: Sequence[Path]
    folder: Path
    store: Store
    seed: int

    def run(self) -> dict[str, Any]:
        """Do every trial, and return what was chosen, and how."""
        sweep = self.tuning.sweep
        study = optuna.create_study(directions=list(sweep.directions), pruner=make_pruner(sweep.pruner))
        space, trials = sweep.searched, []
        for number in range(sweep.num_trials or 0):
            study.sampler = make_sampler(sweep.sampler, self.seed + number)
            trial = study.ask()
            chosen = space.suggest(trial)
            scores, state = self._score(trial, chosen)
            value = sum(scores) / len(scores) if state == TrialState.COMPLETE else None
            study.tell(trial, value, state)
            known = [one if math.isfinite(one) else None for one in scores]  # JSON knows no other numbers
            trials.append({"chosen": chosen, "scores": known, "state": state.name.lower()})
        completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not completed:
            raise ConfigurationError(f"No trial of the tuning has a defined {sweep.metric[0]}: {trials}")
        best = best_of(completed, sweep)
        trained = sum(len(one["scores"]) for one in trials)
        return {
            "chosen": trials[best.number]["chosen"],
            "value": best.value,
            "effort": self.tuning.effort,
            "trainings": trained,
            "trials": trials,
        }

    def _score(self, trial: optuna.Trial, chosen: Mapping[str, Any]) -> tuple[list[float], TrialState]:
        """Train once for each inner fold, until the pruner says that it is not worth it."""
        scores: list[float] = []
        for number, fold in enumerate(self.folds):
            value = self._score_of(trial.number, number, [*as_words(chosen), "--data.split_file", str(fold)])
            scores.append(value)
            if not math.isfinite(value):
                return scores, TrialState.FAIL
            trial.report(value, number)
            if number + 1 < len(self.folds) and trial.should_prune():
                return scores, TrialState.PRUNED
        return scores, TrialState.COMPLETE

    def _score_of(self, trial: int, fold: int, words: Sequence[str]) -> float:
        path = self.folder / SCORE.format(trial, fold)
        if not path.is_file():
            started = time.time()
            (value,) = score(best_rows([*self.words, *words], self.store), self.tuning.sweep.metric)
            write_json(path, {"score": value, "seconds": round(time.time() - started, 3)})
        return float(read_json(path)["score"])

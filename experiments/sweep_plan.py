"""From a sweep file to what every trial starts from: configuration, folds, and the definition that others join by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from datamodules.cohort import stack_rows
from datamodules.protocols import UNUSED, plan_cells
from datamodules.splits import Split
from evaluation.parts import HELD_OUT
from experiments.leakage import read_pretraining, require_disjoint
from experiments.runtime import ConfigurationError, FontanelCLI, locate_weights
from experiments.study import Study, as_word, closest, read_study
from experiments.sweep_file import Sweep
from experiments.sweep_space import Space
from experiments.sweep_trial import FOLD
from experiments.training import transfer_source
from experiments.workplan import design_of
from tracking.files import json_hash, make_private_folder, write_file
from tracking.store import Store

SWEEPS = "sweeps"  # in the output folder
BASE = "base.yaml"
FOLD_PRUNER = {"class_path": "WilcoxonPruner", "init_args": {}}  # of the scores of folds, paired with the best trial's


@dataclass(frozen=True)
class SweepPlan:
    """What everybody who works on a sweep must know; plain data.

    Args:
        sweep: What the sweep file says.
        config: Resolved configuration of every trial, before anything is chosen.
        folds: Splits of the folds of every trial; none where a trial is one training.
        num_threads: Threads of each trial.
        seed: Seed of every training, and of the sampler.
    """

    sweep: Sweep
    config: str
    folds: tuple[Split, ...]
    num_threads: int
    seed: int

    def as_json(self) -> dict[str, Any]:
        """Return JSON types, from which `from_json` makes the same plan."""
        budget = {"num_trials": None, "max_hours": None}  # may grow: no part of what a sweep is
        return {
            "sweep": {**self.sweep.as_json(), **budget},
            "config": self.config,
            "folds": [fold.as_dict() for fold in self.folds],
            "num_threads": self.num_threads,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any], max_hours: float | None = None) -> "SweepPlan":
        """Return the plan that `as_json` was taken from, for a worker who takes what waits."""
        budget = {"num_trials": 1, "max_hours": max_hours}
        return cls(
            Sweep.from_json({**content["sweep"], **budget}),
            content["config"],
            tuple(Split(one["protocol"], one["seed"], one["parts"]) for one in content["folds"]),
            content["num_threads"],
            content["seed"],
        )

    def overview(self) -> str:
        """Return what is planned, as text."""
        sweep = self.sweep
        judged = f"{len(self.folds)} folds" if self.folds else "one training"
        end = [f"{sweep.num_trials} trials"] if sweep.num_trials else []
        end += [f"{sweep.max_hours:g} hours"] if sweep.max_hours else []
        wanted = ", ".join(f"{way} {name}" for name, way in zip(sweep.metric, sweep.directions, strict=True))
        shown = [f"  {name}: {as_word(entry)}" for name, entry in sweep.space.items()]
        return "\n".join([f"{sweep.name}: {wanted}; {judged} a trial; {' or '.join(end)}", *shown])

    def write(self, store: Store) -> tuple[Path, tuple[str, ...], tuple[str, ...]]:
        """Write configuration and folds.

        Returns:
            The sweep's folder on this machine, the words that every trial starts from, and the files of its folds.
        """
        slug = f"{self.sweep.name}-{json_hash(self.as_json())[:8]}".replace("/", "-")
        folder = make_private_folder(store.output_folder / SWEEPS / slug)
        write_file(folder / BASE, self.config.encode())
        folds = []
        for number, split in enumerate(self.folds):
            path = folder / FOLD.format(number)
            split.write(path)
            folds.append(str(path))
        words = ("--config", str(folder / BASE), "--num_threads", str(self.num_threads))
        return folder, words, tuple(folds)


def plan_sweep(sweep: Sweep, words: Sequence[str], store: Store, num_threads: int = 1) -> SweepPlan:
    """Check everything that can be checked before a trial, and draw the folds.

    Args:
        sweep: What the sweep file says.
        words: Words for the configuration of every trial.
        store: Where pretrained weights are looked up.
        num_threads: Threads of each trial.

    Raises:
        ConfigurationError: An argument does not exist, or one of its values is refused.
        LeakageError: A participant who is judged by was pretrained on.
    """
    study = read_study(sweep.base)
    is_study = study.base != sweep.base.resolve()
    given = ["--config", str(study.base), *(_arm_words(study, sweep) if is_study else []), *words]
    Space.read(sweep.space).require_arguments(given)
    cli = FontanelCLI(given)
    cli.datamodule.read()
    if (source := transfer_source(cli)) is not None:
        path = locate_weights(source, store)
        locate = partial(locate_weights, store=store)
        require_disjoint(read_pretraining(path, name=source, locate=locate), cli.datamodule)
        cli = FontanelCLI([*given, "--model.transfer.source", str(path)])
        cli.datamodule.read()
    folds = judged_folds(study, cli) if is_study else ()
    if folds and sweep.pruner is None and len(sweep.metric) == 1:
        sweep = replace(sweep, pruner=FOLD_PRUNER)
    return SweepPlan(sweep, cli.resolved(), folds, num_threads, cli.seed)


def judged_folds(study: Study, cli: FontanelCLI) -> tuple[Split, ...]:
    """Return a split for each test set of a study, whose validation part is the test set.

    Args:
        study: Its protocol divides the cohort.
        cli: Configuration and cohort.
    """
    data = cli.datamodule
    cells = plan_cells(stack_rows(data.cohorts), design_of(study, data), data.stratify_by)
    return tuple(_judged(cell.split) for cell in cells)


def _judged(split: Split) -> Split:
    """Return a split that trains on training and validation participants, and is judged by those of the test."""
    parts: dict[str, dict[str, tuple[str, ...]]] = {"train": {}, "val": {}, UNUSED: {}}
    for part, sites in split.parts.items():
        becomes = "train" if part in ("train", "val") else "val" if part in HELD_OUT else UNUSED
        for site, keys in sites.items():
            parts[becomes][site] = tuple(sorted({*parts[becomes].get(site, ()), *keys}))
    return Split("sweep", split.seed, parts)


def _arm_words(study: Study, sweep: Sweep) -> list[str]:
    networks = {arm.name: arm for arm in study.arms if not arm.baseline}
    if not networks:
        raise ConfigurationError(f"{sweep.base} has no arm with a network.")
    name = sweep.arm or next(iter(networks))
    if name not in networks:
        raise ConfigurationError(f"{sweep.base} has no arm '{name}' with a network.{closest(name, networks)}")
    return networks[name].words()

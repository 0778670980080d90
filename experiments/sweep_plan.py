"""From a sweep file to what every trial starts from: configuration, folds, and the definition that others join by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from datamodules.cohort import participant_keys, stack_rows
from datamodules.protocols import UNUSED, Cell, plan_cells
from datamodules.splits import Split
from evaluation.parts import HELD_OUT
from experiments.leakage import read_pretraining, require_disjoint
from experiments.runtime import ConfigurationError, FontanelCLI, locate_weights
from experiments.study import Study, as_word, closest, read_study
from experiments.sweep_file import FOLD_PRUNER, Sweep
from experiments.sweep_trial import FOLD, PROTOCOL
from experiments.training import transfer_source
from experiments.workplan import design_of
from tracking.files import json_hash, make_private_folder, write_file
from tracking.store import Store

SWEEPS = "sweeps"  # in the output folder
AT = "@"  # in the name of a sweep within a part of a protocol, before the name of the test set
BASE = "base.yaml"


@dataclass(frozen=True)
class SweepPlan:
    """What everybody who works on a sweep must know; plain data.

    Args:
        sweep: What the sweep file says.
        config: Resolved configuration of every trial, before anything is chosen.
        folds: Splits of the folds of every trial; of one training, its split, or none where it is drawn.
        num_threads: Threads of each trial.
        seed: Seed of every training, and of the sampler.
        is_judged_by_folds: Whether a trial trains once for each fold, or once.
    """

    sweep: Sweep
    config: str
    folds: tuple[Split, ...]
    num_threads: int
    seed: int
    is_judged_by_folds: bool = True

    @property
    def study(self) -> str:
        """MLflow experiment; sweeps within the parts of a protocol share one."""
        return self.sweep.name.partition(AT)[0]

    def as_json(self) -> dict[str, Any]:
        """Return JSON types, from which `from_json` makes the same plan."""
        budget: dict[str, Any] = {
            "num_trials": None,
            "max_hours": None,
            "slurm": {},
        }  # may change
        return {
            "sweep": {**self.sweep.as_json(), **budget},
            "config": self.config,
            "folds": [fold.as_dict() for fold in self.folds],
            "num_threads": self.num_threads,
            "seed": self.seed,
            "is_judged_by_folds": self.is_judged_by_folds,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any], num_trials: int | None, max_hours: float | None) -> "SweepPlan":
        """Return the plan that `as_json` was taken from.

        Args:
            content: JSON types.
            num_trials: Trials in all.
            max_hours: No trial is started after so long.
        """
        budget = {"num_trials": num_trials, "max_hours": max_hours}
        return cls(
            Sweep.from_json({**content["sweep"], **budget}),
            content["config"],
            tuple(Split(one["protocol"], one["seed"], one["parts"]) for one in content["folds"]),
            content["num_threads"],
            content["seed"],
            content["is_judged_by_folds"],
        )

    def overview(self) -> str:
        """Return what is planned, as text."""
        sweep = self.sweep
        judged = f"{len(self.folds)} folds" if self.folds and self.is_judged_by_folds else "one training"
        end = [f"{sweep.num_trials} trials"] if sweep.num_trials else []
        end += [f"{sweep.max_hours:g} hours"] if sweep.max_hours else []
        wanted = ", ".join(f"{way} {name}" for name, way in zip(sweep.metric, sweep.directions, strict=True))
        shown = [f"  {name}: {as_word(entry)}" for name, entry in sweep.space.items()]
        return "\n".join([f"{sweep.name}: {wanted}; {judged} a trial; {' or '.join(end)}", *shown])

    def folder(self, output_folder: Path) -> Path:
        """Return the sweep's folder in an output folder, whether it is there or not."""
        slug = f"{self.sweep.name}-{json_hash(self.as_json())[:8]}".replace("/", "-")
        return output_folder / SWEEPS / slug

    def write(self, store: Store) -> tuple[Path, tuple[str, ...], tuple[str, ...]]:
        """Write configuration and folds.

        Returns:
            The sweep's folder on this machine, the words that every trial starts from, and the files of its folds.
        """
        folder = make_private_folder(self.folder(store.output_folder))
        write_file(folder / BASE, self.config.encode())
        folds = []
        for number, split in enumerate(self.folds):
            path = folder / FOLD.format(number)
            split.write(path)
            folds.append(str(path))
        words = ("--config", str(folder / BASE), "--num_threads", str(self.num_threads))
        if self.is_judged_by_folds:
            return folder, words, tuple(folds)
        return folder, (*words, "--data.split_file", folds[0]), ()


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
    setting = _Setting.of(sweep, words, store)
    folds = tuple(_judged(cell.split) for cell in setting.cells()) if setting.is_study else ()
    return SweepPlan(setting.sweep, setting.cli.resolved(), folds, num_threads, setting.cli.seed)


def plan_nested(
    sweep: Sweep, words: Sequence[str], store: Store, protocol: str, num_threads: int = 1
) -> list[SweepPlan]:
    """Plan a sweep within each training part of a protocol; its test participants are in none of them.

    Args:
        sweep: What the sweep file says.
        words: Words for the configuration of every trial.
        store: Where pretrained weights are looked up.
        protocol: Who trains for whom, see `datamodules.protocols`.
        num_threads: Threads of each trial.

    Raises:
        ConfigurationError: An argument does not exist, or one of its values is refused.
        SplitError: The cohort, or what is left of it for a sweep, cannot be divided so.
    """
    setting = _Setting.of(sweep, words, store)
    plans = []
    for cell in setting.cells(protocol):
        away = _unused(cell.split)
        if setting.is_study:
            folds = tuple(_judged(inner.split, away) for inner in setting.cells(only=cell.split))
        else:
            kept = {part: cell.split.parts[part] for part in ("train", "val")}
            folds = (Split(PROTOCOL, cell.split.seed, {**kept, UNUSED: away}),)
        named = replace(setting.sweep, name=f"{sweep.name}{AT}{cell.fold}")
        plans.append(SweepPlan(named, setting.cli.resolved(), folds, num_threads, setting.cli.seed, setting.is_study))
    return plans


@dataclass(frozen=True)
class _Setting:
    """What a sweep starts from: its study (of one arm for a fit file), and the configuration with its cohort."""

    sweep: Sweep
    study: Study
    is_study: bool
    cli: FontanelCLI

    @classmethod
    def of(cls, sweep: Sweep, words: Sequence[str], store: Store) -> "_Setting":
        study = read_study(sweep.base)
        is_study = study.base != sweep.base.resolve()
        given = ["--config", str(study.base), *(_arm_words(study, sweep) if is_study else []), *words]
        sweep.searched.require_arguments(given)
        cli = FontanelCLI(given)
        cli.datamodule.read()
        if (source := transfer_source(cli)) is not None:
            path = locate_weights(source, store)
            locate = partial(locate_weights, store=store)
            require_disjoint(read_pretraining(path, name=source, locate=locate), cli.datamodule)
            cli = FontanelCLI([*given, "--model.transfer.source", str(path)])
            cli.datamodule.read()
        if is_study and sweep.pruner is None and len(sweep.metric) == 1:
            sweep = replace(sweep, pruner=FOLD_PRUNER)
        return cls(sweep, study, is_study, cli)

    def cells(self, protocol: str | None = None, only: Split | None = None) -> list[Cell]:
        """Draw the test sets: by another protocol, once, or among the training participants of a split."""
        data = self.cli.datamodule
        frame = stack_rows(data.cohorts)
        study = self.study if protocol is None else replace(self.study, protocol=protocol, num_repeats=1)
        if study.protocol != "external":  # sites that the outer protocol tests
            study = replace(study, external_sites=())
        if only is not None:
            pool = {*only.keys("train"), *only.keys("val")}
            frame = frame[[key in pool for key in participant_keys(frame)]]
        return plan_cells(frame, design_of(study, data), data.stratify_by)


def _judged(split: Split, away: Mapping[str, tuple[str, ...]] | None = None) -> Split:
    """Return a split that trains on training and validation participants, and is judged by those of the test.

    Args:
        split: The split.
        away: Participants by site who are not in it, and are not used.
    """
    unused, outside = split.union(UNUSED), away or {}
    together = {site: tuple(sorted((*unused.get(site, ()), *outside.get(site, ())))) for site in {**unused, **outside}}
    parts = {"train": split.union("train", "val"), "val": split.union(*HELD_OUT), UNUSED: together}
    return Split(PROTOCOL, split.seed, parts)


def _unused(split: Split) -> dict[str, tuple[str, ...]]:
    """Return everybody outside the training and validation parts, by site."""
    return split.union(*(part for part in split.parts if part not in ("train", "val")))


def _arm_words(study: Study, sweep: Sweep) -> list[str]:
    networks = {arm.name: arm for arm in study.arms if not arm.baseline}
    if not networks:
        raise ConfigurationError(f"{sweep.base} has no arm with a network.")
    name = sweep.arm or next(iter(networks))
    if name not in networks:
        raise ConfigurationError(f"{sweep.base} has no arm '{name}' with a network.{closest(name, networks)}")
    return networks[name].words()

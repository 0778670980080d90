"""From a study to its jobs: the folds frozen, the analysis locked, everything on disk before anything is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from datamodules.base import BaseDataModule
from datamodules.cohort import stack_rows
from datamodules.harmonisation import COMBAT, require_harmonisable
from datamodules.protocols import Cell, Design, plan_cells, subsample
from datamodules.splits import Split
from evaluation.tasks import primary_of
from experiments.effort import BASELINE, EFFORT, UNTUNED
from experiments.jobs import FOLDS, Job
from experiments.leakage import Pretraining, read_pretraining, require_disjoint
from experiments.lock import AnalysisLock
from experiments.runtime import FontanelCLI, locate_weights
from experiments.study import SOURCE, Arm, Study, as_words
from experiments.training import RunKey
from experiments.tuning import Tuning
from lightning_modules.classification import ClassificationModule
from tracking.files import file_hash, json_hash, make_private_folder, write_file, write_json
from tracking.store import Store

FOLDER = "crossval"  # in the output folder
BASE = "base.yaml"
SOURCE_HASH = "source_sha256"


@dataclass(frozen=True)
class Workplan:
    """A cross-validation that is ready to run.

    Args:
        study: What is compared.
        task: Kind of outcome.
        folder: Where everything lies.
        lock: What was decided.
        cells: Test sets with their trainings.
        cli: Configuration and cohort that all arms share.
        frame: Rows of the cohort.
        sources: Arm -> file and hash of its pretrained weights.
        pretrainings: What the pretrained weights were trained on.
        num_threads: Threads of each job.
        tuning: What each training chooses from.
    """

    study: Study
    task: str
    folder: Path
    lock: AnalysisLock
    cells: Sequence[Cell]
    cli: FontanelCLI
    frame: pd.DataFrame
    sources: Mapping[str, Mapping[str, str]]
    pretrainings: Sequence[Pretraining]
    num_threads: int
    tuning: Tuning | None = None

    @property
    def name(self) -> str:
        """Name of the parent run."""
        return f"crossval-{self.study.protocol}-{self.lock.identity[:8]}"

    @property
    def num_jobs(self) -> int:
        """Jobs of all arms."""
        study = self.study
        return len(self.cells) * len(study.arms) * len(study.label_fractions) * study.num_seeds

    def freeze(self) -> None:
        """Lock the analysis, and write configuration and folds: from now on they hold."""
        make_private_folder(self.folder)
        self.lock.write(self.folder)
        write_file(self.folder / BASE, self.cli.resolved().encode())
        _freeze(self.cells, self.folder / FOLDS)

    def prepare_jobs(self, tags: Mapping[str, str]) -> list[Job]:
        """Write every job to the disk, in the order in which they are done: arms of a test set side by side.

        Args:
            tags: Tags of every job's run.
        """
        jobs = []
        for seed in range(self.study.num_seeds):
            for cell in self.cells:
                for share in self.study.label_fractions:
                    split = cell.split if share == 1 else self._share_of(cell, share)
                    for arm in self.study.arms:
                        job = self._job(arm, cell, seed, share, tags)
                        job.prepare(split)
                        jobs.append(job)
        return jobs

    def _share_of(self, cell: Cell, share: float) -> Split:
        return subsample(cell.split, self.frame, self.cli.datamodule.stratify_by, share, self.cli.seed)

    def _job(self, arm: Arm, cell: Cell, seed: int, share: float, tags: Mapping[str, str]) -> Job:
        key = RunKey(f"{arm.name}{_suffix(share)}", self.study.protocol, cell.repeat, cell.fold, seed)
        words = ["--config", str(self.folder / BASE), *arm.words()]
        if source := self.sources.get(arm.name):
            words += [f"--{SOURCE}", source["path"]]
        words += ["--seed_everything", str(self.cli.seed + seed + arm.seed_offset)]
        words += ["--num_threads", str(self.num_threads)]
        safe = "".join(letter if letter.isalnum() or letter in "-.@_" else "_" for letter in key.run_name)
        tuning = None if arm.baseline else self.tuning
        effort = BASELINE if arm.baseline else UNTUNED if tuning is None else tuning.effort
        return Job(
            self.study.name,
            tuple(words),
            self.folder / "jobs" / safe,
            {**tags, EFFORT: effort},
            key=key,
            baseline=arm.baseline,
            num_inner_folds=self.study.num_inner_folds,
            tune={} if tuning is None else tuning.as_json(),
        )


def make_workplan(
    study: Study, words: Sequence[str], store: Store, output_folder: Path, num_threads: int = 1
) -> Workplan:
    """Draw the folds and check the sources and the lock; nothing is written.

    Args:
        study: What is to be compared.
        words: Words for the configuration of every arm.
        store: Where runs are looked up.
        output_folder: Folder that holds the cross-validation.
        num_threads: Threads of each job.

    Raises:
        SplitError: The cohort cannot be divided so.
        LeakageError: A participant of the cohort was pretrained on.
        ConfigurationError: An arm is another one than when the analysis was locked.
    """
    study.require_sources()
    cli = FontanelCLI(["--config", str(study.base), *words])
    data = cli.datamodule
    data.read()
    frame = stack_rows(data.cohorts)
    cells = plan_cells(frame, design_of(study, data), data.stratify_by)
    for arm in study.arms:
        if not arm.baseline and arm.arguments.get("data.harmonisation", data.harmonisation) == COMBAT:
            for cell in cells:
                require_harmonisable(cell.split)
    task = "binary" if isinstance(cli.model, ClassificationModule) else "regression"
    sources, pretrainings = _sources(study, cli, store)
    definitions = {arm.name: {**arm.definition(), **sources.get(arm.name, {})} for arm in study.arms}
    config, metric = cli.resolved(), study.primary_metric or primary_of(task)
    tuning = _tuning(study, metric, words)
    settings = [study.num_inner_folds, num_threads, cli.seed, *([] if tuning is None else [tuning.effort])]
    lock = AnalysisLock(
        study.name,
        study.protocol,
        metric,
        json_hash([[cell.repeat, cell.fold, cell.split.hash] for cell in cells]),
        json_hash([config, [cohort.sha256 for cohort in data.cohorts], *settings]),
        study.num_seeds,
        {f"{name}{_suffix(share)}": d for name, d in definitions.items() for share in study.label_fractions},
    )
    slug = f"{study.name}-{study.protocol}-{lock.identity[:8]}".replace("/", "-")
    folder = output_folder / FOLDER / slug
    return Workplan(
        study, task, folder, lock.after(folder), cells, cli, frame, sources, pretrainings, num_threads, tuning
    )


def _tuning(study: Study, metric: str, words: Sequence[str]) -> Tuning | None:
    """Return how the jobs are tuned, None where they are not.

    Raises:
        ConfigurationError: An arm does not take what is searched.
    """
    if not study.tune:
        return None
    tuning = Tuning.read(study.tune, study.name, study.base, metric)
    for arm in study.arms:
        if not arm.baseline:
            given = {name: value for name, value in arm.arguments.items() if name != SOURCE}
            tuning.sweep.searched.require_arguments(["--config", str(study.base), *words, *as_words(given)])
    return tuning


def design_of(study: Study, data: BaseDataModule) -> Design:
    """Return how a study divides a cohort."""
    return Design(
        study.protocol,  # type: ignore[arg-type]  # checked by the study
        num_folds=study.num_folds,
        num_repeats=study.num_repeats,
        val_fraction=data.val_fraction if study.val_fraction is None else study.val_fraction,
        external_sites=study.external_sites,
        match_train_size=study.match_train_size,
        max_train_per_site=study.max_train_per_site,
        group=data.group_by,
        seed=data.split_seed,
    )


def _sources(study: Study, cli: FontanelCLI, store: Store) -> tuple[dict[str, dict[str, str]], list[Pretraining]]:
    """Return file and hash of the pretrained weights of each arm, and where they come from.

    Raises:
        LeakageError: A participant of the cohort was pretrained on.
    """
    found: dict[str, dict[str, str]] = {}
    pretrainings: list[Pretraining] = []
    for arm in study.arms:
        if arm.source is None:
            continue
        path = locate_weights(arm.source, store)
        locate = partial(locate_weights, store=store)
        pretrainings.append(read_pretraining(path, name=arm.name, locate=locate))
        require_disjoint(pretrainings[-1], cli.datamodule)
        found[arm.name] = {"path": str(path), SOURCE_HASH: file_hash(path)}
    return found, pretrainings


def _suffix(share: float) -> str:
    return "" if share == 1 else f"@{share:g}"


def _freeze(cells: Sequence[Cell], path: Path) -> None:
    """Write all folds to one file, for those who want to use the same elsewhere."""
    content = [{"repeat": cell.repeat, "fold": cell.fold, **cell.split.as_dict()} for cell in cells]
    write_json(path, {"format": 1, "cells": content})

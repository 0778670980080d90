"""Threshold, temperature and number of epochs from inner folds: a dozen validation participants cannot choose them.

The training part of a job (with its validation part) is dealt into inner folds. Each is predicted by a training on the
others, at its best epoch; from all of these out-of-fold scores together come the temperature and the threshold, and
from the best epochs their median. The job then trains on everybody, that long. No test participant is touched.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median_low
from typing import Any

import pandas as pd
from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from datamodules.cohort import participant_keys, stack_rows
from datamodules.protocols import UNUSED, Design, plan_cells
from datamodules.splits import Split
from evaluation.operating_point import pooled_operating_point
from evaluation.predictions import UNIT
from experiments.runtime import ConfigurationError, FontanelCLI, locate_weights
from experiments.study import as_words
from lightning_modules.classification import ClassificationModule
from tracking.files import make_private_folder, read_json, write_json
from tracking.interruption import Interrupted
from tracking.store import Store

CHOICE, FOLDS, ROWS = "choice.json", "folds.json", "rows.parquet"
ALONE = ("--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto")
INNER = "inner"  # in the folder of a job


def inner_words(words: Sequence[str], folder: Path, num_folds: int, store: Store) -> list[str]:
    """Return the words by which a job trains as its inner folds say; what is done of these is not done again.

    Args:
        words: Configuration of the job.
        folder: Folder of the job, with its `folds.json`.
        num_folds: Number of inner folds.
        store: Where pretrained weights are looked up.
    """
    inner = make_private_folder(folder / INNER)
    if not (inner / CHOICE).is_file():
        split = Split.read(folder / FOLDS)
        choice = _choose(words, split, inner, num_folds, store)
        _merged(split).write(inner / FOLDS)
        write_json(inner / CHOICE, choice)
    chosen = read_json(inner / CHOICE)
    return [*words, "--data.split_file", str(inner / FOLDS), *as_words(chosen["words"])]


def _choose(words: Sequence[str], split: Split, folder: Path, num_folds: int, store: Store) -> dict[str, Any]:
    cli = FontanelCLI(words)
    for number, fold in enumerate(write_inner_folds(cli, split, folder, num_folds)):
        if not (folder / f"{number}-{ROWS}").is_file():
            rows = best_rows([*words, "--data.split_file", str(fold)], store)
            rows.assign(inner_fold=number).to_parquet(folder / f"{number}-{ROWS}")
    rows = pd.concat([pd.read_parquet(folder / f"{number}-{ROWS}") for number in range(num_folds)])
    epochs = int(median_low(rows.groupby("inner_fold")["epoch"].first())) + 1
    chosen: dict[str, Any] = {"words": {"trainer.max_epochs": epochs}, "num_inner_folds": num_folds}
    if isinstance(cli.model, ClassificationModule):
        points = {name: _point(rows[rows["output"] == name], cli.model) for name in cli.model.targets}
        chosen["words"]["model.threshold"] = [point["threshold"] for point in points.values()]
        chosen["words"]["model.temperature"] = [point["temperature"] for point in points.values()]
        chosen["operating_points"] = points
    return chosen


def write_inner_folds(cli: FontanelCLI, split: Split, folder: Path, num_folds: int) -> list[Path]:
    """Deal the participants of a training, and those of its validation part, into folds, and return their files.

    Args:
        cli: Configuration with its cohort.
        split: Who is in which part; nobody of the others is in a fold.
        folder: Where the files go.
        num_folds: Number of folds, each the validation part of a training on the others.
    """
    data = cli.datamodule
    data.read()
    frame = stack_rows(data.cohorts)
    paths = []
    for number, inner in enumerate(_inner_splits(split, frame, data.stratify_by, data.group_by, num_folds)):
        paths.append(folder / f"{number}-{FOLDS}")
        inner.write(paths[-1])
    return paths


def _point(rows: pd.DataFrame, model: ClassificationModule) -> dict[str, Any]:
    """Return temperature and threshold of one outcome, with the spread of the latter."""
    known = rows[rows["target"].notna()]
    units = known.groupby([*UNIT, "inner_fold"], as_index=False)[["target", "score_1"]].mean()
    wanted = model.operating_point
    rule, sensitivity = wanted.rule or "youden", wanted.sensitivity
    point = pooled_operating_point(units["target"], units["score_1"], units["inner_fold"], rule, sensitivity)
    return {**asdict(point), "fold_thresholds": list(point.fold_thresholds)}


def _inner_splits(split: Split, frame: pd.DataFrame, target: str | None, group: str | None, num: int) -> list[Split]:
    """Deal the participants of a training into inner folds, each the validation part of a training on the others."""
    pool = {*split.keys("train"), *split.keys("val")}
    inside = frame[[key in pool for key in participant_keys(frame)]]
    design = Design("k-fold", num_folds=num, val_fraction=0.0, group=group, seed=split.seed)
    unused = split.union(*(part for part in split.parts if part not in ("train", "val")))
    return [
        Split(
            "inner", split.seed, {"train": cell.split.parts["train"], "val": cell.split.parts["test"], UNUSED: unused}
        )
        for cell in plan_cells(inside, design, target)
    ]


def _merged(split: Split) -> Split:
    """Return the split with its validation participants in the training part."""
    others = {part: sites for part, sites in split.parts.items() if part not in ("train", "val")}
    return Split(split.protocol, split.seed, {"train": split.union("train", "val"), **others})


def best_rows(words: Sequence[str], store: Store) -> pd.DataFrame:
    """Train without a run, and return the validation rows of the best epoch."""
    cli = FontanelCLI([*words, *ALONE])
    cli.be_quiet()
    cli.datamodule.assign_splits(unknown=UNUSED)
    cli.model.seed = cli.seed
    if cli.model.transfer is not None and cli.model.transfer.source is not None:
        cli.model.load_pretrained(locate_weights(cli.model.transfer.source, store))
    best = _BestEpoch(cli.model.monitor, cli.model.monitor_mode)
    trainer = cli.make_trainer(False, [best])
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns one into the other
            raise Interrupted("interrupted") from None
        raise
    if best.rows is None:
        raise ConfigurationError(
            f"No epoch of an inner fold has a defined {cli.model.monitor}; take fewer inner folds."
        )
    return best.rows.assign(epoch=best.epoch)


class _BestEpoch(Callback):
    """Remember the validation rows of the epoch with the best value of a metric.

    Args:
        monitor: The metric.
        mode: Whether a small or a large value is good.
    """

    def __init__(self, monitor: str, mode: str) -> None:
        self.monitor = monitor
        self.sign = 1.0 if mode == "max" else -1.0
        self.best = float("-inf")
        self.epoch = 0
        self.rows: pd.DataFrame | None = None

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare this epoch with the best one so far; an undefined value is never the best."""
        value = self.sign * float(trainer.callback_metrics.get(self.monitor, float("nan")))
        if value > self.best:
            self.best, self.epoch = value, trainer.current_epoch
            self.rows = pl_module.take_predictions()  # type: ignore[operator]  # a module of ours

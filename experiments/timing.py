"""How long a training takes, and what it leaves on the disk: one is really begun, and stopped after a few steps.

It runs in a store of its own that disappears with its folder, on a part of the participants that is as large as a few
steps need; only the cache keeps what it has preprocessed.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from typing_extensions import override

from datamodules.protocols import UNUSED
from datamodules.splits import Split
from experiments.costs import Load, bytes_of_runs
from experiments.runtime import ConfigurationError, FontanelCLI, scratch_folder
from experiments.scoring import score_all
from experiments.training import RunKey, Training
from lightning_modules.operating_point import OperatingPointWarning
from tracking.progress import progress
from tracking.store import Store

NUM_STEPS, NUM_EPOCHS = 8, 3  # of the timed training; its first epoch warms up
NUM_SCORED = 8  # participants of the validation and of the test part


@dataclass(frozen=True)
class Timing:
    """What a training costs on this machine.

    Args:
        train: Seconds of each image of a training step: of all steps timed, in order of time.
        val: Seconds of each image of a validation or test.
        epoch: Seconds of an epoch beside its steps: checkpoints, delivery.
        fixed: Seconds of a training beside its epochs.
        epochs: Epochs of a training, at most.
        run_bytes: Bytes that a run leaves: checkpoints, weights, artifacts.
        stops_early: Whether a training may end before its last epoch.
        batch_size: Images of a step.
        name: What was timed.
    """

    train: tuple[float, ...]
    val: float
    epoch: float
    fixed: float
    epochs: int
    run_bytes: int
    stops_early: bool
    batch_size: int
    name: str

    @property
    def paces(self) -> tuple[float, float, float]:
        """Seconds of an image in training: of the fastest quarter of the steps, their middle, and the slowest."""
        low, middle, high = quantiles(self.train, n=4)
        return low, middle, high

    def seconds(self, loads: Sequence[Load]) -> tuple[float, float, float]:
        """Return how long all trainings take, one after the other, at each of the paces."""
        low, middle, high = (sum(load.times * self._of_one(load, pace) for load in loads) for pace in self.paces)
        return low, middle, high

    def _of_one(self, load: Load, pace: float) -> float:
        epochs = self.epochs * (load.num_train * pace + self.val * load.num_val + self.epoch)
        return self.fixed + epochs + self.val * load.num_test

    @property
    def said(self) -> list[str]:
        """How it was measured, in words."""
        low, middle, high = (1000 * pace for pace in self.paces)
        early = " EarlyStopping may end it before." if self.stops_early else ""
        return [
            f"Timed here: {len(self.train)} steps of {self.batch_size} images of {self.name}, {middle:.0f} ms an image "
            f"(middle half {low:.0f} to {high:.0f}); extrapolated to {self.epochs} epochs.{early} The range holds the "
            "spread of these steps alone, not that of another load or machine."
        ]


def time_training(words: Sequence[str], split: Split, locate: Callable[[str], Path], name: str) -> Timing:
    """Train for a few steps, and extrapolate.

    Args:
        words: Configuration of the training.
        split: Whom it trains on and tests.
        locate: Gives the file of pretrained weights that a reference stands for.
        name: What the training is called while it is shown.

    Raises:
        ConfigurationError: The training has no last epoch.
    """
    with scratch_folder() as scratch:
        cli = FontanelCLI([*words, *_short(words, split, scratch, locate)])
        cli.be_quiet()
        epochs = _epochs(words)
        data = cli.datamodule
        data.assign_splits(unknown=UNUSED)
        data.samples = [sample for sample in data.samples if sample.split != UNUSED]  # nothing else is preprocessed
        data.prepare_data()
        store = Store(f"sqlite:///{scratch / 'mlflow.db'}", scratch)
        started = time.monotonic()
        training = Training.start(cli, study="timing", key=RunKey(name="timing"), store=store)
        watch = _Stopwatch(data.batch_size)
        with warnings.catch_warnings(), progress(f"Timing {name}", NUM_STEPS * NUM_EPOCHS) as advance:
            warnings.simplefilter("ignore", OperatingPointWarning)  # nobody uses this threshold
            watch.advance = advance
            training.run([watch])
            score_all(training)
        whole = time.monotonic() - started
        return _timing(cli, watch, whole, epochs, bytes_of_runs(scratch), name)


def _short(words: Sequence[str], split: Split, folder: Path, locate: Callable[[str], Path]) -> list[str]:
    """Return the words that make a training short, and its split small."""
    cli = FontanelCLI(words)
    wanted = {"train": NUM_STEPS * cli.datamodule.batch_size}
    parts: dict[str, dict[str, tuple[str, ...]]] = {UNUSED: {}}
    for part, sites in split.parts.items():
        left = wanted.get(part, NUM_SCORED) if part != UNUSED else 0
        parts[part] = {}
        for site, keys in sites.items():
            share = max(1, round(left / max(1, len(sites)))) if left else 0
            parts[part][site] = keys[:share]
            parts[UNUSED][site] = (*parts[UNUSED].get(site, ()), *keys[share:])
    path = folder / "timed.json"
    Split(split.protocol, split.seed, parts).write(path)
    source = cli.model.transfer.source if cli.model.transfer is not None else None
    more = [] if source is None else ["--model.transfer.source", str(locate(source))]
    limits = ["--trainer.max_epochs", str(NUM_EPOCHS), "--trainer.limit_train_batches", str(NUM_STEPS)]
    return ["--data.split_file", str(path), *limits, *more]


class _Stopwatch(Callback):
    """Note how long every step of a training, and its validation, takes; a step begins where the one before it ends.

    Args:
        batch_size: Images of a step.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.advance: Callable[[int], None] = lambda _count: None
        self.steps: list[list[float]] = []  # seconds an image, by epoch
        self.validations: list[float] = []
        self.epochs: list[float] = []
        self.images = 0
        self._epoch_began = self._began = 0.0

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an epoch."""
        now = _now()
        if self.steps:
            self.epochs.append(now - self._epoch_began)
        self.steps.append([])
        self._epoch_began = self._began = now

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note a step."""
        now = _now()
        self.steps[-1].append((now - self._began) / len(batch["participant_id"]))
        self._began = now
        self.advance(1)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a validation."""
        self._validation_began = _now()
        self.images = 0

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count its images."""
        self.images += len(batch["participant_id"])

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note a validation."""
        self.validations.append((_now() - self._validation_began) / max(1, self.images))


def _timing(cli: FontanelCLI, watch: _Stopwatch, whole: float, epochs: int, run_bytes: int, name: str) -> Timing:
    data = cli.datamodule
    warm = [step for steps in watch.steps[1:] for step in steps] or watch.steps[0]
    val = median(watch.validations[1:] or watch.validations or [0.0])
    size = len(data.training_samples())
    stepping = [size * sum(steps) / len(steps) for steps in watch.steps if steps]
    scored = val * len(data.part("val"))
    beside = [max(0.0, epoch - step - scored) for epoch, step in zip(watch.epochs, stepping, strict=False)]
    epoch = median(beside[1:] or beside or [0.0])
    tested = val * len(data.part("test", "external"))
    fixed = max(0.0, whole - sum(stepping) - len(watch.steps) * (epoch + scored) - tested)
    stops = any(isinstance(one, EarlyStopping) for one in cli.config_init["trainer"].get("callbacks") or [])
    return Timing(tuple(sorted(warm)), val, epoch, fixed, epochs, run_bytes, stops, data.batch_size, name)


def _epochs(words: Sequence[str]) -> int:
    epochs = FontanelCLI(words).config["trainer"]["max_epochs"]
    if not isinstance(epochs, int) or epochs < 1:
        raise ConfigurationError("A training without a last epoch cannot be timed. Set trainer.max_epochs.")
    return epochs


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()

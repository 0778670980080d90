"""One epoch of the same training, with Fontanel's data path and with torchio under Lightning's own loop.

The same network, images, batch size and list of operations. A third arm repeats one batch that is ready: what its steps
take is what a training without any cost of data would take. Times are of a warm epoch (Fontanel's cache is filled, the
system has the files in memory), the arms in turns in one process.

    python benchmarks/epoch.py [--rounds 3] [--images 16] [--shape 96 112 96] [--list full] [--width 16] [--threads 1]
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers import LISTS, Shape, ours, preprocessing, torchio_fixed, torchio_random, torchio_subjects
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchio import Compose, Subject

from datamodules.brain_age import BrainAgeDataModule
from datamodules.phantoms.brain_age import BrainAgePhantom
from experiments.memory import keep_freed_memory
from lightning_modules.networks.sfcn import SFCN
from lightning_modules.regression import RegressionModule

STEP_LIMIT = {"cpu": 1.15, "gpu": 1.05}
EPOCHS = 2  # of every training; the first warms up


class Clock(Callback):
    """Take the time of the last epoch, and how many steps it had."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = now()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = now() - self.start
        self.num_steps = trainer.num_training_batches


class Plain(LightningModule):
    """What one writes with Lightning and torchio alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = SFCN(width=width)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = (self.network(batch["image"])[:, 0] - batch["age"]).abs().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def fontanel_data(
    table: Path, shape: Shape, kind: str, cache: Path, val_fraction: float = 0.0, **options: Any
) -> BrainAgeDataModule:
    data = BrainAgeDataModule(
        table=table,
        preprocessing=preprocessing(shape),
        augmentation=ours(shape, kind),
        cache=cache,
        test_fraction=0.0,
        val_fraction=val_fraction,
        **options,
    )
    data.prepare_data()
    data.setup("fit")
    return data


def fontanel_module(width: int) -> RegressionModule:
    return RegressionModule(SFCN(width=width), lambda groups: torch.optim.AdamW(groups, lr=1e-4))


def plain_loader(data: BrainAgeDataModule, shape: Shape, kind: str, **options: Any) -> DataLoader:
    samples = data.part("train")
    transform = Compose([torchio_fixed(shape), torchio_random(shape, kind)])
    images, ages = zip(*((sample.files.images[0], sample.targets["age"]) for sample in samples), strict=True)
    subjects = torchio_subjects(images, transform, ages)
    return DataLoader(subjects, shuffle=True, drop_last=True, collate_fn=stack, **options)


def stack(subjects: list[Subject]) -> dict[str, Tensor]:
    images = torch.stack([subject["image"].data for subject in subjects])
    return {"image": images, "age": torch.tensor([subject["age"] for subject in subjects], dtype=torch.float32)}


def train(module: LightningModule, source: Any, precision: Any = "32-true") -> tuple[float, int]:
    """Return the seconds of a warm epoch and its number of steps."""
    clock = Clock()
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        precision=precision,
        max_epochs=EPOCHS,
        callbacks=[clock],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    as_data = isinstance(source, LightningDataModule)
    trainer.fit(module, datamodule=source) if as_data else trainer.fit(module, source)
    return clock.seconds, clock.num_steps


class Repeated(LightningDataModule):
    """One augmented batch of a datamodule, ready on its device, as often as an epoch has steps."""

    def __init__(self, data: BrainAgeDataModule) -> None:
        super().__init__()
        self.target_transform, self.target_values = data.target_transform, data.target_values
        loader = data.train_dataloader()
        batch = next(iter(loader))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        image = data.augmentation(batch["image"].to(device), range(len(batch["image"])))
        target = {name: values.to(device) for name, values in batch["target"].items()}
        self.batches = [{**batch, "image": image, "target": target}] * len(loader)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None, collate_fn=lambda batch: batch)


def arms(data: BrainAgeDataModule, shape: Shape, kind: str, width: int) -> dict[str, Callable[[], tuple[float, int]]]:
    peer = plain_loader(data, shape, kind, batch_size=data.batch_size, num_workers=0)
    repeated = Repeated(data)
    return {
        "torchio + Lightning": lambda: train(Plain(width), peer),
        "Fontanel": lambda: train(fontanel_module(width), data),
        "Fontanel, one batch again and again": lambda: train(fontanel_module(width), repeated),
    }


def compare(table: Path, folder: Path, shape: Shape, kind: str, width: int, rounds: int, batch_size: int) -> None:
    """Print the seconds of an epoch and the milliseconds of a step, and their ratios."""
    data = fontanel_data(table, shape, kind, folder, batch_size=batch_size)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    size = "x".join(map(str, shape))
    print(f"{kind}: {LISTS[kind]}; {size}, SFCN of width {width}, batches of {batch_size}, {device}")
    epochs: dict[str, list[float]] = {}
    steps: dict[str, list[float]] = {}
    compared = arms(data, shape, kind, width)
    for _ in range(rounds):
        for name, arm in compared.items():
            seconds, num_steps = arm()
            epochs.setdefault(name, []).append(seconds)
            steps.setdefault(name, []).append(1000 * seconds / num_steps)
    for name, values in epochs.items():
        spread = f"{min(values):.1f}-{max(values):.1f}"
        per_step = statistics.median(steps[name])
        print(f"{name:38} {statistics.median(values):8.2f} s an epoch ({spread}), {per_step:8.1f} ms a step")
    peer, own, constant = (statistics.median(values) for values in steps.values())
    limit = STEP_LIMIT["gpu" if torch.cuda.is_available() else "cpu"]
    held = "held" if own / constant <= limit else "NOT HELD"
    print(f"An epoch is {peer / own:.1f} times faster than with torchio + Lightning.")
    print(f"A step with data takes {own / constant:.3f} of one without (<= {limit}: {held}).")


def main() -> None:
    """Make the cohort and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="trainings of every arm (default: 3)")
    parser.add_argument("--images", type=int, default=16, help="number of images (default: 16)")
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 112, 96), help="of a sample")
    parser.add_argument("--list", choices=LISTS, default="full", help="of operations (default: full)")
    parser.add_argument("--width", type=int, default=16, help="of the network (default: 16)")
    parser.add_argument("--batch-size", type=int, default=2, help="samples a step (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    arguments = parser.parse_args()
    shape = tuple(arguments.shape)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        phantom = BrainAgePhantom(arguments.images, 0, shape=tuple(size + 16 for size in shape), spacing=(1.7,) * 3)
        table = phantom.write(Path(name) / "cohort", num_workers=1)
        size = (arguments.width, arguments.rounds, arguments.batch_size)
        compare(table, Path(name) / "cache", shape, arguments.list, *size)


if __name__ == "__main__":
    main()

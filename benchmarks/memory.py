"""Whether memory grows over the epochs of a training: resident size after each, and its slope.

Trains a small network on a phantom cohort with augmentation, for many epochs. Memory that is mapped from cache files
counts as resident too, which is why the slope is taken after the first epochs.

    python benchmarks/memory.py [--epochs 50] [--images 24] [--workers 0]
"""

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from epoch import fontanel_data, fontanel_module
from pytorch_lightning import Callback, LightningModule, Trainer

from datamodules.phantoms.brain_age import BrainAgePhantom
from experiments.memory import keep_freed_memory

LIMIT = 1.0  # MB an epoch
PAGE = 4096  # bytes
WARM_UP = 0.2  # of the epochs


class Watch(Callback):
    """Note the resident size after every epoch, in MB."""

    def __init__(self) -> None:
        self.resident: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        self.resident.append(pages * PAGE / 1e6)


def main() -> None:
    """Train and print the slope."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=50, help="(default: 50)")
    parser.add_argument("--images", type=int, default=24, help="number of images (default: 24)")
    parser.add_argument("--workers", type=int, default=0, help="loader processes (default: 0)")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    keep_freed_memory()
    shape = (48, 56, 48)
    watch = Watch()
    with tempfile.TemporaryDirectory() as name:
        table = BrainAgePhantom(arguments.images, 0, shape=shape).write(Path(name) / "cohort", num_workers=1)
        data = fontanel_data(
            table, shape, "full", Path(name) / "cache", batch_size=4, num_workers=arguments.workers, val_fraction=0.2
        )
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=arguments.epochs,
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        trainer.fit(fontanel_module(4), data)
    for epoch, resident in enumerate(watch.resident):
        if epoch % max(1, arguments.epochs // 10) == 0 or epoch == arguments.epochs - 1:
            print(f"after epoch {epoch:3}: {resident:8.1f} MB")
    warm = watch.resident[int(WARM_UP * arguments.epochs) :]
    slope = float(np.polyfit(np.arange(len(warm)), warm, 1)[0])
    print(f"Resident memory grows {slope:.3f} MB an epoch (<= {LIMIT}: {'held' if slope <= LIMIT else 'NOT HELD'}).")


if __name__ == "__main__":
    main()

"""Random numbers of a training step that depend on the step alone."""

import hashlib
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override


class StepRandomness(Callback):
    """Seed torch before every training batch by (seed, epoch, batch, process).

    Dropout of a resumed training then is that of an uninterrupted one, whatever has drawn numbers in between.

    Args:
        seed: Seed of the run.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed this step."""
        torch.manual_seed(step_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))


def step_seed(seed: int, epoch: int, batch: int, rank: int = 0) -> int:
    """Return the seed of one step on one process, in [0, 2**63).

    Examples:
        >>> step_seed(0, 1, 2) == step_seed(0, 1, 2)
        True
        >>> len({step_seed(0, epoch, batch) for epoch in range(9) for batch in range(9)})
        81
    """
    digest = hashlib.blake2b(f"{seed}/{epoch}/{batch}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1

"""Signs of life of the processes of one training, for the process that watches over them."""

import mmap
import os
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

HEARTBEAT = "FONTANEL_HEARTBEAT"  # environment variable: file that the watching process has made
_SIZE = 8  # bytes of one counter


class Pulse:
    """Counters in a file that several processes share: one for each, 0 while nothing is expected of it.

    Args:
        path: The file; it must be on this machine.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    @staticmethod
    def make(path: Path, num_processes: int) -> "Pulse":
        """Make the file for a number of processes."""
        path.write_bytes(bytes(_SIZE * num_processes))
        return Pulse(path)

    def read(self) -> list[int]:
        """Return all counters."""
        content = bytes(self._memory)
        return [int.from_bytes(content[start : start + _SIZE], "little") for start in range(0, len(content), _SIZE)]

    def write(self, rank: int, count: int) -> None:
        """Set the counter of one process."""
        self._memory[_SIZE * rank : _SIZE * (rank + 1)] = count.to_bytes(_SIZE, "little")


class Heartbeat(Callback):
    """Count batches for the process that watches; while counting, standing still means hanging."""

    def __init__(self) -> None:
        super().__init__()
        self._pulse = Pulse(Path(os.environ[HEARTBEAT]))
        self._rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._count = 0

    def _beat(self) -> None:
        self._count += 1
        self._pulse.write(self._rank, self._count)

    def _rest(self) -> None:
        self._pulse.write(self._rank, 0)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._beat()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count."""
        self._beat()

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count."""
        self._beat()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop counting: what comes now takes as long as it takes."""
        self._rest()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop counting."""
        self._rest()

"""What a training takes: samples per second, processors, memory and GPU memory, of every node, in the one run.

Points carry the names of MLflow's own system metrics, so that its UI shows them on the page for these. They are taken
once an epoch, in the training's own thread.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from tracking.logger import RunLogger

MEGABYTE = 1e6  # bytes, as MLflow counts


class Resources(Callback):
    """Log once an epoch what the training takes.

    Args:
        logger: Logger of the run.
    """

    def __init__(self, logger: RunLogger) -> None:
        super().__init__()
        self.logger = logger
        self._num_samples = 0
        self._started = self._last = 0.0

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._num_samples = 0
        self._started = self._last = time.monotonic()
        psutil.cpu_percent()  # of the time since the last call

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the samples of a batch."""
        self._num_samples += next((len(one) for one in batch.values() if isinstance(one, Tensor)), 0)
        self._last = time.monotonic()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather what every process has taken, and log it."""
        seconds = self._last - self._started
        if seconds <= 0:
            return  # a resumed epoch whose batches were all done
        mine = {"node": trainer.node_rank, "device": trainer.local_rank, **_memory(pl_module.device)}
        mine["samples_per_second"] = self._num_samples / seconds
        taken: list[dict[str, Any]] = [mine] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(taken, mine)
        self.logger.log_metrics(_points(taken), step=trainer.global_step)


def _memory(device: torch.device) -> dict[str, float]:
    """Return the use of this machine's processors and memory, and the most that a process had on its GPU so far."""
    found = {"cpu": psutil.cpu_percent(), "memory": psutil.virtual_memory().used / MEGABYTE}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.max_memory_allocated(device) / MEGABYTE
    return found


def _points(taken: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the metrics of all processes; nodes are named where there are several."""
    several = len({one["node"] for one in taken}) > 1
    points = {
        "system/samples_per_second": sum(one["samples_per_second"] for one in taken),
        "system/world_size": float(len(taken)),
    }
    for one in taken:
        node = f"system/node_{one['node']}/" if several else "system/"
        points[f"{node}cpu_utilization_percentage"] = one["cpu"]
        points[f"{node}system_memory_usage_megabytes"] = one["memory"]
        if "gpu" in one:
            points[f"{node}gpu_{one['device']}_memory_peak_megabytes"] = one["gpu"]
    return points

"""What framework and tracking add to a training step: milliseconds above a bare PyTorch loop, 5 metrics every step.

Five arms train the same small network on the same batches, in turns in one process: a bare loop; Lightning that logs
nothing, below which nothing built on it can come; Lightning without a logger; Lightning with its MLFlowLogger on a
fresh sqlite store; and ours on another, with journal, checkpoints that a training can go on from, keyed randomness and
signals. Times run from the first step to the last, over three epochs: ours include two checkpoints, and what the other
thread delivers meanwhile. What it delivers after the last step is shown apart.

    python benchmarks/overhead.py [--rounds 5] [--steps 500]
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import MLFlowLogger
from torch import Tensor, nn

from lightning_modules.base import BaseModule, StepOutput
from lightning_modules.networks.encoder import Encoder
from tracking.checkpoints import AtomicCheckpointIO
from tracking.contract import CheckpointContract
from tracking.keeper import CheckpointKeeper
from tracking.logger import RunLogger
from tracking.store import Store

NUM_METRICS = 5
NUM_EPOCHS = 3
DELIVERY: list[float] = []  # seconds after the last step, by round


class Small(Encoder):
    """Two layers: a step of it takes a fraction of a millisecond."""

    def __init__(self) -> None:
        super().__init__(in_channels=1, num_features=32)
        self.layer = nn.Conv3d(1, 32, 3)

    def forward_features(self, image: Tensor) -> Tensor:
        return self.layer(image).relu()


class Batches:
    """The same batch again and again."""

    def __init__(self, num_steps: int) -> None:
        image = torch.randn(4, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
        self.batch = {"image": image, "target": image.mean(dim=(1, 2, 3, 4))}
        self.num_steps = num_steps

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(self.num_steps):
            yield self.batch


def loss_of(network: Small, batch: Any) -> Tensor:
    return (network(batch["image"])[:, 0] - batch["target"]).square().mean()


class Clock(Callback):
    """Take the time from the first step to the last."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.end = time.perf_counter()


class Stock(LightningModule):
    """What one writes with Lightning alone."""

    def __init__(self, num_metrics: int = NUM_METRICS) -> None:
        super().__init__()
        self.network = Small()
        self.num_metrics = num_metrics

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = loss_of(self.network, batch)
        for index in range(self.num_metrics):
            self.log(f"train/metric_{index}", loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Ours(BaseModule):
    """The same on our base class."""

    def configure_losses(self) -> None:
        pass

    def configure_metrics(self) -> None:
        pass

    def describe_outputs(self) -> dict[str, dict[str, Any]]:
        return {}

    def step(self, batch: Any, stage: str) -> StepOutput:
        loss = loss_of(self.network, batch)
        for index in range(1, NUM_METRICS):  # the loss itself is the fifth
            self.record(f"train/metric_{index}", loss.detach())
        return StepOutput(loss, torch.tensor(4), {})


def bare(num_steps: int, folder: Path) -> float:
    network = Small()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    start = time.perf_counter()
    for _ in range(NUM_EPOCHS):
        for batch in Batches(num_steps):
            optimizer.zero_grad()
            loss_of(network, batch).backward()
            optimizer.step()
    return time.perf_counter() - start


def fit(module: LightningModule, num_steps: int, callbacks: list[Callback], **options: Any) -> float:
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=NUM_EPOCHS,
        callbacks=[clock, *callbacks],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, Batches(num_steps))
    return clock.end - clock.start


def lightning_alone(num_steps: int, folder: Path) -> float:
    return fit(Stock(num_metrics=0), num_steps, [], logger=False)


def lightning(num_steps: int, folder: Path) -> float:
    return fit(Stock(), num_steps, [], logger=False)


def lightning_mlflow(num_steps: int, folder: Path) -> float:
    logger = MLFlowLogger("stock", tracking_uri=f"sqlite:///{folder / 'stock.db'}", artifact_location=str(folder))
    return fit(Stock(), num_steps, [], logger=logger)


def ours(num_steps: int, folder: Path) -> float:
    store = Store(f"sqlite:///{folder / 'mlflow.db'}", folder)
    logger = RunLogger(store, "bench", "ours", {})
    contract = CheckpointContract("", logger.run_id, "bench", "ours", {})
    keeper = CheckpointKeeper(logger.folder / "checkpoints", contract, logger, "val/loss", "min")
    module = Ours(Small(), lambda groups: torch.optim.SGD(groups, lr=1e-3))
    module.seed = 0
    took = fit(module, num_steps, [keeper], logger=logger, plugins=[AtomicCheckpointIO()])
    start = time.perf_counter()
    if not logger.close("FINISHED"):
        raise RuntimeError("not everything arrived in the store")
    DELIVERY.append(time.perf_counter() - start)
    history = store.client.get_metric_history(logger.run_id, "train/metric_1")
    if len(history) != NUM_EPOCHS * num_steps:
        raise RuntimeError(f"{len(history)} points arrived instead of {NUM_EPOCHS * num_steps}")
    return took


ARMS: dict[str, Callable[[int, Path], float]] = {
    "bare loop": bare,
    "Lightning, nothing logged": lightning_alone,
    "Lightning, no logger": lightning,
    "Lightning + MLFlowLogger": lightning_mlflow,
    "Fontanel": ours,
}


def main() -> None:
    """Run the arms in turns and print milliseconds per step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500, help="of an epoch; there are three")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    per_step: dict[str, list[float]] = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory() as scratch:
        for round_ in range(arguments.rounds + 1):
            for name, arm in ARMS.items():
                took = arm(arguments.steps, Path(scratch))
                if round_:  # the first warms up
                    per_step[name].append(1000 * took / (NUM_EPOCHS * arguments.steps))
    base = statistics.median(per_step["bare loop"])
    above = {name: statistics.median(values) - base for name, values in per_step.items()}
    print(f"{'':26} ms a step (median, range of {arguments.rounds} rounds)    above the bare loop")
    for name, values in per_step.items():
        shown = f"{statistics.median(values):6.3f}   {min(values):6.3f} to {max(values):6.3f}"
        print(f"{name:26} {shown:40} {above[name]:6.3f}")
    ratio = above["Lightning + MLFlowLogger"] / above["Fontanel"]
    num_points = NUM_METRICS * NUM_EPOCHS * arguments.steps
    print(f"After the last step, delivery of the rest of {num_points} points: {statistics.median(DELIVERY):.2f} s.")
    print(f"Fontanel adds {above['Fontanel']:.2f} ms, {ratio:.0f} times less than Lightning + MLFlowLogger.")


if __name__ == "__main__":
    main()

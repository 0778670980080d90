"""Logger, recorder and checkpoints inside a real training."""

import dataclasses
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from tracking.checkpoints import AtomicCheckpointIO, CheckpointContract, RunRecorder, load_checkpoint, read_contract
from tracking.logger import RunLogger
from tracking.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")


class Line(LightningModule):
    def __init__(self, explode_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.explode_at = explode_at

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        if self.explode_at == self.global_step:
            raise RuntimeError("boom")
        loss = (self.layer(batch) - 3 * batch).square().mean()
        self.log("train/loss", loss, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.log("val/mae", (self.layer(batch) - 3 * batch).abs().mean())

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer),
                torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=50),
            ],
            milestones=[2],
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def contract_of(logger: RunLogger) -> CheckpointContract:
    split = {"protocol": "holdout", "seed": 0, "parts": {"train": {"north": ("ixi/1", "ixi/2")}}}
    return CheckpointContract(
        "lr: 0.01\nhf_token: abc\n", logger.run_id, logger.study, logger.run_name, split, {"arm": "scratch"}
    )


def trainer_of(logger: RunLogger, epochs: int) -> Trainer:
    keeper = ModelCheckpoint(
        filename="best", monitor="val/mae", save_last=True, enable_version_counter=False, auto_insert_metric_name=False
    )
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=logger,
        callbacks=[RunRecorder(contract_of(logger)), keeper],
        plugins=[AtomicCheckpointIO()],
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def loader() -> DataLoader:
    return DataLoader(torch.linspace(-1, 1, 8).reshape(8, 1), batch_size=2)


def steps(store: Store, logger: RunLogger, key: str) -> list[int]:
    return [point.step for point in store.client.get_metric_history(logger.run_id, key)]


def test_a_training_leaves_a_whole_run(logger: RunLogger, store: Store, tmp_path: Path) -> None:
    trainer = trainer_of(logger, epochs=2)
    trainer.fit(Line(), loader(), loader())
    assert store.client.get_run(logger.run_id).info.status == "FINISHED"
    assert steps(store, logger, "train/loss") == list(range(8))
    assert steps(store, logger, "val/mae") == [3, 7]
    assert len(steps(store, logger, "epoch")) == len(set(steps(store, logger, "epoch")))
    folder = store.folder(logger.run_id) / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.ckpt",
        "best.ckpt.sha256",
        "last.ckpt",
        "last.ckpt.sha256",
    ]
    contract = read_contract(store.folder(logger.run_id))
    assert contract == dataclasses.replace(
        contract_of(logger),
        config="lr: 0.01\nhf_token: <redacted>\n",
        split={"protocol": "holdout", "seed": 0, "parts": {"train": {"north": ["ixi/1", "ixi/2"]}}},
    )
    assert load_checkpoint(folder / "last.ckpt")["global_step"] == 8
    assert list((tmp_path / "cwd").iterdir()) == []


def test_metrics_are_there_when_an_epoch_has_ended(logger: RunLogger, store: Store) -> None:
    seen: list[tuple[int, int]] = []

    class Watch(RunRecorder):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if batch_idx == 0:
                seen.append((len(steps(store, logger, "train/loss")), len(steps(store, logger, "val/mae"))))

    trainer = trainer_of(logger, epochs=3)
    trainer.callbacks = [Watch(contract_of(logger))]
    trainer.fit(Line(), loader(), loader())
    assert seen == [(0, 0), (4, 1), (8, 2)]


def test_a_training_that_fails_is_resumed_in_the_same_run(logger: RunLogger, store: Store) -> None:
    with pytest.raises(RuntimeError, match="boom"):
        trainer_of(logger, epochs=3).fit(Line(explode_at=8), loader(), loader())
    assert store.client.get_run(logger.run_id).info.status == "FAILED"
    again = RunLogger(store, "study", "scratch-holdout-0-r0-s0", {}, run_id=logger.run_id)
    last = store.folder(logger.run_id) / "checkpoints" / "last.ckpt"
    trainer_of(again, epochs=3).fit(Line(), loader(), loader(), ckpt_path=last)
    assert store.client.get_run(logger.run_id).info.status == "FINISHED"
    assert steps(store, again, "train/loss") == list(range(12))
    assert steps(store, again, "val/mae") == [3, 7, 11]
    assert len(store.client.search_experiments()) == 2  # the study and MLflow's own "Default"

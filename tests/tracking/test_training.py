"""Logger, keeper and checkpoints inside a real training."""

import dataclasses
from pathlib import Path

import pytest
from pytorch_lightning import Callback

from tracking.checkpoints import load_checkpoint
from tracking.contract import newest_whole, read_contract
from tracking.journal import read_records
from tracking.logger import RunLogger
from tracking.store import Point, Store


def steps(store: Store, logger: RunLogger, key: str) -> list[int]:
    return [point.step for point in store.client.get_metric_history(logger.run_id, key)]


def test_a_training_leaves_a_whole_run(training, store: Store, tmp_path: Path) -> None:
    training.fit(epochs=2)
    logger = training.logger
    assert logger.close("FINISHED")
    assert store.client.get_run(logger.run_id).info.status == "FINISHED"
    assert steps(store, logger, "train/loss") == list(range(8))
    assert steps(store, logger, "val/mae") == [3, 7]
    assert len(steps(store, logger, "epoch")) == len(set(steps(store, logger, "epoch")))
    assert training.names() == ["best.ckpt", "step-00000004.ckpt", "step-00000008.ckpt"]
    contract = read_contract(training.folder / "step-00000008.ckpt")
    assert contract == dataclasses.replace(
        training.contract,
        config="lr: 0.01\nhf_token: <redacted>\n",
        split={"protocol": "holdout", "seed": 0, "parts": {"train": {"north": ["ixi/1", "ixi/2"]}}},
        num_threads=contract.num_threads,
        journal=contract.journal,
        finished=True,
    )
    assert load_checkpoint(training.folder / "step-00000008.ckpt")["global_step"] == 8
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_checkpoint_covers_all_that_was_measured_before_it(training) -> None:
    training.fit(epochs=2)
    for path, last_step in (("step-00000004.ckpt", 3), ("step-00000008.ckpt", 7), ("best.ckpt", 7)):
        offset = read_contract(training.folder / path).journal
        points = [r for r, _ in read_records(training.logger.folder, 0, offset) if isinstance(r, Point)]
        assert [point.step for point in points if point.key == "train/loss"] == list(range(last_step + 1))
        assert [point.step for point in points if point.key == "val/mae"] == list(range(3, last_step + 1, 4))


def test_metrics_are_written_when_an_epoch_has_ended(training) -> None:
    seen: list[tuple[int, int]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            if batch_idx == 0:
                keys = [r.key for r, _ in read_records(training.logger.folder) if isinstance(r, Point)]
                seen.append((keys.count("train/loss"), keys.count("val/mae")))

    training.fit(epochs=3, callbacks=[Watch()])
    assert seen == [(0, 0), (4, 1), (8, 2)]


def test_a_training_that_fails_is_resumed_in_the_same_run(training, resume, store: Store) -> None:
    def explode(module, loss):
        if module.global_step == 10:
            raise RuntimeError("boom")
        return loss

    with pytest.raises(RuntimeError, match="boom"):
        training.fit(epochs=3, trouble=explode)
    logger = training.logger
    logger.close("FAILED")
    assert store.client.get_run(logger.run_id).info.status == "FAILED"
    again = resume(training)
    path, contract, problems = newest_whole(logger.folder)
    assert (path.name, contract.finished, problems) == ("step-00000008.ckpt", False, [])
    assert again.fit(epochs=3, ckpt_path=path).global_step == 12
    assert again.logger.close("FINISHED")
    assert store.client.get_run(logger.run_id).info.status == "FINISHED"
    assert steps(store, again.logger, "train/loss") == list(range(12))
    assert steps(store, again.logger, "val/mae") == [3, 7, 11]
    assert len(store.client.search_experiments()) == 2  # the study and MLflow's own "Default"

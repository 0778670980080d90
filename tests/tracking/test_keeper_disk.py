"""A training whose disk is full goes on, and keeps the checkpoints that it has."""

import errno
import shutil
from collections.abc import Callable

import pytest
import torch

from tracking.checkpoints import load_checkpoint
from tracking.contract import newest_whole, read_contract
from tracking.store import Store

torch_save = torch.save


class Disk:
    """A disk that is full when told to be."""

    def __init__(self) -> None:
        self.full = False

    def usage(self, path: object) -> object:
        usage = shutil._ntuple_diskusage
        return usage(10**12, 10**12, 0) if self.full else usage(10**12, 0, 10**12)

    def save(self, checkpoint: object, file) -> None:
        if self.full:
            file.write(b"PK" * 1000)
            raise OSError(errno.ENOSPC, "No space left on device")
        torch_save(checkpoint, file)


@pytest.fixture(params=["free", "save"])
def disk(request, monkeypatch) -> Disk:
    disk = Disk()
    if request.param == "free":
        monkeypatch.setattr("tracking.checkpoints.shutil.disk_usage", disk.usage)
    else:
        monkeypatch.setattr("tracking.checkpoints.torch.save", disk.save)
    return disk


def fill(disk: Disk, full: range, then: Callable[[], None] = lambda: None):
    """Make trouble for `Line`: the disk is full during some steps."""

    def trouble(module, loss):
        if module.global_step == full.stop:
            then()
        disk.full = module.global_step in full
        return loss

    return trouble


def step_of(path) -> int:
    return int(load_checkpoint(path)["global_step"])


def test_a_full_disk_keeps_the_old_checkpoint_until_there_is_room(disk: Disk, training, store: Store) -> None:
    seen: list[list[str]] = []
    trouble = fill(disk, range(1, 6), then=lambda: seen.append(training.names()))
    with pytest.warns(UserWarning, match=r"saved.*Training goes on") as caught:
        training.fit(epochs=3, scores=[1, 2, 3], trouble=trouble)
    refused = [warning for warning in caught if "saved" in str(warning.message)]
    assert len(refused) == 2, "the best of the first epoch, and the start of the second"
    assert seen == [["step-00000000.ckpt"]], "whole, and nothing torn beside it"
    assert training.trainer.global_step == 12
    assert training.names() == ["best.ckpt", "step-00000008.ckpt", "step-00000012.ckpt"]
    assert step_of(training.folder / "best.ckpt") == 8, "a best that was not saved does not count"
    assert training.keeper.best_score == 2
    assert load_checkpoint(training.folder / "step-00000012.ckpt")["callbacks"]["CheckpointKeeper"]["best_score"] == 2
    assert training.logger.close("FINISHED")
    assert store.client.get_run(training.logger.run_id).info.status == "FINISHED"
    assert len(store.client.get_metric_history(training.logger.run_id, "train/loss")) == 12


def test_a_better_best_that_is_not_saved_leaves_the_one_before(disk: Disk, training) -> None:
    trouble = fill(disk, range(5, 9))
    with pytest.warns(UserWarning, match="saved"):
        training.fit(epochs=3, scores=[3, 1, 2], trouble=trouble)
    assert training.keeper.best_score == 2
    assert step_of(training.folder / "best.ckpt") == 12


def test_a_disk_full_to_the_end_leaves_one_to_resume_from(disk: Disk, training, resume) -> None:
    with pytest.warns(UserWarning, match="saved"):
        training.fit(epochs=2, trouble=fill(disk, range(5, 99)))
    assert training.names() == ["best.ckpt", "step-00000000.ckpt", "step-00000004.ckpt"]
    assert training.logger.close("FINISHED")
    path, contract, problems = newest_whole(training.logger.folder)
    assert (path.name, contract.finished, problems) == ("step-00000004.ckpt", False, [])
    disk.full = False
    again = resume(training)
    assert again.fit(epochs=2, ckpt_path=path).global_step == 8
    assert read_contract(training.folder / "step-00000008.ckpt").finished


def test_a_disk_that_was_always_full(disk: Disk, training) -> None:
    disk.full = True
    with pytest.warns(UserWarning, match="saved"):
        training.fit(epochs=1, trouble=fill(disk, range(99)))
    assert training.trainer.global_step == 4
    assert training.names() == []
    assert training.keeper.best_score is None

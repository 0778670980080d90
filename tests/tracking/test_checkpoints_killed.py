import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tracking.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from tracking.files import temporary_file

NUM_FAULT_POINTS = 9  # calls of os.replace and os.fsync in one save over an older checkpoint


def checkpoint(epoch: int) -> dict[str, object]:
    return {"epoch": epoch, "state_dict": {"w": torch.full((1000,), float(epoch))}}


def assert_whole(path: Path, epochs: set[int]) -> int:
    loaded = load_checkpoint(path)
    assert loaded["epoch"] in epochs
    assert torch.equal(loaded["state_dict"]["w"], torch.full((1000,), float(loaded["epoch"])))
    return int(loaded["epoch"])


def fail_at(count: int, fault: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let the `count`-th system call of a save that changes the disk do something else."""
    calls = 0

    def wrap(original: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            nonlocal calls
            calls += 1
            if calls == count:
                fault()
            original(*arguments)

        return call

    monkeypatch.setattr(os, "replace", wrap(os.replace))
    monkeypatch.setattr(os, "fsync", wrap(os.fsync))
    return lambda: calls


def run_in_fork(work: Callable[[], None]) -> int:
    """Do work in a child process, which costs no import, and return its exit code."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_number_of_fault_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(checkpoint(1), tmp_path / "best.ckpt")
    calls = fail_at(0, lambda: None, monkeypatch)
    save_checkpoint(checkpoint(2), tmp_path / "best.ckpt")
    assert calls() == NUM_FAULT_POINTS


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("first_hash", [True, False])
def test_killed_anywhere_while_saving(first_hash: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for count in range(1, NUM_FAULT_POINTS + 1):
        path = tmp_path / str(count) / "best.ckpt"
        save_checkpoint(checkpoint(1), path)
        if not first_hash:
            path.with_name("best.ckpt.sha256").unlink()

        def work(path: Path = path, count: int = count) -> None:
            fail_at(count, lambda: os._exit(9), monkeypatch)
            save_checkpoint(checkpoint(2), path)

        assert run_in_fork(work) == 9
        found.append(assert_whole(path, {1, 2}))
        save_checkpoint(checkpoint(3), path)
        assert assert_whole(path, {3}) == 3
        assert sorted(p.name for p in path.parent.iterdir()) == ["best.ckpt", "best.ckpt.sha256"]
    assert found == sorted(found)
    assert set(found) == {1, 2}


@pytest.mark.parametrize("count", range(1, NUM_FAULT_POINTS + 1))
def test_a_disk_that_refuses(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best.ckpt"
    save_checkpoint(checkpoint(1), path)

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        fail_at(count, full, patch)
        with pytest.raises(CheckpointError, match=r"No space left on device.*is kept"):
            save_checkpoint(checkpoint(2), path)
    assert_whole(path, {1, 2})
    assert {p.name for p in tmp_path.iterdir()} == {"best.ckpt", "best.ckpt.sha256"}


def test_a_disk_that_is_full_while_tensors_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best.ckpt"
    save_checkpoint(checkpoint(1), path)

    def full(self: object, buffer: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tracking.files.HashingWriter.write", full)
        with pytest.raises(CheckpointError, match="could not be saved"):
            save_checkpoint(checkpoint(2), path)
    assert assert_whole(path, {1}) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"best.ckpt", "best.ckpt.sha256"}


def test_a_temporary_file_is_beside_its_target(tmp_path: Path) -> None:
    with temporary_file(tmp_path / "deep" / "a.ckpt") as (file, temporary):
        file.write(b"x")
        assert temporary.parent == tmp_path / "deep"
        assert temporary.name.startswith(".a.ckpt.")
    assert list((tmp_path / "deep").iterdir()) == []

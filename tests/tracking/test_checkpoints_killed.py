import errno
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
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


def test_the_number_of_fault_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(checkpoint(1), tmp_path / "best.ckpt")
    calls = fail_at(0, lambda: None, monkeypatch)
    save_checkpoint(checkpoint(2), tmp_path / "best.ckpt")
    assert calls() == NUM_FAULT_POINTS


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("first_hash", [True, False])
def test_killed_at_any_call_while_saving(
    first_hash: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_in_fork: Callable[..., int]
) -> None:
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


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put TMPDIR on another filesystem than the checkpoints, where one is to be had."""
    other = Path("/dev/shm")  # a file made there could not be renamed to its target
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second filesystem for TMPDIR")
    folder = Path(tempfile.mkdtemp(dir=other, prefix="fontanel-test-"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    shutil.rmtree(folder)


def kill_while_saving(path: Path, contents: list[dict[str, object]], delay: float) -> None:
    """Let a child save one content after the other, for ever, and kill it some time after its first save began."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(tell, b"y")
            while True:
                for content in contents:
                    save_checkpoint(content, path)
        finally:
            os._exit(1)
    try:
        assert os.read(told, 1) == b"y"
        time.sleep(delay)
    finally:
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        os.close(told)
        os.close(tell)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_any_moment_while_saving(kills: int, elsewhere: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "best.ckpt"
    contents = [checkpoint(epoch) for epoch in range(1, 10)]
    save_checkpoint(contents[0], path)
    delays = random.Random(0)
    torn = whole = 0
    for _ in range(kills):
        kill_while_saving(path, contents, delays.uniform(0, 0.02))
        torn += any(leftover.suffix == ".tmp" for leftover in path.parent.iterdir())
        assert_whole(path, set(range(1, 10)))
        whole += 1
    assert whole == kills
    assert torn >= kills // 10, "the kills came while files were written"
    save_checkpoint(contents[0], path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["best.ckpt", "best.ckpt.sha256"]
    assert assert_whole(path, {1}) == 1
    assert list(elsewhere.iterdir()) == [], "nothing was written to TMPDIR"


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

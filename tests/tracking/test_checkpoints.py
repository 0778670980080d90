import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from tracking.checkpoints import AtomicCheckpointIO, CheckpointError, load_checkpoint, save_checkpoint

CHECKPOINT = {"state_dict": {"w": torch.arange(6.0).reshape(2, 3)}, "epoch": 3, "loops": {"a": [1, (2.5, None, "x")]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "run" / "checkpoints" / "best.ckpt"
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, target)
    return target


def test_round_trip(path: Path) -> None:
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert torch.equal(loaded["state_dict"]["w"], CHECKPOINT["state_dict"]["w"])
    assert (loaded["epoch"], loaded["loops"]) == (3, CHECKPOINT["loops"])


def test_the_hash_beside_it_is_that_of_the_file(path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.with_name("best.ckpt.sha256").read_text() == f"{digest}  best.ckpt\n"
    assert sorted(p.name for p in path.parent.iterdir()) == ["best.ckpt", "best.ckpt.sha256"]
    assert {p.stat().st_mode & 0o777 for p in path.parent.iterdir()} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_without_a_hash_it_is_read_all_the_same(path: Path) -> None:
    path.with_name("best.ckpt.sha256").unlink()
    assert load_checkpoint(path)["epoch"] == 3


def test_removing_takes_the_hash_along(path: Path) -> None:
    AtomicCheckpointIO().remove_checkpoint(path)
    AtomicCheckpointIO().remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_file_that_is_not_what_was_written(damage: str, path: Path) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "cut": content[:-20],
        "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
        "other": b"PK" + content[2:] + b"x",
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(CheckpointError, match="is not what was written"):
        load_checkpoint(path)


def test_a_damaged_hash(path: Path) -> None:
    path.with_name("best.ckpt.sha256").write_text("?")
    with pytest.raises(CheckpointError, match="cannot be checked"):
        load_checkpoint(path)
    save_checkpoint(CHECKPOINT, path)
    assert load_checkpoint(path)["epoch"] == 3


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04" + b"\0" * 60, b"\x80\x02K\x01."])
def test_what_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_an_exchanged_checkpoint_is_noticed(path: Path, tmp_path: Path) -> None:
    save_checkpoint({"epoch": 9}, tmp_path / "other.ckpt")
    shutil.copy(tmp_path / "other.ckpt", path)
    with pytest.raises(CheckpointError, match="exchanged"):
        load_checkpoint(path)

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tracking.checkpoints import (
    CheckpointContract,
    CheckpointError,
    export_model,
    find_checkpoint,
    read_contract,
    save_checkpoint,
)

CONTRACT = CheckpointContract(
    "lr: 0.1\n", "f" * 32, "age2hie/pretrain", "scratch", {"parts": {"train": {"a": ["x/1"]}}}
)


def test_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    save_checkpoint({"fontanel": CONTRACT.as_dict()}, folder / "checkpoints" / "last.ckpt")
    assert read_contract(folder) == read_contract(folder / "checkpoints") == CONTRACT
    save_checkpoint({"fontanel": CONTRACT.as_dict()}, folder / "checkpoints" / "best.ckpt")
    assert find_checkpoint(folder) == folder / "checkpoints" / "best.ckpt"
    assert json.loads(CONTRACT.split_json) == CONTRACT.split


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        read_contract(tmp_path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "not from a Fontanel run"),
        ({"format": 2}, "has format 2"),
        ({"format": 1, "config": ""}, "incomplete record"),
        ({**CONTRACT.as_dict(), "more": 1}, "incomplete record"),
    ],
)
def test_what_other_programs_and_versions_wrote(record: object, message: str, tmp_path: Path) -> None:
    save_checkpoint({"state_dict": {}} if record is None else {"fontanel": record}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=message):
        read_contract(tmp_path / "a.ckpt")


def test_export(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    state = {"a.weight": shared, "b.weight": shared, "c": shared.T, "n": torch.tensor(3)}
    weights, description = tmp_path / "model" / "weights.safetensors", tmp_path / "model" / "model.json"
    export_model(state, weights, description, {"spacing": [2.0, 2.0, 2.0], "outputs": {"age": "years"}})
    loaded = load_file(weights)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    model = json.loads(description.read_text())
    assert model["spacing"] == [2.0, 2.0, 2.0]
    assert model["format"] == 1
    assert model["weights"] == {
        "file": "weights.safetensors",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "num_tensors": 4,
        "num_values": 19,
    }
    assert {path.stat().st_mode & 0o777 for path in (weights, description)} == {0o600}


def test_export_refuses_what_is_no_tensor_or_json(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="State 'extra' is a dict"):
        export_model({"extra": {}}, tmp_path / "w", tmp_path / "j", {})  # type: ignore[dict-item]
    for value in (Path("a"), float("nan")):
        with pytest.raises(CheckpointError, match="JSON types only"):
            export_model({}, tmp_path / "w", tmp_path / "j", {"a": value})
    assert list(tmp_path.iterdir()) == []

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tracking.checkpoints import CheckpointError, export_model, save_checkpoint
from tracking.contract import (
    CHECKPOINTS,
    CheckpointContract,
    checkpoint_name,
    find_checkpoint,
    newest_first,
    newest_whole,
    read_contract,
)

CONTRACT = CheckpointContract(
    "lr: 0.1\n", "f" * 32, "age2hie/pretrain", "scratch", {"parts": {"train": {"a": ["x/1"]}}}
)


def test_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    save_checkpoint({"fontanel": CONTRACT.as_dict()}, folder / "checkpoints" / "step-00000008.ckpt")
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
        ({"format": 1}, "has format 1"),
        ({"format": 2, "config": ""}, "incomplete record"),
        ({**CONTRACT.as_dict(), "more": 1}, "incomplete record"),
    ],
)
def test_what_other_programs_and_versions_wrote(record: object, message: str, tmp_path: Path) -> None:
    save_checkpoint({"state_dict": {}} if record is None else {"fontanel": record}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=message):
        read_contract(tmp_path / "a.ckpt")


def save_steps(folder: Path, *steps: int) -> list[Path]:
    paths = [folder / CHECKPOINTS / checkpoint_name(step) for step in steps]
    for step, path in zip(steps, paths, strict=True):
        state = {"w": torch.full((50,), float(step))}
        save_checkpoint({"fontanel": {**CONTRACT.as_dict(), "journal": step}, "state_dict": state}, path)
    return paths


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_steps(folder, 4, 8)
    return folder


def test_steps_are_sorted_as_numbers(tmp_path: Path) -> None:
    paths = save_steps(tmp_path, 9, 10, 99_999_999)
    save_checkpoint({}, tmp_path / CHECKPOINTS / "best.ckpt")
    assert newest_first(tmp_path / CHECKPOINTS) == paths[::-1]
    assert find_checkpoint(tmp_path).name == "best.ckpt"
    assert newest_whole(tmp_path)[0] == paths[-1]


@pytest.mark.parametrize("place", range(20))
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_newest_falls_back_to_the_one_before(
    damage: str, place: int, two_steps: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(two_steps, tmp_path / "run")
    newest, older = newest_first(folder / CHECKPOINTS)
    content = bytearray(newest.read_bytes())
    position = place * (len(content) - 1) // 19
    if damage == "flip":
        content[position] ^= 1 << place % 8
    newest.write_bytes(content if damage == "flip" else content[:position])
    found, contract, problems = newest_whole(folder)
    assert (found, contract.journal) == (older, 4)
    assert len(problems) == 1
    assert "step-00000008.ckpt is not what was written" in problems[0]


@pytest.mark.parametrize("damage", ["flip", "empty", "gone"])
def test_a_damaged_or_lost_hash(damage: str, two_steps: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two_steps, tmp_path / "run")
    recorded = folder / CHECKPOINTS / "step-00000008.ckpt.sha256"
    if damage == "gone":
        recorded.unlink()
    else:
        recorded.write_text("0" + recorded.read_text()[1:] if damage == "flip" else "")
    found, _, problems = newest_whole(folder)
    assert (found.name, len(problems)) == (("step-00000008.ckpt", 0) if damage == "gone" else ("step-00000004.ckpt", 1))


def test_none_that_is_whole_names_every_problem(two_steps: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two_steps, tmp_path / "run")
    for path in newest_first(folder / CHECKPOINTS):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="has no checkpoint to resume from") as caught:
        newest_whole(folder)
    assert [line.split("/")[-1].split()[0] for line in str(caught.value).splitlines()[1:]] == [
        "step-00000008.ckpt",
        "step-00000004.ckpt",
    ]
    with pytest.raises(CheckpointError, match="has no checkpoint to resume from"):
        newest_whole(tmp_path)


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
    assert model["format"] == 2
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

"""What a transfer can start from: checkpoints and exports of ours, weights of others, and nothing that runs code."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_modules.ledger import TransferError
from lightning_modules.sources import read_source
from tracking.checkpoints import CheckpointError, export_model, save_checkpoint
from tracking.contract import CheckpointContract
from tracking.files import file_hash

CONFIG = "model: {init_args: {network: {class_path: lightning_modules.networks.SFCN, init_args: {width: 16}}}}"
SPLIT = {"parts": {"train": {"a": ["ixi/1", "ixi/2"]}, "val": {"b": ["oasis/3"]}, "test": {"a": ["adni/4"]}}}


def checkpoint(**more) -> dict:
    contract = CheckpointContract(CONFIG, "run-1", "age2hie/pretrain", "scratch", SPLIT)
    return {"state_dict": {"network.a.weight": torch.ones(2)}, "fontanel": contract.as_dict(), **more}


def test_our_checkpoint_says_where_it_is_from(tmp_path):
    path = tmp_path / "checkpoints" / "best.ckpt"
    save_checkpoint(checkpoint(), path)
    for reference in (path, tmp_path):  # a file, or the folder of a run
        source = read_source(reference)
        assert list(source.tensors) == ["network.a.weight"]
        known = source.provenance
        assert (known.kind, known.study, known.run_id) == ("run", "age2hie/pretrain", "run-1")
        assert known.datasets == ("ixi", "oasis")  # those of the test part were not seen
        assert known.network == "SFCN(width=16)"
        assert known.sha256 == file_hash(path)
        assert known.started_from is None


def test_a_chain_of_transfers_is_remembered(tmp_path):
    earlier = {"file": "mae.ckpt", "datasets": ["fomo"]}
    save_checkpoint(checkpoint(transfer={"ledger": {"source": earlier}, "starting_point": {}}), tmp_path / "b.ckpt")
    assert read_source(tmp_path / "b.ckpt").provenance.started_from == earlier


def test_export_is_checked_against_its_description(tmp_path):
    weights, description = tmp_path / "weights.safetensors", tmp_path / "model.json"
    export_model({"network.a.weight": torch.ones(2)}, weights, description, {"study": "s", "run_id": "r"})
    known = read_source(weights).provenance
    assert (known.kind, known.study, known.run_id, known.datasets) == ("export", "s", "r", ())
    export_model(
        {"network.a.weight": torch.ones(2)}, weights, description, {"study": "s", "datasets": ["ixi"], "network": {}}
    )
    assert read_source(weights).provenance.datasets == ("ixi",)
    save_file({"network.a.weight": torch.zeros(2)}, weights)
    with pytest.raises(TransferError, match=r"weights\.safetensors is not what was exported"):
        read_source(weights)
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(TransferError, match="damaged"):
        read_source(weights)


@pytest.mark.parametrize("model_json", [None, "{", json.dumps({"weights": "elsewhere"}), "[1]"])
def test_foreign_safetensors_have_no_provenance(tmp_path, model_json):
    save_file({"conv.weight": torch.ones(2)}, tmp_path / "weights.safetensors")
    if model_json is not None:
        (tmp_path / "model.json").write_text(model_json)
    known = read_source(tmp_path / "weights.safetensors").provenance
    assert (known.kind, known.study, known.datasets, known.network) == ("foreign", "unknown", (), "unknown")


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": {"net": s}}]
)
def test_state_dicts_are_unwrapped(tmp_path, wrap):
    torch.save(wrap({"conv.weight": torch.ones(2), "step": 3}), tmp_path / "weights.pth")
    assert list(read_source(tmp_path / "weights.pth").tensors) == ["conv.weight"]


def test_what_holds_no_usable_weights_is_refused(tmp_path):
    torch.save({"optimizer": {"lr": 0.1}, "epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(TransferError, match=r"a\.pt holds no weights.*it has: optimizer, epoch"):
        read_source(tmp_path / "a.pt")
    torch.save({"conv.weight": torch.tensor([1.0, float("nan")])}, tmp_path / "b.pt")
    with pytest.raises(TransferError, match=r"b\.pt: conv\.weight hold values that are not finite"):
        read_source(tmp_path / "b.pt")
    with pytest.raises(TransferError, match="no weights file"):
        read_source(tmp_path / "none.safetensors")


def test_addresses_and_pickled_code_are_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for name, content in {"code.pt": Payload(), "code.ckpt": {"state_dict": Payload()}, "module.pt": nn.ReLU()}.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match="could run code"):
            read_source(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(CheckpointError, match="is a URL"):
        read_source("https://example.org/weights.pt")

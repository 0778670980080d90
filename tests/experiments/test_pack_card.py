"""What a pack says in words: its card, its licence and its name."""

import json
import re
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from experiments.cli import main
from experiments.pack import NO_LICENCE, model_name, read_licence
from experiments.pack_card import card
from experiments.pack_contents import contents, unpack
from experiments.runtime import ConfigurationError
from tracking.checkpoints import load_checkpoint
from tracking.contract import read_contract
from tracking.packs import CARD, CONTRACT, LICENCE, PackError, read_pack, write_pack

COUNTS = [
    {"split": "train", "site": "north", "participants": 17, "images": 19},
    {"split": "train", "site": "south", "participants": 4, "images": 4},
    {"split": "val", "site": "north", "participants": 3, "images": 3},
    {"split": "test", "site": "north", "participants": 6, "images": 6},
]
MODEL = {
    "model": "lightning_modules.ClassificationModule",
    "weights": {"sha256": "0" * 64},
    "input": {
        "channels": ["adc", "zadc"],
        "mask": None,
        "orientation": "RAS",
        "preprocessing": {
            "spacing": [1.5, 1.5, 1.5],
            "shape": [96, 96, 96],
            "normalisation": "zscore",
            "foreground": "nonzero",
            "centre": "foreground",
        },
    },
    "outputs": {"outcome": {"kind": "binary", "temperature": 1.2, "threshold": 0.4, "rule": "youden", "small": True}},
}


def make_card(tmp_path, phantom=False, positives=6):
    targets = [1.0] * positives + [0.0] * (12 - positives)
    rows = {"participant_id": [f"p{i}" for i in range(12)], "target": targets, "split": "test", "output": "outcome"}
    frame = pd.DataFrame({**rows, "prediction": [i / 12 for i in range(12)], "score_1": 0.5, "threshold": 0.5})
    frame.to_parquet(tmp_path / "predictions.parquet")
    files = SimpleNamespace(
        record={"cohort.json": {"counts": COUNTS, "phantom": phantom}}.get,
        find=lambda name: tmp_path / name,
    )
    config = "model: {init_args: {network: {class_path: a.Net, init_args: {width: 4}}}}"
    packed = SimpleNamespace(
        members={"model.json": json.dumps(MODEL).encode()},
        contract=SimpleNamespace(config=config, training_images=["0" * 64]),
    )
    return card("ours", "CC-BY-4.0", packed, torch.nn.Linear(3, 2), files)


def test_counts_metrics_and_limits_are_said_and_no_site_is(tmp_path):
    text = make_card(tmp_path)
    assert "| training | 21 | 23 | 2 |" in text
    assert "| validation (chose the weights) | fewer than 5 | fewer than 5 | 1 |" in text
    assert not re.search("north|south", text)
    assert "| Area under the ROC curve | 0.000 |" in text
    assert "parameters: 8" in text
    assert "Not a medical device" in text
    assert "phantom" not in text


def test_a_phantom_is_called_one(tmp_path):
    text = make_card(tmp_path, phantom=True)
    assert text.count("phantom") >= 3
    assert "external validation" not in text


def test_metrics_that_rest_on_a_few_of_one_class_are_left_out(tmp_path):
    text = make_card(tmp_path, positives=4)
    assert "no metrics: they would rest on fewer than 5" in text
    assert "ROC" not in text


def test_a_licence_is_named_read_or_asked_for_and_never_invented(tmp_path):
    assert read_licence("cc-by-4.0")[0] == "CC-BY-4.0"
    (tmp_path / "terms.txt").write_text("Ask Ann.\n")
    assert read_licence(str(tmp_path / "terms.txt"))[1] == "Ask Ann.\n"
    assert read_licence(None) == (NO_LICENCE, f"{NO_LICENCE}\n")
    with pytest.raises(ConfigurationError, match="neither a file nor the name of a licence"):
        read_licence("my own terms")


@pytest.mark.parametrize("name", ["", " ", "a" * 101, "a\x1b[2J"])
def test_a_name_that_cannot_be_printed_is_refused(name):
    with pytest.raises(ConfigurationError, match="--name"):
        model_name(name)


def test_a_card_and_a_licence_of_ones_own_are_taken_as_they_are(fitted, tmp_path, capsys):
    output, run_id = fitted
    own = tmp_path / "card.md"
    own.write_text("# Ours\n\nKnows\x1b nothing.\n", encoding="utf-8")
    pack = tmp_path / "ours.fontanel"
    words = ["pack", run_id, "-o", str(pack), "--output-dir", str(output)]
    assert main([*words, "--card", str(own), "--name", "brain age", "--no-image-hashes"]) == 0
    found = read_pack(pack)
    assert found.text(CARD) == own.read_text(encoding="utf-8")
    assert found.text(LICENCE) == f"{NO_LICENCE}\n"
    assert found.record("contract.json")["training_images"] == []
    assert found.record("contract.json")["key"]["arm"] == "brain age"
    with zipfile.ZipFile(pack) as archive:
        assert archive.testzip() is None
    capsys.readouterr()
    assert main(["verify", str(pack)]) == 0
    said = capsys.readouterr().out
    assert "Knows? nothing." in said
    assert NO_LICENCE in said
    assert "- age: a number, in years" in said
    own.write_text(" \n")
    assert main([*words, "--card", str(own)]) == 1
    assert main(["pack", run_id, "-o", str(tmp_path / "ours.zip"), "--output-dir", str(output)]) == 1
    assert ".fontanel" in capsys.readouterr().err


def test_only_the_weights_that_the_run_describes_are_packed(fitted, tmp_path, capsys):
    output, run_id = fitted
    folder = output / "runs" / run_id / "checkpoints"
    best = load_checkpoint(folder / "best.ckpt")["state_dict"]["network.head.weight"]
    others = [
        path
        for path in folder.glob("step-*.ckpt")
        if not torch.equal(load_checkpoint(path)["state_dict"]["network.head.weight"], best)
    ]
    assert others
    words = ["-o", str(tmp_path / "a.fontanel"), "--output-dir", str(output)]
    assert main(["pack", str(others[0]), *words]) == 1
    assert "does not hold the weights that the run's model/model.json describes" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(["pack", str(folder / "best.ckpt"), *words]) == 0


def test_the_images_that_a_pretraining_has_seen_are_known_too(fitted, tmp_path):
    output, run_id = fitted
    checkpoint = output / "runs" / run_id / "checkpoints" / "best.ckpt"
    own = read_contract(checkpoint)
    first = replace(own, run_id="0" * 32, training_images=["f" * 64])
    described = json.loads((output / "runs" / run_id / "model" / "model.json").read_text(encoding="utf-8"))
    packed = contents(checkpoint, (own, first), described, name="ours")
    assert packed.contract.training_images == sorted([*own.training_images, "f" * 64])
    assert not packed.contract.split["parts"]


@pytest.mark.parametrize("change", [{"num_threads": 10**9}, {"num_threads": 0}, {"key": {}}, {"training_images": None}])
def test_a_contract_that_was_made_up_is_refused(fitted, tmp_path, change):
    output, run_id = fitted
    whole = tmp_path / "a.fontanel"
    assert main(["pack", run_id, "-o", str(whole), "--output-dir", str(output)]) == 0
    pack = read_pack(whole)
    members = {**pack.members, CONTRACT: json.dumps({**pack.record(CONTRACT), **change}).encode()}
    write_pack(whole, members, {"name": "theirs"})
    with pytest.raises(PackError, match=r"contract\.json or weights that do not read"):
        unpack(whole, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.fontanel"]

"""Filling an encoder with weights that do not quite fit: what is counted, refused, and pointed out."""

from pathlib import Path

import pytest
import torch

from lightning_modules.ledger import Provenance, TransferError, hash_tensors
from lightning_modules.networks import SFCN, Encoder, Monai3D
from lightning_modules.sources import Source
from lightning_modules.weights import inflate, load_encoder


def load(encoder: Encoder, tensors, key_map="auto", min_loaded=0.9, **provenance):
    source = Source(Path("source.pt"), tensors, Provenance("source.pt", "0" * 64, **provenance))
    return load_encoder(encoder, source, key_map, min_loaded, {"strategy": "full"})


def test_other_differences_of_shape_are_not_bridged(staged_encoder):
    weight = torch.ones(4, 2, 3, 3, 3)
    assert inflate(weight, (4, 3, 3, 3, 3)) is None
    assert inflate(weight, (8, 1, 3, 3, 3)) is None
    assert inflate(weight, (4, 1, 5, 5, 5)) is None
    assert inflate(weight, (4, 1, 3, 3)) is None
    narrow, network = staged_encoder(width=1), staged_encoder(width=3)
    with pytest.raises(TransferError):  # a convolution of one channel inside the network is no first one
        load(network, narrow.state_dict())


def test_share_counts_values_of_parameters(staged_encoder):
    network = staged_encoder()
    tensors = dict(staged_encoder().state_dict())
    for name in ("second.0.weight", "second.0.bias", "second.1.running_mean"):
        del tensors[name]
    tensors["second.1.weight"] = torch.ones(5)
    before = hash_tensors(network.state_dict())
    with pytest.raises(TransferError) as caught:
        load(network, tensors | {"other.weight": torch.ones(1)})
    text = str(caught.value)
    share = (84 + 6 + 6) / 594
    assert f"fills {share:.1%} of the encoder's parameters" in text
    assert "Missing in the source (2): second.0.weight; second.0.bias." in text
    assert "Of another shape (1): second.1.weight is 6 here and 5 there." in text
    assert "Without a place here (1): other.weight." in text
    assert "--model.transfer.min_loaded 0.16" in text
    assert hash_tensors(network.state_dict()) == before  # nothing is half loaded
    ledger = load(network, tensors, min_loaded=0.16)
    assert ledger.share == pytest.approx(share)
    assert [entry.name for entry in ledger.of_status("missing") if not entry.is_parameter] == ["second.1.running_mean"]
    assert torch.equal(network.first[0].weight, tensors["first.0.weight"])


def test_another_architecture_is_named():
    with pytest.raises(TransferError, match=r"holds SFCN\(width=2\), this model's network is Monai3D around ResNet"):
        load(Monai3D("resnet10"), SFCN(width=2).state_dict(), kind="run", network="SFCN(width=2)")
    with pytest.raises(TransferError, match=r"an unknown network \(its first names: conv\.weight\)"):
        load(SFCN(width=2), {"conv.weight": torch.ones(7)})
    shapes = r"Of another shape \(24\): blocks\.4\.0\.weight is 32x32x3x3x3 here and 16x16x3x3x3 there; .*; and 16 more"
    with pytest.raises(TransferError, match=shapes):
        load(SFCN(width=4), SFCN(width=2).state_dict())


def test_what_is_filled_and_still_not_the_same_network_is_pointed_out():
    batch, group = SFCN(width=4), SFCN(width=4, norm="group")
    assert load(SFCN(width=4), batch.state_dict()).doubts() == []
    (otherwise,) = load(group, batch.state_dict()).doubts()
    assert "running statistics that this network does without" in otherwise
    (empty,) = load(batch, group.state_dict()).doubts()
    assert "lacks running statistics" in empty
    deeper = batch.state_dict() | {f"blocks.6.{index}.weight": torch.ones(32, 32, 27) for index in range(2)}
    (larger,) = load(SFCN(width=4), deeper).doubts()
    assert "have no place in SFCN (1 image channels, 8 features), such as blocks.6.0.weight" in larger


def test_given_patterns_are_applied_and_nothing_is_guessed(staged_encoder):
    there, here = staged_encoder(), staged_encoder()
    tensors = {f"m.{name.replace('first', 'stem')}": value for name, value in there.state_dict().items()}
    ledger = load(here, tensors, {r"m\.": "", r"stem\.(\d)": r"first.\1"})
    assert ledger.share == 1
    with pytest.raises(TransferError, match="another architecture"):
        load(here, tensors, {r"stem\.": "first."})
    with pytest.raises(TransferError, match="makes one name, first, of two"):
        load(here, tensors, {r".*": "first"})
    with pytest.raises(TransferError, match=r"transfer\.key_map: '\(' -> 'a' does not work"):
        load(here, tensors, {"(": "a"})
    with pytest.raises(TransferError, match=r"key_map is medicalnet, and no name in the source is of that kind"):
        load(here, tensors, "medicalnet")

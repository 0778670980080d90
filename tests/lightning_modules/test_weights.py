"""Filling an encoder: the names of published models, image channels, shares, and refusals that say what is wrong."""

import json
from pathlib import Path

import pytest
import torch
from monai.networks.nets import resnet10
from torch import nn

from lightning_modules.ledger import Provenance, hash_tensors
from lightning_modules.networks import SFCN, Encoder, Monai3D
from lightning_modules.sources import Source
from lightning_modules.weights import encoder_state, load_encoder


def load(encoder: Encoder, tensors, key_map="auto", min_loaded=0.9, **provenance):
    source = Source(Path("source.pt"), tensors, Provenance("source.pt", "0" * 64, **provenance))
    return load_encoder(encoder, source, key_map, min_loaded, {"strategy": "full"})


def varied(network: nn.Module) -> nn.Module:
    """Give every tensor, running statistics too, values of its own."""
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape) * 0.2 + 0.01)
    return network.eval()


def same_features(one: nn.Module, other: nn.Module, image: torch.Tensor) -> bool:
    with torch.no_grad():
        return torch.allclose(one(image), other(image), rtol=1e-4, atol=1e-5)


def test_encoder_is_copied_and_the_head_is_not(staged_encoder):
    here, there = staged_encoder().eval(), varied(staged_encoder())
    head = here.head.weight.clone()
    tensors = {f"network.{name}": value for name, value in there.state_dict().items()} | {"scaling.mean": torch.ones(1)}
    ledger = load(here, tensors, kind="run")
    image = torch.randn(1, 1, 7, 8, 9)
    assert same_features(here.encode, there.encode, image)
    assert torch.equal(here.head.weight, head)
    assert ledger.share == 1
    assert [entry.name for entry in ledger.of_status("excluded")] == [
        *("network.head.weight", "network.head.bias", "scaling.mean")
    ]
    assert ledger.of_status("unexpected", "missing", "shape") == []
    assert ledger.names == "auto: network.* became *"
    assert ledger.encoder_sha256 == hash_tensors(encoder_state(here)) == hash_tensors(encoder_state(there))
    record = ledger.as_dict()
    assert json.loads(json.dumps(record)) == record
    assert record["parameters"]["filled"] == record["parameters"]["of"] == 84 + 6 + 492 + 12
    assert record["source"]["datasets"] == "unknown"
    assert "source.pt filled 100.0% of the encoder (StagedEncoder" in str(ledger)


def published_sfcn() -> nn.Module:
    """The layers and names of Peng et al.'s own code, at width 2, inside DataParallel."""
    channels = [1, 2, 4, 8, 16, 16, 4]
    extractor = nn.Sequential()
    for index in range(6):
        size, rest = (3, [nn.MaxPool3d(2)]) if index < 5 else (1, [])
        convolution = nn.Conv3d(channels[index], channels[index + 1], size, padding=size // 2)
        norm = nn.BatchNorm3d(channels[index + 1])
        extractor.add_module(f"conv_{index}", nn.Sequential(convolution, norm, *rest, nn.ReLU()))
    classifier = nn.Sequential()
    classifier.add_module("conv_6", nn.Conv3d(4, 40, 1))
    model = nn.Module()
    model.module = nn.ModuleDict({"feature_extractor": extractor, "classifier": classifier})
    return model


@pytest.mark.parametrize("key_map", ["auto", "sfcn"])
def test_names_of_the_published_sfcn(key_map):
    there, here = varied(published_sfcn()), SFCN(width=2).eval()
    ledger = load(here, there.state_dict(), key_map)
    assert same_features(here.forward_features, there.module["feature_extractor"], torch.randn(1, 1, 64, 32, 32))
    assert ledger.share == 1
    assert [entry.name for entry in ledger.of_status("excluded")] == [
        *("module.classifier.conv_6.weight", "module.classifier.conv_6.bias")
    ]
    assert ledger.as_dict()["buffers"]["missing"] == []


@pytest.mark.parametrize(
    ("key_map", "beginning"),
    [("auto", "module.encoder."), ("medicalnet", "module."), ("brainiac", "backbone.")],
)
def test_published_resnets_fit_with_shortcuts_that_have_no_bias(key_map, beginning):
    there = varied(resnet10(n_input_channels=1, conv1_t_stride=2, feed_forward=False, bias_downsample=False))
    tensors = {beginning + name: value for name, value in there.state_dict().items()}
    tensors |= {"module.conv_seg.0.weight": torch.ones(1), "projection_head.layers.0.weight": torch.ones(1)}
    here = Monai3D("resnet10").eval()
    ledger = load(here, tensors, key_map)
    image = torch.randn(1, 1, 16, 16, 16)
    assert same_features(here.encode, lambda volume: there(volume), image)
    assert ledger.share == 1
    assert {entry.name for entry in ledger.of_status("zeroed")} == {
        f"backbone.layer{level}.0.downsample.0.bias" for level in (2, 3, 4)
    }
    assert len(ledger.of_status("excluded")) == 2


@pytest.mark.parametrize(("have", "want"), [(1, 2), (1, 3), (3, 1), (2, 1)])
def test_image_channels_are_matched_without_changing_activations(staged_encoder, have, want):
    there, here = varied(staged_encoder(have)), staged_encoder(want).eval()
    ledger = load(here, there.state_dict())
    image = torch.randn(1, 1, 7, 8, 9)
    with torch.no_grad():
        expected = there.encode(image.expand(-1, have, -1, -1, -1))
        got = here.encode(image.expand(-1, want, -1, -1, -1))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    (entry,) = ledger.of_status("inflated")
    assert (entry.name, entry.shape[1], entry.source_shape[1]) == ("first.0.weight", want, have)
    assert ledger.share == 1
    assert "first.0.weight is" in str(ledger)

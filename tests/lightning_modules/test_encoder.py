"""The contract of every encoder, over the whole registry."""

import pytest
import torch
from torch import nn

from lightning_modules.networks import ENCODERS, Encoder, ModelError, Timm2D


def make(name: str, in_channels: int = 1) -> tuple[Encoder, torch.Tensor]:
    torch.manual_seed(0)
    network = ENCODERS[name](in_channels=in_channels)
    size = [max(least, 33) for least in network.minimum_size]
    if name.startswith("slices"):
        size[2] = 3
    return network, torch.randn(2, in_channels, *size)


@pytest.fixture(scope="module", params=list(ENCODERS))
def encoder(request: pytest.FixtureRequest) -> tuple[Encoder, torch.Tensor]:
    return make(request.param)


def test_features_and_outputs_have_the_promised_shapes(encoder):
    network, image = encoder
    network.eval()
    with torch.no_grad():
        features = network.forward_features(image)
        vectors = network.encode(image)
        outputs = network(image)
    assert features.ndim == image.ndim
    assert features.shape[:2] == (2, network.num_features)
    assert vectors.shape == (2, network.num_features)
    assert outputs.shape == (2, 1)
    torch.testing.assert_close(vectors, network.pool(features))
    torch.testing.assert_close(outputs, network.head(vectors))


def test_gradient_reaches_every_parameter_and_the_image(encoder):
    network, image = encoder
    image = image.clone().requires_grad_()
    network.train()
    network(image).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_samples_do_not_mix(encoder):
    network, image = encoder
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(image)[1:], network(image[1:]), rtol=1e-4, atol=1e-4)


def test_smallest_image_works_and_smaller_is_refused(encoder):
    network, _ = encoder
    network.eval()
    smallest = torch.randn(1, 1, *network.minimum_size)
    with torch.no_grad():
        assert network(smallest).isfinite().all()
        with pytest.raises(ModelError, match=r"at least .* and got"):
            network(smallest[..., : network.minimum_size[-1] - 1])


def test_wrong_channels_and_axes_are_refused(encoder):
    network, image = encoder
    with pytest.raises(ModelError, match="in_channels=1 and got images with 2 channels"):
        network(torch.cat([image, image], dim=1))
    with pytest.raises(ModelError, match=r"use (Timm2D|TimmSlices)"):
        network(image[..., 0] if image.ndim == 5 else image[..., None])


def test_stages_hold_every_parameter_once_in_the_order_of_the_image(encoder):
    network, image = encoder
    stages = network.stages()
    held = [parameter for stage in stages for parameter in stage.parameters()]
    wanted = [parameter for name, parameter in network.named_parameters() if not name.startswith("head.")]
    assert len(held) == len(wanted)
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in wanted}
    assert 5 <= len(stages) <= 8
    seen = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, number=number: seen.append(number))
        for number, stage in enumerate(stages)
        for layer in stage.modules()
        if list(layer.parameters(recurse=False))
    ]
    network.eval()
    with torch.no_grad():
        network(image)
    for hook in hooks:
        hook.remove()
    assert seen == sorted(seen)
    assert set(seen) == set(range(len(stages)))


def test_stages_of_an_own_encoder_are_its_layers():
    class Own(Encoder):
        def __init__(self):
            super().__init__(1, 4)
            self.scale = nn.Identity()
            self.token = nn.Parameter(torch.zeros(1))
            self.stem = nn.Conv3d(1, 4, 3)
            self.drop = nn.Dropout(0.5)
            self.last = nn.Conv3d(4, 4, 1)

        def forward_features(self, image):
            return self.last(self.drop(self.stem(image + self.token)))

    network = Own()
    first, last = network.stages()
    assert {id(value) for value in first.parameters()} == {id(network.token), *map(id, network.stem.parameters())}
    assert set(first.modules()) >= {network.scale, network.stem, network.drop}
    assert list(last) == [network.last]
    assert "stages" not in " ".join(network.state_dict())


def test_tokens_of_a_transformer_belong_to_its_first_stage():
    network = Timm2D("test_vit", options={"img_size": (32, 64)})
    first, *blocks = network.stages()
    assert {id(network.backbone.cls_token), id(network.backbone.pos_embed)} <= set(map(id, first.parameters()))
    assert [block[0] for block in blocks] == list(network.backbone.blocks)
    assert network.backbone.norm in blocks[-1]


@pytest.mark.parametrize("name", list(ENCODERS))
def test_state_dict_round_trip_with_two_channels_and_a_new_head(name):
    network, image = make(name, in_channels=2)
    before = network.head.weight
    network.reset_head(5)
    assert network.head.weight is not before
    with torch.device("meta"):  # no memory behind any tensor: whatever the state dict lacks cannot be computed with
        other = ENCODERS[name](in_channels=2, num_outputs=5)
    other.load_state_dict(network.state_dict(), assign=True)
    network.eval(), other.eval()
    with torch.no_grad():
        outputs = network(image)
        assert outputs.shape == (2, 5)
        torch.testing.assert_close(other(image), outputs, rtol=0, atol=0)


def test_own_encoder_needs_only_forward_features(tiny_encoder):
    network = tiny_encoder(in_channels=2)
    assert network(torch.randn(1, 2, 7, 8, 9)).shape == (1, 1)
    with pytest.raises(ModelError, match="at least 3x3x3 voxels and got 7x8x2"):
        network(torch.randn(1, 2, 7, 8, 2))


def test_head_keeps_device_and_precision_when_replaced(tiny_encoder):
    network = tiny_encoder().to(torch.float64)
    network.reset_head(3)
    assert network.head.weight.dtype == torch.float64

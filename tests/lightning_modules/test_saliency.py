"""Saliency maps against computations by hand, their place in the image, and the network that must stay as it is."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.networks import SFCN, Encoder
from lightning_modules.saliency import METHODS, Saliency

SGD = partial(torch.optim.SGD, lr=0.1)


def first(outputs: Tensor) -> Tensor:
    return outputs[:, 0]


class KnownEncoder(Encoder):
    """Two channels: the mean of each 2x2x2 cell, and its negative; a head that adds them with weights 3 and 1."""

    def __init__(self) -> None:
        super().__init__(1, num_features=2, num_outputs=2, minimum_size=(2, 2, 2))
        self.cells = nn.Conv3d(1, 2, kernel_size=2, stride=2, bias=False)
        self.activation = nn.ReLU(inplace=True)
        with torch.no_grad():
            self.cells.weight[0], self.cells.weight[1] = 1 / 8, -1 / 8
            self.head.weight.copy_(torch.tensor([[3.0, 1.0], [-2.0, 5.0]]))

    def forward_features(self, image: Tensor) -> Tensor:
        features: Tensor = self.activation(self.cells(image))
        return features


class CornerEncoder(KnownEncoder):
    """Sums what is bright in the corner of four voxels along each axis, and is blind elsewhere."""

    def forward_features(self, image: Tensor) -> Tensor:
        features = super().forward_features(image)
        window = torch.zeros_like(features)
        window[:, :, :2, :2, :2] = 1
        return features * window


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_grad_cam_is_what_a_computation_by_hand_gives():
    network, image = KnownEncoder(), noise(2, 1, 6, 8, 10)
    cells = F.avg_pool3d(image, 2)[:, 0]
    # The mean gradient of a channel is its weight over the number of cells, 3 * 4 * 5.
    by_hand = {0: 3 * cells.relu() + (-cells).relu(), 1: (-2 * cells.relu() + 5 * (-cells).relu()).relu()}
    for output, expected in by_hand.items():
        maps = Saliency(network, lambda outputs, index=output: outputs[:, index])(image)
        grown = F.interpolate(expected[:, None] / 60, (6, 8, 10), mode="trilinear")[:, 0]
        torch.testing.assert_close(maps, grown)


def test_what_lowers_an_output_is_what_raises_its_negative():
    network, image = KnownEncoder(), noise(1, 1, 6, 8, 10)
    lower = Saliency(network, lambda outputs: outputs[:, 1], toward="lower")(image)
    raised = Saliency(network, lambda outputs: -outputs[:, 1])(image)
    torch.testing.assert_close(lower, raised)
    assert not torch.equal(lower, Saliency(network, lambda outputs: outputs[:, 1])(image))


def test_guided_backpropagation_passes_only_positive_gradients_through_a_relu():
    network, image = KnownEncoder(), noise(1, 1, 4, 4, 4)
    cells = F.avg_pool3d(image, 2)
    # Output 1: channel 0 has weight -2, which is stopped where it is active; channel 1 has 5, and voxels weigh -1/8.
    passed = F.interpolate((cells < 0).float(), scale_factor=2)[:, 0] * 5 / 8 / 8
    second = Saliency(network, lambda outputs: outputs[:, 1], "guided-backprop")(image)
    torch.testing.assert_close(second, passed)
    product = Saliency(network, lambda outputs: outputs[:, 1], "guided-grad-cam")(image)
    torch.testing.assert_close(product, passed * Saliency(network, lambda outputs: outputs[:, 1])(image))


@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_sums_a_corner_lights_up_that_corner(method):
    maps = Saliency(CornerEncoder(), first, method)(noise(1, 1, 8, 10, 12).abs() + 1)[0]
    assert maps[:4, :4, :4].min() > 0
    assert maps[5:].sum() + maps[:, 5:].sum() + maps[:, :, 5:].sum() == 0
    assert maps.max() == maps[:4, :4, :4].max()


def trained_a_little(**options) -> tuple[SFCN, Tensor]:
    """A network whose normalisations have seen images, so that it does not put out the same for all."""
    torch.manual_seed(0)
    network, image = SFCN(width=2, dropout=0.5, **options), noise(2, 1, 32, 48, 32)
    for _ in range(3):
        network(image)
    return network, image


@pytest.mark.parametrize("method", ["grad-cam", "guided-grad-cam"])
def test_a_new_head_changes_the_map(staged_encoder, method):
    torch.manual_seed(0)
    network, image = staged_encoder(), noise(2, 1, 9, 10, 11)
    other = copy.deepcopy(network)
    other.reset_head(1)
    maps, changed = (Saliency(one, first, method)(image) for one in (network, other))
    assert maps.max() > 0
    assert not torch.allclose(maps / maps.max(), changed / changed.max(), atol=0.3)
    torch.testing.assert_close(Saliency(network, first, method)(image), maps)


@pytest.mark.parametrize("method", METHODS)
def test_the_network_stays_as_it_is_frozen_blocks_and_all(method):
    network, image = trained_a_little()
    for part in network.stages()[:4]:
        part.requires_grad_(False)
        part.eval()
    before = copy.deepcopy(network.state_dict())
    flags = [(part.training, len(part._forward_hooks), len(part._backward_hooks)) for part in network.modules()]
    wanted = [value.requires_grad for value in network.parameters()]
    with torch.inference_mode():
        maps = Saliency(network, first, method)(image)
    assert maps.shape == (2, 32, 48, 32)
    assert maps.dtype == torch.float32
    assert maps.min() >= 0
    assert not maps.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    now = [(part.training, len(part._forward_hooks), len(part._backward_hooks)) for part in network.modules()]
    assert (now, [value.requires_grad for value in network.parameters()]) == (flags, wanted)
    assert all(value.grad is None for value in network.parameters())
    assert "forward_features" not in vars(network)
    thawed = copy.deepcopy(network).requires_grad_(True).eval()
    torch.testing.assert_close(maps, Saliency(thawed, first, method)(image))
    assert not image.requires_grad


def test_half_precision_weights_and_autocast_give_the_map_of_single_precision():
    network, image = trained_a_little()
    plain = Saliency(network.eval(), first)(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(Saliency(network, first)(image), plain)
    halved = copy.deepcopy(network).to(torch.bfloat16)
    torch.testing.assert_close(Saliency(halved, first)(image), Saliency(halved.float(), first)(image))


def test_each_image_of_a_batch_has_the_map_that_it_has_alone():
    network, image = trained_a_little()
    saliency = Saliency(network, first, "guided-grad-cam")
    alone = torch.cat([saliency(one) for one in image.split(1)])
    torch.testing.assert_close(saliency(image), alone, rtol=1e-4, atol=1e-9)

"""SFCN against the published network, and its smallest inputs."""

import pytest
import torch
from torch import nn

from lightning_modules.networks import SFCN, ModelError


def test_published_layers_and_parameter_count():
    network = SFCN(num_outputs=40)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    assert [layer.out_channels for layer in convolutions] == [32, 64, 128, 256, 256, 64]
    assert [layer.kernel_size[0] for layer in convolutions] == [3, 3, 3, 3, 3, 1]
    assert [type(layer).__name__ for layer in network.blocks[0]] == ["Conv3d", "BatchNorm3d", "MaxPool3d", "ReLU"]
    assert network.dropout.p == 0.5
    pairs = [(1, 32), (32, 64), (64, 128), (128, 256), (256, 256)]
    by_hand = sum(27 * before * after + 3 * after for before, after in pairs)  # weight, bias, and BatchNorm's two
    by_hand += 256 * 64 + 3 * 64 + 64 * 40 + 40
    assert sum(parameter.numel() for parameter in network.parameters()) == by_hand == 2_952_936


def test_width_scales_every_block():
    network = SFCN(width=4, in_channels=2)
    channels = [module.out_channels for module in network.modules() if isinstance(module, nn.Conv3d)]
    assert channels == [4, 8, 16, 32, 32, 8]
    assert network.num_features == 8
    with pytest.raises(ModelError, match="width=0"):
        SFCN(width=0)


def test_published_size_ends_in_5x6x5():
    network = SFCN(width=1).eval()
    with torch.no_grad():
        assert network.forward_features(torch.zeros(1, 1, 160, 192, 160)).shape == (1, 2, 5, 6, 5)


def test_quickstart_size_ends_in_one_voxel_and_smaller_is_refused():
    network = SFCN(width=2).eval()
    assert network.forward_features(torch.zeros(1, 1, 32, 40, 32)).shape[2:] == (1, 1, 1)
    with pytest.raises(ModelError, match="at least 32x32x32 voxels and got 32x40x31"):
        network(torch.zeros(1, 1, 32, 40, 31))


def test_training_on_a_batch_of_one_voxel_says_what_to_do():
    network = SFCN(width=2)
    with pytest.raises(ModelError, match=r"batch of 1 image of 32x40x32 voxels.*drop_last"):
        network(torch.zeros(1, 1, 32, 40, 32))
    assert network(torch.zeros(2, 1, 32, 40, 32)).shape == (2, 1)
    assert network(torch.zeros(1, 1, 64, 40, 32)).shape == (1, 1)
    assert network.eval()(torch.zeros(1, 1, 32, 40, 32)).shape == (1, 1)


def test_normalisation_changes_no_name_and_batch_is_the_published_one():
    names = list(SFCN(width=2).state_dict())
    assert names == list(SFCN(width=2, norm="batch").state_dict())
    statistics = {name for name in names if "running" in name or "tracked" in name}
    for norm in ("group", "instance"):
        assert list(SFCN(width=2, norm=norm).state_dict()) == [name for name in names if name not in statistics]


@pytest.mark.parametrize(
    ("width", "groups"), [(32, [4, 8, 16, 32, 32, 8]), (16, [2, 4, 8, 16, 16, 4]), (6, [1, 2, 3, 6, 6, 2])]
)
def test_groups_have_eight_channels_or_the_next_smaller_divisor(width, groups):
    norms = [module for module in SFCN(width=width, norm="group").modules() if isinstance(module, nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == groups


def test_group_normalisation_needs_no_other_image_where_one_voxel_is_left():
    torch.manual_seed(0)
    network = SFCN(width=4, norm="group", dropout=0.0)
    images = torch.randn(3, 1, 32, 40, 32)
    together = network(images)
    assert together.std() > 0
    torch.testing.assert_close(torch.cat([network(image[None]) for image in images]), together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.eval()(images), together)


def test_instance_normalisation_needs_two_voxels():
    network = SFCN(width=2, norm="instance")
    assert network(torch.randn(1, 1, 64, 32, 32)).shape == (1, 1)
    with pytest.raises(ModelError, match=r"single voxel of images of 32x40x32 voxels.*norm: group"):
        network(torch.randn(2, 1, 32, 40, 32))

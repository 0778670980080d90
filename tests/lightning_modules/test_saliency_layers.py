"""Which layer a map is made from, where its voxels lie in the image, and which output is explained."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.classification import ClassificationModule
from lightning_modules.networks import SFCN, Encoder, Monai3D, Timm2D, TimmSlices
from lightning_modules.networks.encoder import ModelError
from lightning_modules.networks.heads import SoftBinsConfig
from lightning_modules.regression import RegressionModule
from lightning_modules.saliency import Saliency, interpolation, receptive_field, scores_of

SGD = partial(torch.optim.SGD, lr=0.1)


def first(outputs: Tensor) -> Tensor:
    return outputs[:, 0]


def chosen(network, *shape, layer=None):
    found = Saliency(network, first, layer=layer).feature_map(torch.zeros(1, 1, *shape))
    return found.name, found.shape, found.placement, [centres.tolist() for centres in found.centres]


class StridedEncoder(Encoder):
    """Padded and unpadded layers with steps of 2, every weight the same: a voxel sees its window evenly."""

    def __init__(self) -> None:
        super().__init__(1, num_features=1, minimum_size=(8, 8, 8))
        self.stem = nn.Conv3d(1, 1, kernel_size=5, stride=2, padding=2, bias=False)
        self.pooling = nn.AvgPool3d(kernel_size=2)
        self.block = nn.Conv3d(1, 1, kernel_size=3, stride=2, padding=1, bias=False)
        for value in (self.stem.weight, self.block.weight):
            nn.init.ones_(value)

    def forward_features(self, image: Tensor) -> Tensor:
        features: Tensor = self.block(self.pooling(self.stem(image)))
        return features


def test_the_last_block_with_more_than_one_voxel_along_every_axis_is_taken(tiny_encoder):
    assert chosen(SFCN(width=1), 64, 64, 64)[:2] == ("forward_features", (2, 2, 2))
    assert chosen(SFCN(width=1), 32, 64, 40)[:2] == ("blocks.3", (2, 4, 2))
    assert chosen(Monai3D("resnet10"), 16, 40, 16)[:2] == ("backbone.layer2", (2, 5, 2))
    with pytest.raises(ModelError, match="every block of this network leaves a single voxel"):
        chosen(tiny_encoder(), 3, 3, 3)


def test_a_layer_can_be_named_and_a_wrong_name_is_refused():
    assert chosen(SFCN(width=1), 32, 32, 32, layer="blocks.1.0")[:2] == ("blocks.1.0", (16, 16, 16))
    with pytest.raises(ModelError, match=r"no layer 'block'.*blocks.3 \(2x2x2\)"):
        chosen(SFCN(width=1), 32, 32, 32, layer="block")
    with pytest.raises(ModelError, match="'forward_features' gives a single voxel"):
        chosen(SFCN(width=1), 32, 32, 32, layer="forward_features")
    with pytest.raises(ModelError, match="'head' gives no feature map"):
        chosen(SFCN(width=1), 32, 32, 32, layer="head")


def test_poolings_leave_out_the_end_of_an_axis():
    # Interpolation to the whole of 56 voxels would put the last voxel at 46.2, and not where 32..47 have their middle.
    assert chosen(SFCN(width=1), 48, 56, 48)[2:] == ("exact", [[7.5, 23.5, 39.5]] * 3)


def test_the_voxels_of_a_map_lie_in_the_middle_of_what_they_see():
    image = torch.zeros(1, 1, 40, 49, 56, requires_grad=True)
    network = StridedEncoder()
    _, shape, placement, centres = chosen(network, *image.shape[2:])
    assert placement == "exact"
    (gradient,) = torch.autograd.grad(network.forward_features(image)[0, 0, 2, 3, 4], image)
    for axis, place in enumerate((2, 3, 4)):
        assert 0 < place < shape[axis] - 1, "its window is whole"
        along = gradient[0, 0].sum(dim=[other for other in range(3) if other != axis])
        assert float((along * torch.arange(len(along))).sum() / along.sum()) == pytest.approx(centres[axis][place])


def test_a_chain_of_layers_is_found_out_from_its_sizes():
    chain = [(7, 2, 3), (3, 2, 1), (3, 1, 0), (2, 2, 0)]  # width, step, padding

    def size_of(sizes):
        for width, step, padding in chain:
            sizes = (sizes + 2 * padding - width) // step + 1
        return sizes

    step, middle = 1.0, 0.0
    for width, stride, padding in chain:
        middle += step * ((width - 1) / 2 - padding)
        step *= stride
    sizes = torch.tensor([64, 71, 33]).numpy()
    steps, centre = receptive_field(size_of, sizes, size_of(sizes))
    assert steps.tolist() == [step] * 3
    assert centre.tolist() == [middle] * 3


@pytest.mark.parametrize(("count", "size"), [(3, 24), (5, 7), (1, 4)])
def test_even_tiles_are_interpolated_as_torch_does(count, size):
    values = torch.randn(count, generator=torch.Generator().manual_seed(0))
    centres = (torch.arange(count) + 0.5) * size / count - 0.5
    expected = F.interpolate(values[None, None], size, mode="linear")[0, 0]
    torch.testing.assert_close(interpolation(centres, size) @ values, expected)


@pytest.mark.parametrize(
    ("network", "shape", "method"),
    [
        (partial(Timm2D, "resnet10t"), (64, 96), "guided-grad-cam"),
        (partial(TimmSlices, "resnet10t"), (32, 32, 5), "grad-cam"),
        (partial(Timm2D, "vit_tiny_patch16_224", options={"img_size": 64}), (64, 64), "grad-cam"),
    ],
)
def test_two_dimensional_networks_slices_and_transformers_have_maps(network, shape, method):
    torch.manual_seed(0)
    built, image = network().eval(), torch.randn(2, 1, *shape)
    saliency = Saliency(built, first, method)
    maps = saliency(image)
    assert maps.shape == (2, *shape)
    assert maps.isfinite().all()
    assert maps.max() > 0 or Saliency(built, first, method, toward="lower")(image).max() > 0
    if "vit" in built.backbone.default_cfg["architecture"]:
        assert saliency.feature_map(image).placement == "tiles"
        assert saliency.feature_map(image).centres[0].tolist() == [7.5, 23.5, 39.5, 55.5]


def test_a_network_without_relu_is_refused_by_guided_methods():
    network = Timm2D("vit_tiny_patch16_224", options={"img_size": 32})
    with pytest.raises(ModelError, match=r"Timm2D has none\. Use grad-cam"):
        Saliency(network, first, "guided-backprop")


def test_every_task_says_which_number_is_explained():
    outputs = torch.randn(3, 2)
    binary = ClassificationModule(
        SFCN(width=1), SGD, targets=["death", "outcome"], monitor="val/loss", monitor_mode="min"
    )
    scores = scores_of(binary)
    assert list(scores) == ["death", "outcome"]
    assert torch.equal(scores["outcome"](outputs), outputs[:, 1])
    regression = RegressionModule(SFCN(width=1), SGD, target="age")
    assert torch.equal(scores_of(regression)["age"](outputs), outputs[:, 0])
    bins = RegressionModule(SFCN(width=1), SGD, head="soft_bins", bins=SoftBinsConfig(0, 2, 1, 1))
    assert torch.allclose(scores_of(bins)["age"](outputs), 0.5 + outputs.softmax(1)[:, 1])

"""Saliency maps: which parts of an image a network's output rests on. High is important, and nothing is negative.

Example:
    Where a trained classifier finds what speaks for an adverse outcome, on the grid of its input::

        saliency = Saliency(module.network, scores_of(module)["outcome"])
        maps = saliency(batch["image"])  # (B, D, H, W)

References:
    Selvaraju et al., Grad-CAM, ICCV 2017, doi:10.1109/ICCV.2017.74. Springenberg et al., Guided backpropagation, ICLR
    workshop 2015, arXiv:1412.6806. Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018, arXiv:1810.03292.
    Araujo et al., Computing receptive fields of convolutional neural networks, Distill 2019,
    doi:10.23915/distill.00021.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_modules.base import BaseModule
from lightning_modules.classification import ClassificationModule
from lightning_modules.networks.encoder import Encoder, ModelError
from lightning_modules.regression import RegressionModule

Method = Literal["grad-cam", "guided-backprop", "guided-grad-cam"]
Direction = Literal["higher", "lower"]
Score = Callable[[Tensor], Tensor]
Sizes = NDArray[np.int64]

METHODS: tuple[Method, ...] = get_args(Method)
FINAL = "forward_features"  # the last feature map, which is no module of the network
# What networks raise that take images of one size only, or whose layers look at values while they compute shapes.
REFUSALS = (AssertionError, NotImplementedError, RuntimeError, ValueError)


def scores_of(module: BaseModule) -> dict[str, Score]:
    """Return, for each output of a module, how the number that is explained comes from the network's outputs (B, K).

    It is the logit of a binary outcome, because a probability near 0 or 1 has no gradient left, the scaled target of
    the head `regression`, and the expected value of soft bins.

    Raises:
        ModelError: The module is of another task.
    """
    if isinstance(module, ClassificationModule):
        return {name: partial(_column, index) for index, name in enumerate(module.targets)}
    if isinstance(module, RegressionModule):
        return {module.target: partial(_column, 0) if module.bins is None else module.bins.expected_value}
    raise ModelError(
        f"saliency maps are made of classifications and regressions, and this is a {type(module).__name__}. Give "
        "Saliency a function from the network's outputs to the number to explain."
    )


@dataclass(frozen=True)
class FeatureMap:
    """A feature map of a network, and where in the image its voxels lie.

    Args:
        name: Of the module that gives it, within the network; `forward_features` for the last map.
        shape: Voxels of the map.
        placement: `exact`, each voxel in the middle of the part of the image that it sees; `tiles` where that cannot be
            found out: the voxels tile the image evenly, as those of a transformer do.
        centres: Along each axis, where the map's voxels lie, in voxels of the image.
    """

    name: str
    shape: tuple[int, ...]
    placement: Literal["exact", "tiles"]
    centres: tuple[Tensor, ...]


class Saliency:
    """Maps of what raises, or lowers, one output of a network.

    Grad-CAM weighs the channels of a feature map by their mean gradient, adds them up and keeps what is positive: where
    the image holds what speaks for a higher output. It is interpolated (trilinearly; bilinearly in two dimensions) to
    the grid of the image, with the map's voxels in the middle of what they see. Guided backpropagation is the gradient
    at the image, of which each ReLU passes the positive part only; its absolute value is summed over the channels,
    because a voxel matters as much where its darkening raises the output. It shows edges, and changes little when the
    head is replaced. Guided Grad-CAM is the product of the two.

    The network is copied: it stays as it is, frozen blocks and all, and later training does not reach the copy, which
    runs in evaluation mode and single precision.

    Args:
        network: The network, on the device of the images.
        score: From the outputs (B, K) to the number (B,) that is explained; see `scores_of`.
        method: Which map.
        layer: Module of the network, by its dotted name, whose output (B, F, ...) Grad-CAM weighs; `forward_features`
            is the last map. By default the last block whose map has more than one voxel along every axis, or along any.
        toward: Whether a map shows what makes the number higher or lower.

    Raises:
        ModelError: A guided method, and the network has no ReLU.
    """

    def __init__(
        self,
        network: Encoder,
        score: Score,
        method: Method = "grad-cam",
        layer: str | None = None,
        toward: Direction = "higher",
    ) -> None:
        if "guided" in method and not any(isinstance(part, nn.ReLU) for part in network.modules()):
            raise ModelError(
                f"{method} changes how ReLU layers pass gradients, and {type(network).__name__} has none. Use grad-cam."
            )
        self.method = method
        self.layer = layer
        sign = 1 if toward == "higher" else -1
        with torch.inference_mode(False):  # a copy that is made in it cannot record gradients
            self._explained = _Explained(copy.deepcopy(network).float(), partial(_signed, sign, score))
            self._shapes = _Explained(copy.deepcopy(network).to("meta"), score)  # computes sizes, and nothing else
        self._feature_maps: dict[tuple[int, ...], FeatureMap] = {}

    def __call__(self, image: Tensor) -> Tensor:
        """Return the maps of images (B, C, D, H, W) or (B, C, H, W), without the axis of the channels; float32, >= 0.

        Raises:
            ModelError: The layer does not exist, or no layer leaves more than one voxel.
        """
        with _recording(image.device):
            image = image.detach().float().clone()
            maps = image.new_ones(())
            if "cam" in self.method:
                maps = maps * self._grad_cam(image)
            if "guided" in self.method:
                maps = maps * self._guided_backprop(image)
        return maps.detach()

    def feature_map(self, image: Tensor) -> FeatureMap:
        """Return the feature map that Grad-CAM weighs for images of this size."""
        size = tuple(image.shape[2:])
        if size not in self._feature_maps:
            with _recording(image.device), torch.no_grad():
                maps = self._explained.feature_maps(image[:1].float(), self.layer)
            self._feature_maps[size] = self._placed(_choose(maps, self.layer), image)
        return self._feature_maps[size]

    def _grad_cam(self, image: Tensor) -> Tensor:
        from captum.attr import LayerGradCam

        chosen = self.feature_map(image)
        cam = LayerGradCam(self._explained, self._explained.part(chosen.name))
        maps: Tensor = cam.attribute(image, relu_attributions=True)[:, 0]
        for axis, (centres, size) in enumerate(zip(chosen.centres, image.shape[2:], strict=True), start=1):
            weights = interpolation(centres, size).to(maps)
            maps = torch.tensordot(maps, weights, dims=([axis], [1])).movedim(-1, axis)
        return maps

    def _guided_backprop(self, image: Tensor) -> Tensor:
        from captum.attr import GuidedBackprop

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU")  # on a copy, and for now
            gradient: Tensor = GuidedBackprop(self._explained).attribute(image.clone().requires_grad_())
        return gradient.abs().sum(dim=1)

    def _placed(self, chosen: tuple[str, tuple[int, ...]], image: Tensor) -> FeatureMap:
        name, shape = chosen
        sizes, counts = np.array(image.shape[2:]), np.array(shape)
        try:
            with torch.no_grad():
                steps, first = receptive_field(partial(self._shapes.size_of, name, image.shape[1]), sizes, counts)
        except REFUSALS:
            steps = sizes / counts
            return FeatureMap(name, shape, "tiles", _centres(shape, steps, (steps - 1) / 2))
        return FeatureMap(name, shape, "exact", _centres(shape, steps, first))


def receptive_field(
    size_of: Callable[[Sizes], Sizes], sizes: Sizes, counts: Sizes
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find out, from sizes alone, which part of an image each voxel of a feature map sees.

    A chain of convolutions and poolings makes j + 1 voxels from images of first + j * step voxels on, where its voxel j
    sees a window around j * step + (first - 1) / 2. Every axis is found at once.

    Args:
        size_of: Size of the feature map of an image of some size.
        sizes: Size of the image.
        counts: Size of its feature map. An axis with one voxel has the step of the image's size.

    Returns:
        Step from one voxel of the map to the next, and centre of the first, in voxels of the image.

    >>> receptive_field(lambda size: size // 16, np.array([56]), np.array([3]))  # four poolings
    (array([16.]), array([7.5]))
    >>> receptive_field(lambda size: (size + 1) // 2, np.array([9]), np.array([5]))  # stride 2, width 3, padding 1
    (array([2.]), array([0.]))
    """
    single = counts == 1
    reached = _smallest(size_of, np.where(single, sizes - 1, sizes // 2), sizes, counts)
    steps = _smallest(size_of, sizes, 2 * sizes, counts + 1) - reached
    first = reached - steps * (counts - 1)
    return np.where(single, sizes, steps).astype(float), np.where(single, sizes - 1, first - 1) / 2


def interpolation(centres: Tensor, size: int) -> Tensor:
    """Return the weights (`size`, M) of linear interpolation between M evenly spaced points; constant beyond the ends.

    >>> interpolation(torch.tensor([0.5, 2.5]), 4)
    tensor([[1.0000, 0.0000],
            [0.7500, 0.2500],
            [0.2500, 0.7500],
            [0.0000, 1.0000]])
    """
    if len(centres) == 1:
        return torch.ones(size, 1)
    places = torch.arange(size).clamp(float(centres[0]), float(centres[-1]))
    step = centres[1] - centres[0]
    return (1 - (places[:, None] - centres[None, :]).abs() / step).clamp(min=0)


class _Explained(nn.Module):
    """From an image to the number that is explained, with the last feature map passing through a module of its own."""

    def __init__(self, network: Encoder, score: Score) -> None:
        super().__init__()
        self.network = network
        self.last_map = nn.Identity()  # where it can be looked at: `forward_features` is a method
        self.score = score
        forward_features = network.forward_features
        network.forward_features = lambda image: self.last_map(forward_features(image))  # type: ignore[method-assign]
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        return self.score(self.network(image))

    def part(self, name: str) -> nn.Module:
        return self.last_map if name == FINAL else self.network.get_submodule(name)

    def feature_maps(self, image: Tensor, layer: str | None) -> dict[str, tuple[int, ...]]:
        """Return the sizes of the maps after each block and of the last map, or of one layer, by name."""
        backbone: Any = getattr(self.network, "backbone", None)
        has_last_channels = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        names = {part: name for name, part in self.network.named_modules()}
        blocks = [] if has_last_channels else self.network.stages()
        groups: list[list[nn.Module]] = [*(list(block.modules()) for block in blocks), [self.last_map]]
        if layer is not None:
            groups = [[self._named(layer, image)]]
        seen: list[dict[str, tuple[int, ...]]] = [{} for _ in groups]

        def look(index: int, part: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == image.ndim and len(output) == len(image):
                seen[index] = {names.get(part, FINAL): tuple(output.shape[2:])}  # what is called last in a block

        with _hooks((part, partial(look, index)) for index, group in enumerate(groups) for part in group):
            self.network.forward_features(image)
        return {name: size for one in seen for name, size in one.items()}

    def size_of(self, name: str, num_channels: int, sizes: Sizes) -> Sizes:
        """Return the size of a feature map of images of some size; later layers, for which it may not do, never run."""

        def stop(_part: nn.Module, _inputs: object, output: Tensor) -> None:
            raise _Reached(tuple(output.shape[2:]))

        with _hooks([(self.part(name), stop)]):
            try:
                self.network.forward_features(torch.empty(1, num_channels, *sizes.tolist(), device="meta"))
            except _Reached as reached:
                return np.array(reached.size)
        raise AssertionError(f"{name} is not part of forward_features")

    def _named(self, layer: str, image: Tensor) -> nn.Module:
        try:
            return self.part(layer)
        except AttributeError:
            maps = self.feature_maps(image, None)
            known = ", ".join(f"{name} ({'x'.join(map(str, size))})" for name, size in maps.items())
            raise ModelError(
                f"{type(self.network).__name__} has no layer {layer!r}. Its blocks end in {known}; every other module "
                "of the network can be named, too."
            ) from None


class _Reached(Exception):  # noqa: N818 - no error
    """A layer was reached, and the rest of the network need not run."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size


def _choose(maps: dict[str, tuple[int, ...]], layer: str | None) -> tuple[str, tuple[int, ...]]:
    for is_wide in (all, any):
        for name, size in reversed(maps.items()):
            if is_wide(count > 1 for count in size):
                return name, size
    if layer is None:
        raise ModelError(
            "every block of this network leaves a single voxel of these images, so there is no map to look at. Use "
            "guided-backprop, or larger images."
        )
    found = "a single voxel" if layer in maps else "no feature map (B, F, ...)"
    raise ModelError(f"the layer {layer!r} gives {found} for these images; name an earlier one.")


def _centres(shape: Sequence[int], steps: NDArray[np.float64], first: NDArray[np.float64]) -> tuple[Tensor, ...]:
    axes = zip(shape, steps.tolist(), first.tolist(), strict=True)
    return tuple(start + step * torch.arange(count, dtype=torch.float32) for count, step, start in axes)


def _smallest(size_of: Callable[[Sizes], Sizes], low: Sizes, high: Sizes, counts: Sizes) -> Sizes:
    """Return the smallest sizes above `low`, at most `high`, whose maps have so many voxels or more."""
    while (high - low > 1).any():
        middle = (low + high + 1) // 2
        is_enough = size_of(middle) >= counts
        low, high = np.where(is_enough, low, middle), np.where(is_enough, middle, high)
    return high


def _column(index: int, outputs: Tensor) -> Tensor:
    return outputs[:, index]


def _signed(sign: int, score: Score, outputs: Tensor) -> Tensor:
    return sign * score(outputs)


@contextmanager
def _recording(device: torch.device) -> Iterator[None]:
    """Record gradients, in single precision, wherever this is called from."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def _hooks(wanted: Any) -> Iterator[None]:  # noqa: ANN401 - pairs of a module and a hook
    handles = [part.register_forward_hook(cast(Any, hook)) for part, hook in wanted]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

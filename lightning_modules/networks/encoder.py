"""The contract that every network keeps: an image goes in, a feature map, a feature vector and the outputs come out.

Shapes in this package: B batch, C channels, D, H, W voxels along x, y, z (RAS+), F features, K outputs, S slices.

Example:
    A network of your own is a class anywhere on the import path, named in the configuration by its dotted path::

        class TinyEncoder(Encoder):
            def __init__(self, in_channels: int = 1, num_outputs: int = 1) -> None:
                super().__init__(in_channels, num_features=8, num_outputs=num_outputs, minimum_size=(4, 4, 4))
                self.stem = nn.Conv3d(in_channels, 8, kernel_size=4, stride=4)

            def forward_features(self, image: Tensor) -> Tensor:
                return self.stem(image).relu()

    .. code-block:: yaml

        model:
          class_path: lightning_modules.RegressionModule
          init_args:
            network:
              class_path: my_package.TinyEncoder
              init_args: {in_channels: 1}
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor, nn


class ModelError(ValueError):
    """A network, a head or a module was given what it cannot use; the message says what, where, and what to do."""


class Encoder(nn.Module, ABC):
    """Base class of all networks: an encoder of images and one linear head.

    A subclass calls ``super().__init__`` first, then adds its layers, and implements :meth:`forward_features`;
    it overrides :meth:`pool` when averaging over the feature map is not what it wants.

    Args:
        in_channels: Number of image channels.
        num_features: Length F of the feature vector, and number of channels of the feature map.
        num_outputs: Number of outputs K of the head.
        dropout: Probability of dropping a feature before the head.
        minimum_size: Smallest image that leaves at least one voxel on every axis of the feature map; its length is
            the number of spatial axes that the network takes (3 for volumes, 2 for images).
    """

    def __init__(
        self,
        in_channels: int,
        num_features: int,
        num_outputs: int = 1,
        dropout: float = 0.0,
        minimum_size: Sequence[int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_features = num_features
        self.minimum_size = tuple(minimum_size)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(num_features, num_outputs)

    @abstractmethod
    def forward_features(self, image: Tensor) -> Tensor:
        """Map an image (B, C, D, H, W) or (B, C, H, W) to its feature map (B, F, ...), same order of axes."""

    def pool(self, features: Tensor) -> Tensor:
        """Reduce a feature map (B, F, ...) to feature vectors (B, F); the mean over all positions by default."""
        return features.flatten(2).mean(dim=2)

    def encode(self, image: Tensor) -> Tensor:
        """Turn an image into its feature vector (B, F).

        Raises:
            ModelError: The image has other axes, other channels or fewer voxels than the network takes, or the
                network cannot train on a batch of 1 of this size.
        """
        self._check(image)
        try:
            return self.pool(self.forward_features(image))
        except ValueError as error:
            if "more than 1 spatial element" in str(error):
                message = (
                    f"{type(self).__name__} leaves a single voxel of images of {_sizes(image.shape[2:])} voxels, and "
                    "instance normalisation needs two: enlarge the preprocessed shape, or take norm: group."
                )
                raise ModelError(message) from error
            if "more than 1 value per channel" not in str(error):
                raise
            message = (
                f"{type(self).__name__} cannot train on a batch of 1 image of {_sizes(image.shape[2:])} voxels: its "
                "last feature map is a single voxel, which leaves BatchNorm one value per channel and no variance. "
                "Drop the incomplete last batch (drop_last), use a batch size of 2 or more, or larger images."
            )
            raise ModelError(message) from error

    def forward(self, image: Tensor) -> Tensor:
        """Turn an image into the outputs of the head, (B, K)."""
        outputs: Tensor = self.head(self.dropout(self.encode(image)))
        return outputs

    def stages(self) -> list[nn.Module]:
        """Return the blocks of the encoder in the order in which an image passes them, without the head.

        Every parameter of the encoder is in exactly one of them. A transfer unfreezes them from the last to the first,
        and lets learning rates fall in that order. By default they are the layers that a subclass has added; one that
        wraps a whole network overrides this, with `split_into_stages` or a list of its own.
        """
        stages: list[nn.ModuleList] = []
        for name, layer in self.named_children():
            if name in {"dropout", "head"}:
                continue
            if stages and not (_holds_state(layer) and _holds_state(stages[-1])):
                stages[-1].append(layer)
            else:
                stages.append(nn.ModuleList([layer]))
        if own := list(self.parameters(recurse=False)):  # such as a token that stands before all positions
            stages[0].append(nn.ParameterList(own))
        return list(stages)

    def reset_head(self, num_outputs: int) -> None:
        """Replace the head by a newly initialised one with `num_outputs` outputs, on the same device."""
        weight = self.head.weight
        self.head = nn.Linear(self.num_features, num_outputs, device=weight.device, dtype=weight.dtype)

    def _check(self, image: Tensor) -> None:
        name, axes = type(self).__name__, len(self.minimum_size)
        if image.ndim != axes + 2:
            kind = "volumes (B, C, D, H, W)" if axes == 3 else "2D images (B, C, H, W)"
            other = "TimmSlices or a 3D network" if axes == 2 else "Timm2D"
            raise ModelError(f"{name} takes {kind} and got a batch of shape {tuple(image.shape)}; use {other} for it.")
        if image.shape[1] != self.in_channels:
            raise ModelError(
                f"{name} was built for in_channels={self.in_channels} and got images with {image.shape[1]} channels; "
                "set `in_channels` of the network to the number of image columns of the cohort."
            )
        if any(size < least for size, least in zip(image.shape[2:], self.minimum_size, strict=True)):
            raise ModelError(
                f"{name} needs images of at least {_sizes(self.minimum_size)} voxels and got "
                f"{_sizes(image.shape[2:])}: its poolings would leave an axis without a voxel. Enlarge the "
                "preprocessed shape (finer spacing or a larger crop), or take a network with fewer poolings."
            )


def split_into_stages(network: nn.Module, stage_of: Callable[[str], int]) -> list[nn.Module]:
    """Group the layers of a network into stages, each as one module; layers without parameters follow the one before.

    Args:
        network: The network; it stays as it is.
        stage_of: Number of the stage of each parameter, by its name in the network.
    """
    stages: dict[int, nn.ModuleList] = {}

    def put(layer: nn.Module, stage: int) -> int:
        stages.setdefault(stage, nn.ModuleList()).append(layer)
        return stage

    def walk(layer: nn.Module, prefix: str, stage: int) -> int:
        """Put a layer, or else its parts, into stages; return the stage of the last."""
        numbers = {stage_of(prefix + name) for name, _ in layer.named_parameters()}
        if len(numbers) <= 1:
            return put(layer, numbers.pop() if numbers else stage)
        for name, parameter in layer.named_parameters(recurse=False):
            put(nn.ParameterList([parameter]), stage_of(prefix + name))
        for name, part in layer.named_children():
            stage = walk(part, f"{prefix}{name}.", stage)
        return stage

    walk(network, "", 0)
    return [stages[number] for number in sorted(stages)]


def _holds_state(layer: nn.Module) -> bool:
    return any(True for _ in layer.parameters()) or any(True for _ in layer.buffers())


def _sizes(sizes: Sequence[int]) -> str:
    return "x".join(str(size) for size in sizes)

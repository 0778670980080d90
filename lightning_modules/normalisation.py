"""Running statistics of batch normalisation: which layers have them, and measuring them anew on other images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_modules.ledger import TransferError
from lightning_modules.networks.encoder import Encoder


@dataclass
class Moments:
    """Number of values, mean, and sum of squared deviations of each channel, (C,), in double precision on the CPU."""

    num: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Measure a feature map (B, C, ...)."""
        axes = [axis for axis in range(features.ndim) if axis != 1]
        variance, mean = torch.var_mean(features.float(), dim=axes, correction=0)
        num = torch.tensor(features.numel() / features.shape[1], dtype=torch.float64)
        return cls(num, mean.cpu().double(), variance.cpu().double() * num)

    def __add__(self, other: "Moments") -> "Moments":
        num = self.num + other.num
        difference = other.mean - self.mean
        mean = self.mean + difference * other.num / num
        squares = self.squares + other.squares + difference**2 * self.num * other.num / num
        return Moments(num, mean, squares)

    def reduced(self, total: Callable[[Tensor], Tensor]) -> "Moments":
        """Return the moments over all processes.

        Args:
            total: Sum of a tensor over the processes.
        """
        num = total(self.num)
        mean = total(self.num * self.mean) / num
        return Moments(num, mean, total(self.squares + self.num * (self.mean - mean) ** 2))


def running_norms(network: nn.Module) -> list[_NormBase]:
    """Return the layers with running statistics, in order."""
    layers = [layer for layer in network.modules() if isinstance(layer, _NormBase)]
    return [layer for layer in layers if layer.running_mean is not None]


@torch.no_grad()
def recalibrate(
    network: Encoder, batches: Iterable[Tensor], total: Callable[[Tensor], Tensor] = lambda value: value
) -> int:
    """Replace the running statistics of an encoder by those of the given images; nothing else changes.

    Mean and unbiased variance of each layer's input over all images, computed while every layer normalises by its
    batch, as in training; nothing is dropped.

    Args:
        network: The encoder.
        batches: Images (B, C, ...) on the network's device.
        total: Sum of a tensor over all processes.

    Returns:
        The number of layers.

    Raises:
        TransferError: There is no image.
    """
    layers = running_norms(network)
    modes = {module: module.training for module in network.modules()}
    kept = {layer: [value.clone() for value in layer.buffers()] for layer in layers}
    found: dict[nn.Module, Moments] = {}

    def see(index: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        layer, moments = layers[index], Moments.of(inputs[0])
        found[layer] = found[layer] + moments if layer in found else moments

    hooks = [layer.register_forward_pre_hook(partial(see, index)) for index, layer in enumerate(layers)]
    try:
        network.eval()
        for layer in layers:
            layer.train()
        for images in batches:
            network.encode(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
        for layer, values in kept.items():  # the passes have moved them
            for buffer, value in zip(layer.buffers(), values, strict=True):
                buffer.copy_(value)
    for layer in layers:
        _set(layer, found.get(layer), total)
    return len(layers)


def _set(layer: _NormBase, moments: Moments | None, total: Callable[[Tensor], Tensor]) -> None:
    if moments is None:
        raise TransferError(
            "transfer.batch_norm recalibrate saw no training image. Check the training part and limit_train_batches."
        )
    everywhere = moments.reduced(total)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.copy_(everywhere.mean)
    layer.running_var.copy_(everywhere.squares / (everywhere.num - 1))

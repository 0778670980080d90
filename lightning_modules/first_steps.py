"""What the first steps of a training do to the weights: what is frozen must stay, what is trained must move."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from lightning_modules.ledger import TransferError

NUM_STEPS = 3
SMALLEST = 8  # distances between two numbers of the weight's precision: a smaller step may be lost in rounding
SHOWN = 8  # names in a message


class FirstSteps:
    """Watch the first steps of a training.

    A weight counts as trained when its gradient and its learning rate make a step that rounding cannot swallow; the
    bias of a convolution before batch normalisation, whose gradient is 0 but for rounding, does not.

    Args:
        network: The network as it stands before the first step.
        frozen: Names of the parameters and buffers that must not move.
    """

    def __init__(self, network: nn.Module, frozen: Collection[str]) -> None:
        self.network = network
        self.frozen = frozenset(frozen)
        self.num_seen = 0
        self._before = {name: value.detach().clone() for name, value in _state(network).items()}
        self._trained: set[str] = set()
        self._rates: dict[Tensor, float] = {}

    def expect(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the learning rates of the step that comes; an epoch's last step is over when its scheduler has moved."""
        for group in optimizer.param_groups:
            self._rates |= dict.fromkeys(group["params"], float(group["lr"]))

    def see(self) -> None:
        """Note what the step that has been should have moved; its gradients are still there."""
        self.num_seen += 1
        pushed = [
            (name, self._rates[parameter], parameter.grad.detach())
            for name, parameter in self.network.named_parameters()
            if parameter.grad is not None and parameter in self._rates
        ]
        if not all(bool(gradient.isfinite().all()) for _, _, gradient in pushed):
            return  # in half precision such a step is left out
        for name, rate, gradient in pushed:
            step = rate * gradient.abs().clamp(max=1)  # optimizers that scale gradients make it larger
            before = self._before[name]
            if bool((step > SMALLEST * torch.finfo(before.dtype).eps * before.abs()).any()):
                self._trained.add(name)

    def check(self) -> None:
        """Compare the weights with those before.

        Raises:
            TransferError: Something frozen moved, or something trained did not.
        """
        now = _state(self.network)
        moved = {name for name, value in self._before.items() if not torch.equal(value, now[name])}
        for names, fault in (
            (self.frozen & moved, "changed though frozen"),
            (self._trained - self.frozen - moved, "did not change though trained, with gradients that are not zero"),
        ):
            if names:
                shown = ", ".join(sorted(names)[:SHOWN])
                raise TransferError(
                    f"In the first {self.num_seen} steps of this training {len(names)} tensors of the network {fault}: "
                    f"{shown}. The training was stopped: it is not the transfer that was configured. A callback, or "
                    "the module itself, changes weights or modes behind the optimizer."
                )


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}

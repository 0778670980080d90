"""A LightningModule whose encoder can start from pretrained weights: `Transfer`, at the places where Lightning asks."""

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_modules.first_steps import NUM_STEPS, FirstSteps
from lightning_modules.ledger import Ledger, TransferError, TransferWarning
from lightning_modules.networks.encoder import Encoder, ModelError
from lightning_modules.normalisation import recalibrate, running_norms
from lightning_modules.sources import TRANSFER, read_source
from lightning_modules.transfer import Transfer
from lightning_modules.weights import load_encoder

RATE = "rate"  # key of an optimizer's parameter group: its learning rate as a share of the configured one


class TransferModule(LightningModule):
    """Load an encoder, freeze and unfreeze it by epoch, and check that the first steps keep to that.

    A new training calls :meth:`load_pretrained` before it starts; a resumed one does not.

    Args:
        network: The encoder and its head.
        transfer: Where its weights come from, and how the training goes on from them.
    """

    def __init__(self, network: Encoder, transfer: Transfer | None = None) -> None:
        super().__init__()
        self.network = network
        self.transfer = transfer
        self.ledger: Ledger | None = None
        self.starting_point: dict[str, Tensor] = {}  # of l2-sp: the loaded parameters, by their names in the network
        self.transfer_record: dict[str, Any] | None = None  # the ledger in JSON types; a resumed training has no other
        self._fixed = {name for name, value in network.named_parameters() if not value.requires_grad}
        self._resting: list[nn.Parameter] = []  # frozen in this epoch, with a gradient that several processes exchange
        self._is_resumed = False
        self._first_steps: FirstSteps | None = None
        self._last_step = 0

    def load_pretrained(self, path: str | Path) -> Ledger:
        """Fill the encoder from a weights file; see `sources.read_source`.

        Raises:
            TransferError: The weights do not suit the encoder, or the module was given no `transfer.source`.
        """
        transfer = self._active
        if transfer is None:
            raise TransferError(f"No transfer is configured; set model.transfer.source to load {path}.")
        if transfer.batch_norm != "train" and not running_norms(self.network):
            raise TransferError(
                f"transfer.batch_norm is {transfer.batch_norm}, and this network has no running statistics. Leave it "
                "at train."
            )
        options = transfer.options()
        self.ledger = load_encoder(self.network, read_source(path), transfer.key_map, transfer.min_loaded, options)
        self.transfer_record = self.ledger.as_dict()
        for text in self.ledger.doubts():
            rank_zero_warn(text, category=TransferWarning)
        if transfer.strategy == "l2-sp":
            loaded = {entry.name for entry in self.ledger.of_status("loaded", "inflated", "zeroed")}
            parameters = dict(self.network.named_parameters())
            self.starting_point = {name: parameters[name].detach().clone() for name in loaded & parameters.keys()}
        return self.ledger

    def penalty(self) -> Tensor | None:
        """Return what `l2-sp` adds to the loss of a step, None for the other strategies."""
        if not self.starting_point or self._active is None:
            return None
        old, new = [], []
        for name, value in self.network.named_parameters():
            start = self.starting_point.get(name)
            if start is None:
                new.append(value.square().sum())
            else:
                old.append((value - start).square().sum())
        zero = torch.zeros((), device=self.device)
        return self._active.alpha / 2 * sum(old, zero) + self._active.beta / 2 * sum(new, zero)

    # Parameter groups --------------------------------------------------------------------------------------------

    def rated_parameters(self) -> list[tuple[list[nn.Parameter], dict[str, Any]]]:
        """Return the parameters in sets of one learning rate, with what the optimizer's group gets besides."""
        transfer, parameters = self._active, list(self.parameters())
        if transfer is not None and transfer.strategy == "l2-sp":
            own = set(self.network.parameters())  # the penalty stands in for weight decay
            penalised = [value for value in parameters if value in own]
            return [(penalised, {"weight_decay": 0.0}), ([value for value in parameters if value not in own], {})]
        if transfer is None or transfer.strategy != "discriminative":
            return [(parameters, {})]
        stages = self.network.stages()
        rates = {
            value: transfer.rate(index, len(stages))
            for index, stage in enumerate(stages)
            for value in stage.parameters()
        }
        sets: dict[float, list[nn.Parameter]] = {}
        for value in parameters:
            sets.setdefault(rates.get(value, 1.0), []).append(value)
        return [(values, {RATE: rate}) for rate, values in sets.items()]

    def scale_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Give every parameter group its share of the learning rate, before a scheduler takes it as the initial one."""
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * group.get(RATE, 1.0)

    def require_rates(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:  # noqa: ANN401 - of any library
        """Refuse a scheduler that gives every group the same learning rate.

        Raises:
            ModelError: The strategy `discriminative` would have no effect.
        """
        rates = [float(group["lr"]) / group.get(RATE, 1.0) for group in optimizer.param_groups]
        if not all(math.isclose(rate, rates[0], rel_tol=1e-6) for rate in rates):
            raise ModelError(
                f"{type(scheduler).__name__} sets the learning rate of all parameters to one value, which undoes "
                "transfer.strategy discriminative. Take a scheduler that scales the optimizer's own, such as "
                "CosineAnnealingLR or LinearLR."
            )

    # What Lightning calls ----------------------------------------------------------------------------------------

    @override
    def configure_model(self) -> None:
        """Freeze what is never trained: several processes agree now on whose gradients they exchange."""
        self._is_resumed = False  # a checkpoint, if there is one, is read later
        if (transfer := self._active) is not None:
            self._require_gradients(transfer.num_frozen(math.inf, len(self.network.stages())))

    @override
    def train(self, mode: bool = True) -> Self:
        """Set training mode, or evaluation mode; what is frozen stays in the latter."""
        super().train(mode)
        if mode and self._active is not None:
            for stage in self._frozen_stages():
                stage.eval()
            if self._active.batch_norm == "keep":
                for layer in running_norms(self.network):
                    layer.eval()
        return self

    @override
    def on_train_start(self) -> None:
        """Begin a new training, or go on with one: Lightning begins no epoch where it resumes in the middle of one."""
        if self.transfer is not None and self._active is None and self.transfer != Transfer():
            text = "model.transfer has no source: the training starts from scratch, and trains everything."
            rank_zero_warn(text, category=TransferWarning)
        if self._active is None:
            return
        self.starting_point = {name: value.to(self.device) for name, value in self.starting_point.items()}
        if not self._is_resumed:
            self._begin(self._active)
        elif self._active.strategy == "l2-sp" and not self.starting_point:
            raise TransferError(
                "The checkpoint to resume from has no starting point, which transfer.strategy l2-sp needs. Resume with "
                "the strategy that the run had, or start a new one."
            )
        self._freeze()

    @override
    def on_train_epoch_start(self) -> None:
        """Freeze and unfreeze for the epoch."""
        if self._active is not None:
            self._freeze()

    @override
    def on_after_backward(self) -> None:
        """Forget gradients of what is frozen for now; only among several processes does it have any."""
        for value in self._resting:
            value.grad = None

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Watch the first steps of a new training."""
        if self._first_steps is not None:
            self._first_steps.expect(optimizer)

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at what the step did, where there was one."""
        if self._first_steps is None or self.trainer.global_step == self._last_step:
            return  # nothing to watch any more, or gradients are being accumulated
        self._last_step = self.trainer.global_step
        self._first_steps.see()
        if self._first_steps.num_seen >= NUM_STEPS:
            self._check_first_steps()

    @override
    def on_train_epoch_end(self) -> None:
        """Check what the first steps did, if the first epoch has no more of them."""
        self._check_first_steps()

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the ledger, and the starting point of `l2-sp`."""
        if self._active is not None and self.transfer_record is not None:
            checkpoint[TRANSFER] = {"ledger": self.transfer_record, "starting_point": self.starting_point}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the ledger and the starting point of a training that is resumed."""
        if self._trainer is None or self._trainer.state.fn != TrainerFn.FITTING:
            return
        self._is_resumed = True
        if TRANSFER in checkpoint:
            self.transfer_record = checkpoint[TRANSFER]["ledger"]
            self.starting_point = checkpoint[TRANSFER]["starting_point"]

    # How ---------------------------------------------------------------------------------------------------------

    @property
    def _active(self) -> Transfer | None:
        """The transfer, where there is something to transfer."""
        return self.transfer if self.transfer is not None and self.transfer.source is not None else None

    @property
    def _num_processes(self) -> int:
        return 1 if self._trainer is None else self._trainer.world_size

    def _begin(self, transfer: Transfer) -> None:
        """Make ready for the first step of a new training."""
        if self.ledger is None:
            raise TransferError(
                f"This training is to start from {transfer.source}, and its weights were not loaded. Call "
                "load_pretrained with their file before the training, or set model.transfer to null."
            )
        self._require_same_weights(self.ledger)
        stages = self.network.stages()
        last = math.inf if self.trainer.max_epochs in {None, -1} else (self.trainer.max_epochs or 0) - 1
        left = transfer.num_frozen(last, len(stages))
        if left and transfer.strategy != "frozen":
            rank_zero_warn(
                f"With {self.trainer.max_epochs} epochs, transfer.strategy {transfer.strategy} never trains {left} of "
                f"the {len(stages)} blocks. Train longer, or lower probe_epochs or unfreeze_every.",
                category=TransferWarning,
            )
        if transfer.batch_norm == "recalibrate":
            recalibrate(self.network, self._training_images(), self._total)
        self._first_steps = FirstSteps(self.network, self._names_that_stay(transfer))
        self._last_step = self.trainer.global_step

    def _freeze(self) -> None:
        frozen = self._frozen_stages()
        if self._num_processes == 1:
            self._require_gradients(len(frozen))
        else:
            self._resting = [value for stage in frozen for value in stage.parameters()]
        self.train()

    def _frozen_stages(self) -> list[nn.Module]:
        """Return the blocks that are frozen in this epoch."""
        if self._active is None:
            return []
        stages = self.network.stages()
        return stages[: self._active.num_frozen(self.current_epoch, len(stages))]

    def _require_gradients(self, num_frozen: int) -> None:
        fixed = {value for name, value in self.network.named_parameters() if name in self._fixed}
        for index, stage in enumerate(self.network.stages()):
            for value in stage.parameters():
                value.requires_grad_(index >= num_frozen and value not in fixed)

    def _names_that_stay(self, transfer: Transfer) -> set[str]:
        """Return the names of the parameters and buffers of the network that this epoch must not move."""
        still: set[Tensor] = set()
        for stage in self._frozen_stages():
            still |= {*stage.parameters(), *stage.buffers()}
        if transfer.batch_norm == "keep":
            still |= {buffer for layer in running_norms(self.network) for buffer in layer.buffers()}
        state: Mapping[str, Tensor] = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        return {name for name, value in state.items() if value in still}

    def _check_first_steps(self) -> None:
        if self._first_steps is not None:
            self._first_steps.check()
            self._first_steps = None  # and the copy of the weights with it

    def _require_same_weights(self, ledger: Ledger) -> None:
        """Refuse processes that have loaded different files."""
        if self._num_processes == 1:
            return
        hashes: list[str] = [""] * self._num_processes
        torch.distributed.all_gather_object(hashes, ledger.encoder_sha256)
        if len(set(hashes)) > 1:
            raise TransferError("The processes of this training loaded different weights. Give all the same file.")

    def _training_images(self) -> Iterator[Tensor]:
        """Yield the images of one epoch as an evaluation sees them: on the device, without augmentation.

        Raises:
            TransferError: Images are changed where they are read, which nothing here can undo.
        """
        trainer: Any = self.trainer
        loader = trainer.train_dataloader if trainer.datamodule is None else trainer.datamodule.train_dataloader()
        if getattr(getattr(loader, "dataset", None), "transform", None) is not None:
            raise TransferError(
                "transfer.batch_norm recalibrate measures images without augmentation, and data.torchio_transforms "
                "change them where they are read. Leave the transforms out, or take batch_norm keep or train."
            )
        count = trainer.num_training_batches
        trainer.validating = True  # augmentation is for training
        try:
            for batch in islice(loader, None if math.isinf(count) else int(count)):
                moved = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
                with trainer.precision_plugin.forward_context():
                    yield moved["image"]
        finally:
            trainer.training = True

    def _total(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes."""
        if self._num_processes == 1:
            return value
        shared = value.to(self.device, copy=True)
        torch.distributed.all_reduce(shared)
        return shared.cpu()

"""How a training starts from the weights of another, and what of them it may change when.

Example:
    An outcome classifier that starts from a brain-age model, first with its head alone, then as a whole:

    .. code-block:: yaml

        model:
          class_path: lightning_modules.ClassificationModule
          init_args:
            transfer: {source: RUN, strategy: linear-probe, probe_epochs: 5}
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightning_modules.ledger import TransferError
from lightning_modules.weights import KeyMap

Strategy = Literal["full", "frozen", "linear-probe", "gradual", "discriminative", "l2-sp"]


@dataclass(frozen=True)
class Transfer:
    """Where pretrained weights come from, and how the training goes on from them.

    The encoder is taken from the source and the head is new. What is frozen is a pure function of the epoch, so that a
    resumed training goes on as it was; a frozen block is in evaluation mode: its running statistics stay, and nothing
    is dropped in it. Options of other strategies than the chosen one have no effect.

    Args:
        source: Run id, run name, run folder, `models:/NAME@ALIAS`, or weights file; without one the training starts
            from scratch, and nothing else here has an effect.
        strategy: `full` trains everything; `frozen` the head alone; `linear-probe` the head alone for `probe_epochs`,
            then everything; `gradual` the head alone, then one block more every `unfreeze_every` epochs, from the last
            to the first; `discriminative` everything, the encoder at `encoder_rate` times the learning rate; `l2-sp`
            everything, with a penalty on the way from the starting point in the place of weight decay.
        min_loaded: Share of the encoder's parameters that the source must fill.
        key_map: How names in the source become names here: `auto` finds out; `sfcn` (Peng et al.'s own code),
            `medicalnet` and `brainiac` are those published models; or patterns at the start of a name, and what they
            become, for example `{"module.encoder.": "blocks."}`.
        batch_norm: Running statistics of the encoder's batch normalisation: `train` updates them where a block is
            trained, `keep` leaves them (and normalises with them) throughout, `recalibrate` measures them anew on the
            training images, without augmentation, before the first step, and goes on as `train`.
        probe_epochs: Epochs for which `linear-probe` trains the head alone.
        unfreeze_every: Epochs between two blocks of `gradual`.
        encoder_rate: Learning rate of the encoder in `discriminative`, as a share of the head's.
        layer_decay: Learning rate of each block in `discriminative`, as a share of that of the block behind it; 1 gives
            all blocks the same.
        alpha: Strength of `l2-sp` on the loaded weights w, of (alpha / 2) |w - w0|^2.
        beta: Strength of `l2-sp` on the weights v that are new, of (beta / 2) |v|^2.

    References:
        Gradual and discriminative: Howard and Ruder, ACL 2018, doi:10.18653/v1/P18-1031. L2-SP: Li et al., ICML 2018,
        arXiv:1802.01483. Probe, then fine-tune: Kumar et al., ICLR 2022, arXiv:2202.10054.

    Examples:
        >>> gradual = Transfer(source="RUN", strategy="gradual", unfreeze_every=2)
        >>> [gradual.num_frozen(epoch, num_stages=3) for epoch in range(8)]
        [3, 3, 2, 2, 1, 1, 0, 0]
        >>> slow = Transfer(source="RUN", strategy="discriminative", encoder_rate=0.1, layer_decay=0.5)
        >>> [slow.rate(stage, num_stages=3) for stage in range(3)]
        [0.025, 0.05, 0.1]
    """

    source: str | None = None
    strategy: Strategy = "full"
    min_loaded: float = 0.9
    key_map: KeyMap = "auto"
    batch_norm: Literal["train", "keep", "recalibrate"] = "train"
    probe_epochs: int = 5
    unfreeze_every: int = 1
    encoder_rate: float = 0.1
    layer_decay: float = 1.0
    alpha: float = 0.01
    beta: float = 0.01

    def __post_init__(self) -> None:
        self._require("min_loaded", 0 <= self.min_loaded <= 1, "a share from 0 to 1")
        self._require("probe_epochs", self.probe_epochs >= 1, "1 epoch or more")
        self._require("unfreeze_every", self.unfreeze_every >= 1, "1 epoch or more")
        self._require("encoder_rate", 0 < self.encoder_rate < math.inf, "above 0; 0.1 is usual, and frozen trains none")
        self._require("layer_decay", 0 < self.layer_decay <= 1, "above 0, to 1")
        self._require("alpha", 0 < self.alpha < math.inf, "above 0")
        self._require("beta", 0 <= self.beta < math.inf, "0 or more")
        if self.source is not None and not self.source.strip():
            raise TransferError("transfer.source is empty. Name a run or a file, or null to train from scratch.")

    def num_frozen(self, epoch: float, num_stages: int) -> int:
        """Return how many of an encoder's blocks, from the first, are frozen in an epoch.

        Args:
            epoch: The epoch, from 0; infinity for the end of any training.
            num_stages: Number of blocks.
        """
        if self.strategy == "frozen" or (self.strategy == "linear-probe" and epoch < self.probe_epochs):
            return num_stages
        if self.strategy == "gradual":
            return int(max(num_stages - epoch // self.unfreeze_every, 0)) if math.isfinite(epoch) else 0
        return 0

    def rate(self, stage: int, num_stages: int) -> float:
        """Return the learning rate of a block, as a share of the head's."""
        if self.strategy != "discriminative":
            return 1.0
        return self.encoder_rate * self.layer_decay ** (num_stages - 1 - stage)

    def options(self) -> dict[str, Any]:
        """Return the configuration in JSON types, as a ledger records it."""
        return asdict(self)

    def _require(self, name: str, is_right: bool, wanted: str) -> None:
        if not is_right:
            raise TransferError(f"transfer.{name} is {getattr(self, name)!r} and must be {wanted}.")

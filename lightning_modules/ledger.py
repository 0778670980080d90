"""The weight ledger: what of an encoder came from where, tensor by tensor, and what did not and why."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_modules.networks.encoder import ModelError

FORMAT = 1  # of the record
UNKNOWN = "unknown"

Status = Literal["loaded", "inflated", "zeroed", "missing", "shape", "excluded", "unexpected"]
FILLED = ("loaded", "inflated", "zeroed")
UNUSED = 0.1  # share of the source's values without a place here that casts doubt on a transfer


class TransferError(ModelError):
    """Weights that cannot start a training, or a training that does not treat them as told; says what to do."""


class TransferWarning(UserWarning):
    """Something about a transfer that its user should know."""


@dataclass(frozen=True)
class Entry:
    """What became of one tensor.

    Args:
        name: Its name in the network; in the source where the network has no place for it.
        status: `loaded`; `inflated` to another number of image channels; `zeroed`, a bias that the layer in the source
            has none of; `missing` in the source; of another `shape` there; `excluded`, for it belongs to a head or to
            the task; `unexpected`, for no layer here has its name.
        num_values: Number of values in the network.
        is_parameter: Whether it is trained; a buffer (running statistics) is not.
        source: Its name in the source.
        shape: Its shape in the network.
        source_shape: Its shape in the source.
    """

    name: str
    status: Status
    num_values: int = 0
    is_parameter: bool = True
    source: str = ""
    shape: tuple[int, ...] = ()
    source_shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.status not in {"shape", "inflated"}:
            return self.name
        return f"{self.name} is {_size(self.shape)} here and {_size(self.source_shape)} there"


@dataclass(frozen=True)
class Provenance:
    """Where weights come from, as far as their file says so.

    Args:
        file: Name of the file.
        sha256: Hash of the file.
        kind: `run` (a checkpoint of ours), `export` (our exported weights), or `foreign`.
        study: Study of the run that trained them.
        run_id: That run.
        datasets: Datasets of the participants that they, or their choice, have seen; empty where that is not known.
        network: Class and arguments of the network.
        started_from: The provenance of the weights that this training itself started from.
    """

    file: str
    sha256: str
    kind: Literal["run", "export", "foreign"] = "foreign"
    study: str = UNKNOWN
    run_id: str = UNKNOWN
    datasets: tuple[str, ...] = ()
    network: str = UNKNOWN
    started_from: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Ledger:
    """What one transfer loaded, and what it did not and why.

    Args:
        source: Where the weights come from.
        network: The network that they went to.
        options: The transfer's configuration.
        names: How the source's names were turned into the network's.
        entries: What became of every tensor of the encoder, and of every tensor of the source that has no place in it.
        encoder_sha256: Hash of the encoder's weights and buffers after loading, see `hash_tensors`.
    """

    source: Provenance
    network: str
    options: Mapping[str, Any]
    names: str
    entries: tuple[Entry, ...]
    encoder_sha256: str

    @property
    def share(self) -> float:
        """Share of the encoder's parameters that were filled, counted in values; buffers do not count."""
        return share_filled(self.entries)

    def of_status(self, *statuses: Status) -> list[Entry]:
        """Return the entries of some statuses."""
        return [entry for entry in self.entries if entry.status in statuses]

    def doubts(self) -> list[str]:
        """Say why the encoder may not compute what it did in the source, though enough of it is filled."""
        texts = []
        taken = [entry for entry in self.entries if entry.status != "excluded"]
        unused = sum(math.prod(entry.source_shape) for entry in self.of_status("unexpected"))
        share = unused / max(sum(math.prod(entry.source_shape) for entry in taken), 1)
        if share > UNUSED:
            texts.append(
                f"{share:.0%} of the encoder in {self.source.file} have no place in {self.network}, such as "
                f"{self.of_status('unexpected')[0]}: the weights are from a larger network."
            )
        statistics = [entry for entry in self.of_status("missing", "unexpected") if entry.name.endswith("running_mean")]
        if any(entry.status == "unexpected" for entry in statistics) and share <= UNUSED:
            texts.append(
                f"{self.source.file} has running statistics that this network does without: it normalises otherwise."
            )
        if any(entry.status == "missing" for entry in statistics):
            texts.append(
                f"{self.source.file} lacks running statistics of this network; until a training fills them they are 0 "
                "and 1. Take transfer.batch_norm recalibrate."
            )
        return texts

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types, as `transfer.json` and checkpoints hold them."""
        parameters, buffers = (
            {
                "filled": sum(entry.num_values for entry in entries if entry.status in FILLED),
                "of": sum(entry.num_values for entry in entries),
                **{status: _listed(entries, status) for status in (*FILLED, "missing", "shape")},
            }
            for entries in (_part(self.entries, is_parameter) for is_parameter in (True, False))
        )
        return {
            "format": FORMAT,
            "source": {**asdict(self.source), "datasets": list(self.source.datasets) or UNKNOWN},
            "network": self.network,
            "options": dict(self.options),
            "names": self.names,
            "share": self.share,
            "parameters": parameters,
            "buffers": buffers,
            "excluded": [entry.name for entry in self.of_status("excluded")],
            "unexpected": [entry.name for entry in self.of_status("unexpected")],
            "encoder_sha256": self.encoder_sha256,
        }

    @property
    def sha256(self) -> str:
        """Hash of the record."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        inflated = [str(entry) for entry in self.of_status("inflated")]
        channels = f" Image channels were matched: {'; '.join(inflated)}." if inflated else ""
        return f"{self.source.file} filled {self.share:.1%} of the encoder ({self.network}).{channels}"


def share_filled(entries: tuple[Entry, ...]) -> float:
    """Return the share of an encoder's parameters that is filled, counted in values."""
    parameters = _part(entries, is_parameter=True)
    return sum(e.num_values for e in parameters if e.status in FILLED) / sum(e.num_values for e in parameters)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and values, in the order of the names.

    Examples:
        >>> hash_tensors({"a": torch.zeros(2)}) == hash_tensors({"a": torch.zeros(2)})
        True
        >>> hash_tensors({"a": torch.zeros(2)}) == hash_tensors({"a": torch.zeros(1, 2)})
        False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _part(entries: tuple[Entry, ...], is_parameter: bool) -> list[Entry]:
    """Return the encoder's parameters, or its buffers."""
    places = (*FILLED, "missing", "shape")
    return [entry for entry in entries if entry.status in places and entry.is_parameter == is_parameter]


def _listed(entries: list[Entry], status: str) -> list[str]:
    return [str(entry) for entry in entries if entry.status == status]


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"

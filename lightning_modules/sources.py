"""Reading the weights that a transfer starts from: checkpoints and exports of ours, and weights of other programs.

Nothing in a file is ever executed: torch files are read with `weights_only`, and addresses are refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lightning_modules.ledger import UNKNOWN, Provenance, TransferError
from tracking.checkpoints import load_checkpoint
from tracking.contract import CONTRACT, find_checkpoint
from tracking.files import file_hash

TRANSFER = "transfer"  # key in a checkpoint: the ledger of the transfer that its training started with
SEEN_PARTS = ("train", "val")  # the validation part has chosen the weights
WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net", "weights")
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Source:
    """Weights, and where they come from.

    Args:
        path: The file.
        tensors: The weights under the names that the file gives them.
        provenance: What the file, or the `model.json` beside it, says of itself.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    provenance: Provenance


def read_source(path: str | Path) -> Source:
    """Read weights from a file on this machine.

    Args:
        path: A checkpoint of ours or the folder of a run (its best checkpoint), a `weights.safetensors` with its
            `model.json`, or a `.safetensors`, `.pt`, `.pth` or `.ckpt` file with a state dict of another program.

    Raises:
        TransferError: It holds no weights, was changed, or its weights are not finite.
        CheckpointError: It is missing, damaged, an address, or holds more than tensors and plain values.
    """
    target = find_checkpoint(path)
    if target.suffix == ".safetensors":
        tensors, provenance = _read_safetensors(target)
    else:
        content = load_checkpoint(target)
        tensors, provenance = _unwrap(content, target), _provenance_of(content, target)
    if bad := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise TransferError(f"{target}: {_some(bad)} hold values that are not finite. Use an older checkpoint.")
    return Source(target, tensors, provenance)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Provenance]:
    if not path.is_file():
        raise TransferError(f"There is no weights file {path}. Check the path, or give the id of the run.")
    digest = file_hash(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise TransferError(f"{path} is damaged or no safetensors file ({error}).") from error
    described = _description(path.with_name("model.json"))
    weights = described.get("weights")
    if not isinstance(weights, dict) or weights.get("file") != path.name:
        return tensors, Provenance(path.name, digest)
    if weights.get("sha256") != digest:
        raise TransferError(f"{path} is not what was exported: model.json beside it has another hash. Export it again.")
    provenance = Provenance(
        file=path.name,
        sha256=digest,
        kind="export",
        study=str(described.get("study", UNKNOWN)),
        run_id=str(described.get("run_id", UNKNOWN)),
        datasets=tuple(described.get("datasets", ())),
        network=_network_name(described.get("network")),
    )
    return tensors, provenance


def _description(path: Path) -> dict[str, Any]:
    """Return what `model.json` says; other programs use that name for other things."""
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return described if isinstance(described, dict) else {}


def _unwrap(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Find the state dict in what a file holds."""
    while not any(isinstance(value, Tensor) for value in content.values()):
        inner = [content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        if not inner:
            names = ", ".join(map(str, list(content)[:SHOWN])) or "nothing"
            raise TransferError(
                f"{path} holds no weights under a name that is known (it has: {names}). Save its state dict alone, "
                "as safetensors."
            )
        content = inner[0]
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _provenance_of(content: Mapping[str, Any], path: Path) -> Provenance:
    digest = file_hash(path)
    record = content.get(CONTRACT)
    if not isinstance(record, dict):
        return Provenance(path.name, digest)
    transfer = content.get(TRANSFER)
    return Provenance(
        file=path.name,
        sha256=digest,
        kind="run",
        study=str(record.get("study", UNKNOWN)),
        run_id=str(record.get("run_id", UNKNOWN)),
        datasets=_datasets(record.get("split")),
        network=_network_of(record.get("config")),
        started_from=transfer["ledger"]["source"] if isinstance(transfer, dict) else None,
    )


def _datasets(split: Any) -> tuple[str, ...]:  # noqa: ANN401 - of a file
    """Return the datasets of the participants that a split trains on, from their keys (dataset/participant)."""
    parts = split.get("parts", {}) if isinstance(split, dict) else {}
    sites = [keys for part in SEEN_PARTS for keys in parts.get(part, {}).values()]
    return tuple(sorted({key.partition("/")[0] for keys in sites for key in keys}))


def _network_of(config: Any) -> str:  # noqa: ANN401 - of a file
    values = yaml.safe_load(config) if isinstance(config, str) else None
    for name in ("model", "init_args", "network"):
        values = values.get(name) if isinstance(values, dict) else None
    return _network_name(values)


def _network_name(network: Any) -> str:  # noqa: ANN401 - of a file
    """Name a network as a configuration describes it: `SFCN(in_channels=1, width=16)`."""
    if not isinstance(network, dict) or "class_path" not in network:
        return UNKNOWN
    arguments = ", ".join(f"{name}={value}" for name, value in (network.get("init_args") or {}).items())
    return f"{str(network['class_path']).rpartition('.')[2]}({arguments})"


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")

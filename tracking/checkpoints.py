"""Checkpoints that are whole, carry their own story, and never run anybody's code."""

import hashlib
import json
import pickle
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors.torch import save as safetensors_bytes
from torch import Tensor
from typing_extensions import override

from tracking.errors import RunWarning
from tracking.files import (
    file_hash,
    is_url,
    make_private_folder,
    remove_leftovers,
    replace,
    sync,
    temporary_file,
    write_file,
)
from tracking.packs import is_pack
from tracking.redaction import redact

FORMAT = 2  # of the record that a checkpoint carries, and of model.json
SPARE = 1 << 20  # bytes that a checkpoint may be larger than its tensors
_KEPT = "The checkpoint before it, if any, is kept."
_RECORDED = re.compile(r"([0-9a-f]{64})  .+")
_LOADABLE = (Tensor, str, bytes, bool, int, float, type(None), torch.dtype, torch.device)


class CheckpointError(ValueError):
    """A checkpoint that cannot be trusted, read or written; says which file and what to do."""


class DiskError(CheckpointError):
    """A disk that does not take a checkpoint; the one before it is kept."""


class AtomicCheckpointIO(CheckpointIO):
    """Write checkpoints whole or not at all, and read only tensors and plain values from whole files.

    A save goes to a temporary file in the same folder, is synced, and then renamed; `<checkpoint>.sha256` beside it
    holds its hash in the format of `sha256sum`. A kill at any moment leaves the previous checkpoint or the new one.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint; where the disk refuses it, warn and go on with the previous one.

        Raises:
            CheckpointError: If it could not be loaded again.
        """
        if storage_options is not None:
            raise CheckpointError(f"{path}: checkpoints take no storage options.")
        try:
            save_checkpoint(checkpoint, local_path(path))
        except DiskError as error:
            warnings.warn(f"{error} Training goes on.", RunWarning, stacklevel=2)

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint, see `load_checkpoint`; asking for more than tensors and plain values is refused."""
        if weights_only is False:
            raise CheckpointError(f"{path}: checkpoints are only read with weights_only=True. Leave the argument out.")
        return load_checkpoint(path, map_location or "cpu")

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint and its hash."""
        target = local_path(path)
        target.unlink(missing_ok=True)
        _hash_path(target).unlink(missing_ok=True)


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:  # noqa: ANN401 - torch.load's argument
    """Read a checkpoint after checking its hash; nothing in it is executed.

    Args:
        path: A file on this machine. Without a `.sha256` beside it there is no hash to check.
        map_location: Where tensors go, as `torch.load` takes it.

    Raises:
        CheckpointError: If it is missing, damaged, a URL, or holds more than tensors and plain values.
    """
    target = local_path(path)
    if is_pack(target):
        raise CheckpointError(
            f"{target} is a pack: it is predicted with and verified. To start a transfer from its weights, take them "
            f"out (unzip {target.name} weights.safetensors) and name that file."
        )
    try:
        with target.open("rb") as file:
            _verify(file, target)
            file.seek(0)
            loaded = torch.load(file, map_location=map_location, weights_only=True)
    except (CheckpointError, MemoryError, torch.OutOfMemoryError):
        raise
    except FileNotFoundError:
        raise CheckpointError(f"There is no checkpoint {target}. Check the path, or give the id of the run.") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{target} holds more than tensors and plain values, so reading it could run code, and it was refused: "
            f"{str(error).splitlines()[0][:200]}. Ask its author for the weights alone, as safetensors."
        ) from error
    except Exception as error:  # a damaged archive raises whatever its damaged bytes lead to
        raise CheckpointError(
            f"{target} is damaged or no checkpoint ({type(error).__name__}). Use an older one."
        ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{target} holds a {type(loaded).__name__} and no checkpoint.")
    return loaded


def save_checkpoint(checkpoint: Mapping[str, Any], target: Path) -> None:
    """Write a checkpoint and its hash so that a kill at any moment leaves a whole one.

    Args:
        checkpoint: Tensors and plain values.
        target: File to write.

    Raises:
        CheckpointError: If it could not be loaded again; the previous one is kept.
        DiskError: If the disk refuses it, or would be full; the previous one is kept.
    """
    _require_space(checkpoint, target)
    try:
        remove_leftovers(target.parent)
        known = _known_hashes(target)
        with temporary_file(target) as (file, temporary):
            torch.save(checkpoint, file)
            sync(file)
            _refuse_unloadable(temporary, checkpoint, target)
            digest = file.hexdigest()
            _record_hashes(target, [digest, *known])  # whichever file a kill leaves now has its hash recorded
            replace(temporary, target)
            if known:
                _record_hashes(target, [digest])
    except (OSError, RuntimeError) as error:
        raise DiskError(f"{target} could not be saved: {error}. {_KEPT}") from error
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise _unloadable(target, checkpoint, str(error)) from error


def export_model(
    module_state: Mapping[str, Tensor], path_weights: Path, path_model_json: Path, description: Mapping[str, Any]
) -> None:
    """Write weights as safetensors, and what a reader must know to use them as JSON.

    Args:
        module_state: State dict of the module.
        path_weights: `weights.safetensors` to write.
        path_model_json: `model.json` to write; the hash of the weights is added.
        description: Channels, spacing, shape, orientation, normalisation and outputs, in JSON types.

    Raises:
        CheckpointError: If a state is no tensor or the description holds more than JSON types.
    """
    weights = tensor_bytes(module_state, path_weights.name)
    numbers = {
        "num_tensors": len(module_state),
        "num_values": sum(tensor.numel() for tensor in module_state.values()),
    }
    file = {"file": path_weights.name, "sha256": hashlib.sha256(weights).hexdigest(), **numbers}
    try:
        text = json.dumps({"format": FORMAT, "weights": file, **redact(description)}, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path_model_json} takes JSON types only: {error}.") from error
    write_file(path_weights, weights)
    write_file(path_model_json, f"{text}\n".encode())


def tensor_bytes(state: Mapping[str, Tensor], name: str) -> bytes:
    """Return tensors as the bytes of a safetensors file, the same for the same tensors.

    Args:
        state: Tensors by name.
        name: What a message calls the file.

    Raises:
        CheckpointError: If a state is no tensor.
    """
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"State '{key}' is a {type(value).__name__}; only tensors can be exported to {name}.")
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    return safetensors_bytes(tensors, metadata={"format": "pt"})


def local_path(path: str | Path) -> Path:
    """Return a path as such; a URL is refused."""
    if is_url(path):
        raise CheckpointError(f"{path} is a URL. Download the file, check where it is from, and give its path.")
    return Path(path).expanduser()


def _hash_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _recorded_hashes(target: Path) -> list[str]:
    """Return the hashes recorded beside a checkpoint: one, or two after a kill between two renames."""
    path = _hash_path(target)
    if not path.exists():
        return []
    found = [_RECORDED.fullmatch(line) for line in path.read_text(errors="replace").splitlines()]
    if not found or None in found:
        raise CheckpointError(f"{path} is damaged, so {target.name} cannot be checked. Use an older checkpoint.")
    return [match[1] for match in found if match]


def _known_hashes(target: Path) -> list[str]:
    if not target.exists():
        return []
    try:
        return _recorded_hashes(target) or [file_hash(target)]
    except CheckpointError:
        return []  # it could not be read any more; it is about to be replaced


def _record_hashes(target: Path, digests: Iterable[str]) -> None:
    write_file(_hash_path(target), "".join(f"{digest}  {target.name}\n" for digest in digests).encode())


def _verify(file: BufferedReader, target: Path) -> None:
    recorded = _recorded_hashes(target)
    if recorded and hashlib.file_digest(file, "sha256").hexdigest() not in recorded:
        raise CheckpointError(
            f"{target} is not what was written: its hash differs from {_hash_path(target).name}. It was cut, changed "
            "or exchanged; use an older checkpoint."
        )


def _refuse_unloadable(temporary: Path, checkpoint: Mapping[str, Any], target: Path) -> None:
    """Refuse what `weights_only` would refuse later, when it is too late; reads no tensor."""
    if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(temporary):
        raise _unloadable(target, checkpoint, f"uses {', '.join(sorted(unsafe))}")


def _unloadable(target: Path, checkpoint: Mapping[str, Any], reason: str) -> CheckpointError:
    places = ", ".join(f"{name} ({type(value).__name__})" for name, value in _foreign_values(checkpoint, ""))
    return CheckpointError(
        f"{target} was not saved, because it could never be loaded again: {places or 'it'} is neither tensor nor plain "
        f"value ({reason}). Make it a string, number, list or dictionary. {_KEPT}"
    )


def _require_space(checkpoint: Mapping[str, Any], target: Path) -> None:
    """Refuse to start what would fill the disk."""
    needed = _num_bytes(checkpoint) + SPARE
    free = shutil.disk_usage(make_private_folder(target.parent)).free
    if free < needed:
        raise DiskError(
            f"{target} was not saved: it takes {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free. {_KEPT}"
        )


def _num_bytes(value: Any) -> int:  # noqa: ANN401 - any part of a checkpoint
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_num_bytes, value.values()))
    return sum(map(_num_bytes, value)) if isinstance(value, list | tuple) else 0


def _foreign_values(value: Any, name: str) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any part of a checkpoint
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _foreign_values(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple | set):
        for index, item in enumerate(value):
            yield from _foreign_values(item, f"{name}.{index}")
    elif not isinstance(value, _LOADABLE) or type(value).__module__.startswith("numpy"):
        yield name, value

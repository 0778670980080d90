"""What of a run goes into a pack, and how a pack becomes a checkpoint again: one door for runs, checkpoints and packs.

A pack is a checkpoint without anybody in it. Its weights and the state of its datamodule are safetensors, its
configuration is what a prediction needs, and its contract names no participant, site, table or store. Content hashes
of the training images stay, so that a prediction can still mark an image that the model was trained on.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from datamodules.splits import Split
from experiments.pack_configuration import foreign_classes, portable, require_nobody
from tracking.checkpoints import load_checkpoint, save_checkpoint, tensor_bytes
from tracking.contract import CheckpointContract
from tracking.packs import CONFIG, CONTRACT, DATA_STATE, MODEL, WEIGHTS, Pack, PackError, read_pack

KEY = ("protocol", "repeat", "fold", "seed", "arm", "train_sites")  # a run's part of a prediction's key
MAXIMUM_THREADS = 1024
PROTOCOL = "pack"  # in the key of a pack's predictions
TENSOR = "tensor"  # key of what stands for a tensor in the state of a datamodule
SITES = "sites"
FEW = 5  # people below whom a count says too much
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Packed:
    """What a pack is made of, besides texts about it.

    Args:
        members: Configuration, contract, description, weights, and the state of the datamodule if it has one.
        contract: What the model says of itself, without anybody in it.
        state: The weights by name.
    """

    members: dict[str, bytes]
    contract: CheckpointContract
    state: Mapping[str, Tensor]


def contents(
    checkpoint: Path,
    lineage: Sequence[CheckpointContract],
    description: Mapping[str, Any],
    *,
    name: str,
    image_hashes: bool = True,
    site_names: bool = False,
) -> Packed:
    """Return what a pack is made of.

    Args:
        checkpoint: The weights.
        lineage: What the checkpoint says of itself, then what those say that it started from.
        description: The run's `model.json`.
        name: What the model is called; it becomes the arm of its predictions.
        image_hashes: Keep the content hashes of the images that the model and its pretraining were trained on.
        site_names: Keep the sites of a ComBat, which its predictions need.

    Raises:
        PackError: Something of the model cannot leave without naming somebody.
    """
    loaded, own = load_checkpoint(checkpoint), lineage[0]
    config = portable(own.config, own.num_threads)
    sites = {site for part in own.split.get("parts", {}).values() for site in part}
    keys = {key for part in own.split.get("parts", {}).values() for people in part.values() for key in people}
    require_nobody(config, sites | keys | {piece for key in keys for piece in key.split("/", 1)})
    plain, tensors = flatten(loaded.get(_data_class(config)) or {})
    if (found := _named_sites(plain)) and not site_names:
        raise PackError(
            f"This model harmonises its images by ComBat, which knows {len(found)} sites by their names and predicts "
            "images of these alone. Say that the pack may name them: --site-names. Or pack a model without "
            "data.harmonisation, which takes images of any site."
        )
    seen = sorted({image for past in lineage for image in past.training_images}) if image_hashes else []
    key = {"repeat": "0", "fold": "0", "seed": own.key.get("seed", "0"), "arm": name, "train_sites": ""}
    contract = CheckpointContract(
        config=config,
        run_id=own.run_id,  # random digits, by which the sender finds the run again
        study=name,
        run_name=name,
        split=Split(PROTOCOL, 0, {}).as_dict(),
        training_images=seen,
        key={"protocol": PROTOCOL, **key},
        num_threads=own.num_threads,
        finished=True,
    )
    state = loaded["state_dict"]
    weights = tensor_bytes(state, WEIGHTS)
    if description.get("weights", {}).get("sha256") != hashlib.sha256(weights).hexdigest():
        raise PackError(
            f"{checkpoint} does not hold the weights that the run's model/model.json describes, which are those of its "
            "best checkpoint. Name the run."
        )
    record = {field: getattr(contract, field) for field in ("run_id", "training_images", "key", "num_threads")}
    members = {
        CONFIG: config.encode("utf-8"),
        CONTRACT: _json({"name": name, **record, "data_state": plain}),
        MODEL: _json(_describe(description, name, site_names)),
        WEIGHTS: weights,
    }
    if tensors:
        members[DATA_STATE] = tensor_bytes(tensors, DATA_STATE)
    return Packed(members, contract, state)


def unpack(path: str | Path, scratch: Path, trust_code: bool = False) -> Path:
    """Write a pack's model as a checkpoint, which everything that takes a checkpoint takes; it imports nothing.

    Args:
        path: The pack.
        scratch: Folder to write to.
        trust_code: Accept classes that are not of Fontanel and the libraries it rests on; loading the model runs them.

    Raises:
        PackError: The pack cannot be trusted, or names classes from elsewhere.
    """
    pack = read_pack(path)
    foreign = foreign_classes(pack.text(CONFIG))
    if foreign and not trust_code:
        raise PackError(
            f"{pack.path} names {', '.join(foreign)}, and naming a class runs the code of the package that has it. It "
            "is not of Fontanel, torch, torchio, MONAI or timm: ask the sender for that package, read it, install it, "
            "and say --trust-code."
        )
    target = scratch / "pack.ckpt"
    save_checkpoint(_checkpoint(pack), target)
    return target


def _checkpoint(pack: Pack) -> dict[str, Any]:
    """Return the checkpoint that a pack stands for."""
    record = pack.record(CONTRACT)
    try:
        num_threads = int(record["num_threads"])
        if not 0 < num_threads <= MAXIMUM_THREADS:
            raise ValueError(f"{num_threads} threads")
        contract = CheckpointContract(
            config=portable(pack.text(CONFIG), num_threads),
            run_id=str(record["run_id"]),
            study=str(record["name"]),
            run_name=str(record["name"]),
            split=Split(PROTOCOL, 0, {}).as_dict(),
            training_images=[str(image) for image in record["training_images"] if _SHA256.fullmatch(str(image))],
            key={name: str(record["key"][name]) for name in KEY},
            num_threads=num_threads,
            finished=True,
        )
        tensors = load_tensors(pack.members[DATA_STATE]) if DATA_STATE in pack.members else {}
        content = {
            "epoch": 0,
            "global_step": 0,
            "pytorch-lightning_version": version("pytorch-lightning"),
            "state_dict": load_tensors(pack.members[WEIGHTS]),
            "fontanel": contract.as_dict(),
        }
        if state := restored_state(record.get("data_state", {}), tensors):
            content[_data_class(contract.config)] = state
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        if isinstance(error, PackError):
            raise
        raise PackError(
            f"{pack.path} holds a {CONTRACT} or weights that do not read ({type(error).__name__}: {error}). Ask the "
            "sender for it again."
        ) from error
    return content


def flatten(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Divide a nested state into JSON types, in which names stand for tensors, and the tensors.

    >>> import torch
    >>> flatten({"a": {"b": torch.zeros(1), "c": [1, "x"]}})
    ({'a': {'b': {'tensor': 'a.b'}, 'c': [1, 'x']}}, {'a.b': tensor([0.])})
    """
    tensors: dict[str, Tensor] = {}

    def visit(value: Any, name: str) -> Any:  # noqa: ANN401 - any part of a checkpoint
        if isinstance(value, Tensor):
            tensors[name] = value
            return {TENSOR: name}
        if isinstance(value, Mapping):
            return {str(key): visit(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [visit(item, f"{name}.{index}") for index, item in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise PackError(f"The state of the datamodule holds a {type(value).__name__} ({name}), which no pack can hold.")

    return visit(state, ""), tensors


def restored_state(plain: Any, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 - any part of a checkpoint
    """Return the state that `flatten` divided.

    >>> import torch
    >>> restored_state({"a": {"b": {"tensor": "a.b"}, "c": [1]}}, {"a.b": torch.zeros(1)})
    {'a': {'b': tensor([0.]), 'c': [1]}}
    """
    if isinstance(plain, Mapping):
        if set(plain) == {TENSOR}:
            return tensors[plain[TENSOR]]
        return {key: restored_state(item, tensors) for key, item in plain.items()}
    return [restored_state(item, tensors) for item in plain] if isinstance(plain, list) else plain


def _describe(description: Mapping[str, Any], name: str, site_names: bool) -> dict[str, Any]:
    """Return the run's `model.json` without study, datasets and sites, and without counts of a few people."""
    inputs = dict(description["input"])
    if inputs.get("harmonisation") and not site_names:
        inputs["harmonisation"] = {key: value for key, value in inputs["harmonisation"].items() if key != SITES}
    outputs = {key: dict(value) for key, value in description["outputs"].items()}
    for output in outputs.values():
        if output.get("num_validation_participants", FEW) < FEW:
            output["num_validation_participants"] = None
    kept = {key: description[key] for key in ("format", "weights", "run_id", "model") if key in description}
    return {**kept, "name": name, "input": inputs, "outputs": outputs}


def _named_sites(plain: Mapping[str, Any]) -> list[str]:
    """Return the names of the sites that the state of a datamodule knows."""
    return [site for part in plain.values() if isinstance(part, Mapping) for site in part.get(SITES, [])]


def _data_class(config: str) -> str:
    """Return the name under which Lightning keeps the state of a datamodule."""
    return str(yaml.safe_load(config)["data"]["class_path"]).rpartition(".")[2]


def _json(content: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)}\n".encode()

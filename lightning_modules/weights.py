"""Bringing weights into an encoder: whose names are whose, how image channels are matched, and what is recorded.

Only the encoder is filled; a head belongs to its task.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from lightning_modules.ledger import Entry, Ledger, Status, TransferError, hash_tensors, share_filled
from lightning_modules.networks.encoder import Encoder
from lightning_modules.sources import Source

KeyMapName = Literal["auto", "sfcn", "medicalnet", "brainiac"]
KeyMap = KeyMapName | dict[str, str]

# Patterns at the start of a name, and what they become. What stands before the encoder's own names is found by itself.
NAMED_MAPS: dict[str, dict[str, str]] = {
    "sfcn": {r"(?:module\.)?feature_extractor\.conv_(\d+)\.": r"blocks.\1."},  # Peng et al., UKBiobank_deep_pretrain
    "medicalnet": {r"(?:module\.)?(?=(?:conv1|bn1|layer\d)\.)": ""},  # Chen et al., arXiv:1904.00625
    "brainiac": {r"(?:(?:module|model)\.)*backbone\.": ""},  # Tak et al., 3D ResNet-50 of MONAI
}
OWN = "network."  # what stands before a network's names in checkpoints and exports of ours
HEAD = "head."
HEADS = re.compile(
    r"(?:.*\.)?(?:head|fc|classifier|class_layers|conv_seg|decoder|projection_head|projector|predictor)\."
)
MAXIMUM_DEPTH = 4  # parts of a name that may stand before the encoder's own
ANOTHER = 0.05  # share of the parameters below which a source is of another architecture
SHOWN = 8  # names of each kind in a message


class Naming(NamedTuple):
    """Whose name is whose.

    Args:
        names: Name in the encoder -> name in the source.
        rule: How it was found.
    """

    names: dict[str, str]
    rule: str


def load_encoder(
    network: Encoder, source: Source, key_map: KeyMap, min_loaded: float, options: Mapping[str, Any]
) -> Ledger:
    """Fill an encoder from a source, or leave it as it is.

    Args:
        network: The network; its head stays.
        source: The weights.
        key_map: How the source's names become the network's.
        min_loaded: Share of the encoder's parameters that must be filled.
        options: What the ledger records of the transfer's configuration.

    Raises:
        TransferError: Less would be filled.
    """
    target = encoder_state(network)
    first = _first_weight(network)
    naming = find_names(source.tensors, target, key_map, first)
    filled, entries = _plan(network, source, target, naming, first)
    entries += _leftovers(source, naming)
    if share_filled(entries) < min_loaded:
        raise TransferError(_complaint(network, source, entries, min_loaded))
    network.load_state_dict(filled, strict=False)
    digest = hash_tensors(encoder_state(network))
    return Ledger(source.provenance, describe_network(network), options, naming.rule, entries, digest)


def encoder_state(network: Encoder) -> dict[str, Tensor]:
    """Return parameters and buffers of an encoder, without its head, by their names in the network."""
    return {name: value for name, value in network.state_dict().items() if not name.startswith(HEAD)}


def describe_network(network: Encoder) -> str:
    """Name a network: its class, the one it wraps, and its ends."""
    backbone = getattr(network, "backbone", None)
    inside = f" around {type(backbone).__name__}" if isinstance(backbone, nn.Module) else ""
    return f"{type(network).__name__}{inside} ({network.in_channels} image channels, {network.num_features} features)"


def inflate(weight: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Bring the weights of a first convolution (out, in, ...) to another number of image channels.

    From 1 to C channels each gets w / C: an image in all of them gives the activations that it gave in one. From C to 1
    the weights are summed: an image gives the activations that it gave in all of them.

    Returns:
        None where the shapes differ in more than one of these ways.
    """
    if len(shape) != weight.ndim or weight.shape[:1] + weight.shape[2:] != shape[:1] + shape[2:]:
        return None
    if weight.shape[1] == 1:
        return weight.expand(shape) / shape[1]
    return weight.sum(dim=1, keepdim=True) if shape[1] == 1 else None


def find_names(
    source: Mapping[str, Tensor], target: Mapping[str, Tensor], key_map: KeyMap, first: str | None = None
) -> Naming:
    """Find the tensor of a source for each of an encoder.

    A named map renames first; what stands before the names on either side (`module.`, `network.`, `backbone.`) is then
    found as what lets most values fit. Of a map that is given, every pattern is replaced once, at the start of a name,
    in order, and nothing is guessed.

    Args:
        source: Tensors under their names in the source.
        target: Tensors under their names in the encoder.
        key_map: Name of a map, or pattern -> replacement.
        first: Name of the weight whose number of channels may differ.

    Raises:
        TransferError: The map does not suit the source.
    """
    if isinstance(key_map, dict):
        renamed = rename(source, key_map)
        return Naming({name: renamed[name] for name in target if name in renamed}, f"given: {key_map}")
    if key_map != "auto" and not any(re.match(pattern, name) for pattern in NAMED_MAPS[key_map] for name in source):
        shown = ", ".join(list(source)[:SHOWN])
        raise TransferError(
            f"transfer.key_map is {key_map}, and no name in the source is of that kind (it has: {shown}). Use auto, or "
            "give patterns and what they become."
        )
    tried = {"auto": {}, "auto, sfcn": NAMED_MAPS["sfcn"]} if key_map == "auto" else {key_map: NAMED_MAPS[key_map]}
    best, best_score = Naming({}, key_map), (0, 0)
    for label, rules in tried.items():
        renamed = rename(source, rules)
        for before in _beginnings(renamed):
            for start in ("", *sorted({f"{name.partition('.')[0]}." for name in target})):
                names = {
                    start + name.removeprefix(before): old
                    for name, old in renamed.items()
                    if name.startswith(before) and start + name.removeprefix(before) in target
                }
                fitting = [
                    name for name, old in names.items() if _fit(source[old], target[name], name == first) is not None
                ]
                score = (sum(target[name].numel() for name in fitting), len(names))
                if score > best_score:  # of equals the shortest beginnings stay
                    best, best_score = Naming(names, f"{label}: {before}* became {start}*"), score
    return best


def rename(names: Mapping[str, Any], rules: Mapping[str, str]) -> dict[str, str]:
    r"""Apply patterns to the start of names, in order; return new -> old.

    Examples:
        >>> rename({"module.conv_0.bias": 0}, {"module.": "", r"conv_(\d)": r"blocks.\1"})
        {'blocks.0.bias': 'module.conv_0.bias'}
    """
    renamed: dict[str, str] = {}
    for old in names:
        new = old
        for pattern, replacement in rules.items():
            try:
                if match := re.match(pattern, new):
                    new = match.expand(replacement) + new[match.end() :]
            except re.error as error:
                raise TransferError(
                    f"transfer.key_map: {pattern!r} -> {replacement!r} does not work: {error}."
                ) from error
        if new in renamed:
            raise TransferError(f"transfer.key_map makes one name, {new}, of two: {renamed[new]} and {old}.")
        renamed[new] = old
    return renamed


def _beginnings(names: Mapping[str, Any]) -> list[str]:
    """Return what may stand before the encoder's own names, the shortest first."""
    found = {""}
    for name in names:
        parts = name.split(".")
        found |= {".".join(parts[:depth]) + "." for depth in range(1, min(len(parts), MAXIMUM_DEPTH + 1))}
    return sorted(found, key=lambda beginning: (len(beginning), beginning))


def _first_weight(network: Encoder) -> str | None:
    """Return the name of the convolution that sees the image, None where the first layers have none."""
    names = {module: name for name, module in network.named_modules()}
    for module in network.stages()[0].modules():
        if isinstance(module, nn.modules.conv._ConvNd) and module.weight.shape[1] == network.in_channels:
            return f"{names[module]}.weight"
    return None


def _fit(tensor: Tensor, wanted: Tensor, is_first: bool) -> Tensor | None:
    """Return a tensor in the shape that is wanted, None where it cannot have it."""
    if tensor.shape == wanted.shape:
        return tensor
    return inflate(tensor, tuple(wanted.shape)) if is_first else None


def _plan(
    network: Encoder, source: Source, target: Mapping[str, Tensor], naming: Naming, first: str | None
) -> tuple[dict[str, Tensor], tuple[Entry, ...]]:
    """Return the tensors to fill in, and what becomes of every tensor of the encoder."""
    parameters = {name for name, _ in network.named_parameters()}
    filled: dict[str, Tensor] = {}
    entries = []
    for name, wanted in target.items():
        old = naming.names.get(name)
        there = None if old is None else source.tensors[old]
        value = None if there is None else _fit(there, wanted, name == first)
        status: Status
        if there is None:
            status = "zeroed" if _lost_bias(network, name, naming) else "missing"
            value = wanted.new_zeros(wanted.shape) if status == "zeroed" else None
        elif value is None:
            status = "shape"
        else:
            status = "loaded" if value.shape == there.shape else "inflated"
        if value is not None:
            filled[name] = value
        entries.append(
            Entry(
                name,
                status,
                wanted.numel(),
                name in parameters,
                old or "",
                tuple(wanted.shape),
                () if there is None else tuple(there.shape),
            )
        )
    return filled, tuple(entries)


def _lost_bias(network: Encoder, name: str, naming: Naming) -> bool:
    """Return whether a tensor is the bias of a layer that computes without one in the source: 0 is the same."""
    layer, _, kind = name.rpartition(".")
    linear = isinstance(network.get_submodule(layer), nn.modules.conv._ConvNd | nn.Linear)
    return kind == "bias" and linear and f"{layer}.weight" in naming.names


def _leftovers(source: Source, naming: Naming) -> tuple[Entry, ...]:
    """Return what becomes of the tensors of the source that have no place in the encoder."""
    taken = set(naming.names.values())
    is_ours = source.provenance.kind != "foreign"
    entries = []
    for name, tensor in source.tensors.items():
        if name in taken:
            continue
        of_task = is_ours and not name.startswith(OWN)
        status: Status = "excluded" if of_task or HEADS.match(name) else "unexpected"
        entries.append(Entry(name, status, source=name, source_shape=tuple(tensor.shape)))
    return tuple(entries)


def _complaint(network: Encoder, source: Source, entries: tuple[Entry, ...], min_loaded: float) -> str:
    share = share_filled(entries)
    here, there = describe_network(network), source.provenance.network
    if share < ANOTHER:
        first = ", ".join(list(source.tensors)[:3])
        theirs = f"an unknown network (its first names: {first})" if there == "unknown" else there
        return (
            f"{source.path} is of another architecture or size: it holds {theirs}, this model's network is {here}, and "
            f"{share:.1%} of its encoder fit. {_reason(entries, 'shape')}Configure the network that the weights are "
            "from, or set transfer.key_map."
        )
    enough = f"{math.floor(share * 100) / 100:g}"
    reasons = [_reason(entries, status) for status in ("missing", "shape", "unexpected")]
    return (
        f"{source.path} fills {share:.1%} of the encoder's parameters ({here}; the source: {there}), and "
        f"transfer.min_loaded asks for {min_loaded:.0%}. {''.join(reasons)}Configure the network that the weights are "
        f"from, set transfer.key_map, or accept it with --model.transfer.min_loaded {enough}."
    )


def _reason(entries: tuple[Entry, ...], status: Status) -> str:
    """List the tensors of one status, the largest first."""
    chosen = [entry for entry in entries if entry.status == status and (entry.is_parameter or status == "unexpected")]
    if not chosen:
        return ""
    chosen.sort(key=lambda entry: -entry.num_values)
    more = len(chosen) - SHOWN
    shown = "; ".join(map(str, chosen[:SHOWN])) + (f"; and {more} more" if more > 0 else "")
    what = {"missing": "Missing in the source", "shape": "Of another shape", "unexpected": "Without a place here"}
    return f"{what[status]} ({len(chosen)}): {shown}. "

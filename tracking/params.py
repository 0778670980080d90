"""A nested configuration as the flat, short, secret-free parameters that MLflow shows."""

import json
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tracking.paths import hide_paths
from tracking.redaction import redact

MAXIMUM_PARAM = 6000  # characters that MLflow keeps of a value
MAXIMUM_NAME = 250  # characters of a name
_SKIPPED = {"_instantiator"}  # jsonargparse's own note to itself
_FOREIGN = re.compile(r"[^\w. :/-]")


def flatten_params(config: Mapping[str, Any] | Namespace) -> dict[str, str]:
    """Return a configuration as parameters by dotted name.

    `.init_args` is left out of names, lists of sections are numbered, numbers stay plain, every other value that is
    not a string is written as JSON. Secrets are redacted, and folders hidden. A value longer than MLflow keeps is cut
    and says so.

    Args:
        config: Nested configuration, such as a parsed `config.yaml`.

    Examples:
        >>> flatten_params({"model": {"class_path": "SFCN", "init_args": {"width": 32, "lr": 1e-4, "mask": None}}})
        {'model.class_path': 'SFCN', 'model.width': '32', 'model.lr': '0.0001', 'model.mask': 'null'}
        >>> flatten_params({"trainer": {"callbacks": [{"class_path": "Stop"}], "shape": [32, 40, 32], "resume": True}})
        {'trainer.callbacks.0.class_path': 'Stop', 'trainer.shape': '[32, 40, 32]', 'trainer.resume': 'true'}
    """
    return {valid_name(name): _text(value) for name, value in _leaves(hide_paths(redact(_plain(config))), "")}


def valid_name(name: str) -> str:
    """Return a name as MLflow takes it for parameters and metrics.

    Examples:
        >>> valid_name("val/mae@5 years (raw)")
        'val/mae_5 years _raw_'
    """
    parts = [part for part in _FOREIGN.sub("_", name).split("/") if part not in {"", ".", ".."}]
    return "/".join(parts)[:MAXIMUM_NAME] or "_"


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever a configuration holds
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if key not in _SKIPPED}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = prefix.rstrip(".") if key == "init_args" and prefix else f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            yield from _leaves({f"{name}.{index}": item for index, item in enumerate(value)}, "")
        elif key != "init_args" or value:
            yield name, value


def _text(value: Any) -> str:  # noqa: ANN401 - whatever a configuration holds
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    if len(text) <= MAXIMUM_PARAM:
        return text
    note = f" ... [cut: {len(text)} characters, whole in config.yaml]"
    return text[: MAXIMUM_PARAM - len(note)] + note

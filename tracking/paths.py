"""Folders of this machine, which may be called after people, taken out of all that a run leaves.

A path that a configuration holds is written as `<path>/cohort.tsv`, the path of a folder as `<path>`. What they stand
for is kept in the run's folder, in `paths.json`, which is no artifact: checkpoints are read with it on this machine.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tracking.files import read_json, write_json

PATHS = "paths.json"  # in a run's folder
HIDDEN = "<path>"
_BEGINNINGS = ("/", "~", "./", "../")


def hide_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested values in which no path says what folders it leads through.

    A text is a path if it begins like one, or has a slash and is there. Files keep their own names.

    Args:
        values: Mapping of names to JSON types, nested as deep as need be.

    Examples:
        >>> hide_paths({"data": {"table": "/wards/Ann Example/cohort.tsv", "cache": "../cache", "unit": "mm2/s"}})
        {'data': {'table': '<path>/cohort.tsv', 'cache': '<path>', 'unit': 'mm2/s'}}
    """
    return {key: _hide(value) for key, value in values.items()}


def hide_paths_yaml(text: str) -> str:
    """Return a YAML document without paths; one that holds none stays as it is."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if not isinstance(values, Mapping):
        return text
    hidden = hide_paths(values)
    return text if hidden == values else yaml.safe_dump(hidden, sort_keys=False)


def keep_paths(folder: Path, config: str) -> None:
    """Keep the paths of a configuration (YAML) in the folder of its run."""
    values = yaml.safe_load(config) or {}
    write_json(folder / PATHS, {name: text for name, text in _texts(values, "") if _is_path(text)})


def restore_paths(config: str, folder: Path) -> str:
    """Return a configuration (YAML) with the paths that the folder of its run knows; others stay hidden."""
    if HIDDEN not in config or not (folder / PATHS).is_file():
        return config
    values = _restored(yaml.safe_load(config), read_json(folder / PATHS), "")
    return yaml.safe_dump(values, sort_keys=False)


def without_hidden(config: str) -> str:
    """Return a configuration (YAML) without the paths that nobody here knows: their defaults hold, or they are missed.

    Examples:
        >>> print(without_hidden("data: {table: <path>/cohort.tsv, cache: <path>, batch_size: 4}"), end="")
        data:
          batch_size: 4
    """
    return config if HIDDEN not in config else yaml.safe_dump(_without(yaml.safe_load(config)), sort_keys=False)


def _hide(value: Any) -> Any:  # noqa: ANN401 - any JSON type in, the same shape out
    if isinstance(value, Mapping):
        return {key: _hide(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hide(item) for item in value]
    if not isinstance(value, str) or not _is_path(value):
        return value
    path = Path(value)
    return f"{HIDDEN}/{path.name}" if path.suffix and not path.is_dir() else HIDDEN


def _is_path(text: str) -> bool:
    if "\n" in text or "://" in text or "/" not in text:
        return False
    try:
        return text.startswith(_BEGINNINGS) or Path(text).exists()
    except OSError:  # too long for the name of a file
        return False


def _texts(value: Any, name: str) -> list[tuple[str, str]]:  # noqa: ANN401 - any JSON type
    if isinstance(value, str):
        return [(name, value)]
    return [found for key, item in _items(value) for found in _texts(item, f"{name}.{key}".lstrip("."))]


def _restored(value: Any, paths: Mapping[str, str], name: str) -> Any:  # noqa: ANN401 - any JSON type
    if isinstance(value, Mapping):
        return {key: _restored(item, paths, f"{name}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item, paths, f"{name}.{key}".lstrip(".")) for key, item in enumerate(value)]
    return paths.get(name, value) if _is_hidden(value) else value


def _without(value: Any) -> Any:  # noqa: ANN401 - any JSON type
    if isinstance(value, Mapping):
        return {key: _without(item) for key, item in value.items() if not _is_hidden(item)}
    return [_without(item) for item in value if not _is_hidden(item)] if isinstance(value, list) else value


def _is_hidden(value: Any) -> bool:  # noqa: ANN401 - any JSON type
    return isinstance(value, str) and value.startswith(HIDDEN)


def _items(value: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401 - any JSON type
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []

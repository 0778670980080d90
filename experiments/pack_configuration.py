"""The part of a run's configuration that a prediction elsewhere needs, and nothing that says where it is from."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml

from tracking.packs import PackError

# A network or transform needs no more of torch and MONAI than these, and a class from elsewhere is somebody's code.
KNOWN_CODE = ("lightning_modules.", "datamodules.", "torch.nn.", "torch.optim.", "torchio.", "monai.", "timm.")
TABLE = "cohort.tsv"  # stands where the training table stood; a prediction has one of its own
TRAINER = ("accelerator", "precision", "deterministic", "benchmark", "inference_mode")
OPTIMIZER = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.001}}  # nothing is trained, and one is required
RESET: dict[str, dict[str, Any]] = {
    "model": {"optimizer": OPTIMIZER, "scheduler": None, "transfer": None},
    "network": {"pretrained": False, "weights": None},  # the pack has the weights
    "data": {
        "table": TABLE,
        "root": None,
        "rows": None,
        "torchio_transforms": None,
        "num_workers": 0,
        "held_out_sites": None,
        "group_by": None,
        "stratify_by": None,
        "split_file": None,
        "cache": None,
        "permute_targets": False,
        "allow_unverified": False,
    },
}
COLUMNS = ("images", "mask", "target", "targets", "covariates", "harmonise_covariates")  # names of columns, never code
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_METRIC = re.compile(r"(train|val|test)(/[\w-]+){1,2}")
_PLACE = re.compile(r"[/\\]|^~|^[A-Za-z]:")


def portable(config: str, num_threads: int) -> str:
    """Return a configuration without tables, folders, sites, pretrained sources and what concerns training alone.

    Args:
        config: The resolved configuration of a run, or that of a pack, which stays as it is.
        num_threads: Threads that the run computed with.

    Raises:
        PackError: It is no configuration, or names a file or folder that would not be there elsewhere.
    """
    values = _read(config)
    trainer: Any = values.get("trainer")
    trainer = trainer if isinstance(trainer, Mapping) else {}
    kept: dict[str, Any] = {
        "seed_everything": values.get("seed_everything"),
        "trainer": {name: trainer[name] for name in TRAINER if trainer.get(name) is not None},
        "model": _section(values, "model"),
        "data": _section(values, "data"),
        "ckpt_path": None,
        "num_threads": num_threads,
    }
    if kept["trainer"].get("accelerator") not in (None, "cpu"):
        kept["trainer"]["accelerator"] = "auto"  # what there is elsewhere
    arguments = {name: kept[name]["init_args"] for name in ("model", "data")}
    network = arguments["model"].get("network")
    if isinstance(network, Mapping) and isinstance(network.get("init_args"), dict):
        arguments["network"] = network["init_args"]
    for section, section_arguments in arguments.items():
        section_arguments |= {name: value for name, value in RESET[section].items() if name in section_arguments}
    if places := [f"{key} ({value})" for key, value in _strings(kept) if _is_place(key, value)]:
        raise PackError(
            f"The configuration names what is on one machine only: {', '.join(places)}. A pack holds no paths: give "
            "the class that needs them their content in another way, such as a buffer in the weights."
        )
    return yaml.safe_dump(kept, sort_keys=False)


def foreign_classes(config: str) -> list[str]:
    """Return the names of classes and functions that are not Fontanel's, torch's, torchio's, MONAI's or timm's."""
    found = set()
    for key, value in _strings(_read(config)):
        *_, last = key.split(".")
        is_name = last == "class_path" or (_DOTTED.fullmatch(value) and not _is_column(key) and not _is_timm_name(key))
        if is_name and value != TABLE and not value.startswith(KNOWN_CODE):
            found.add(value)
    return sorted(found)


def require_nobody(config: str, names: Collection[str]) -> None:
    """Refuse a configuration in which a site, a dataset or a participant is named.

    Args:
        config: As `portable` returns it.
        names: Whom the run knows.

    Raises:
        PackError: With the arguments that name somebody.
    """
    parts = {name: _section(_read(config), name)["init_args"] for name in ("model", "data")}
    found = [f"{key} ({value})" for key, value in _strings(parts) if value in names and not _is_named_column(key)]
    if found:
        raise PackError(
            f"The configuration names sites, datasets or participants of the run: {', '.join(found)}. A pack names "
            "none; leave these arguments out of the class that takes them."
        )


def _read(config: str) -> dict[str, Any]:
    """Return the values of a configuration; aliases, by which a short text becomes an endless one, are refused."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(config, yaml.SafeLoader)):
            raise PackError("The configuration of a pack has no YAML aliases, and this one does.")
        values = yaml.safe_load(config)
    except (yaml.YAMLError, RecursionError) as error:
        raise PackError(f"The configuration does not read as YAML ({type(error).__name__}).") from error
    if not isinstance(values, dict):
        raise PackError("The configuration holds no sections.")
    return values


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = values.get(name)
    if not isinstance(section, dict) or not isinstance(section.get("class_path"), str):
        raise PackError(f"The configuration does not say which class {name} is.")
    return {"class_path": section["class_path"], "init_args": dict(section.get("init_args") or {})}


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any part of a YAML file
    """Yield every text of nested values, names of entries included, with where it stands."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield key, str(name)
            yield from _strings(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, str):
        yield key, value


def _is_column(key: str) -> bool:
    return key.rpartition(".init_args.")[2] in COLUMNS and key.count(".") == 2


def _is_named_column(key: str) -> bool:
    return key.partition(".")[2] in COLUMNS


def _is_timm_name(key: str) -> bool:
    return key.endswith(".network.init_args.name")  # `resnet18.a1_in1k`


def _is_place(key: str, value: str) -> bool:
    if key.endswith(".monitor") and _METRIC.fullmatch(value):
        return False
    return not _is_column(key) and _PLACE.search(value) is not None

"""A study file: one fit file, a protocol, and the arms that are compared on the same participants.

A study of a fit file `finetune.yaml` beside it:

    base: finetune.yaml
    protocol: cross-site
    primary_metric: auroc
    arms:
      scratch: {}
      scratch-again: {seed_offset: 1000}          # the noise: scratch once more, from other initial weights
      pretrained: {model.transfer.source: RUN}    # any argument of a fit file
      lesion-burden: {baseline: [lesion_ml]}      # a logistic (or ridge) regression on columns of the table
    num_folds: 5
    num_repeats: 5
    num_seeds: 3
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from datamodules.protocols import PROTOCOLS
from experiments.runtime import ConfigurationError

Value = TypeVar("Value")
BASELINE, SEED_OFFSET = "baseline", "seed_offset"
TRANSFER = "model.transfer."
SOURCE = f"{TRANSFER}source"
REFERENCE = "scratch"  # the arm that gains are measured against


@dataclass(frozen=True)
class Arm:
    """One way of getting predictions for the same test participants.

    Args:
        name: Its name.
        arguments: Arguments of the fit file by dotted name.
        baseline: Columns of the table that a regression without images uses; empty for a network.
        seed_offset: Added to every seed of the arm.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    baseline: tuple[str, ...] = ()
    seed_offset: int = 0

    @property
    def source(self) -> str | None:
        """Where its pretrained weights come from, None without a transfer."""
        return self.arguments.get(SOURCE)

    @property
    def awaits_source(self) -> bool:
        """Whether it transfers, and nobody has said yet from where."""
        return self.source is None and any(name.startswith(TRANSFER) for name in self.arguments)

    def words(self) -> list[str]:
        """Return its arguments as words of a command line."""
        return as_words(self.arguments)

    def definition(self) -> dict[str, Any]:
        """Return what a lock remembers of it."""
        return {**self.arguments, BASELINE: list(self.baseline), SEED_OFFSET: self.seed_offset}


@dataclass(frozen=True)
class Study:
    """What a study file says.

    Args:
        name: Folder and name of the file: the MLflow experiment.
        base: The fit file that every arm starts from.
        protocol: Who trains for whom; see `datamodules.protocols`.
        arms: What is compared.
        num_folds: Folds of every site.
        num_repeats: How often the folds (cross-site: the validation part) are drawn anew.
        num_seeds: Trainings of every cell and arm, from different initial weights.
        primary_metric: The metric that decides, declared before the first test score; that of the task by default.
        match_train_size: Train on equally many participants under same-site, multi-site and cross-site.
        label_fractions: Shares of the training participants to train on; one arm each, named `ARM@SHARE`.
        max_train_per_site: Most participants of a site that a training uses.
        val_fraction: Share of a training that chooses the model; that of the fit file by default.
        external_sites: Sites that the protocol `external` tests.
        num_inner_folds: Folds within each training that choose threshold, temperature and number of epochs; 0 takes
            them from the validation part.
        tune: What each training chooses from, and how long; see `experiments.tuning`. Baselines have nothing to choose.
        slurm: What each job needs of a cluster, by the names of `sbatch`; see `experiments.slurm`.
    """

    name: str
    base: Path
    protocol: str
    arms: tuple[Arm, ...]
    num_folds: int = 5
    num_repeats: int = 1
    num_seeds: int = 1
    primary_metric: str | None = None
    match_train_size: bool = False
    label_fractions: tuple[float, ...] = (1.0,)
    max_train_per_site: int | None = None
    val_fraction: float | None = None
    external_sites: tuple[str, ...] = ()
    num_inner_folds: int = 0
    tune: Mapping[str, Any] = field(default_factory=dict)
    slurm: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ConfigurationError(f"There is no protocol '{self.protocol}'.{closest(self.protocol, PROTOCOLS)}")
        if not self.arms:
            raise ConfigurationError(f"{self.name} has no arm to run. List some under `arms`, or name some in --arms.")
        if self.num_seeds < 1:
            raise ConfigurationError(f"num_seeds is {self.num_seeds}; one training at least is needed.")

    def require_sources(self) -> None:
        """Refuse an arm that transfers from nowhere: it would be another scratch."""
        for arm in self.arms:
            if arm.awaits_source:
                raise ConfigurationError(
                    f"The arm {arm.name} has no pretrained weights. Name them: --pretrained {arm.name}=RUN (a run, a "
                    "registered model or a file), or leave the arm out with --arms."
                )

    def without_awaited(self) -> "Study":
        """Return the study with arms that still await pretrained weights as trained from scratch: they cost as much."""
        arms = (
            replace(arm, arguments={n: v for n, v in arm.arguments.items() if not n.startswith(TRANSFER)})
            if arm.awaits_source
            else arm
            for arm in self.arms
        )
        return replace(self, arms=tuple(arms))

    def choose(self, names: Sequence[str] | None) -> "Study":
        """Return the study with some of its arms, in the order named."""
        if names is None:
            return self
        known = {arm.name: arm for arm in self.arms}
        for name in names:
            if name not in known:
                raise ConfigurationError(f"The study {self.name} has no arm '{name}'.{closest(name, known)}")
        return replace(self, arms=tuple(known[name] for name in names))

    def pretrain(self, sources: Mapping[str, str]) -> "Study":
        """Return the study with the pretrained weights of some arms; an arm that it does not have is added."""
        known = {arm.name: arm for arm in self.arms}
        for name, source in sources.items():
            arm = known.get(name, Arm(name))
            if arm.baseline:
                raise ConfigurationError(f"The arm {name} is a baseline without a network, and takes no --pretrained.")
            known[name] = replace(arm, arguments={**arm.arguments, SOURCE: source})
        return replace(self, arms=tuple(known.values()))


def read_study(path: Path) -> Study:
    """Read a study file, or a fit file as a study of one arm.

    Raises:
        ConfigurationError: It is neither, or has keys that no study has; says which were probably meant.
    """
    content = read_mapping(path)
    name = f"{path.resolve().parent.name}/{path.stem}"
    if "base" not in content:
        if "model" not in content:
            raise ConfigurationError(f"{path} is neither a study file (no `base`) nor a fit file (no `model`).")
        return Study(name, path.resolve(), "k-fold", (Arm(REFERENCE),))
    base = checked_base(path, content, Study)
    del content["base"]
    listed = content.pop("arms", None) or {REFERENCE: {}}
    arms = tuple(_arm(str(key), value or {}, path) for key, value in listed.items())
    values: dict[str, Any] = {"protocol": "k-fold", **content}
    values |= {key: tuple(content[key]) for key in ("label_fractions", "external_sites") if key in content}
    return Study(name, base, arms=arms, **values)


def read_mapping(path: Path) -> dict[str, Any]:
    """Return what a YAML file says.

    Raises:
        ConfigurationError: It is not there, or holds something else than keys and values.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"There is no file {path}.") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} holds no keys; a configuration has some.")
    return content


def checked_base(path: Path, content: Mapping[str, Any], kind: type) -> Path:
    """Return the file that a study, or a sweep, starts from.

    Args:
        path: The file of the study or sweep.
        content: What it says.
        kind: Dataclass that the file is read as; its fields, but for the name, are the keys that the file may have.

    Raises:
        ConfigurationError: The file has other keys (says which were probably meant), or starts from nowhere.
    """
    allowed = [item.name for item in fields(kind) if item.name != "name"]
    for key in content:
        if key not in allowed:
            what = kind.__name__.lower()
            raise ConfigurationError(f"{path} has the key '{key}', which no {what} has.{closest(str(key), allowed)}")
    base = (path.resolve().parent / str(content["base"])).resolve()
    if not base.is_file():
        raise ConfigurationError(f"{path} starts from {base}, which is not there. Mend `base`.")
    return base


def _arm(name: str, values: Mapping[str, Any], path: Path) -> Arm:
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{path}: the arm {name} is not a mapping of arguments, such as {{model.x: 1}}.")
    if "@" in name:
        raise ConfigurationError(f"{path}: the name of the arm {name} must not hold '@', which marks label fractions.")
    arguments = {str(key): value for key, value in values.items() if key not in (BASELINE, SEED_OFFSET)}
    baseline = tuple(map(str, values.get(BASELINE, ())))
    if baseline and arguments:
        raise ConfigurationError(f"{path}: the arm {name} is a baseline and takes no {', '.join(arguments)}.")
    return Arm(name, arguments, baseline, int(values.get(SEED_OFFSET, 0)))


def as_word(value: object) -> str:
    """Return a value of YAML as the word that a command line reads as the same value."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def as_words(arguments: Mapping[str, Any]) -> list[str]:
    """Return arguments by dotted name as words of a command line."""
    return [word for name, value in arguments.items() for word in (f"--{name}", as_word(value))]


def closest(name: str, known: Sequence[str] | Mapping[str, object]) -> str:
    """Return the end of an error: what was probably meant, and what there is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"{hint} There are: {', '.join(known)}."

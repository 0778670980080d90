"""Who has been seen before: what a pretraining was trained on, against a cohort that is to be tested.

Trainings that start from pretrained weights refuse such a cohort (`require_disjoint`); `fontanel audit` says more.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from datamodules.base import BaseDataModule
from datamodules.cohort import Cohort, participant_key
from datamodules.inspection import inspect_image
from datamodules.schema import Column
from datamodules.verify import Limits, check_manifest
from evaluation.parts import SCORED
from tracking.checkpoints import CheckpointError
from tracking.contract import CheckpointContract, find_checkpoint, read_contract

SEEN_PARTS = ("train", "val")  # the validation part has chosen the weights
TESTED_PARTS = SCORED  # of a training with one split; in a cross-validation everybody is tested
MAXIMUM_NAMES = 5  # participants that a message names
OVERLAP_ADVICE = (
    "Pretrain again without them, or take them out of the table that is tested. If they are other people under the "
    "same names, give the table another file name or a `dataset` column."
)


class LeakageError(ValueError):
    """Participants who are to be tested were seen in training; says who and what to do."""


@dataclass(frozen=True)
class Pretraining:
    """Where pretrained weights come from.

    Args:
        name: What messages call it.
        contracts: What its checkpoint says of itself, then what the checkpoints say that it started from.
        gap: Why that is not the whole story; empty where it is.
    """

    name: str
    contracts: tuple[CheckpointContract, ...]
    gap: str = ""


@dataclass(frozen=True)
class Overlap:
    """Whom a cohort shares with a pretraining.

    Args:
        participants: Keys (`dataset/participant_id`) that the pretraining has under the same name, sorted.
        images: Key of every participant with a file that the pretraining has seen, under whatever name, and the files.
    """

    participants: tuple[str, ...]
    images: Mapping[str, tuple[str, ...]]

    @property
    def keys(self) -> tuple[str, ...]:
        """Everybody who is shared, sorted."""
        return tuple(sorted({*self.participants, *self.images}))


@dataclass(frozen=True)
class FileCell:
    """One file of one row of a cohort table.

    Args:
        key: The participant, `dataset/participant_id`.
        image_id: The row, unique within a dataset.
        column: The column that names the file.
        path: As the table names it.
    """

    key: str
    image_id: str
    column: Column
    path: str


def read_pretraining(
    reference: str | Path, *, name: str | None = None, locate: Callable[[str], Path] = Path
) -> Pretraining:
    """Follow pretrained weights back to everything they were trained on.

    Args:
        reference: A checkpoint, a run's folder, or what else `locate` knows.
        name: What messages call it; the reference by default.
        locate: Finds the file or folder that a reference stands for.

    Raises:
        CheckpointError: There is no such file.
    """

    def find(wanted: str) -> Path:
        checkpoint = find_checkpoint(locate(wanted))
        if not checkpoint.is_file():
            raise CheckpointError(f"There is no checkpoint {checkpoint}. Give a file, the folder of a run, or its id.")
        return checkpoint

    contracts: list[CheckpointContract] = []
    gaps: list[str] = []
    waiting = [find(str(reference))]
    while waiting:
        path = waiting.pop()
        try:
            contract = read_contract(path)
        except CheckpointError as error:
            weights_alone = f"{path} holds weights alone. Name the run that they are from, or its best.ckpt."
            gaps.append(weights_alone if path.suffix == ".safetensors" else str(error))
            continue
        if any(contract.run_id == known.run_id for known in contracts):
            continue
        contracts.append(contract)
        gaps += _omissions(contract)
        for source in starting_points(contract.config):
            try:
                waiting.append(find(source))
            except (ValueError, OSError) as error:
                gaps.append(f"{contract.run_name} started from {source}, which was not found: {error}")
    return Pretraining(name or str(reference), tuple(contracts), " ".join(gaps))


def starting_points(config: str) -> list[str]:
    """Return the checkpoints that a resolved configuration (YAML) starts its training from.

    >>> starting_points("model: {init_args: {transfer: {source: first.ckpt}}}")
    ['first.ckpt']
    >>> starting_points("model: {init_args: {transfer: null}}")
    []
    """
    values = yaml.safe_load(config) or {}
    transfer = section_arguments(section_arguments(values.get("model")).get("transfer"))
    return [str(source) for source in (transfer.get("source"), values.get("ckpt_path")) if source]


def section_arguments(section: Any) -> Mapping[str, Any]:  # noqa: ANN401 - a part of a YAML file
    """Return the arguments of a section, which stand below `init_args` where it names a class."""
    if not isinstance(section, Mapping):
        return {}
    inner = section.get("init_args", section)
    return inner if isinstance(inner, Mapping) else {}


def seen_participants(contract: CheckpointContract) -> frozenset[str]:
    """Return the keys of everybody whom the weights, or their choice, have seen."""
    parts = contract.split.get("parts", {})
    return frozenset(key for part in SEEN_PARTS for keys in parts.get(part, {}).values() for key in keys)


def file_cells(cohort: Cohort) -> Iterator[FileCell]:
    """Yield every file of every row: images, masks and label maps, whether the model reads them or not."""
    columns = [column for column in cohort.schema.columns if column.kind == "path" and column.name in cohort.frame]
    for row in cohort.frame.to_dict("records"):
        key = participant_key(row["dataset"], row["participant_id"])
        for column in columns:
            if row[column.name]:
                yield FileCell(key, row["image_id"], column, row[column.name])


def pretraining_overlap(
    contract: CheckpointContract, datamodule: BaseDataModule, parts: Collection[str] | None = None
) -> Overlap:
    """Find the participants of a cohort whom a pretraining has seen, by name and by the content of any of their files.

    Args:
        contract: What the pretrained checkpoint says of itself.
        datamodule: The cohort; it is read.
        parts: Splits whose participants are tested (they are assigned); everybody by default.
    """
    datamodule.read()
    if parts is not None:
        datamodule.assign_splits()
    tested = {
        participant_key(sample.dataset, sample.participant_id)
        for sample in datamodule.samples
        if parts is None or sample.split in parts
    }
    seen_images = frozenset(contract.training_images)
    images: dict[str, list[str]] = {}
    for cohort in datamodule.cohorts:
        hashes_of = _hash_lookup(datamodule, cohort)
        for cell in file_cells(cohort):
            if cell.key in tested and seen_images and seen_images.intersection(hashes_of(cell.path)):
                images.setdefault(cell.key, []).append(cell.path)
    found = {key: tuple(dict.fromkeys(paths)) for key, paths in sorted(images.items())}
    return Overlap(tuple(sorted(tested & seen_participants(contract))), found)


def require_disjoint(
    pretraining: Pretraining | CheckpointContract, datamodule: BaseDataModule, parts: Collection[str] | None = None
) -> None:
    """Refuse to train and test on participants whom the pretraining has seen.

    What a foreign checkpoint was trained on is unknown and passes; `Pretraining.gap` says so.

    Args:
        pretraining: Where the weights come from.
        datamodule: The cohort; it is read.
        parts: Splits whose participants are tested, `TESTED_PARTS` of a single training; everybody by default.

    Raises:
        LeakageError: With some of the participants, and what to do.
    """
    if isinstance(pretraining, CheckpointContract):
        pretraining = Pretraining(pretraining.run_name, (pretraining,))
    for contract in pretraining.contracts:
        overlap = pretraining_overlap(contract, datamodule, parts)
        if overlap.keys:
            raise LeakageError(f"{describe_overlap(overlap, pretraining.name, contract)} {OVERLAP_ADVICE}")


def describe_overlap(overlap: Overlap, name: str, contract: CheckpointContract) -> str:
    """Return one sentence that names some of the participants and says how they were recognised."""
    own = "" if contract.run_name == name else f" (run {contract.run_name})"
    people = "1 participant" if len(overlap.keys) == 1 else f"{len(overlap.keys)} participants"
    said = [_how(overlap, key) for key in overlap.keys[:MAXIMUM_NAMES]]
    more = f" and {len(overlap.keys) - MAXIMUM_NAMES} more" if len(overlap.keys) > MAXIMUM_NAMES else ""
    return f"The pretraining {name}{own} has seen {people} who would be tested: {', '.join(said)}{more}."


def _how(overlap: Overlap, key: str) -> str:
    if key not in overlap.images:
        return key
    how = "" if key in overlap.participants else " under another name"
    return f"{key} (image {overlap.images[key][0]}{how})"


def _omissions(contract: CheckpointContract) -> list[str]:
    found = []
    if not seen_participants(contract):
        found.append(f"{contract.run_name} does not record who it was trained on.")
    if not contract.training_images:
        found.append(f"{contract.run_name} does not record the hashes of its images.")
    return found


def _hash_lookup(datamodule: BaseDataModule, cohort: Cohort) -> Callable[[str], frozenset[str]]:
    """Return a function from a path in the table to the hashes that a training may have recorded for its content."""
    verified = {} if datamodule.allow_unverified else check_manifest(cohort).files

    def hashes_of(path: str) -> frozenset[str]:
        facts, file = verified.get(path), cohort.resolve(path)
        if facts is not None and not file.is_dir():
            return frozenset({facts.sha256})
        if not file.exists():
            return frozenset()
        # A folder has one hash in a manifest and another in the cache: either may have been recorded.
        series = facts or (inspect_image(file, cohort.root, Limits()).facts if file.is_dir() else None)
        return frozenset({datamodule.cache.content_hash(file), *([series.sha256] if series else [])})

    return hashes_of

"""What `fontanel audit` looks at: rows and files of a cohort, cheap features of its images, a pretraining's cohort."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from datamodules.base import BaseDataModule
from datamodules.cohort import Cohort, CohortError, participant_key, participant_keys, read_cohort, stack_rows
from datamodules.inspection import FileFacts
from datamodules.preprocessing import read_volume
from datamodules.protocols import UNUSED, plan_cells
from datamodules.verify import check_manifest, verify_cohort
from evaluation.estimate import FloatArray
from evaluation.leakage import histogram_quantiles
from experiments.leakage import file_cells, section_arguments, seen_participants
from experiments.study import Study
from experiments.workplan import design_of
from tracking.contract import CheckpointContract
from tracking.progress import progress

IDENTITY_SUFFIX = "_id"  # of group columns that name an anatomy or a family; others, such as sex, tie nobody
AXES = ("i", "j", "k")
FILE_SIZE = "log size"  # ends the name of the one fact that depends on the voxels: how well they compress
MAXIMUM_VOLUMES = 8  # that are opened to see whether heads are stripped
STRIPPED_BORDER = 0.98  # share of the outer faces with one value; 0.79-0.91 in whole heads with zeroed air
STRIPPED_VOLUME = 0.5  # share of all voxels with that value; 0.67-0.93 around stripped brains


@dataclass(frozen=True, eq=False)
class CohortFacts:
    """A cohort as an audit sees it.

    Args:
        rows: One row per image set: `key`, `image_id`, `site`, targets and identity columns.
        files: One row per file: `row` (index of `rows`), `key`, `column`, `role`, `path`, and the facts of a manifest.
        divisions: Part of each row, "" where it is not used: one for the split of a fit file, one for each fold of a
            protocol.
        identities: Group columns that name an anatomy, a family or the like.
    """

    rows: pd.DataFrame
    files: pd.DataFrame
    divisions: tuple[pd.Series, ...]
    identities: tuple[str, ...]

    def participants(self) -> pd.DataFrame:
        """Return one row for each participant: the first of the table."""
        return self.rows.drop_duplicates("key")

    def headers(self, people: pd.DataFrame) -> pd.DataFrame:
        """Return what the headers of the images of some rows say, before any voxel is read: one column a fact."""
        facts = pd.DataFrame(index=people.index)
        for name, files in self.files[self.files["role"] == "image"].groupby("column"):
            own = files.set_index("row")
            for position, axis in enumerate(AXES):
                for kind in ("spacing", "shape"):
                    values = [value[position] if position < len(value) else np.nan for value in own[kind]]
                    facts[f"{name} {kind} {axis}"] = pd.Series(values, own.index, np.float64)
            for kind in ("orientation", "dtype"):
                facts[f"{name} {kind}"] = own[kind]
            facts[f"{name} {FILE_SIZE}"] = np.log(own["size"].astype(np.float64))
        return facts


def gather(datamodule: BaseDataModule, study: Study | None) -> CohortFacts:
    """Read a cohort, divide it, and list its rows and files; an unverified one is read to the last voxel.

    Args:
        datamodule: The cohort.
        study: Its protocol divides the cohort; None takes the split of the fit file.
    """
    datamodule.read()
    identities = list(dict.fromkeys(name for cohort in datamodule.cohorts for name in identity_columns(cohort)))
    if datamodule.group_by is not None and datamodule.group_by not in identities:
        identities.append(datamodule.group_by)
    frame = stack_rows(datamodule.cohorts)
    rows = frame.reindex(columns=["image_id", "site", *datamodule.targets, *identities])
    rows = rows.assign(key=participant_keys(frame)).fillna(dict.fromkeys(identities, ""))
    rows = rows.astype(dict.fromkeys(datamodule.targets, np.float64))
    files = [
        row
        for table, cohort in zip(datamodule.tables, datamodule.cohorts, strict=True)
        for row in _file_rows(cohort, manifest_files(table, cohort, datamodule.allow_unverified))
    ]
    columns = ["key", "image_id", "column", "role", "path", *FileFacts.__dataclass_fields__]
    places = rows[["key", "image_id"]].rename_axis("row").reset_index()
    listed = pd.DataFrame(files, columns=columns).merge(places, on=["key", "image_id"])
    divisions = _one_split(datamodule, rows) if study is None else _folds(datamodule, study, frame, rows)
    return CohortFacts(rows, listed, divisions, tuple(identities))


def _one_split(datamodule: BaseDataModule, rows: pd.DataFrame) -> tuple[pd.Series, ...]:
    datamodule.assign_splits()
    parts = {(participant_key(s.dataset, s.participant_id), s.image_id): s.split for s in datamodule.samples}
    return (pd.Series([parts.get(place, "") for place in zip(rows["key"], rows["image_id"], strict=True)], rows.index),)


def _folds(datamodule: BaseDataModule, study: Study, frame: pd.DataFrame, rows: pd.DataFrame) -> tuple[pd.Series, ...]:
    design = replace(design_of(study, datamodule), num_repeats=1, match_train_size=False, max_train_per_site=None)
    cells = plan_cells(frame, design, datamodule.stratify_by)
    parts = [rows["key"].map(lambda key, split=cell.split: split.part_of(key) or "") for cell in cells]
    return tuple(part.replace(UNUSED, "") for part in parts)


def identity_columns(cohort: Cohort) -> list[str]:
    """Return the group columns of a cohort whose values name an anatomy or a family, as `anatomy_id` does."""
    return [column.name for column in cohort.schema.of_role("group") if column.name.endswith(IDENTITY_SUFFIX)]


def manifest_files(table: Path, cohort: Cohort, allow_unverified: bool) -> dict[str, FileFacts]:
    """Return what is known of a cohort's files: from its manifest, or by reading them all where it may have none."""
    try:
        return check_manifest(cohort).files
    except CohortError:
        if not allow_unverified:
            raise
    with progress(f"Reading the images of {table.name}", 1) as advance:
        files = verify_cohort(table, root=cohort.root).files
        advance(1)
    return files


def _file_rows(cohort: Cohort, facts: dict[str, FileFacts]) -> Iterator[dict[str, Any]]:
    for cell in file_cells(cohort):
        if cell.path in facts:
            place = {"key": cell.key, "image_id": cell.image_id, "path": cell.path}
            yield {**place, "column": cell.column.name, "role": cell.column.role, **vars(facts[cell.path])}


def intensity_features(datamodule: BaseDataModule, people: pd.DataFrame) -> FloatArray:
    """Return the quantiles of the preprocessed volumes of some rows, (N, channels x quantiles)."""
    sample_of = {(participant_key(s.dataset, s.participant_id), s.image_id): s for s in datamodule.samples}
    features = []
    with progress("Reading intensities", len(people)) as advance:
        for key, image_id in zip(people["key"], people["image_id"], strict=True):
            volume = datamodule.cache.load(sample_of[key, image_id].files)
            features.append(histogram_quantiles(volume.array))
            advance(1)
    return np.array(features)


@dataclass(frozen=True)
class SeenCohort:
    """The cohort that a pretraining was trained on, where its table can still be read.

    Args:
        images: Images that the network read, of its training and validation participants, and which of their volumes.
        voxels: Hash of the voxels -> participant, of every image of theirs; None without a fitting manifest.
        groups: Identity column -> its values among them.
    """

    images: tuple[tuple[Path, int | None], ...]
    voxels: dict[str, str] | None
    groups: dict[str, frozenset[str]]


class UnreachableError(ValueError):
    """The cohort of a pretraining cannot be read here; says why."""


def seen_cohort(contract: CheckpointContract) -> SeenCohort:
    """Read the table that a pretraining's configuration names, as far as it is still what was trained on.

    Raises:
        UnreachableError: When it is not there, or is another one now.
    """
    arguments = section_arguments((yaml.safe_load(contract.config) or {}).get("data"))
    tables = arguments.get("table") or []
    channels = arguments.get("images") or [arguments.get("image", "")]
    seen = seen_participants(contract)
    images: list[tuple[Path, int | None]] = []
    voxels: dict[str, str] | None = {}
    groups: dict[str, set[str]] = {}
    found: set[str] = set()
    for table in tables if isinstance(tables, list) else [tables]:
        try:
            cohort = read_cohort(Path(table), root=arguments.get("root"))
        except (CohortError, OSError) as error:
            raise UnreachableError(f"its table {table} cannot be read here ({error})") from error
        known = _known_files(cohort)
        voxels = None if known is None else voxels
        for cell in file_cells(cohort):
            if cell.key in seen and cell.column.role == "image":
                found.add(cell.key)
                if cell.column.name in channels:
                    images.append((cohort.resolve(cell.path), cell.column.volume))
                if voxels is not None and known is not None and cell.path in known:
                    voxels[known[cell.path].voxel_sha256] = cell.key
        keys = participant_keys(cohort.frame)
        for name in identity_columns(cohort):
            values = cohort.frame[name][[key in seen for key in keys]]
            groups.setdefault(name, set()).update(str(value) for value in values if value)
    if not found or found != seen:
        raise UnreachableError(f"its table has {len(found)} of the {len(seen)} participants that it was trained on")
    return SeenCohort(tuple(images), voxels, {name: frozenset(values) for name, values in groups.items()})


def _known_files(cohort: Cohort) -> dict[str, FileFacts] | None:
    try:
        return check_manifest(cohort).files
    except CohortError:
        return None  # the finding then says that voxels could not be compared


def share_stripped(images: Sequence[tuple[Path, int | None]]) -> float:
    """Return the share of images that are skull-stripped, from a few of them spread over the list; NaN without any.

    Around a stripped brain every voxel has one value, and the brain does not reach the faces of the volume. A whole
    head has noise in the air, or a neck that leaves through a face.
    """
    chosen = (
        [images[int(at)] for at in np.unique(np.linspace(0, len(images) - 1, MAXIMUM_VOLUMES).round())]
        if images
        else []
    )
    return float(np.mean([is_stripped(read_volume(*image).data[0]) for image in chosen])) if chosen else float("nan")


def is_stripped(volume: np.ndarray) -> bool:
    """Say whether a volume (D, H, W) as stored holds a brain without its skull.

    >>> brain = np.zeros((9, 9, 9)); brain[2:7, 2:7, 2:7] = 1
    >>> is_stripped(brain), is_stripped(brain + np.arange(9.0))
    (True, False)
    """
    faces = np.concatenate([np.take(volume, index, axis=axis).ravel() for axis in range(3) for index in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    same_inside = float((volume == values[counts.argmax()]).mean())
    return bool(counts.max() >= STRIPPED_BORDER * len(faces) and same_inside >= STRIPPED_VOLUME)

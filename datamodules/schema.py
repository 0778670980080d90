"""What the columns of a cohort table mean: the sidecar `<table>.json`, and a guess where there is none."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import pandas as pd

from datamodules.problems import CohortError, Problem

Role = Literal["id", "session", "site", "dataset", "image", "mask", "target", "covariate", "group", "truth"]
Kind = Literal["number", "text", "path"]

SCHEMA_FORMAT = 1
IMAGE_SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh", ".mha", ".nrrd", ".png", ".dcm")
NOT_KNOWN = frozenset({"", "n/a", "na", "null", "."})  # the point is what SAS, SPSS and Stata export
RESERVED = ("row", "image_id")
ALWAYS_REQUIRED = ("id", "image", "target")
NAMED_ROLES: dict[str, Role] = {
    "participant_id": "id",
    "pat_id": "id",
    "session_id": "session",
    "scandate": "session",
    "site": "site",
    "site_id": "site",
    "dataset": "dataset",
}
TARGET_NAMES = ("age", "label", "target", "outcome")
OLDEST_AGE = 125.0  # years; the longest documented life is 122


@dataclass(frozen=True)
class Column:
    """One column of a cohort table.

    Args:
        name: The header.
        role: What it is for. `truth` holds what a phantom knows and a model must never see.
        kind: What its cells hold; paths are relative to the cohort's root.
        unit: Unit of a number, or of the voxels of an image once they are scaled, in words.
        minimum: Smallest value allowed.
        maximum: Largest value allowed.
        grid: Name of a grid group: the images and masks of one row that carry the same name share shape and affine.
        scale: What the voxels of an image are multiplied by when it is preprocessed, such as 0.001 from 1e-6 to 1e-3
            mm2/s; when left out, they are taken as they are.
        volume: Which volume of its files with four axes an image is, counted from 0.
        may_be_empty: Whether a mask may be 0 everywhere, as that of the lesions of a healthy participant is; one of the
            brain may not.
        required: Whether every row must have a value; when left out, True for identifiers, images and targets.
        description: What a reader should know.

    Raises:
        CohortError: When the parts contradict one another.
    """

    name: str
    role: Role
    kind: Kind
    unit: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    grid: str | None = None
    required: bool | None = None
    description: str | None = None
    scale: float | None = None
    volume: int | None = None
    may_be_empty: bool = False

    def __post_init__(self) -> None:
        if self.required is None:
            object.__setattr__(self, "required", self.role in ALWAYS_REQUIRED)
        fault = self._fault()
        if fault:
            raise CohortError.single(f"Column '{self.name}' of the schema {fault}")

    def _fault(self) -> str | None:
        if self.role not in get_args(Role):
            return f"has the role '{self.role}'. Use one of {', '.join(get_args(Role))}."
        if self.kind not in get_args(Kind):
            return f"has the kind '{self.kind}'. Use one of {', '.join(get_args(Kind))}."
        if self.role in ("image", "mask") and self.kind != "path":
            return f"has the role {self.role} and the kind {self.kind}. The kind of images and masks is path."
        if self.role in ("id", "session", "site", "dataset") and self.kind != "text":
            return f"has the role {self.role} and the kind {self.kind}. The kind of identifiers and sites is text."
        limits = [limit for limit in (self.minimum, self.maximum) if limit is not None]
        if limits and self.kind != "number":
            return "has a minimum or maximum but holds no numbers. Remove the limits, or set the kind to number."
        if not all(_is_number(limit) and not math.isnan(limit) for limit in limits):
            return "has a minimum or maximum that is not a number."
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            return f"has a minimum of {self.minimum} above its maximum of {self.maximum}."
        if self.grid is not None and self.kind != "path":
            return "has a grid group but holds no paths. Remove `grid`."
        if self.scale is not None and self.role != "image":
            return f"has a scale and the role {self.role}. Only images are scaled."
        if self.scale is not None and not (_is_number(self.scale) and 0 < self.scale < math.inf):
            return f"has a scale of {self.scale}. Give a number above 0."
        if self.volume is not None and self.role != "image":
            return f"has a volume and the role {self.role}. Only of images one volume is taken."
        if self.volume is not None and (type(self.volume) is not int or self.volume < 0):
            return f"has a volume of {self.volume}. Give a whole number; the first volume is 0."
        if self.may_be_empty and self.role != "mask":
            return f"has `may_be_empty` and the role {self.role}. Only masks are looked at for it."
        return None

    def as_dict(self) -> dict[str, Any]:
        """Return what the sidecar says about the column, without what is at its default."""
        facts = {key: value for key, value in asdict(self).items() if value is not None and key != "name"}
        if self.required == (self.role in ALWAYS_REQUIRED):
            del facts["required"]
        if not self.may_be_empty:
            del facts["may_be_empty"]
        return facts


@dataclass(frozen=True)
class Schema:
    """What every column of a cohort table means.

    Args:
        columns: The columns, in any order.
        guessed: Whether it was derived from the table because no sidecar was there.

    Raises:
        CohortError: When no column, or more than one, identifies the participant, or a name is used twice.
    """

    columns: tuple[Column, ...]
    guessed: bool = False

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise CohortError.single(f"The schema describes the column '{twice[0]}' twice.")
        roles: tuple[Role, ...] = ("id", "session", "site", "dataset")
        for role in roles:
            holders = [column.name for column in self.of_role(role)]
            if len(holders) > 1:
                raise CohortError.single(f"The schema gives the role {role} to {', '.join(holders)}. Keep one of them.")
        if not self.of_role("id"):
            raise CohortError.single("The schema gives no column the role id. Say which one names the participant.")

    def of_role(self, role: Role) -> list[Column]:
        """Return the columns of a role, in order."""
        return [column for column in self.columns if column.role == role]

    def column(self, name: str) -> Column:
        """Return a column by its name.

        Raises:
            CohortError: When there is none of that name.
        """
        for column in self.columns:
            if column.name == name:
                return column
        names = ", ".join(column.name for column in self.columns)
        raise CohortError.single(f"The schema has no column '{name}'; it has {names}.", "unknown_column")

    def to_json(self) -> str:
        """Return the text of the sidecar."""
        columns = {column.name: column.as_dict() for column in self.columns}
        return json.dumps({"format": SCHEMA_FORMAT, "columns": columns}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """Read the text of a sidecar.

        Raises:
            CohortError: With every fault of the text.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise CohortError.single(f"The sidecar is not JSON ({error}).", "unreadable") from error
        columns = content.get("columns") if isinstance(content, dict) else None
        if not isinstance(columns, dict) or content.get("format") != SCHEMA_FORMAT:
            raise CohortError.single(
                f'A sidecar looks like {{"format": {SCHEMA_FORMAT}, "columns": {{"age": {{"role": "target", "kind": '
                '"number"}}}. `fontanel verify TABLE --write-schema` writes one to start from.',
                "unreadable",
            )
        parsed: list[Column] = []
        problems: list[Problem] = []
        for name, facts in columns.items():
            try:
                parsed.append(_column(name, facts))
            except CohortError as error:
                problems.append(Problem(None, None, name, "unreadable", str(error)))
        if problems:
            raise CohortError.of("The sidecar", problems)
        return cls(tuple(parsed))

    @classmethod
    def guess(cls, frame: pd.DataFrame, root: Path, described: Sequence[Column] = ()) -> Schema:
        """Derive a schema from a table of text, for the user to correct.

        Args:
            frame: The cells as text.
            root: Folder that paths are relative to.
            described: Columns whose meaning is known. The others were joined to them, so their values may be missing.

        Raises:
            CohortError: When no column can be the identifier.
        """
        taken: set[Role] = {column.role for column in described}
        known = {column.name: column for column in described}
        columns = [
            known.get(str(name)) or _guess_column(str(name), [str(cell) for cell in frame[name]], root, taken)
            for name in frame.columns
        ]
        if known:
            columns = [column if column.name in known else replace(column, required=False) for column in columns]
        images = [column.name for column in columns if column.role == "image"]
        in_grid = {images[0], *(column.name for column in columns if column.role == "mask")} if images else set()
        if len(in_grid) > 1 and not known:
            columns = [replace(column, grid=images[0]) if column.name in in_grid else column for column in columns]
        return cls(tuple(columns), guessed=True)


def schema_path(table: Path) -> Path:
    """Return where the sidecar of a table is: `cohort.tsv.json` beside `cohort.tsv`."""
    return table.with_name(table.name + ".json")


def file_column(name: str) -> Column:
    """Return a column of files, whose role is guessed from its name.

    >>> [file_column(name).role for name in ("brain_mask", "label", "t1w")]
    ['mask', 'target', 'image']
    """
    lowered = name.casefold()
    role: Role = "mask" if "mask" in lowered else "target" if re.search(r"label|lesion|seg", lowered) else "image"
    return Column(name, role, "path", required=role == "image")


def parse_number(text: str) -> float | None:
    """Return the finite number that a cell holds, or None.

    >>> parse_number("45.3"), parse_number("45,3"), parse_number("nan")
    (45.3, None, None)
    """
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def is_known(text: str) -> bool:
    """Tell whether a cell holds a value rather than one of the usual marks for a missing one."""
    return text.casefold() not in NOT_KNOWN


def strip_suffix(path: str) -> str:
    """Return a path without the suffix of its image format.

    >>> strip_suffix("p1/t1.nii.gz")
    'p1/t1'
    """
    suffixes = [suffix for suffix in IMAGE_SUFFIXES if path.casefold().endswith(suffix)]
    return path[: -len(max(suffixes, key=len))] if suffixes else path


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _column(name: str, facts: object) -> Column:
    if not isinstance(facts, dict):
        raise CohortError.single(f'Column \'{name}\' of the schema is not an object such as {{"role": "target"}}.')
    fields = {field for field in Column.__dataclass_fields__ if field != "name"}
    strange = sorted(set(facts) - fields)
    if strange:
        allowed = ", ".join(sorted(fields))
        raise CohortError.single(f"Column '{name}' of the schema has '{strange[0]}'. It may have {allowed}.")
    absent = [key for key in ("role", "kind") if key not in facts]
    if absent:
        raise CohortError.single(f"Column '{name}' of the schema has no {' and no '.join(absent)}.")
    for key in ("required", "may_be_empty"):
        if not isinstance(facts.get(key, True), bool):
            raise CohortError.single(f"Column '{name}' of the schema has a `{key}` that is neither true nor false.")
    texts = [facts[key] for key in ("role", "kind", "unit", "grid", "description") if facts.get(key) is not None]
    if not all(isinstance(text, str) for text in texts):
        raise CohortError.single(f"Column '{name}' of the schema has a role, kind, unit or grid that is no text.")
    return Column(name, **cast(dict[str, Any], facts))


def _guess_column(name: str, cells: Sequence[str], root: Path, taken: set[Role]) -> Column:
    lowered = name.casefold()
    known = [cell for cell in cells if is_known(cell)]
    role = NAMED_ROLES.get(lowered)
    if role is not None and role not in taken:
        taken.add(role)
        return Column(name, role, "text")
    kind = _guess_kind(known, root)
    if lowered.startswith("truth_"):
        return Column(name, "truth", kind)
    if kind == "path":
        return file_column(name)
    if lowered in TARGET_NAMES:
        if not known:
            return Column(name, "target", "number", required=False)
        years = lowered == "age" and kind == "number"
        limits = {"unit": "years", "minimum": 0.0, "maximum": OLDEST_AGE} if years else {}
        return Column(name, "target", kind, **cast(dict[str, Any], limits))
    return Column(name, "covariate" if kind == "number" and not lowered.endswith("_id") else "group", kind)


def _guess_kind(known: Sequence[str], root: Path) -> Kind:
    # More than half decides, so that one typing error in a column of numbers is found and not taken for its meaning.
    if sum(cell.casefold().endswith(IMAGE_SUFFIXES) for cell in known) * 2 > len(known):
        return "path"
    if sum(parse_number(cell) is not None for cell in known) * 2 > len(known):
        return "number"
    # A DICOM series is a folder, so its name says nothing; the first cell is enough to tell.
    first = known[0] if known else ""
    try:
        return "path" if first.strip("./") and "\0" not in first and (root / first).is_dir() else "text"
    except OSError:  # a remark that is too long for a file name
        return "text"

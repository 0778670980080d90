"""The manifest of a verified cohort, `<table>.manifest.json`: what training relies on without reading every file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from datamodules.cohort import Cohort
from datamodules.inspection import FileFacts, size_and_mtime
from datamodules.problems import CohortError, Problem

MANIFEST_FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What `fontanel verify` has found in a cohort.

    Args:
        table_sha256: Hash of the table file.
        schema_sha256: Hash of what the columns mean.
        tool: The program and version that verified.
        files: What each file holds, by its path in the table.
        problems: Every fault that was found.
    """

    table_sha256: str
    schema_sha256: str
    tool: str
    files: dict[str, FileFacts]
    problems: tuple[Problem, ...]

    @property
    def digest(self) -> str:
        """Hash of everything else, which shows a changed manifest."""
        return _sha256(json.dumps(self._content(), sort_keys=True, separators=(",", ":")))

    def to_json(self) -> str:
        """Return the text of the manifest."""
        return json.dumps({**self._content(), "digest": self.digest}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read the text of a manifest.

        Raises:
            ValueError: When it is not one, or was changed.
            KeyError: When a part is missing.
            TypeError: When a part is of another kind.
        """
        content = json.loads(text)
        if content["format"] != MANIFEST_FORMAT:
            raise ValueError("it has another format")
        manifest = cls(
            content["table_sha256"],
            content["schema_sha256"],
            content["tool"],
            {path: FileFacts(**_as_tuples(facts)) for path, facts in content["files"].items()},
            tuple(Problem(**problem) for problem in content["problems"]),
        )
        if manifest.digest != content["digest"]:
            raise ValueError("its digest is wrong, so it was changed by hand or cut short")
        return manifest

    def _content(self) -> dict[str, Any]:
        return {"format": MANIFEST_FORMAT, **asdict(self)}


def manifest_path(table: Path) -> Path:
    """Return where the manifest of a table is: `cohort.tsv.manifest.json` beside `cohort.tsv`."""
    return table.with_name(table.name + ".manifest.json")


def save_manifest(cohort: Cohort, files: Mapping[str, FileFacts], problems: Sequence[Problem]) -> Path:
    """Write the manifest of a cohort beside its table and return its path.

    Args:
        cohort: The cohort that was verified.
        files: What its files hold, by their path in the table.
        problems: What is wrong with it.

    Raises:
        CohortError: When the folder of the table cannot be written to.
    """
    manifest = Manifest(cohort.sha256, _sha256(cohort.schema.to_json()), _tool(), dict(files), tuple(problems))
    path = manifest_path(cohort.table)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(manifest.to_json())
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CohortError.single(
            f"The manifest {path} cannot be written ({error.strerror}). Copy the table to a folder that you can write "
            f"to, and verify it there with --root {cohort.root}."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def check_manifest(cohort: Cohort) -> Manifest:
    """Return the manifest of a cohort, after making sure that it still describes it.

    Raises:
        CohortError: When there is none, it is of another table, it or a file was changed, or it holds problems.
    """
    manifest = _read_manifest(cohort)
    if manifest.problems:
        advice = f"Mend them, then run `fontanel verify {cohort.table}` again."
        raise CohortError.of(f"The verified cohort {cohort.table.name}", manifest.problems, advice)
    _refuse_changes(cohort, manifest)
    return manifest


def known_manifest(cohort: Cohort) -> Manifest | None:
    """Return the manifest of a cohort, problems included, or None where there is none that still describes it."""
    try:
        manifest = _read_manifest(cohort)
        _refuse_changes(cohort, manifest)
    except CohortError:
        return None
    return manifest


def _read_manifest(cohort: Cohort) -> Manifest:
    remedy = f"Run `fontanel verify {cohort.table}`."
    path = manifest_path(cohort.table)
    if not path.is_file():
        raise CohortError.single(f"{cohort.table} has not been verified: there is no {path.name} beside it. {remedy}")
    try:
        manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CohortError.single(f"{path} cannot be used ({error}). {remedy}") from error
    if manifest.table_sha256 != cohort.sha256:
        raise CohortError.single(f"{cohort.table} was changed after it was verified. {remedy}")
    if manifest.schema_sha256 != _sha256(cohort.schema.to_json()):
        raise CohortError.single(f"The schema of {cohort.table} was changed after it was verified. {remedy}")
    return manifest


def _refuse_changes(cohort: Cohort, manifest: Manifest) -> None:
    changed = [reason for file in _paths(cohort) if (reason := _change(cohort, file, manifest.files.get(file)))]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        listed = "; ".join(changed[:5])
        raise CohortError.single(
            f"Files of {cohort.table} differ from its manifest: {listed}{more}. Run `fontanel verify {cohort.table}`."
        )


def _paths(cohort: Cohort) -> list[str]:
    columns = [c.name for c in cohort.schema.columns if c.kind == "path" and c.name in cohort.frame]
    return list(dict.fromkeys(cell for name in columns for cell in cohort.frame[name] if cell))


def _change(cohort: Cohort, file: str, facts: FileFacts | None) -> str | None:
    if facts is None:
        return f"{file} is not in it"
    try:
        size, mtime_ns = size_and_mtime(cohort.resolve(file))
    except FileNotFoundError:
        return f"{file} is gone"
    return None if (size, mtime_ns) == (facts.size, facts.mtime_ns) else f"{file} was changed"


def _as_tuples(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}


def _sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _tool() -> str:
    try:
        return f"fontanel {version('fontanel')}"
    except PackageNotFoundError:  # run from a folder without installation
        return "fontanel, not installed"

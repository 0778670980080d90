"""The datalist of MONAI, and of the Medical Segmentation Decathlon: a JSON file that lists images and labels.

::

    {"training": [{"image": "images/p1.nii.gz", "label": "labels/p1.nii.gz", "fold": 0}],
     "validation": [...], "testing": ["images/p9.nii.gz"]}

A row is an entry. Its keys are the columns; a list of images becomes `image_0`, `image_1`, .... Who it is stand
`participant_id` (or `subject_id`, `patient_id`, `subject`, `id`), `session_id` and `site` for; without them the name of
the first image does, where `sub-<label>_ses-<label>` is a session of a participant. The column `split` says in which
list an entry is. Paths are relative to the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.layouts.files import is_image
from datamodules.layouts.found import Found, Scan, Visit, column_name
from datamodules.layouts.nnunet import read_json, relative_path, visit_of
from datamodules.problems import CohortError
from datamodules.raw_table import Remark, safe_name
from datamodules.schema import Column, file_column, strip_suffix

SUMMARY = "a datalist of MONAI (a .json file with training, validation and testing)"
SPLITS = {"training": "train", "validation": "val", "testing": "test", "test": "test"}
WHO = ("participant_id", "subject_id", "patient_id", "subject", "id")
WHEN = ("session_id", "session")
MAX_JSON_BYTES = 64 * 2**20


def recognises(table: Path) -> bool:
    """Tell whether a file is a datalist, or a folder holds exactly one."""
    return len(_datalists(table)) == 1


def holder(table: Path) -> Path:
    """Return the datalist.

    Raises:
        CohortError: When a folder holds none, or several.
    """
    found = _datalists(table)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        message = f"{table} should hold one .json file with a list `training`; it holds {names}. Name the file itself."
        raise CohortError.single(message, "unreadable")
    return found[0]


def find(table: Path) -> Found:
    """Return what a datalist names, whether or not the files are there.

    Raises:
        CohortError: When it names no image.
    """
    path = holder(table)
    remarks: list[Remark] = []
    scans: list[Scan] = []
    facts: dict[Visit, dict[str, str]] = {}
    for split, entry in _entries(read_json(path)):
        images = {name: relative_path(text, path.parent) for name, text in _images(entry).items()}
        if not images:
            remarks.append(Remark(str(entry)[:80], "an entry without the path of an image"))
            continue
        visit = _visit(entry, next(iter(images.values())))
        scans += [Scan(visit, name, image, (len(scans),)) for name, image in images.items()]
        known = {column_name(key): str(value) for key, value in entry.items() if _is_fact(key, value)}
        if visit in facts and facts[visit]["split"] != split:
            remarks.append(Remark("/".join(filter(None, visit)), "in two of the lists; `split` names the first", False))
        facts[visit] = {"site": str(entry.get("site", "")), "split": split, **known} | facts.get(visit, {})
    if not scans:
        raise CohortError.single(f"{path} names no image. An entry looks like {{'image': 'p1.nii.gz'}}.", "empty_table")
    names = list(dict.fromkeys(scan.column for scan in scans))
    columns = [file_column(name) for name in names]
    described = [Column("split", "group", "text", required=False, description="list of the datalist")]
    return Found(path, scans, columns, facts=facts, described=described, remarks=remarks)


def _datalists(table: Path) -> list[Path]:
    files = sorted(table.glob("*.json")) if table.is_dir() else [table]
    return [file for file in files if file.suffix == ".json" and _is_datalist(file)]


def _is_datalist(file: Path) -> bool:
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            return False
        content = read_json(file)
    except (CohortError, OSError):
        return False
    return any(isinstance(content.get(name), list) and content[name] for name in SPLITS)


def _entries(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, split in SPLITS.items():
        for entry in content.get(name) or []:
            yield split, entry if isinstance(entry, dict) else {"image": entry}


def _images(entry: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in entry.items():
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            found |= {f"{column_name(key)}_{index}": item for index, item in enumerate(value)}
        elif isinstance(value, str) and (is_image(value) or key == "image"):
            found[column_name(key)] = value
    return found


def _is_fact(key: str, value: object) -> bool:
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return plain and key not in (*WHO, *WHEN, "site", "split") and not (isinstance(value, str) and is_image(value))


def _visit(entry: dict[str, Any], image: str) -> Visit:
    who = next((str(entry[key]) for key in WHO if entry.get(key) not in (None, "")), None)
    when = next((str(entry[key]) for key in WHEN if entry.get(key) not in (None, "")), "")
    if who is not None:
        return Visit(safe_name(who), safe_name(when))
    visit = visit_of(strip_suffix(image.rpartition("/")[2]))
    return visit._replace(session_id=safe_name(when) or visit.session_id)

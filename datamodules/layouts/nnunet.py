"""The layout of nnU-Net: `dataset.json`, `imagesTr`, `labelsTr` and `imagesTs`.

::

    imagesTr/CASE_0000.nii.gz    first channel; its name stands in `channel_names` of dataset.json
    imagesTr/CASE_0001.nii.gz    second channel
    labelsTr/CASE.nii.gz         map of labels, on the grid of the images

A row is a case. A case called `sub-<label>_ses-<label>` is a session of a participant; any other is a participant of
its own. The column `split` says `train` or `test`. A `dataset` in dataset.json that lists the files of each case is
followed.

References:
    Isensee et al. nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation. Nature
    Methods 18, 203-211 (2021). doi:10.1038/s41592-020-01008-z
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.layouts.files import is_image
from datamodules.layouts.found import Found, Scan, Visit, column_name, keep_usable
from datamodules.problems import CohortError
from datamodules.raw_table import Remark, safe_name
from datamodules.schema import Column

SUMMARY = "nnU-Net (dataset.json, imagesTr, labelsTr, imagesTs)"
TABLE = "dataset.json"
PARTS = {"Tr": "train", "Ts": "test"}
CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def recognises(table: Path) -> bool:
    """Tell whether a folder has the layout, or a dataset.json lies in such a folder."""
    path = holder(table)
    if path.name != TABLE or not path.is_file():
        return False
    try:
        content = read_json(path)
    except CohortError:
        return False
    return bool(_channels(content)) and (
        isinstance(content.get("dataset"), dict)
        or any(
            CHANNEL.fullmatch(_stem(file.name, _ending(content)) or "")
            for folder in ("imagesTr", "imagesTs")
            for file in path.parent.glob(f"{folder}/*")
        )
    )


def holder(table: Path) -> Path:
    """Return `dataset.json`."""
    return table / TABLE if table.is_dir() else table


def find(table: Path) -> Found:
    """Find the images and label maps of a dataset.

    Raises:
        CohortError: When dataset.json cannot be read or names no channels.
    """
    path = holder(table)
    content = read_json(path)
    channels = _channels(content)
    if not channels:
        message = f'{path} names no channels. nnU-Net wants "channel_names": {{"0": "T1"}} there.'
        raise CohortError.single(message, "unreadable")
    remarks: list[Remark] = []
    files = list(_files(path.parent, content, channels, remarks))
    scans = keep_usable([scan for scan, _ in files], path.parent, remarks)
    grid = next(iter(channels.values()))
    images = [Column(name, "image", "path", grid=grid) for name in dict.fromkeys(channels.values())]
    label = Column("label", "target", "path", grid=grid, required=False, description=_labels(content))
    names = {scan.column for scan in scans}
    facts: dict[Visit, dict[str, str]] = {}
    for scan, split in files:
        facts.setdefault(scan.visit, {}).setdefault("split", split)
    return Found(
        path,
        scans,
        [column for column in (*images, label) if column.name in names],
        facts=facts,
        described=[Column("split", "group", "text", required=False, description="part of the data in nnU-Net")],
        remarks=remarks,
        complete=True,
    )


def visit_of(case: str) -> Visit:
    """Return whose a case is: `sub-<label>_ses-<label>` is a session, any other name a participant.

    >>> visit_of("sub-01_ses-a"), visit_of("BRATS 001")
    (Visit(participant_id='sub-01', session_id='ses-a'), Visit(participant_id='BRATS-001', session_id=''))
    """
    match = re.fullmatch(r"(sub-[^_]+)_(ses-[^_]+)", case)
    return Visit(safe_name(match[1]), safe_name(match[2])) if match else Visit(safe_name(case))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CohortError: When it holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise CohortError.single(f"{path} cannot be read as JSON ({error}).", "unreadable") from error
    if not isinstance(content, dict):
        raise CohortError.single(f"{path} holds no JSON object.", "unreadable")
    return content


def _channels(content: dict[str, Any]) -> dict[str, str]:
    """Return the column of each channel's number of four digits; version 1 called the entry `modality`."""
    named = content.get("channel_names") or content.get("modality")
    if not isinstance(named, dict):
        return {}
    columns = {f"{int(key):04}": column_name(str(name)) for key, name in named.items() if str(key).isdigit()}
    twice = {name for name in columns.values() if list(columns.values()).count(name) > 1}
    return {key: f"{name}_{int(key)}" if name in twice else name for key, name in columns.items()}


def _ending(content: dict[str, Any]) -> str:
    return str(content.get("file_ending") or ".nii.gz")


def _labels(content: dict[str, Any]) -> str | None:
    labels = content.get("labels")
    return ", ".join(f"{key}: {value}" for key, value in labels.items()) if isinstance(labels, dict) else None


def _files(
    folder: Path, content: dict[str, Any], channels: dict[str, str], remarks: list[Remark]
) -> Iterator[tuple[Scan, str]]:
    listed = content.get("dataset")
    if isinstance(listed, dict):
        for case, files in listed.items():
            for channel, path in zip(channels.values(), files.get("images", []), strict=False):
                yield Scan(visit_of(case), channel, relative_path(path, folder)), "train"
            if files.get("label"):
                yield Scan(visit_of(case), "label", relative_path(files["label"], folder)), "train"
        return
    for part, split in PARTS.items():
        for kind in ("images", "labels"):
            for file in sorted((folder / f"{kind}{part}").glob("*")):
                path = f"{kind}{part}/{file.name}"
                stem = _stem(file.name, _ending(content))
                match = CHANNEL.fullmatch(stem or "") if kind == "images" else None
                if stem and kind == "labels":
                    yield Scan(visit_of(stem), "label", path), split
                elif match and match["channel"] in channels:
                    yield Scan(visit_of(match["case"]), channels[match["channel"]], path), split
                elif is_image(file.name):
                    ending = f"{'CASE_0000' if kind == 'images' else 'CASE'}{_ending(content)}"
                    remarks.append(Remark(path, f"not named like {ending}, with a channel of dataset.json"))


def _stem(name: str, ending: str) -> str | None:
    return name[: -len(ending)] if name.casefold().endswith(ending.casefold()) else None


def relative_path(path: str, folder: Path) -> str:
    """Return a path as the table has it: relative to the folder where it lies there."""
    text = path.removeprefix("./")
    for root in (folder.absolute(), folder.resolve()):
        if Path(text).is_relative_to(root):
            return Path(text).relative_to(root).as_posix()
    return text

"""Images that a pattern of their names tells apart, such as `{site}/{participant_id}[_run-{run}]_T1w.nii.gz`.

`{participant_id}`, `{session_id}` and `{site}` say whose an image is, where and when; `{image}` names its column, which
otherwise is what follows the last field (`t1w`); `{run}` counts scans of one kind, of which the lowest is taken; any
other field is a column of the table. A field takes as few characters as it can, none of them a slash, and has the same
value wherever it stands; `*` is any text without a slash; what stands in brackets may be absent. The suffix of an image
may be in upper case. A pattern without one is that of DICOM: of folders that hold one series each, or of files.
`mask:masks/{participant_id}.nii.gz` gives its column a name of its own.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from datamodules.layouts.files import is_image, linked_folders, walk
from datamodules.layouts.found import Found, Scan, Visit, column_name, keep_usable
from datamodules.problems import CohortError
from datamodules.raw_table import Remark, printable, safe_name
from datamodules.schema import file_column, strip_suffix

SUMMARY = "a pattern of file names, such as '{site}/{participant_id}_T1w.nii.gz'"
TABLE = "cohort.tsv"
KNOWN = ("participant_id", "session_id", "site", "image", "run")
PART = re.compile(r"\{(?P<field>[^{}]*)\}|(?P<mark>[*\[\]])|(?P<text>[^{}*\[\]]+)|(?P<strange>.)")


def find(folder: Path, patterns: Sequence[str]) -> Found:
    """Find the images that match a pattern; of several patterns, the first that matches counts.

    Raises:
        CohortError: When a pattern cannot be used, or matches nothing.
    """
    rules = [_rule(pattern) for pattern in patterns]
    remarks = [Remark(link, "a link to a folder; it is not followed") for link in linked_folders(folder)]
    scans: list[Scan] = []
    facts: dict[Visit, dict[str, str]] = {}
    renamed: dict[str, str] = {}
    for path in _candidates(folder, any(not has_suffix for *_, has_suffix in rules)):
        values, column = _match(path, rules)
        if not values["participant_id"]:
            if is_image(path):
                remarks.append(Remark(path, "does not match the pattern"))
            continue
        visit = Visit(_identifier(values["participant_id"], renamed), _identifier(values["session_id"], renamed))
        run = values["run"]
        scans.append(Scan(visit, column, path, (int(run) if run.isdecimal() else 0, run)))
        others = {name: value for name, value in values.items() if name not in KNOWN}
        known = facts.setdefault(visit, {"site": values["site"]})
        _refuse_two_sites(visit, known["site"], values["site"], folder)
        known |= others
    if not scans:
        raise CohortError.single(
            f"No file in {folder} matches {' or '.join(patterns)}. Write the pattern relative to that folder, such as "
            f"'{{site}}/{{participant_id}}_T1w.nii.gz'; it holds {_examples(folder)}.",
            "empty_table",
        )
    remarks += [
        Remark(f"{text!r} -> {name}", "an identifier that was changed: letters, digits and . _ + = - only", False)
        for text, name in renamed.items()
        if text != name
    ]
    scans = keep_usable(scans, folder, remarks)
    scans.sort(key=lambda scan: scan.visit)
    names = list(dict.fromkeys([column for _, column, _ in rules] + sorted({scan.column for scan in scans})))
    found = {scan.column for scan in scans}
    columns = [file_column(name) for name in names if name in found]
    return Found(folder / TABLE, scans, columns, facts=facts, remarks=remarks)


def _rule(pattern: str) -> tuple[re.Pattern[str], str, bool]:
    """Return the regular expression of a pattern, the column of its images, and whether it has their suffix."""
    named = re.fullmatch(r"(?P<column>[A-Za-z]\w*):(?P<pattern>.+)", pattern)
    text = named["pattern"] if named else pattern
    return _compile(text), column_name(named["column"]) if named else _column(text), strip_suffix(text) != text


def _compile(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern.

    Raises:
        CohortError: When the pattern is not well formed, or names no participant.
    """
    stem = strip_suffix(unicodedata.normalize("NFC", pattern.removeprefix("./")))
    suffix = pattern[len(strip_suffix(pattern)) :]
    text = ""
    seen: set[str] = set()
    depth = 0
    for part in PART.finditer(stem):
        field, mark = part["field"], part["mark"]
        if part["strange"] is not None or (field is not None and not field.isidentifier()):
            raise _bad(pattern, f"'{part[0]}' at character {part.start() + 1} is no field such as {{participant_id}}")
        if field is not None:
            text += f"(?P={field})" if field in seen else f"(?P<{field}>[^/]+?)"
            seen.add(field)
        elif mark is not None:
            depth += {"[": 1, "]": -1, "*": 0}[mark]
            if depth not in (0, 1):
                raise _bad(pattern, "its brackets do not match")
            text += {"[": "(?:", "]": ")?", "*": "[^/]*?"}[mark]
        else:
            text += re.escape(part["text"])
    if depth:
        raise _bad(pattern, "its brackets do not match")
    if "participant_id" not in seen:
        raise _bad(pattern, "it has no {participant_id}")
    return re.compile(f"{text}(?i:{re.escape(suffix)})")


def _bad(pattern: str, reason: str) -> CohortError:
    return CohortError.single(
        f"The pattern '{pattern}' cannot be used: {reason}. It looks like '{{site}}/{{participant_id}}_T1w.nii.gz'."
    )


def _column(pattern: str) -> str:
    """Return the name of the column of a pattern's images: what follows its last field.

    >>> _column("{site}/{participant_id}_T1w.nii.gz"), _column("{participant_id}.mgz")
    ('t1w', 'image')
    """
    return column_name(re.split(r"[}\]]", strip_suffix(pattern).rpartition("/")[2])[-1])


def _candidates(folder: Path, with_folders: bool) -> list[str]:
    found = []
    for inside, files in walk(folder):
        found += [path for path in files if with_folders or is_image(path)]
        found += [inside] if with_folders and inside and files else []
    return found


def _match(path: str, rules: list[tuple[re.Pattern[str], str, bool]]) -> tuple[dict[str, str], str]:
    """Return the values of the fields, "" for those that are absent, and the column."""
    text = unicodedata.normalize("NFC", path)
    for rule, column, _ in rules:
        match = rule.fullmatch(text)
        if match:
            values = {name: value or "" for name, value in match.groupdict().items()}
            named = values.get("image")
            return dict.fromkeys(KNOWN, "") | values, column_name(named) if named else column
    return dict.fromkeys(KNOWN, ""), ""


def _identifier(text: str, renamed: dict[str, str]) -> str:
    """Return a safe form of an identifier, another one for each text.

    Raises:
        CohortError: When two texts have the same safe form.
    """
    name = safe_name(text)
    other = next((key for key, value in renamed.items() if value == name and key != text), None)
    if other is not None:
        raise CohortError.single(
            f"'{other}' and '{text}' are different names, but both become '{name}', because identifiers have no spaces "
            "and other marks. Rename the files of one of them.",
            "bad_identifier",
        )
    renamed[text] = name
    return name


def _refuse_two_sites(visit: Visit, site: str, other: str, folder: Path) -> None:
    """Refuse a name that hospitals may have given to different people.

    Raises:
        CohortError: When there are two sites.
    """
    if site != other:
        who = " in session ".join(filter(None, visit))
        raise CohortError.single(
            f"{who} is at {site} and at {other}. If these are two people, write a table for each site, such as "
            f"`fontanel table {folder / site} --layout pattern ... --dataset {safe_name(site)}`, and read the tables "
            "together (data.table: [...]); if it is one, put a field {session_id} into the pattern.",
            "duplicate_row",
        )


def _examples(folder: Path) -> str:
    images = [path for _, files in walk(folder) for path in files if is_image(path)]
    return ", ".join(printable(path) for path in images[:3]) if images else "no images"

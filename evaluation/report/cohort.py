"""Who is in the report: the flow of participants and the parts of the cohort."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from evaluation.disclosure import ENOUGH, Count, is_hidden, top_coded_text
from evaluation.report.page import Box, Flow, Table
from evaluation.report.parts import Part
from evaluation.wording import capitalised, count_text, join_words, number_text, people_text, share_text, with_unit

PARTS = {"train": "Training", "val": "Validation", "test": "Test", "external": "External", "": "All rows"}


def flow_of(cohort: Mapping[str, Any] | None, parts: Sequence[Part]) -> Flow:
    """Return the flow of participants.

    Args:
        cohort: Facts of the cohort, with `counts` per split and site; None where only a predictions table is known.
        parts: The parts that were scored.
    """
    counts = _counts(cohort)
    scored = _first_by_split(parts)
    if counts is None:
        boxes = [
            Box(
                PARTS.get(split, split),
                people_text(part.size),
                _left_out(part),
            )
            for split, part in scored.items()
        ]
        total = pd.concat([_people(part) for part in scored.values()])
        everybody: Count = int(total["participant"].nunique())
        lines = [count_text(total["site"].nunique(), "site"), count_text(int(total["num_images"].sum()), "image")]
        if any(is_hidden(part.counts["n", site]) for part in scored.values() for site in ["", *part.sites]):
            lines = lines[:1]  # of images, often one to a participant
        if any(is_hidden(part.size) for part in scored.values()):
            everybody = ENOUGH
        return Flow(Box("Predictions table", people_text(everybody), lines), boxes)
    boxes = []
    for split in sorted(counts["split"].unique(), key=_order):
        here = counts[counts["split"] == split]
        lines = [f"{count_text(int(here['images'].sum()), 'image')}, {_sites(here['site'])}"]
        if split in scored:
            lines += [f"scored: {scored[split].assessment.num_participants}", *_left_out(scored[split])]
        boxes.append(Box(PARTS.get(split, split), count_text(int(here["participants"].sum()), "participant"), lines))
    lines = [count_text(int(counts["images"].sum()), "image"), count_text(counts["site"].nunique(), "site")]
    if cohort is not None and "verified" in cohort:
        lines.append("every file verified" if cohort["verified"] else "files not verified")
    return Flow(Box("Cohort", count_text(int(counts["participants"].sum()), "participant"), lines), boxes)


def split_table(cohort: Mapping[str, Any] | None, parts: Sequence[Part], unit: str | None) -> Table:
    """Return participants, images and target of each part and site.

    Args:
        cohort: Facts of the cohort; without them only scored rows are counted.
        parts: The parts that were scored.
        unit: Unit of the target.
    """
    counts = _counts(cohort)
    is_binary = parts[0].task == "binary"
    records = _scored_records(parts, is_binary) if counts is None else _cohort_records(counts, is_binary)
    rows: list[list[str]] = []
    for number, (part, _, *cells) in enumerate(records):
        if number == 0 or records[number - 1][0] != part:
            rows.append([part])
        rows.append(cells)
    name = capitalised(records[0][1])
    scored = "" if counts is not None else "Scored rows only. "
    if is_binary:
        columns = ["Site", "Participants", "Images", f"{name}: events"]
        return Table(
            "Parts of the cohort.",
            columns,
            rows,
            1,
            f"{scored}Events: images of participants with the outcome, and their share.",
        )
    columns = ["Site", "Participants", "Images", with_unit(f"{name}: mean (SD)", unit), "Range"]
    return Table("Parts of the cohort.", columns, rows, 1, f"{scored}SD: standard deviation.")


def cohort_name(cohort: Mapping[str, Any] | None, parts: Sequence[Part]) -> str:
    """Return what the cohort is called: its datasets, or the part scored."""
    names = [str(table.get("dataset") or table.get("name")) for table in (cohort or {}).get("tables", [])]
    names = names or sorted(set(parts[0].assessment.rows["dataset"]) - {""})
    return join_words(names) or "this table"


def _counts(cohort: Mapping[str, Any] | None) -> pd.DataFrame | None:
    entries = (cohort or {}).get("counts")
    return pd.DataFrame(entries) if entries else None


def _cohort_records(counts: pd.DataFrame, is_binary: bool) -> list[list[str]]:
    records = []
    ordered = counts.sort_values(
        ["split", "site"], key=lambda column: column.map(_order) if column.name == "split" else column
    )
    for entry in ordered.to_dict("records"):
        targets: dict[str, Any] = entry.get("targets") or {"target": {}}
        name, values = next(iter(targets.items()))
        counted = [entry["site"], f"{entry['participants']}", f"{entry['images']}"]
        if is_binary:
            known = values.get("known", 0)
            spread = [share_text((values.get("mean") or 0) * known, known)]
        else:
            spread = [_spread(values.get("mean"), values.get("sd")), _range(values.get("min"), values.get("max"))]
        records.append([PARTS.get(entry["split"], entry["split"]), name, *counted, *spread])
    return records


def _scored_records(parts: Sequence[Part], is_binary: bool) -> list[list[str]]:
    records = []
    for part in _first_by_split(parts).values():
        for site, people in _people(part).groupby("site", sort=True):
            target, place = people["target"], str(site) if part.sites else ""
            size = part.counts["n", place]
            images = "" if part.hidden_sites or is_hidden(size) else f"{int(people['num_images'].sum())}"
            counted = [str(site), str(size), images]
            if is_binary:
                spread = [_share(target, size, part.counts["events", place])]
            elif part.shows(place):
                ends = [top_coded_text(end, part.oldest) for end in (target.min(), target.max())]
                spread = [_spread(target.mean(), target.std()), " to ".join(ends)]
            else:
                spread = ["", ""]
            records.append([PARTS.get(part.split, part.split), part.output or "target", *counted, *spread])
    return records


def _share(target: pd.Series, size: Count, events: Count) -> str:
    """Return how many participants and sessions have the outcome; a mark where that of the participants is hidden."""
    return str(events) if is_hidden(size) or is_hidden(events) else share_text(target.sum(), len(target))


def _spread(mean: float | None, sd: float | None) -> str:
    if mean is None:
        return ""
    return number_text(mean, 1) + ("" if sd is None or pd.isna(sd) else f" ({number_text(sd, 1)})")


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{number_text(low, 1)} to {number_text(high, 1)}"


def _left_out(part: Part) -> list[str]:
    missing = part.counts["missing", ""]
    return [f"left out, target missing: {people_text(missing, 'row')}"] if missing else []


def _people(part: Part) -> pd.DataFrame:
    """Return one row per participant and session, whatever the number of runs."""
    return part.assessment.rows.drop_duplicates(["participant", "session_id"])


def _first_by_split(parts: Sequence[Part]) -> dict[str, Part]:
    """Return one part per split: arms and outputs share their participants."""
    first = {part.split: part for part in reversed(parts)}
    return dict(reversed(first.items()))


def _sites(names: pd.Series) -> str:
    sites = sorted(names.unique())
    return f"{'site' if len(sites) == 1 else 'sites'} {join_words(sites)}" if len(sites) <= 4 else f"{len(sites)} sites"


def _order(split: str) -> int:
    order = list(PARTS)
    return order.index(split) if split in order else len(order)

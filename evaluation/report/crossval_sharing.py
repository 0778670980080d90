"""What the report of a cross-validation counts, as it is printed: with few participants hidden on a shared page."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from evaluation.disclosure import (
    ENOUGH,
    SMALLEST,
    Count,
    DisclosureError,
    Sum,
    few_text,
    is_hidden,
    is_told,
    oldest_shown,
    suppress,
    top_coded_text,
)
from evaluation.predictions import PredictionsError
from evaluation.report.page import Table
from evaluation.wording import size_text

Counts = Mapping[tuple[str, str], Count]  # `n`, `events` or `others`, and a site, "" for all of them
_SHARE = re.compile(r"(\d+)(?: \(\d+ %\))?")
_SIZE = re.compile(r"(.*) \(n = (\d+)\)", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def require_enough(enough: bool) -> None:
    """Refuse to share a page about a few participants.

    Raises:
        PredictionsError: There are too few.
    """
    if not enough:
        raise PredictionsError(
            [
                f"nothing of it may be shared: fewer than {SMALLEST} participants were scored, or fewer than "
                f"{SMALLEST} have the outcome, or do not have it. Write the report without --share, and keep it."
            ]
        )


def site_counts(rows: pd.DataFrame, task: str, *, shared: bool) -> dict[tuple[str, str], Count]:
    """Return the participants of each test site and of all of them, and those with and without the outcome.

    Args:
        rows: Scored rows of one arm.
        task: Kind of outcome.
        shared: Whether small counts are hidden.
    """
    people = rows.groupby("participant").agg(site=("site", "first"), target=("target", "max"))
    groups = {str(site): own["target"] for site, own in people.groupby("site", sort=True)} | {"": people["target"]}
    counts: dict[tuple[str, str], int] = {("n", site): len(own) for site, own in groups.items()}
    sums: list[Sum[tuple[str, str]]] = []
    kinds = ["n"]
    if task == "binary":
        kinds = ["n", "events", "others"]
        for site, own in groups.items():
            counts["events", site] = int(own.sum())
            counts["others", site] = len(own) - counts["events", site]
            sums.append((("n", site), [("events", site), ("others", site)]))
    sites = [site for site in groups if site]
    sums += [((kind, ""), [(kind, site) for site in sites]) for kind in kinds]
    return suppress(counts, sums, unprinted=_others(counts)) if shared else dict(counts)


def shared_matrix(matrix: pd.DataFrame, counts: Counts) -> pd.DataFrame:
    """Return the matrix of training and test sites with marks for small counts, and no metrics of so few.

    Args:
        matrix: As `evaluation.cross_site.site_matrix` gives it.
        counts: Of the test sites, as they are printed.
    """
    shown = matrix.astype({"num_participants": object, "num_events": object})
    for place, cell in matrix.to_dict("index").items():
        size = _mark(int(cell["num_participants"]), counts["n", cell["test_site"]])
        shown.loc[place, "num_participants"] = size
        if pd.notna(cell["num_events"]):
            events = _mark(int(cell["num_events"]), counts["events", cell["test_site"]])
            shown.loc[place, "num_events"] = ENOUGH if is_hidden(size) and not is_hidden(events) else events
    few = [
        is_hidden(cell["num_participants"]) or not is_told(counts, cell["test_site"])
        for cell in shown.to_dict("records")
    ]
    fixed = {"train_sites", "split", "test_site", "num_participants", "num_events", "num_runs", "metric"}
    shown.loc[few, [name for name in shown if name not in fixed]] = np.nan
    return shown


def shared_subgroups(table: pd.DataFrame | None, counts: Counts) -> pd.DataFrame | None:
    """Return the metric inside subgroups with marks for small counts; ages over 89 are not told.

    Args:
        table: As `evaluation.report.participants.subgroup_frame` gives it.
        counts: Of all participants, as they are printed.
    """
    if table is None or table.empty:
        return table
    parts = [_shared_levels(str(column), own, counts) for column, own in table.groupby("column", sort=False)]
    return pd.concat(parts, ignore_index=True)


def shared_characteristics(table: Table, counts: Counts, output: str) -> Table:
    """Return the participants by site with marks for small counts, those that would give them away as well.

    What the table says is read from its cells, because a cross-validation keeps no other form of it.

    Args:
        table: As `evaluation.report.participants.characteristics_table` gives it.
        counts: Of the test sites, as they are printed.
        output: Name of the outcome.
    """
    heads = {place: found for place, name in enumerate(table.columns) if (found := _SIZE.fullmatch(name))}
    names = {place: "" if len(heads) > 1 and place == max(heads) else found[1] for place, found in heads.items()}
    if len(heads) == 1:
        names = dict.fromkeys(heads, "")
    known = {("n", name): int(heads[place][2]) for place, name in names.items()}
    sites = [name for name in names.values() if name]
    sums: list[Sum[tuple[str, str]]] = [(("n", ""), [("n", site) for site in sites])] if sites else []
    sizes = suppress(known, sums, {name: counts[name] for name in known if name in counts})
    missing = next((place for place, name in enumerate(table.columns) if name == "Missing"), None)
    rows = [_without_few(row, names, sizes, missing) for row in table.rows]
    for block in _blocks(table):
        cells = {(kind, name): _number(table.rows[kind][place]) for kind in block for place, name in names.items()}
        is_output = len(block) == 1 and table.rows[block[0]][0].lower().startswith(output.lower())
        marks = _block_marks(cells, known, sums, {**sizes, **(counts if is_output else {})}, block)
        for kind in block:
            for place, name in names.items():
                mark = marks[kind, name]
                rows[kind][place] = table.rows[kind][place] if not is_hidden(mark) else str(mark)
    columns = list(table.columns)
    for place, name in names.items():
        columns[place] = f"{heads[place][1]} ({size_text(sizes['n', name])})"
    return replace(table, columns=columns, rows=rows)


def range_text(sizes: pd.Series, *, shared: bool) -> str:
    """Return the smallest and the largest of some counts."""
    if sizes.empty:
        return "0"
    low, high = (few_text(int(end)) if shared else f"{int(end)}" for end in (sizes.min(), sizes.max()))
    return low if low == high else f"{low} to {high}"


def _others(counts: Mapping[tuple[str, str], int]) -> list[tuple[str, str]]:
    """Return the counts that are not in the report, but may follow from it."""
    return [name for name in counts if name[0] == "others"]


def _mark(count: int, mark: Count) -> Count:
    """Return a count of a cell as that of its site is printed."""
    if count < SMALLEST:
        return few_text(count)
    return ENOUGH if is_hidden(mark) else count


def _shared_levels(column: str, own: pd.DataFrame, counts: Counts) -> pd.DataFrame:
    """Return the levels of a column; none where a small one would follow from the totals on the page."""
    known: dict[tuple[str, str], int] = {}
    sums: list[Sum[tuple[str, str]]] = []
    kinds = ["n"]
    levels = [str(level) for level in own["level"].unique()]
    for level, row in zip(levels, own.drop_duplicates("level").to_dict("records"), strict=True):
        known["n", level] = int(row["num_participants"])
        if pd.notna(row["num_events"]):
            kinds = ["n", "events", "others"]
            known["events", level] = int(row["num_events"])
            known["others", level] = known["n", level] - known["events", level]
            sums.append((("n", level), [("events", level), ("others", level)]))
    for kind in kinds:
        known[kind, ""] = sum(known[kind, level] for level in levels)
        sums.append(((kind, ""), [(kind, level) for level in levels]))
    try:
        printed = {(kind, ""): counts[kind, ""] for kind in kinds if kind != "others"}
        marks = suppress(known, sums, printed, _others(known))
    except DisclosureError:
        return own.iloc[:0]
    shown = own.astype({"num_participants": object, "num_events": object})
    shown["num_participants"] = [marks["n", str(level)] for level in own["level"]]
    if len(kinds) > 1:
        shown["num_events"] = [marks["events", str(level)] for level in own["level"]]
    shown.loc[[not is_told(marks, str(level)) for level in own["level"]], ["estimate", "low", "high"]] = np.nan
    oldest = oldest_shown(column, None)
    return shown.assign(level=[_top_coded_level(str(level), oldest) for level in own["level"]])


def _top_coded_level(level: str, oldest: float) -> str:
    """Return a level, its ends top-coded where it is one of ages.

    >>> _top_coded_level("60.5 to 94", 89.0), _top_coded_level("60.5 to 94", float("inf"))
    ('60.5 to 90+', '60.5 to 94')
    """
    return _NUMBER.sub(lambda found: top_coded_text(float(found[0]), oldest, len(found[0].partition(".")[2])), level)


def _blocks(table: Table) -> list[list[int]]:
    """Return the rows that count classes: the levels of one column each, or a row of its own."""
    blocks: list[list[int]] = []
    for number, row in enumerate(table.rows):
        if row[0].startswith("\u2003"):
            blocks[-1].append(number)
        elif row[0].endswith("n (%)"):
            blocks.append([number] if any(row[1:2]) else [])
    return [block for block in blocks if block]


def _number(cell: str) -> int:
    found = _SHARE.fullmatch(cell)
    return int(found[1]) if found else 0


def _block_marks(
    cells: Mapping[tuple[int, str], int],
    known: Mapping[tuple[str, str], int],
    sums: Sequence[Sum[tuple[str, str]]],
    printed: Counts,
    block: Sequence[int],
) -> Mapping[tuple[int, str], Count]:
    """Return how the classes of a column are printed; all are hidden where a small one would follow from the sizes."""
    names = [name for _, name in known]
    if len(block) == 1:  # those without it are not in the table, but follow from it
        level = {block[0]: "events"}
        rest, sizes = "others", {name: known["n", name] - cells[block[0], name] for name in names}
        lines = [*sums, *((("n", name), [("events", name), ("others", name)]) for name in names)]
    else:
        level = {kind: f"level {kind}" for kind in block}
        rest, sizes = "known", {name: sum(cells[kind, name] for kind in block) for name in names}
        lines = [*sums, *((("known", name), [(kind, name) for kind in level.values()]) for name in names)]
    counts = {**known, **{(rest, name): size for name, size in sizes.items()}}
    counts |= {(level[kind], name): count for (kind, name), count in cells.items()}
    for kind in (*level.values(), rest):
        lines += [((kind, ""), [(kind, part) for _, part in parts]) for _, parts in sums]
    try:
        shown = {name: mark for name, mark in printed.items() if name in counts and name[0] != "others"}
        marks = suppress(counts, lines, shown, _others(counts))
    except DisclosureError:
        return {name: few_text(count) if count < SMALLEST else ENOUGH for name, count in cells.items()}
    return {(kind, name): marks[level[kind], name] for kind, name in cells}


def _without_few(
    row: Sequence[str], names: Mapping[int, str], sizes: Mapping[tuple[str, str], Count], missing: int | None
) -> list[str]:
    """Return a row without what it says of a few participants, and with a mark for few missing values."""
    shown = ["" if place in names and is_hidden(sizes["n", names[place]]) else cell for place, cell in enumerate(row)]
    if missing is not None and row[missing] and _number(row[missing]) < SMALLEST:
        shown[missing] = few_text(_number(row[missing]))
    return shown

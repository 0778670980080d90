"""Who took part: Table 1 with the differences between sites, and a metric inside subgroups."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evaluation.cross_site import subgroups
from evaluation.estimate import FloatArray
from evaluation.report.page import Table
from evaluation.wording import capitalised, number_text, share_text, with_unit

MAX_CLASSES = 6  # different values of a column of numbers that is shown as classes
MIN_EDGES = 2  # of bins; with no more there is one bin
MAX_TEXT_LEVELS = 12  # of a column of text; one with more says nothing in a table


@dataclass(frozen=True)
class Characteristic:
    """A column of Table 1.

    Args:
        name: Name of the column.
        label: What a reader calls it; the name by default.
        unit: Its unit.
    """

    name: str
    label: str = ""
    unit: str | None = None


def characteristics_table(participants: pd.DataFrame, characteristics: Sequence[Characteristic]) -> Table:
    """Return the participants by site: mean and standard deviation of numbers, counts of classes, missing values.

    Args:
        participants: One row per participant: `site`, and the columns that are shown. Columns of numbers with at most
            six different values (0 and 1, say) are shown as classes.
        characteristics: The columns, in order; those of text with more than twelve values are left out.

    References:
        Yang D, Dalton JE. A unified approach to measuring the effect size between two groups using SAS. SAS Global
        Forum 2012, paper 335.
    """
    sites = {str(site): own for site, own in participants.groupby("site", sort=True)}
    groups = {**sites, "All": participants} if len(sites) > 1 else sites
    rows: list[list[str]] = []
    for column in characteristics:
        values = participants[column.name].replace("", np.nan)
        if (is_text := not pd.api.types.is_numeric_dtype(values)) and values.nunique() > MAX_TEXT_LEVELS:
            continue
        parts = [values.loc[own.index] for own in groups.values()]
        by_site = [values.loc[own.index] for own in sites.values()]
        missing = share_text(int(values.isna().sum()), len(values)) if values.isna().any() else "0"
        label = capitalised(with_unit(column.label or column.name, column.unit))
        if is_text or values.nunique() <= MAX_CLASSES:
            distance = number_text(largest_difference(by_site, classes=True)) if len(sites) > 1 else ""
            rows += _class_rows(label, values, parts, missing, distance)
        else:
            distance = number_text(largest_difference(by_site, classes=False)) if len(sites) > 1 else ""
            rows.append([f"{label}, mean (SD)", *map(_mean_text, parts), missing, distance])
    rows = [["undefined" if cell == "nan" else cell for cell in row] for row in rows]
    heads = [f"{name} (n = {len(own)})" for name, own in groups.items()]
    pairs = "the two sites" if len(sites) == 2 else "any two sites, the largest"
    note = "SD: standard deviation. Percentages are of those with a value."
    if len(sites) > 1:
        note += (
            f" SMD: standardised mean difference between {pairs}; above 0.1 is commonly called imbalance. With classes "
            "it is Yang and Dalton's."
        )
    columns = ["Characteristic", *heads, "Missing", *(["SMD"] if len(sites) > 1 else [])]
    shown = rows if len(sites) > 1 else [row[:-1] for row in rows]
    return Table("Participants by site.", columns, shown, 1, note)


def subgroup_frame(
    predictions: pd.DataFrame,
    participants: pd.DataFrame,
    columns: Sequence[str],
    arms: Sequence[str],
    *,
    metric: str,
    task: str,
    num_replicates: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute a metric of some arms inside subgroups of the participants; numbers are cut at their terciles.

    Args:
        predictions: Held-out rows of one protocol and output.
        participants: One row per participant: `dataset`, `participant_id`, and the columns.
        columns: Columns that make subgroups; those that tell nobody apart, or nearly everybody, are left out.
        arms: The arms.
        metric: The metric.
        task: Kind of outcome.
        num_replicates: Bootstrap replicates.
        seed: Seed of the bootstrap.

    Returns:
        As `evaluation.cross_site.subgroups` gives it, with a column `arm`.
    """
    known = {name: participants[name].replace("", np.nan) for name in columns if name not in predictions}
    bins = {name: _terciles(values) for name, values in known.items() if _is_number(values)}
    used = [name for name in known if (len(bins[name]) > MIN_EDGES if name in bins else _makes_classes(known[name]))]
    if not used:
        return pd.DataFrame()
    levels = {name: known[name] if name in bins else known[name].map(_level, na_action="ignore") for name in used}
    facts = participants[["dataset", "participant_id"]].assign(**levels)
    tables = []
    for arm in arms:
        own = predictions[predictions["arm"] == arm].merge(facts, on=["dataset", "participant_id"], how="left")
        edges = {name: bins[name] for name in used if name in bins}
        tables.append(
            subgroups(own, used, bins=edges, task=task, metric=metric, num_replicates=num_replicates, seed=seed).assign(
                arm=arm
            )
        )
    return pd.concat(tables, ignore_index=True)


def largest_difference(groups: Sequence[pd.Series], *, classes: bool) -> float:
    """Return the largest standardised mean difference between any two groups, missing values left out.

    Args:
        groups: Values of each group.
        classes: Whether the values are classes.

    >>> round(largest_difference([pd.Series([1.0, 2.0, 3.0]), pd.Series([2.0, 3.0, 4.0])], classes=False), 3)
    1.0
    """
    known = [group.dropna() for group in groups]
    pairs = [(a, b) for a, b in itertools.combinations(known, 2) if len(a) and len(b)]
    found = [_class_difference(a, b) if classes else _mean_difference(a, b) for a, b in pairs]
    return max((value for value in found if not math.isnan(value)), default=math.nan)


def _mean_difference(a: pd.Series, b: pd.Series) -> float:
    spread = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2) if min(len(a), len(b)) > 1 else math.nan
    distance = abs(float(a.mean() - b.mean()))
    return distance / spread if spread > 0 else (0.0 if distance == 0 else math.nan)


def _class_difference(a: pd.Series, b: pd.Series) -> float:
    """Return the Mahalanobis distance between two vectors of shares, the first class left out."""
    levels = sorted({*a.unique(), *b.unique()})[1:]
    if not levels:
        return 0.0
    shares = [np.array([float((group == level).mean()) for level in levels]) for group in (a, b)]
    covariance = sum((_covariance(share) for share in shares), np.zeros((len(levels), len(levels)))) / 2
    distance = shares[0] - shares[1]
    if not np.diag(covariance).any():
        return 0.0 if not distance.any() else math.nan
    return math.sqrt(max(float(distance @ np.linalg.pinv(covariance) @ distance), 0.0))


def _covariance(share: FloatArray) -> FloatArray:
    covariance: FloatArray = np.diag(share) - np.outer(share, share)
    return covariance


def _class_rows(
    label: str, values: pd.Series, parts: Sequence[pd.Series], missing: str, distance: str
) -> list[list[str]]:
    levels = sorted(values.dropna().unique())
    if levels in ([0.0, 1.0], [1.0], [0.0]):
        return [[f"{label} = 1, n (%)", *(_share(part, 1.0) for part in parts), missing, distance]]
    first = [f"{label}, n (%)", *("" for _ in parts), missing, distance]
    return [
        first,
        *([f"\u2003{_level(level)}", *(_share(part, level) for part in parts), "", ""] for level in levels),
    ]


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and values.nunique() > MAX_CLASSES


def _makes_classes(values: pd.Series) -> bool:
    return 1 < values.nunique() <= MAX_TEXT_LEVELS


def _terciles(values: pd.Series) -> list[float]:
    """Return the ends, rounded outwards, and the terciles, to a hundredth of the range."""
    known = values.dropna().to_numpy(np.float64)
    low, high = float(known.min()), float(known.max())
    decimals = 2 - math.floor(math.log10(high - low))
    step = 10.0**-decimals
    inner = [round(float(edge), decimals) for edge in np.quantile(known, [1 / 3, 2 / 3])]
    ends = [round(math.floor(low / step) * step, decimals), round(math.ceil(high / step) * step, decimals)]
    return sorted({ends[0], *(edge for edge in inner if ends[0] < edge < ends[1]), ends[1]})


def _level(level: object) -> str:
    return f"{level:g}" if isinstance(level, float) else str(level)


def _share(values: pd.Series, level: object) -> str:
    return share_text(int((values == level).sum()), int(values.notna().sum()))


def _mean_text(values: pd.Series) -> str:
    known = values.dropna()
    if known.empty:
        return ""
    digits = _digits(known)
    spread = f" ({number_text(known.std(ddof=1), digits)})" if len(known) > 1 else ""
    return f"{number_text(known.mean(), digits)}{spread}"


def _digits(values: pd.Series) -> int:
    """Return as many decimals as leave about three digits of the spread."""
    size = float(np.ptp(values))
    return int(np.clip(2 - math.floor(math.log10(size)), 0, 3)) if size > 0 else 1

"""Whom a split must keep together, and in which order it deals them out so that every part is alike."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pandas as pd

from datamodules.cohort import participant_keys

MAX_CLASSES = 10  # a target with more different values is continuous


@dataclass(frozen=True)
class Unit:
    """Participants that stay together: one, or all that a group ties to one another.

    Args:
        keys: Their keys, sorted.
        sites: Every site where one of them was scanned.
        home: The site with most of their rows.
        level: Mean of the target, or of the rank of its class; None where it is missing.
    """

    keys: tuple[str, ...]
    sites: frozenset[str]
    home: str
    level: float | None


def sites_by_key(frame: pd.DataFrame) -> dict[str, Counter[str]]:
    """Return the number of rows of each participant at each site."""
    sites: dict[str, Counter[str]] = defaultdict(Counter)
    for key, site in zip(participant_keys(frame), frame["site"], strict=True):
        sites[key][site] += 1
    return sites


def tied_units(frame: pd.DataFrame, target: str | None, group: str | None) -> list[Unit]:
    """Return the units of a cohort, sorted by their participants.

    Args:
        frame: Rows of a cohort.
        target: Column to balance.
        group: Column whose equal values tie participants; an empty value ties nobody.
    """
    keys = participant_keys(frame)
    sites_of = sites_by_key(frame)
    levels = _levels(frame[target]) if target is not None else [np.nan] * len(frame)
    members = _components(keys, [str(value) for value in frame[group]] if group is not None else [""] * len(keys))
    values: dict[str, list[float]] = defaultdict(list)
    for key, level in zip(keys, levels, strict=True):
        if np.isfinite(level):
            values[key].append(level)
    units = []
    for together in members:
        sites = sum((sites_of[key] for key in together), Counter[str]())
        known = [fmean(values[key]) for key in together if values[key]]
        home = min(sites, key=lambda site: (-sites[site], site))
        units.append(Unit(together, frozenset(sites), home, fmean(known) if known else None))
    return units


def _levels(values: pd.Series) -> list[float]:
    """Return a number for each value: itself, or the rank of its class; NaN where it is missing."""
    if pd.api.types.is_numeric_dtype(values):
        return [float(value) for value in values]
    classes = {name: float(rank) for rank, name in enumerate(sorted({str(value) for value in values} - {""}))}
    return [classes.get(str(value), np.nan) for value in values]


def _components(keys: Sequence[str], groups: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the participants that groups tie together, directly or over others, as sorted tuples."""
    parent = {key: key for key in keys}

    def find(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    first_of: dict[str, str] = {}
    for key, group in zip(keys, groups, strict=True):
        if group not in ("", "nan", "None"):
            parent[find(key)] = find(first_of.setdefault(group, key))
    members: dict[str, list[str]] = defaultdict(list)
    for key in sorted(parent):
        members[find(key)].append(key)
    return [tuple(together) for together in members.values()]


def balanced_order(units: Sequence[Unit], site: str, smallest: float, seed: int) -> list[Unit]:
    """Return the units of a site range by range of the target, in random order within each range.

    Each range is as long as it takes to give one unit to the smallest part, so that an even division along the order
    is even in every range. The range to begin with is drawn, because the first unit always goes to training.
    """
    known = sorted({unit.level for unit in units if unit.level is not None})
    if len(known) <= MAX_CLASSES:
        bins = {level: index for index, level in enumerate(known)}
    else:
        levels = np.sort([unit.level for unit in units if unit.level is not None])
        num_bins = max(1, int(len(levels) * smallest))
        edges = np.quantile(levels, np.arange(1, num_bins) / num_bins)
        bins = {level: int(np.searchsorted(edges, level, side="right")) for level in known}
    num_bins = max(bins.values(), default=0) + 2
    begin = draw(seed, "range", site) % num_bins

    def place(unit: Unit) -> tuple[int, int]:
        index = num_bins - 1 if unit.level is None else bins[unit.level]
        return (index - begin) % num_bins, draw(seed, "order", *unit.keys)

    return sorted(units, key=place)


def keys_by_site(keys: Iterable[str], sites_of: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Return the participants of each site; somebody scanned at two sites stands under both."""
    parts: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        for site in sites_of[key]:
            parts[site].append(key)
    return {site: tuple(sorted(parts[site])) for site in sorted(parts)}


def draw(seed: int, *names: str) -> int:
    """Return a number that depends on seed and names alone, so that a draw outlives versions of every library."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, *names]).encode()).digest()[:8], "big")

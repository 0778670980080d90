"""What a shared page does not say: who somebody is, how old beyond 89 years, and counts of fewer than five people.

The statistics stay as they are; what is changed is how people and counts are written.
"""

import hashlib
import hmac
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy.optimize import linprog

from evaluation.wording import number_text

SMALLEST = 5  # participants that a count must have to be printed
FEW = f"<{SMALLEST}"
ENOUGH = f"\N{GREATER-THAN OR EQUAL TO}{SMALLEST}"  # hidden because another count could be computed from it
MIN_POSSIBLE = 3  # values that must stay possible, of the five that `FEW` stands for
OLDEST = 89.0  # years: the oldest age that is printed
OLDER = "90+"
CODE_LENGTH = 12  # hexadecimal digits: two of 100,000 participants agree with a probability of 2e-5
PER_YEAR = {"year": 1.0, "month": 12.0, "week": 365.25 / 7, "day": 365.25}

Count = int | str
Bounds = tuple[int, int | None]  # the smallest and the largest number that a reader must take for possible
Name = TypeVar("Name", bound=Hashable)
Sum = tuple[Name, Sequence[Name]]


class DisclosureError(ValueError):
    """Counts that cannot be hidden."""


@dataclass(frozen=True)
class Sharing:
    """The form of a report that may leave the place where its participants are known.

    Args:
        key: Secret of the codes of participants, 32 random bytes that stay at home.
        notices: Further sentences on what was left out.
    """

    key: bytes
    notices: tuple[str, ...] = ()

    def code(self, dataset: str, participant_id: str) -> str:
        """Return what a participant is called: the same with the same key, and unknown to whoever has no key."""
        return code_of(self.key, dataset, participant_id)

    def codes(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the participants of a table with their codes, once each: the list that stays at home."""
        people = rows[["dataset", "participant_id"]].drop_duplicates().sort_values(["dataset", "participant_id"])
        return people.assign(code=[self.code(*who) for who in people.itertuples(index=False)]).reset_index(drop=True)


def code_of(key: bytes, dataset: str, participant_id: str) -> str:
    """Return a keyed hash of a participant.

    A hash without a key could be undone by hashing every identifier that a hospital may have given.

    >>> code_of(b"0" * 32, "newborns", "sub-01") == code_of(b"0" * 32, "newborns", "sub-01")
    True
    >>> code_of(b"0" * 32, "newborns", "sub-01") == code_of(b"1" * 32, "newborns", "sub-01")
    False
    """
    named = f"{len(dataset)}:{dataset}{participant_id}".encode()  # the length: no two pairs are written alike
    return f"p-{hmac.new(key, named, hashlib.sha256).hexdigest()[:CODE_LENGTH]}"


def oldest_shown(name: str, unit: str | None) -> float:
    """Return the largest value of a column that is printed, in its unit: infinite where it is no age.

    A column is an age by its unit of time, or by its name where it has no unit.

    Args:
        name: Name of the column.
        unit: Its unit.

    References:
        Ages over 89 may only be given as 90 or older: 45 CFR 164.514(b)(2)(i)(C), HIPAA's Safe Harbor.

    >>> oldest_shown("age", "years"), oldest_shown("age_at_scan", "months"), oldest_shown("score", None)
    (89.0, 1079.0, inf)
    """
    times = PER_YEAR.get((unit or "").strip().lower().removesuffix("s"))
    if unit is None and "age" in name.lower().replace("-", "_").split("_"):
        times = 1.0
    return np.inf if times is None else float(np.ceil((OLDEST + 1) * times) - 1)


def top_coded(values: pd.Series, oldest: float) -> pd.Series:
    """Return values, those above the oldest that is shown as one that says no more than that.

    >>> top_coded(pd.Series([88.5, 89.9, 97.0]), 89.0).tolist()
    [88.5, 89.9, 90.0]
    """
    return values.clip(upper=oldest + 1)


def top_coded_text(value: float, oldest: float, digits: int = 1) -> str:
    """Return an age as it is printed.

    >>> top_coded_text(88.51, 89.0), top_coded_text(93.2, 89.0), top_coded_text(1100, 1079.0, 0)
    ('88.5', '90+', '1080+')
    """
    return number_text(value, digits) if round(value, digits) < oldest + 1 else f"{oldest + 1:.0f}+"


def few_text(count: int) -> str:
    """Return a count that stands alone.

    >>> few_text(0), few_text(4), few_text(5)
    ('<5', '<5', '5')
    """
    return FEW if count < SMALLEST else f"{count:,}"


def suppress(
    counts: Mapping[Name, int],
    sums: Iterable[Sum[Name]] = (),
    printed: Mapping[Name, Count] | None = None,
    unprinted: Collection[Name] = (),
) -> dict[Name, Count]:
    """Return how counts of people are printed that add up to one another.

    A count under five, none included, is `<5`. Where it could be computed from what else is printed, further counts are
    hidden as `≥5`, the smallest first and sums after their parts, until at least three of the five values that `<5`
    stands for are still possible for each of them. What is possible is computed by integer programming, from all sums
    at once and from what the marks themselves say.

    Args:
        counts: The true counts.
        sums: Which count is the sum of which others.
        printed: How counts are printed already, elsewhere on the same page: what is hidden there stays hidden, and what
            is printed there is known.
        unprinted: Counts that stand nowhere but may follow from others, such as those without the outcome.

    Raises:
        DisclosureError: What is printed already gives a small count away.

    References:
        Fischetti M, Salazar JJ. Management Science 2001;47(7):1008-1027. doi:10.1287/mnsc.47.7.1008.9805

    >>> suppress({"a": 3, "b": 12, "c": 9, "all": 24}, [("all", ["a", "b", "c"])])
    {'a': '<5', 'b': 12, 'c': '≥5', 'all': 24}
    >>> suppress({"a": 4, "b": 4, "all": 8}, [("all", ["a", "b"])])
    {'a': '<5', 'b': '<5', 'all': '≥5'}
    """
    lines = [(total, list(parts)) for total, parts in sums]
    marked = printed or {}
    bounds: dict[Name, Bounds] = {name: (0, SMALLEST - 1) for name, count in counts.items() if count < SMALLEST}
    bounds |= {name: (SMALLEST, None) for name, mark in marked.items() if name in counts and mark == ENOUGH}
    bounds |= dict.fromkeys(unprinted, (0, None))
    for name in [name for name, count in counts.items() if count < SMALLEST]:
        while _num_possible(name, counts, lines, bounds) < MIN_POSSIBLE:
            more = _next_hidden(name, lines, counts, bounds.keys() | marked.keys())
            if more is None and marked:
                raise DisclosureError(f"The count {name!r} follows from what is printed already.")
            if more is None:
                break  # every count that has to do with it is hidden
            bounds[more] = (SMALLEST, None)
    return {name: (FEW if count < SMALLEST else ENOUGH) if name in bounds else count for name, count in counts.items()}


def is_hidden(count: Count) -> bool:
    """Tell whether a count is printed as a mark."""
    return isinstance(count, str)


def is_told(counts: Mapping[tuple[str, str], Count], group: str) -> bool:
    """Tell whether the metrics of a group may be printed: only where its counts are.

    The interval of a proportion gives away what it is a proportion of.

    Args:
        counts: `n`, `events` and `others` (without the outcome) by group, as they are printed.
        group: The group.

    >>> is_told({("n", "a"): 24, ("events", "a"): "<5", ("others", "a"): 20}, "a")
    False
    """
    own = [counts.get((kind, group), SMALLEST) for kind in ("n", "events")]
    return not any(map(is_hidden, own)) and counts.get(("others", group), SMALLEST) != FEW


def _num_possible(
    name: Name, counts: Mapping[Name, int], lines: Sequence[tuple[Name, list[Name]]], bounds: Mapping[Name, Bounds]
) -> int:
    """Return how many values of a hidden count agree with all that is printed."""
    unknown = {one: place for place, one in enumerate(bounds)}
    left, right = [], []
    for total, parts in lines:
        row, known = np.zeros(len(unknown)), 0
        for one, sign in [(total, -1), *((part, 1) for part in parts)]:
            if one in unknown:
                row[unknown[one]] += sign
            else:
                known += sign * counts[one]
        if row.any():
            left.append(row)
            right.append(-known)
    objective = np.zeros(len(unknown))
    objective[unknown[name]] = 1
    equal = (None, None) if not left else (np.array(left), np.array(right))
    low, high = (
        float(
            linprog(sign * objective, A_eq=equal[0], b_eq=equal[1], bounds=list(bounds.values()), integrality=1).fun
            or 0.0
        )
        for sign in (1, -1)
    )
    return round(-high - low) + 1


def _next_hidden(
    name: Name, lines: Sequence[tuple[Name, list[Name]]], counts: Mapping[Name, int], kept: set[Name]
) -> Name | None:
    """Return the count to hide next: the smallest in the nearest sum, sums after their parts, none of those kept."""
    reached, seen = {name}, set(range(len(lines)))
    while near := [number for number in seen if reached & {lines[number][0], *lines[number][1]}]:
        parts = [part for number in near for part in lines[number][1] if part not in kept]
        totals = [lines[number][0] for number in near if lines[number][0] not in kept]
        if parts or totals:
            return min(parts or totals, key=lambda one: counts[one])
        reached |= {one for number in near for one in (lines[number][0], *lines[number][1])}
        seen -= set(near)
    return None

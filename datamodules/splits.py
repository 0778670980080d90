"""Who is trained on and who is tested on, decided once, by participant, and written down."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from datamodules.strata import Unit, balanced_order, draw, keys_by_site, sites_by_key, tied_units

FOLDS_FORMAT = 1
DEFAULT_FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}


class SplitError(ValueError):
    """Participants cannot be split as asked; the message says what, where and what to do."""


@dataclass(frozen=True)
class Split:
    """A division of the participants into parts that share nobody.

    Args:
        protocol: How it was drawn.
        seed: Seed of the draw.
        parts: Part, then site, then the keys of its participants (see `participant_key`), sorted. Somebody scanned at
            two sites stands under both.

    Raises:
        SplitError: When a participant is in two parts.
    """

    protocol: str
    seed: int
    parts: dict[str, dict[str, tuple[str, ...]]]

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for part in self.parts:
            for key in self.keys(part):
                if seen.setdefault(key, part) != part:
                    raise SplitError(f"Participant {key} is in {seen[key]} and in {part}. Keep one of the two.")

    def keys(self, part: str) -> tuple[str, ...]:
        """Return the participants of a part, sorted and each once; none for a part that the split does not have."""
        return tuple(sorted({key for keys in self.parts.get(part, {}).values() for key in keys}))

    def union(self, *parts: str) -> dict[str, tuple[str, ...]]:
        """Return the participants of several parts together, by site; parts that the split lacks hold nobody."""
        together: dict[str, set[str]] = defaultdict(set)
        for part in parts:
            for site, keys in self.parts.get(part, {}).items():
                together[site].update(keys)
        return {site: tuple(sorted(keys)) for site, keys in together.items()}

    def part_of(self, key: str) -> str | None:
        """Return the part that a participant is in, or None when the split does not name them."""
        return self._part_by_key.get(key)

    @cached_property
    def _part_by_key(self) -> dict[str, str]:
        return {key: part for part in self.parts for key in self.keys(part)}

    @property
    def hash(self) -> str:
        """Return the sha256 of protocol, seed and parts; equal for the same division whatever the order in the file."""
        content = {"protocol": self.protocol, "seed": self.seed, "parts": self.parts}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def as_dict(self) -> dict[str, object]:
        """Return what `folds.json` holds."""
        parts = {part: {site: list(keys) for site, keys in sites.items()} for part, sites in self.parts.items()}
        return {"format": FOLDS_FORMAT, "protocol": self.protocol, "seed": self.seed, "parts": parts, "hash": self.hash}

    def write(self, path: Path) -> None:
        """Write the split as a folds file."""
        path.write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Split:
        """Read a folds file.

        Raises:
            SplitError: When it is not one, was changed by hand, or puts somebody into two parts.
        """
        remedy = "Use the folds.json that a run or `Split.write` left."
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            parts = {
                str(part): {str(site): tuple(map(str, keys)) for site, keys in sites.items()}
                for part, sites in content["parts"].items()
            }
            split = cls(str(content["protocol"]), int(content["seed"]), parts)
            recorded = content["hash"]
        except FileNotFoundError as error:
            raise SplitError(f"There is no folds file {path}. {remedy}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error) if isinstance(error, SplitError) else f"it is not a folds file ({error!r})"
            raise SplitError(f"{path}: {reason}. {remedy}") from error
        if split.hash != recorded:
            raise SplitError(f"{path} was changed after it was written; its hash is wrong. {remedy}")
        return split


def holdout_split(
    frame: pd.DataFrame,
    *,
    target: str | None,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    held_out_sites: Sequence[str] = (),
    group: str | None = None,
    seed: int,
) -> Split:
    """Draw training, validation and test participants from the same sites, and keep whole sites out as `external`.

    Every session of a participant is on one side, and so is everybody who shares a value of `group`, directly or over
    others. Within a site the parts are balanced over the target (quantile ranges of a number, classes otherwise).
    Validation and test have only sites that training has too. The order of the rows does not matter.

    Args:
        frame: Rows of a cohort with `dataset`, `participant_id` and `site`.
        target: Column to balance; None draws without balance.
        fractions: Share of the participants of each part; `train` is one of them.
        held_out_sites: Sites whose participants form the part `external`, with all their rows at other sites and
            everybody tied to them by `group`.
        group: Column with the anatomy, family or the like; an empty value ties nobody.
        seed: Seed of the draw.

    Raises:
        SplitError: When a column, a site or participants are missing, or a part would be empty.
    """
    _check_request(frame, target, fractions, held_out_sites, group)
    units = tied_units(frame, target, group)
    closed = set(held_out_sites)
    assigned: dict[str, list[Unit]] = {part: [] for part in fractions}
    if closed:
        assigned["external"] = [unit for unit in units if unit.sites & closed]
    by_site: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        if not unit.sites & closed:
            by_site[unit.home].append(unit)
    smallest = min(share for share in fractions.values() if share > 0)
    ordered = [unit for site in sorted(by_site) for unit in balanced_order(by_site[site], site, smallest, seed)]
    assign_to_parts(ordered, fractions, assigned, seed)
    _check_result(assigned, fractions, group, len(units))
    sites = sites_by_key(frame)
    parts = {
        part: keys_by_site((key for unit in chosen for key in unit.keys), sites) for part, chosen in assigned.items()
    }
    return Split("holdout", seed, parts)


def _check_request(
    frame: pd.DataFrame,
    target: str | None,
    fractions: Mapping[str, float],
    held_out_sites: Sequence[str],
    group: str | None,
) -> None:
    wanted = ["dataset", "participant_id", "site", *(name for name in (target, group) if name is not None)]
    absent = [name for name in wanted if name not in frame.columns]
    if absent:
        raise SplitError(
            f"The cohort has no column {', '.join(absent)} to split by; it has {', '.join(frame.columns)}."
        )
    if frame.empty:
        raise SplitError("The cohort has no rows to split.")
    if fractions.get("train", 0) <= 0 or "external" in fractions:
        raise SplitError(
            "The fractions need a `train` above 0, and no `external`: that part is made of held-out sites."
        )
    if any(share < 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        listed = ", ".join(f"{part} {share:g}" for part, share in fractions.items())
        raise SplitError(
            f"The fractions {listed} are not shares of a whole. Give numbers from 0 to 1 that add up to 1."
        )
    sites = set(frame["site"])
    strange = sorted(set(held_out_sites) - sites)
    if strange:
        raise SplitError(f"The cohort has no site {', '.join(strange)} to hold out; it has {', '.join(sorted(sites))}.")
    if sites <= set(held_out_sites):
        raise SplitError("Every site is held out, so nobody is left to train on. Hold out fewer sites.")


def _check_result(
    assigned: Mapping[str, Sequence[Unit]], fractions: Mapping[str, float], group: str | None, num_units: int
) -> None:
    empty = [part for part, share in fractions.items() if share > 0 and not assigned[part]]
    if not empty:
        return
    tied = f" Column {group} ties the participants into {num_units} groups, which stay whole." if group else ""
    raise SplitError(
        f"Nobody is left for {', '.join(empty)}.{tied} Raise its share, hold out fewer sites, or add participants."
    )


def assign_to_parts(
    units: Sequence[Unit], fractions: Mapping[str, float], assigned: dict[str, list[Unit]], seed: int
) -> None:
    """Give each unit to the part that is furthest behind its share; a site that training has not seen, to training.

    Args:
        units: In the order of `balanced_order`, so that every part is alike.
        fractions: Share of each part.
        assigned: Part -> its units; added to.
        seed: Seed of the draw between parts that are equally far behind.
    """
    sizes = dict.fromkeys(fractions, 0)
    seen: set[str] = set()
    for unit in units:
        total = sum(sizes.values()) + len(unit.keys)
        ties = {part: draw(seed, "tie", part, *unit.keys) for part in fractions}
        wanting = [part for part, share in fractions.items() if share > 0]
        part = max(wanting, key=lambda name: (round(fractions[name] * total - sizes[name], 9), ties[name]))
        if not unit.sites <= seen:
            part = "train"
        if part == "train":
            seen |= unit.sites
        sizes[part] += len(unit.keys)
        assigned[part].append(unit)

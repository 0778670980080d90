"""Who is trained on and who is tested on in a cross-validation: pure functions of the cohort's rows.

Every site is dealt into folds once per repeat, balanced over the target. Fold f of site A is the test set of three
protocols alike, so that they are compared on the same participants:

- `same-site` trains on A without f,
- `multi-site` on A without f and all of the other sites,
- `cross-site` on the other sites alone (with more than two, this is leave-one-site-out). One model tests all folds of
  A; a repeat is a new draw of the validation part.

`k-fold` tests fold f of every site together and trains on the rest; `external` trains on all sites but some, and tests
those. Validation participants are drawn from the sites of the training. Nobody is ever on two sides, nor is anybody
tied to them by `group`. What is not needed stands in the part `unused`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd

from datamodules.splits import Split, SplitError, assign_to_parts
from datamodules.strata import MAX_CLASSES, Unit, balanced_order, draw, keys_by_site, sites_by_key, tied_units

Protocol = Literal["same-site", "multi-site", "cross-site", "k-fold", "external"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
MATCHED: tuple[Protocol, ...] = ("same-site", "multi-site", "cross-site")
UNSEEN: tuple[Protocol, ...] = ("cross-site", "external")  # their test sites are never trained on
UNUSED = "unused"


@dataclass(frozen=True)
class Design:
    """How a cross-validation is drawn.

    Args:
        protocol: Who trains for whom.
        num_folds: Folds of every site.
        num_repeats: How often everything is drawn anew.
        val_fraction: Share of the participants of a training that choose the model.
        external_sites: Sites that `external` tests and never trains on.
        match_train_size: Train `same-site`, `multi-site` and `cross-site` on equally many participants of each class:
            as many as the smallest of the three has.
        max_train_per_site: Most participants of a site that a training may use; all by default.
        group: Column whose equal values stay on one side.
        seed: Seed of every draw.
    """

    protocol: Protocol
    num_folds: int = 5
    num_repeats: int = 1
    val_fraction: float = 0.15
    external_sites: tuple[str, ...] = ()
    match_train_size: bool = False
    max_train_per_site: int | None = None
    group: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise SplitError(f"There is no protocol '{self.protocol}'. There are: {', '.join(PROTOCOLS)}.")
        if self.num_folds < 2 or self.num_repeats < 1:
            raise SplitError("A cross-validation needs at least 2 folds (num_folds) and 1 repeat (num_repeats).")
        if not 0 <= self.val_fraction < 1:
            raise SplitError(f"val_fraction is {self.val_fraction:g}; give a share from 0 to less than 1.")
        if self.match_train_size and self.protocol not in MATCHED:
            raise SplitError(f"match_train_size compares {', '.join(MATCHED)}; leave it out with {self.protocol}.")
        if self.protocol == "external" and not self.external_sites:
            raise SplitError("The protocol external needs the sites to test: external_sites, or --external-sites.")
        if self.protocol != "external" and self.external_sites:
            raise SplitError(f"Only the protocol external knows external_sites; {self.protocol} tests every site.")


@dataclass(frozen=True)
class Cell:
    """One test set with its training: what every arm and every seed of it shares.

    Args:
        repeat: Which draw, from 0.
        fold: Name of the test set within the repeat: `site-a.0`, `site-a`, `0` or `external`.
        split: Who is in `train`, `val`, `unused`, and `test` or (sites that the training never sees) `external`.
    """

    repeat: int
    fold: str
    split: Split


def plan_cells(frame: pd.DataFrame, design: Design, target: str | None) -> list[Cell]:
    """Draw every cell of a cross-validation; the order of the rows does not matter.

    Args:
        frame: Rows of a cohort with `dataset`, `participant_id` and `site`.
        design: What to draw.
        target: Column to balance; None draws without balance.

    Raises:
        SplitError: A column or sites are missing, or participants are too few; says what to change.
    """
    absent = [
        name for name in ("dataset", "participant_id", "site", target, design.group) if name not in (None, *frame)
    ]
    if absent or frame.empty:
        raise SplitError(f"The cohort has no {'rows' if frame.empty else 'column ' + ', '.join(map(str, absent))}.")
    units = tied_units(frame, target, design.group)
    planner = _Planner(design, units, sites_by_key(frame))
    return [cell for repeat in range(design.num_repeats) for cell in planner.cells(repeat)]


def subsample(split: Split, frame: pd.DataFrame, target: str | None, fraction: float, seed: int) -> Split:
    """Keep a share of the training and validation participants, for a curve over the number of labels.

    A smaller share is part of a larger one. Every site keeps its share of every class, and at least one of each.

    Args:
        split: Whose test participants stay as they are; who is left out joins `unused`.
        frame: Rows of the cohort.
        target: Column whose classes keep their proportions.
        fraction: Share to keep, above 0 and up to 1.
        seed: Seed of the draw.
    """
    if not 0 < fraction <= 1:
        raise SplitError(f"A label fraction is above 0 and at most 1, not {fraction:g}.")
    units = {key: unit for unit in tied_units(frame, target, None) for key in unit.keys}
    sites = sites_by_key(frame)
    kept: dict[str, list[str]] = {part: [] for part in (*split.parts, UNUSED)}
    for part in split.parts:
        if part not in ("train", "val"):
            kept[part] += split.keys(part)
            continue
        strata: dict[tuple[str, str], list[Unit]] = defaultdict(list)
        classes = _classes([units[key] for key in split.keys(part)])
        for key in split.keys(part):
            strata[units[key].home, classes(units[key])].append(units[key])
        for members in strata.values():
            ranked = sorted(members, key=lambda unit: draw(seed, "label", *unit.keys))
            number = max(1, round(fraction * len(ranked)))
            kept[part] += [unit.keys[0] for unit in ranked[:number]]
            kept[UNUSED] += [unit.keys[0] for unit in ranked[number:]]
    parts = {part: keys_by_site(keys, sites) for part, keys in kept.items()}
    return Split(split.protocol, split.seed, parts)


class _Planner:
    """Draws the cells of one design.

    Args:
        design: What to draw.
        units: Who stays together.
        sites: Rows of each participant at each site.
    """

    def __init__(self, design: Design, units: Sequence[Unit], sites: Mapping[str, Counter[str]]) -> None:
        self.design = design
        self.units = units
        self.sites = sites
        self.class_of = _classes(units)
        self.homes: dict[str, list[Unit]] = defaultdict(list)
        for unit in units:
            self.homes[unit.home].append(unit)
        self._require_sites()

    def cells(self, repeat: int) -> list[Cell]:
        """Return the cells of one repeat."""
        protocol, names = self.design.protocol, sorted(self.homes)
        if protocol == "external":
            away = set(self.design.external_sites)
            tested = [unit for unit in self.units if unit.sites & away]
            return [self._cell(repeat, "external", tested, [u for u in self.units if not u.sites & away])]
        if protocol == "cross-site":
            return [self._cell(repeat, site, self.homes[site], self._elsewhere(site)) for site in names]
        folds = {site: self._folds(site, repeat) for site in names}
        if protocol == "k-fold":
            return [self._pooled(repeat, number, folds) for number in range(self.design.num_folds)]
        return [
            self._cell(repeat, f"{site}.{number}", fold, self._pool(protocol, site, folds[site], number), site=site)
            for site in names
            for number, fold in enumerate(folds[site])
        ]

    def _pooled(self, repeat: int, number: int, folds: Mapping[str, list[list[Unit]]]) -> Cell:
        tested = [unit for site in sorted(folds) for unit in folds[site][number]]
        away = {unit.keys for unit in tested}
        return self._cell(repeat, str(number), tested, [unit for unit in self.units if unit.keys not in away])

    def _pool(self, protocol: Protocol, site: str, folds: Sequence[Sequence[Unit]], number: int) -> list[Unit]:
        """Return who may train for a fold of a site."""
        rest = [unit for index, fold in enumerate(folds) if index != number for unit in fold]
        if protocol == "same-site":
            return [unit for unit in rest if unit.sites == {site}]
        return [*rest, *(unit for unit in self.units if unit.home != site)]

    def _elsewhere(self, site: str) -> list[Unit]:
        return [unit for unit in self.units if site not in unit.sites]

    def _folds(self, site: str, repeat: int) -> list[list[Unit]]:
        """Deal a site into folds, balanced over the target; the same ones for every protocol."""
        units, number = self.homes[site], self.design.num_folds
        if len(units) < number:
            raise SplitError(
                f"Site {site} has {len(units)} participants (or groups that stay together), too few for {number} "
                "folds. Lower num_folds, or leave the site out."
            )
        seed = draw(self.design.seed, "folds", str(repeat))
        folds: list[list[Unit]] = [[] for _ in range(number)]
        for unit in balanced_order(units, site, 1 / number, seed):
            least = min(range(number), key=lambda index: self._fullness(folds[index], index, unit, seed))
            folds[least].append(unit)
        return folds

    def _fullness(self, fold: Sequence[Unit], index: int, unit: Unit, seed: int) -> tuple[int, int, int]:
        """Say how full a fold is for a unit: of its class, then in all, then by chance."""
        alike = sum(len(other.keys) for other in fold if self.class_of(other) == self.class_of(unit))
        return alike, sum(len(other.keys) for other in fold), draw(seed, "tie", str(index), *unit.keys)

    def _cell(self, repeat: int, fold: str, tested: list[Unit], pool: list[Unit], site: str | None = None) -> Cell:
        seed = draw(self.design.seed, "cell", str(repeat), fold)
        if self.design.match_train_size:
            pool = self._matched(pool, site or fold, repeat, seed)
        if (most := self.design.max_train_per_site) is not None:
            pool = [unit for home in sorted({u.home for u in pool}) for unit in self._some(pool, home, most, seed)]
        parts = self._divided(pool, seed, fold)
        parts["external" if self.design.protocol in UNSEEN else "test"] = tested
        used = {unit.keys for chosen in parts.values() for unit in chosen}
        parts[UNUSED] = [unit for unit in self.units if unit.keys not in used]
        keys = {
            part: keys_by_site((key for u in chosen for key in u.keys), self.sites) for part, chosen in parts.items()
        }
        return Cell(repeat, fold, Split(self.design.protocol, self.design.seed, keys))

    def _divided(self, pool: Sequence[Unit], seed: int, fold: str) -> dict[str, list[Unit]]:
        """Divide a pool into training and validation, balanced within each site."""
        share = self.design.val_fraction
        parts: dict[str, list[Unit]] = {"train": [], "val": []}
        homes = sorted({unit.home for unit in pool})
        ordered = [
            unit
            for home in homes
            for unit in balanced_order([u for u in pool if u.home == home], home, share or 1.0, seed)
        ]
        assign_to_parts(ordered, {"train": 1 - share, "val": share}, parts, seed)
        classes = Counter(self.class_of(unit) for unit in parts["train"])
        if not parts["train"] or (self._is_classes() and len(classes) < 2):
            raise SplitError(
                f"The training part of fold {fold} has {len(parts['train'])} participants and only the class "
                f"{', '.join(classes) or 'of nobody'}. Add participants, lower num_folds, or take another protocol."
            )
        return parts

    def _is_classes(self) -> bool:
        return 1 < len({unit.level for unit in self.units if unit.level is not None}) <= MAX_CLASSES

    def _matched(self, pool: Sequence[Unit], site: str, repeat: int, seed: int) -> list[Unit]:
        """Return as many units of each class as the smallest pool has that a protocol trains on for this site."""
        folds = self._folds(site, repeat)
        own = [
            Counter(map(self.class_of, self._pool("same-site", site, folds, number))) for number in range(len(folds))
        ]
        other = Counter(map(self.class_of, self._elsewhere(site)))
        least = {name: min(other[name], *(count[name] for count in own)) for name in other}
        chosen: list[Unit] = []
        for name, number in sorted(least.items()):
            members = [unit for unit in pool if self.class_of(unit) == name]
            chosen += self._evenly(members, number, seed)
        return chosen

    def _evenly(self, members: Sequence[Unit], number: int, seed: int) -> list[Unit]:
        """Return some units, of each site as many as its share."""
        ranked = sorted(members, key=lambda unit: draw(seed, "match", *unit.keys))
        place: Counter[str] = Counter()
        totals = Counter(unit.home for unit in ranked)

        def position(unit: Unit) -> tuple[float, str]:
            place[unit.home] += 1
            return place[unit.home] / totals[unit.home], unit.home

        return [unit for _, unit in sorted(((position(u), u) for u in ranked), key=lambda pair: pair[0])][:number]

    def _some(self, pool: Sequence[Unit], home: str, most: int, seed: int) -> list[Unit]:
        """Return at most so many units of a site, of each class its share."""
        members = [unit for unit in pool if unit.home == home]
        if len(members) <= most:
            return members
        share = most / len(members)
        chosen: list[Unit] = []
        left: list[Unit] = []
        for name in sorted(set(map(self.class_of, members))):
            ranked = sorted(
                (unit for unit in members if self.class_of(unit) == name), key=lambda u: draw(seed, "some", *u.keys)
            )
            number = math.floor(share * len(ranked))
            chosen, left = chosen + ranked[:number], left + ranked[number:]
        left.sort(key=lambda unit: draw(seed, "rest", *unit.keys))
        return chosen + left[: most - len(chosen)]

    def _require_sites(self) -> None:
        names = sorted(self.homes)
        strange = sorted(set(self.design.external_sites) - {name for unit in self.units for name in unit.sites})
        if strange:
            raise SplitError(f"The cohort has no site {', '.join(strange)} to test; it has {', '.join(names)}.")
        if self.design.protocol in ("cross-site", "multi-site") and len(names) < 2:
            raise SplitError(
                f"The protocol {self.design.protocol} needs two sites, and the cohort has {', '.join(names)} alone. "
                "Take same-site or k-fold, or fill the column site."
            )


def _classes(units: Iterable[Unit]) -> Callable[[Unit], str]:
    """Return the class of a unit: its target where that has few values, one class for all where it is continuous."""
    levels = {unit.level for unit in units if unit.level is not None}
    few = len(levels) <= MAX_CLASSES
    return lambda unit: "missing" if unit.level is None else (f"{unit.level:g}" if few else "any")

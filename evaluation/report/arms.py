"""The arms of a cross-validation: what each is, its values of every metric, and what it gains."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from evaluation.design import Design
from evaluation.estimate import Estimate, Statistic
from evaluation.figures.binary import Line
from evaluation.gain import MIN_SEEDS, Gain, share_of_labels
from evaluation.paired import paired_test
from evaluation.resampled import Resampled, resample, usable_parts
from evaluation.tasks import metrics_of, statistic_of
from evaluation.wording import join_words

Kind = Literal["reference", "transfer", "variant", "noise", "baseline"]
KINDS: Mapping[Kind, str] = {
    "reference": "Reference",
    "transfer": "Transfer",
    "variant": "Other networks",
    "noise": "The reference once more: the noise",
    "baseline": "Baselines without images",
}
KNOWN_BASELINES = ("lesion-burden", "clinical-only", "site-only", "acquisition-only")
SOURCE, STRATEGY = "model.transfer.source", "model.transfer.strategy"
PRETRAINED = "pretrained"  # the arm that answers the question, where there is one of this name


@dataclass(frozen=True)
class Arm:
    """One arm, on all labels (where no arm has all, on the largest share).

    Args:
        name: Its name.
        kind: What it is to the comparison.
        description: What it is, in words.
        rows: Its rows, as `scored_rows` gives them.
    """

    name: str
    kind: Kind
    description: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Score:
    """A metric of an arm over all sites (the plain mean over sites) and at each.

    Args:
        value: Mean over sites.
        spread: Standard deviation of the mean between runs; NaN under three seeds.
        sites: Value at each site.
        gain: Gain over the reference, positive is better; None for the reference, and where no direction is better.
        left_out: Sites without a value of their own.
    """

    value: Estimate
    spread: float
    sites: Mapping[str, Estimate]
    gain: Estimate | None
    left_out: tuple[str, ...]


def describe_arms(
    rows: Mapping[str, pd.DataFrame],
    definitions: Mapping[str, Mapping[str, Any]],
    reference: str,
    transferred: Sequence[str] = (),
) -> list[Arm]:
    """Say what each arm is, in the order of a report: reference, transfers, other networks, noise, baselines.

    Args:
        rows: Arm -> its rows; of the arms on shares of the labels, those on the largest share are described.
        definitions: Arm -> its definition in the lock, where it is known.
        reference: Name of the reference.
        transferred: Arms whose weight ledger is known.
    """
    largest = max(share_of_labels(name)[1] for name in rows)
    arms = []
    for name, own in rows.items():
        if share_of_labels(name)[1] != largest:
            continue
        kind, description = _describe(name, definitions.get(name), reference, share_of_labels(name)[0] in transferred)
        arms.append(Arm(name, kind, description, own))
    order = list(KINDS)
    return sorted(arms, key=lambda arm: (order.index(arm.kind), arm.name != PRETRAINED))


def main_arm(arms: Sequence[Arm]) -> Arm | None:
    """Return the arm that answers the question: the first transfer, else the first that is neither noise nor baseline.

    Args:
        arms: As `describe_arms` gives them.
    """
    for kind in ("transfer", "variant", "noise", "baseline"):
        found = next((arm for arm in arms if arm.kind == kind), None)
        if found is not None:
            return found
    return None


def scores(
    arms: Sequence[Arm],
    metrics: Sequence[str],
    *,
    task: str,
    design: Design,
    num_replicates: int,
    seed: int,
) -> dict[str, dict[str, Score]]:
    """Compute several metrics of all arms from one two-way bootstrap over participants and runs.

    Args:
        arms: The arms, the reference first.
        metrics: Their names.
        task: Kind of outcome.
        design: How the participants came to be studied.
        num_replicates: Bootstrap replicates.
        seed: Seed of the bootstrap.

    Returns:
        Metric -> arm -> score.
    """
    make = statistic_of(task)

    def of_run(rows: pd.DataFrame) -> Statistic:
        """Compute the wanted metrics of a run."""
        return make(rows, metrics, design)

    found = resample(
        [arm.rows for arm in arms],
        of_run,
        by="site",
        stratify=task == "binary",
        num_replicates=num_replicates,
        seed=seed,
    )
    shown = metrics_of(task)
    result: dict[str, dict[str, Score]] = {}
    for metric in metrics:
        sides = [one[metric] for one in found]
        usable = usable_parts(arms[0].rows, sides, stratify=task == "binary")
        better = shown[metric].larger_is_better
        result[metric] = {
            arm.name: _score(arm, side, sides[0], usable, None if number == 0 else better)
            for number, (arm, side) in enumerate(zip(arms, sides, strict=True))
        }
    return result


def lines_of(arms: Sequence[Arm], main: Arm | None) -> dict[str, Line]:
    """Return how each arm is drawn: bands for the reference and the main arm, thin lines for the others; no noise."""
    shown = [arm for arm in arms if arm.kind != "noise"]
    places = {"reference": 1}
    taken = {0, 1}
    lines = {}
    for arm in shown:
        if main is not None and arm.name == main.name:
            number = 0
        elif arm.kind in places:
            number = places[arm.kind]
        else:
            number = next(place for place in range(len(shown) + 2) if place not in taken)
            taken.add(number)
        is_main = number in (0, 1)
        lines[arm.name] = Line(arm.name, number, band=is_main, thin=not is_main)
    return lines


def gain_of(gains: Sequence[Gain], arm: str, site: str | None = None) -> Gain | None:
    """Return the gain of an arm over all sites, or at one."""
    return next((gain for gain in gains if gain.arm == arm and gain.site == site), None)


def _score(arm: Arm, side: Resampled, base: Resampled, usable: Sequence[str], better: bool | None) -> Score:
    mean = side.mean(usable)
    gain = None
    if better is not None:
        test = paired_test(base.mean(usable), mean)
        ends = [end if better else -end for end in (test.low, test.high) if end is not None]
        gain = Estimate(
            test.difference if better else -test.difference, min(ends, default=None), max(ends, default=None)
        )
    return Score(
        value=mean.estimate,
        spread=mean.spread if arm.rows["seed"].nunique() >= MIN_SEEDS else math.nan,
        sites={part: side.part(part).estimate for part in side.parts},
        gain=gain,
        left_out=tuple(part for part in side.parts if part not in usable),
    )


def _describe(
    name: str, definition: Mapping[str, Any] | None, reference: str, is_transferred: bool
) -> tuple[Kind, str]:
    name, known = share_of_labels(name)[0], dict(definition or {})
    columns = list(known.pop("baseline", None) or [])
    offset = int(known.pop("seed_offset", 0) or 0)
    if name == reference:
        return "reference", "network from random initial weights" if not columns else _regression(columns)
    if columns or (definition is None and name in KNOWN_BASELINES):
        return "baseline", _regression(columns) if columns else "regression on columns of the table, no image"
    if is_transferred or SOURCE in known or (definition is None and name.startswith(PRETRAINED)):
        return "transfer", f"encoder started from pretrained weights, strategy {known.get(STRATEGY, 'full')}"
    changed = {key: value for key, value in known.items() if not key.startswith("model.transfer.")}
    if (offset and not changed) or (definition is None and name == f"{reference}-again"):
        return "noise", "the same as the reference, other initial weights"
    return "variant", join_words([f"{key} {value}" for key, value in changed.items()]) or "another network"


def _regression(columns: Sequence[str]) -> str:
    return f"regression on {join_words(columns)}, no image"

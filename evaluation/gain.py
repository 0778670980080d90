"""What a transfer gains over the reference arm, on the same participants, repeats and seeds, at each site and over all.

The estimand is the mean over runs of the metric of a single model. That of the `ensemble`, whose prediction is the mean
of all runs, is another one, and is named wherever it is given.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import pandas as pd

from evaluation.alignment import aligned
from evaluation.estimate import NUM_REPLICATES, Estimate
from evaluation.paired import (
    CorrectedT,
    corrected_t,
    corrected_t_refusal,
    holm,
    known_task,
    paired_test,
    require_metrics,
    smallest_detectable,
    statistics,
)
from evaluation.prediction_checks import listed
from evaluation.predictions import PredictionsError, normalise_predictions, scored_rows
from evaluation.resampled import Resampled, ensemble_rows, resample, run_names, usable_parts
from evaluation.tasks import metrics_of, primary_of

Estimand = Literal["single-model", "ensemble"]
REFERENCE = "scratch"
MIN_SEEDS = 3  # a standard deviation of two values says next to nothing
MIN_SITE_PARTICIPANTS = 5  # an interval from fewer would promise more than it holds
_FRACTION = re.compile(r"(?P<name>.+)@(?P<fraction>1(?:\.0*)?|0?\.\d+)")


@dataclass(frozen=True)
class Gain:
    """What one arm gains over the reference; positive is better, whatever the metric.

    Args:
        arm: The arm.
        reference: The arm that it is compared with.
        site: The test site; None for the plain mean over sites.
        metric: Name of the metric.
        estimand: `single-model`: mean over runs of the metric of one model; `ensemble`: metric of the mean prediction.
        value: The metric of the arm.
        reference_value: The metric of the reference.
        gain: Their difference, with the interval of the paired difference.
        p_value: Two-sided p-value of no gain; NaN where there is none.
        p_holm: The same, adjusted by Holm's method for all arms of the family; NaN for single sites.
        test: Name of the test.
        spread: Standard deviation of the arm's metric between runs; NaN under three seeds.
        reference_spread: The same of the reference.
        detectable: Smallest gain that would have been found with a power of 80 %, 2.8 standard errors.
        num_participants: Participants scored.
        num_runs: Runs (repeat x seed) of each arm.
        sites: Sites that the value rests on.
        left_out: Sites without a value of their own: too few participants of a class.
        corrected_t: Nadeau and Bengio's test of the gain, for k-fold protocols.
    """

    arm: str
    reference: str
    site: str | None
    metric: str
    estimand: Estimand
    value: Estimate
    reference_value: Estimate
    gain: Estimate
    p_value: float
    p_holm: float
    test: str
    spread: float
    reference_spread: float
    detectable: float
    num_participants: int
    num_runs: int
    sites: tuple[str, ...]
    left_out: tuple[str, ...]
    corrected_t: CorrectedT | None

    @property
    def negative_transfer(self) -> bool:
        """Whether the arm is worse than the reference: the whole interval of the gain lies below zero."""
        return self.gain.high is not None and self.gain.high < 0

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON; undefined numbers are None, estimates as in the contract of `evaluate`."""
        fields: dict[str, Any] = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in vars(self).items()
        }
        for name in ("value", "reference_value", "gain"):
            fields[name] = getattr(self, name).as_dict()
        fields["sites"], fields["left_out"] = list(self.sites), list(self.left_out)
        fields["corrected_t"] = None if self.corrected_t is None else asdict(self.corrected_t)
        return fields | {"negative_transfer": self.negative_transfer}


def gains(
    frame: pd.DataFrame,
    *,
    reference: str = REFERENCE,
    metric: str | None = None,
    task: str | None = None,
    estimand: Estimand = "single-model",
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> list[Gain]:
    """Estimate what every arm gains over the reference arm, over all test sites and at each.

    All arms are resampled together, by the two-way bootstrap over participants and runs; the interval of an ensemble
    holds the chance of the participants only, since its models are the ones there are. An arm `NAME@FRACTION`, trained
    on a share of the labels, is compared with the reference of the same share where there is one.

    Args:
        frame: A predictions table of one protocol, output and split, with two or more arms.
        reference: The arm to compare with.
        metric: The metric; the task's primary one by default.
        task: A name in `evaluation.tasks.TASKS`; told from the table by default.
        estimand: What is estimated.
        num_replicates: Bootstrap replicates; 0 gives gains without intervals.
        seed: Seed of the bootstrap.

    Returns:
        For each arm but the reference, in the order of their names: the gain over all sites and, where there are
        several, at each of them.

    Raises:
        PredictionsError: The arms differ in test participants, repeats or seeds; or arms, metric or protocol do not do.
    """
    arms = _arms(frame, required=reference)
    task, metric, sign = _metric(task, metric, arms)
    resampled = _resample(arms, task, metric, estimand, num_replicates, seed)
    found: list[Gain] = []
    for arm in arms:
        base = _reference(arm, reference, arms)
        if arm == base:
            continue
        pair = _Pair((base, arm), (arms[base], arms[arm]), (resampled[base], resampled[arm]), metric, sign, estimand)
        usable, left_out = pair.usable_sites(stratify=task == "binary")
        t_test = pair.corrected_t(task)
        found.append(replace(pair.gain(None, usable), left_out=left_out, corrected_t=t_test))
        found += [pair.gain(site, [site]) for site in pair.sites] if len(pair.sites) > 1 else []
    adjusted = holm({gain.arm: gain.p_value for gain in found if gain.site is None})
    return [replace(gain, p_holm=adjusted.get(gain.arm, math.nan)) if gain.site is None else gain for gain in found]


def label_efficiency(
    frame: pd.DataFrame,
    *,
    metric: str | None = None,
    task: str | None = None,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> pd.DataFrame:
    """Estimate a metric against the share of the training labels that an arm was given.

    Args:
        frame: A predictions table of one protocol, output and split; an arm `NAME@FRACTION` was trained on that share
            of the labels, an arm without a share on all.
        metric: The metric; the task's primary one by default.
        task: A name in `evaluation.tasks.TASKS`; told from the table by default.
        num_replicates: Bootstrap replicates.
        seed: Seed of the bootstrap.

    Returns:
        One row per arm and share: `arm`, `fraction`, `estimate`, `low`, `high` (NaN where there is no interval).

    Raises:
        PredictionsError: The arms differ in test participants, repeats or seeds.
    """
    arms = _arms(frame)
    task, metric, _ = _metric(task, metric, arms)
    resampled = _resample(arms, task, metric, "single-model", num_replicates, seed)
    rows = []
    for arm, values in resampled.items():
        name, fraction = share_of_labels(arm)
        usable = usable_parts(arms[arm], [values], stratify=task == "binary")
        rows.append({"arm": name, "fraction": fraction} | values.mean(usable).estimate.as_dict())
    table = pd.DataFrame(rows).astype({"fraction": float, "estimate": float, "low": float, "high": float})
    return table.sort_values(["arm", "fraction"], ignore_index=True)


def share_of_labels(arm: str) -> tuple[str, float]:
    """Return the name of an arm without its share of the labels, and the share.

    >>> share_of_labels("pretrained@0.25"), share_of_labels("scratch")
    (('pretrained', 0.25), ('scratch', 1.0))
    """
    found = _FRACTION.fullmatch(arm)
    return (found["name"], float(found["fraction"])) if found else (arm, 1.0)


@dataclass(frozen=True)
class _Pair:
    """An arm and its reference, resampled together: (reference, arm)."""

    names: tuple[str, str]
    rows: tuple[pd.DataFrame, pd.DataFrame]
    values: tuple[Resampled, Resampled]
    metric: str
    sign: int
    estimand: Estimand

    @property
    def sites(self) -> tuple[str, ...]:
        return self.values[0].parts

    def usable_sites(self, *, stratify: bool) -> tuple[list[str], tuple[str, ...]]:
        usable = usable_parts(self.rows[0], self.values, stratify=stratify)
        return usable, tuple(site for site in self.sites if site not in usable)

    def gain(self, site: str | None, sites: Sequence[str]) -> Gain:
        base, arm = (side.mean(sites) for side in self.values)
        rows = self.rows[1][self.rows[1]["site"].isin(sites)]
        test = paired_test(base, arm)
        enough = rows["participant"].nunique() >= MIN_SITE_PARTICIPANTS
        shown = [side.estimate if enough else Estimate(side.estimate.estimate) for side in (arm, base)]
        ends = [self.sign * end for end in (test.low, test.high) if end is not None and enough]
        several = self.rows[1]["seed"].nunique() >= MIN_SEEDS
        return Gain(
            arm=self.names[1],
            reference=self.names[0],
            site=site,
            metric=self.metric,
            estimand=self.estimand,
            value=shown[0],
            reference_value=shown[1],
            gain=Estimate(self.sign * test.difference + 0.0, min(ends, default=None), max(ends, default=None)),
            p_value=test.p_value if enough else math.nan,
            p_holm=math.nan,
            test=test.test,
            spread=arm.spread if several else math.nan,
            reference_spread=base.spread if several else math.nan,
            detectable=smallest_detectable(base, arm) if enough else math.nan,
            num_participants=int(rows["participant"].nunique()),
            num_runs=int(self.rows[1]["run"].nunique()),
            sites=tuple(sites),
            left_out=(),
            corrected_t=None,
        )

    def corrected_t(self, task: str) -> CorrectedT | None:
        if self.estimand == "ensemble" or corrected_t_refusal(*self.rows):
            return None
        base, arm = self.rows if self.sign > 0 else self.rows[::-1]
        return corrected_t(base, arm, task, self.metric)


def _arms(frame: pd.DataFrame, required: str | None = None) -> dict[str, pd.DataFrame]:
    """Return the rows of each arm, all of the same participants, repeats and seeds.

    Raises:
        PredictionsError: Arms differ, the required one is missing, or there are several protocols.
    """
    table = normalise_predictions(frame)
    if table["protocol"].nunique() > 1:
        raise PredictionsError(
            [f"it holds several protocols: {listed(sorted(table['protocol'].unique()))}. Arms are compared within one."]
        )
    names = sorted(table["arm"].unique())
    if required is not None and (required not in names or len(names) < 2):
        raise PredictionsError(
            [f"a gain needs the arm '{required}' and another one. There are: {listed(names)}. Name the reference."]
        )
    arms = {name: scored_rows(table[table["arm"] == name]) for name in names}
    first = required or names[0]
    problems: list[str] = []
    for name in names:
        try:
            aligned(arms[first], arms[name], (f"arm '{first}'", f"arm '{name}'"))
        except PredictionsError as error:
            problems += error.problems
        else:
            problems += _run_problems(arms, first, name)
    if problems:
        raise PredictionsError(problems)
    return arms


def _run_problems(arms: Mapping[str, pd.DataFrame], first: str, second: str) -> list[str]:
    """Say which runs one arm has and the other lacks."""
    runs = {name: set(run_names(arms[name])) for name in (first, second)}
    lacking = [
        f"arm '{name}' lacks {listed(sorted(runs[other] - runs[name]))}"
        for name, other in ((first, second), (second, first))
        if runs[other] - runs[name]
    ]
    return [f"the repeats and seeds differ: {' and '.join(lacking)}. Train what is missing."] if lacking else []


def _metric(task: str | None, metric: str | None, arms: Mapping[str, pd.DataFrame]) -> tuple[str, str, int]:
    """Return task, metric, and 1 where a larger value is better, else -1."""
    task = known_task(task, pd.concat(list(arms.values())))
    name = metric or primary_of(task)
    require_metrics(task, [name])
    larger_is_better = metrics_of(task)[name].larger_is_better
    if larger_is_better is None:
        raise PredictionsError([f"neither a larger nor a smaller '{name}' is better as such: there is no gain in it."])
    return task, name, 1 if larger_is_better else -1


def _resample(
    arms: Mapping[str, pd.DataFrame], task: str, metric: str, estimand: Estimand, num_replicates: int, seed: int
) -> dict[str, Resampled]:
    rows = [ensemble_rows(arm) if estimand == "ensemble" else arm for arm in arms.values()]
    found = resample(
        rows,
        statistics(task, [metric]),
        by="site",
        stratify=task == "binary",
        num_replicates=num_replicates,
        seed=seed,
    )
    return {name: values[metric] for name, values in zip(arms, found, strict=True)}


def _reference(arm: str, reference: str, arms: Mapping[str, pd.DataFrame]) -> str:
    """Return the reference of the same share of labels, or the reference itself."""
    name, fraction = share_of_labels(arm)
    if name == reference:
        return arm
    same = [other for other in arms if share_of_labels(other) == (reference, fraction)]
    return same[0] if same else reference

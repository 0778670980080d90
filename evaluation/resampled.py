"""Two-way bootstrap over participants and runs, with the same draws in every arm, so that differences are paired.

A replicate draws participants with replacement (within site, and for a binary outcome within its two classes) and runs
(repeat x seed) with replacement. A metric is computed per run under the drawn participants, then averaged as often as
each run was drawn. One run alone is not drawn: its interval holds the chance of the participants only. Otherwise what
is particular to one participant in one run is drawn twice, which makes the interval a little too wide; where a few runs
differ more than participants do, it is a little too narrow.

References:
    Owen AB. The pigeonhole bootstrap. Annals of Applied Statistics 2007;1:386-411. doi:10.1214/07-AOAS122
"""

import math
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evaluation.estimate import CONFIDENCE, MIN_DEFINED, NUM_REPLICATES, Estimate, FloatArray, Statistic
from evaluation.predictions import UNIT

StatisticOf = Callable[[pd.DataFrame], Statistic]
"""From the rows of one run, as `scored_rows` gives them, to a function of row weights."""
WHOLE = ""  # name of the one part of rows that are not parted by site
DETECTABLE = 2.8  # standard errors: 1.96 + 0.84, a two-sided test at 5 % with a power of 80 %
CHUNK_CELLS = 100_000  # replicates x participants at once: a temporary array stays in the processor's cache
MIN_STRATUM = 2  # a class of one participant cannot vary when it is drawn within itself


@dataclass(frozen=True)
class Resampled:
    """One metric of one arm in each part (test site).

    Args:
        parts: Names of the parts.
        point: (parts,) mean over the runs.
        runs: (runs, parts) value of each run, NaN where a run does not score a part.
        replicates: (replicates, parts) values under the draws.
    """

    parts: tuple[str, ...]
    point: FloatArray
    runs: FloatArray
    replicates: FloatArray

    def mean(self, keep: Collection[str] | None = None) -> "Resampled":
        """Return the plain mean over parts: a score is comparable within one model's site only.

        Args:
            keep: Parts that enter; all by default.
        """
        chosen = [number for number, name in enumerate(self.parts) if keep is None or name in keep]
        if not chosen:
            empty = np.full((len(self.replicates), 1), np.nan)
            return Resampled((WHOLE,), np.array([np.nan]), np.full((len(self.runs), 1), np.nan), empty)
        return Resampled(
            (WHOLE,),
            self.point[chosen].mean(keepdims=True),
            self.runs[:, chosen].mean(axis=1, keepdims=True),
            self.replicates[:, chosen].mean(axis=1, keepdims=True),
        )

    def part(self, name: str) -> "Resampled":
        """Return one part."""
        return self.mean([name])

    @property
    def estimate(self) -> Estimate:
        """The estimate of a single part, with its percentile interval."""
        return interval(float(self.point[0]), self.replicates[:, 0])

    @property
    def standard_error(self) -> float:
        """Standard deviation of the replicates of a single part, NaN where too few are defined."""
        defined = _defined(self.replicates[:, 0])
        return float(np.std(defined, ddof=1)) if len(defined) > 1 else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation of a single part between runs, NaN for fewer than two."""
        return float(np.std(self.runs[:, 0], ddof=1)) if len(self.runs) > 1 else math.nan

    def minus(self, other: "Resampled") -> "Resampled":
        """Return the difference of two sides that were resampled together; it has no runs of its own."""
        runs = np.full((0, len(self.parts)), np.nan)
        return Resampled(self.parts, self.point - other.point, runs, self.replicates - other.replicates)


def resample(
    arms: Sequence[pd.DataFrame],
    statistic_of: StatisticOf,
    *,
    by: Literal["site"] | None = None,
    stratify: bool,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> list[dict[str, Resampled]]:
    """Compute metrics of several arms under common draws of participants, and of runs where arms share them.

    The result depends on neither the order of the rows nor the size of the chunks. The draw of the runs follows from
    the seed and the names of the runs (repeat, seed): arms that have the same runs have the same draws.

    Args:
        arms: Rows of each arm, as `scored_rows` gives them, of the same participants.
        statistic_of: Gives the metrics of the rows of one run.
        by: Whether a metric is computed in each site, or in all rows of a run together.
        stratify: Whether the target is a binary outcome, whose classes are drawn apart.
        num_replicates: Bootstrap replicates; 0 gives none.
        seed: Seed of the draws.

    Returns:
        For each arm, its metrics by name.
    """
    names, strata = _strata(pd.concat(arms), stratify=stratify)
    parts = sorted(arms[0]["site"].unique()) if by else [WHOLE]
    summed = [_Arm(rows, statistic_of, names, parts, seed) for rows in arms]
    for counts in _participant_draws(strata, num_replicates, seed):
        for arm in summed:
            arm.add(counts)
    return [arm.result() for arm in summed]


def interval(estimate: float, replicates: FloatArray, confidence: float = CONFIDENCE) -> Estimate:
    """Return an estimate with its percentile interval; none where more than a tenth of the replicates is undefined.

    >>> interval(2.0, np.array([1.0, 2.0, 3.0, np.nan]))
    Estimate(estimate=2.0, low=None, high=None)
    """
    defined = _defined(replicates)
    if not math.isfinite(estimate) or len(defined) == 0:
        return Estimate(estimate)
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Estimate(estimate, float(low), float(high))


def bootstrap_p(replicates: FloatArray) -> float:
    """Return the two-sided p value of "the difference is zero" that belongs to the percentile interval.

    Twice the share of replicates on the rarer side of zero, counting one more than there are, so that it is never zero;
    NaN where there are no replicates.

    References:
        Davison AC, Hinkley DV. Bootstrap Methods and their Application. 1997. doi:10.1017/CBO9780511802843

    >>> bootstrap_p(np.array([-1.0, 2.0, 3.0, 4.0])), bootstrap_p(np.zeros(9))
    (0.8, 1.0)
    """
    defined = _defined(replicates)
    if len(defined) == 0:
        return math.nan
    rarer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(defined) + 1))


def usable_parts(rows: pd.DataFrame, sides: Sequence[Resampled], *, stratify: bool) -> list[str]:
    """Return the sites where a metric is defined on all sides and no class of a binary outcome has one participant.

    Args:
        rows: Rows of one side, as `scored_rows` gives them.
        sides: The metric of each side.
        stratify: Whether the target is a binary outcome.
    """
    smallest = pd.Series(MIN_STRATUM, index=[WHOLE, *sorted(rows["site"].unique())])
    if stratify:
        people = rows.drop_duplicates(["site", "participant", "target"])
        smallest.update(people.groupby(["site", "target"]).size().groupby("site").min())
    return [
        part
        for number, part in enumerate(sides[0].parts)
        if smallest[part] >= MIN_STRATUM and all(math.isfinite(side.point[number]) for side in sides)
    ]


def run_names(rows: pd.DataFrame) -> list[str]:
    """Name the runs of an arm by what they are, in the order of their numbers.

    >>> rows = pd.DataFrame({"run": [0, 1], "repeat": [0, 0], "seed": [1, 2], "fold": ["a", "a"]})
    >>> run_names(rows)
    ['repeat 0, seed 1', 'repeat 0, seed 2']
    """
    runs = rows.groupby("run", sort=True)[["repeat", "seed", "fold"]].first()
    by_fold = runs.duplicated(["repeat", "seed"]).any()
    return [
        f"repeat {run.repeat}, seed {run.seed}" + (f", fold {run.fold}" if by_fold else "") for run in runs.itertuples()
    ]


def ensemble_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Average the predictions of all runs of each participant and session: the `ensemble`, one fixed predictor.

    Args:
        rows: As `scored_rows` gives them.
    """
    units = rows.groupby(list(UNIT), sort=True)
    numbers = [name for name in ("target", "prediction", "baseline", "threshold") if name in rows]
    table = units[numbers].mean()
    for name in ("site", "participant"):
        table[name] = units[name].first()
    return table.reset_index().assign(run=0, repeat=0, seed=0, fold="")


class _Arm:
    """Sums the metrics of one arm, chunk by chunk of replicates."""

    def __init__(
        self,
        rows: pd.DataFrame,
        statistic_of: StatisticOf,
        names: NDArray[np.str_],
        parts: Sequence[str],
        seed: int,
    ) -> None:
        self.parts = tuple(parts)
        runs = run_names(rows)
        self.num_runs = len(runs)
        self.generator = np.random.default_rng([seed, zlib.crc32("\n".join(runs).encode("utf-8"))])
        self.cells: list[tuple[int, int, Statistic, NDArray[np.intp]]] = []
        number = {name: index for index, name in enumerate(self.parts)}
        place = rows["site"] if parts != [WHOLE] else pd.Series(WHOLE, index=rows.index)
        for (part, run), group in rows.groupby([place, "run"], sort=True):
            people = np.searchsorted(names, group["participant"].to_numpy(dtype=str))
            self.cells.append((number[str(part)], int(str(run)), statistic_of(group), people))
        self.point, self.runs = self._point(len(names))
        self.chunks: dict[str, list[FloatArray]] = {name: [] for name in self.point}

    def add(self, counts: FloatArray) -> None:
        """Compute the metrics of a chunk, given how often each participant was drawn (replicates, participants)."""
        drawn = self._run_draws(len(counts))
        total = np.zeros((len(counts), len(self.parts)))
        sums = {name: np.zeros_like(total) for name in self.point}
        for part, run, statistic, people in self.cells:
            times = drawn[:, run]
            total[:, part] += times
            in_it = np.flatnonzero(times)
            for name, values in statistic(counts[np.ix_(in_it, people)]).items():
                sums[name][in_it, part] += times[in_it] * values
        with np.errstate(invalid="ignore"):
            for name, chunks in self.chunks.items():
                chunks.append(sums[name] / total)

    def result(self) -> dict[str, Resampled]:
        """Return the metrics by name."""
        none = np.empty((0, len(self.parts)))
        return {
            name: Resampled(self.parts, self.point[name], self.runs[name], np.concatenate([none, *self.chunks[name]]))
            for name in self.point
        }

    def _point(self, num_participants: int) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
        """Return the mean over runs (parts,) and the value of each run (runs, parts)."""
        runs: dict[str, FloatArray] = {}
        scored = np.zeros((self.num_runs, len(self.parts)), dtype=bool)
        for part, run, statistic, people in self.cells:
            scored[run, part] = True
            for name, values in statistic(np.ones((1, len(people)))).items():
                runs.setdefault(name, np.full(scored.shape, np.nan))[run, part] = values[0]
        point = {name: np.where(scored, values, 0.0).sum(axis=0) / scored.sum(axis=0) for name, values in runs.items()}
        return point, runs

    def _run_draws(self, num_replicates: int) -> FloatArray:
        """Return how often each run was drawn (replicates, runs)."""
        uniform = self.generator.random((num_replicates, self.num_runs))
        return _counts((uniform * self.num_runs).astype(np.intp), self.num_runs)


def _strata(rows: pd.DataFrame, *, stratify: bool) -> tuple[NDArray[np.str_], NDArray[np.intp]]:
    """Return the participants in order, and the number of the stratum of each.

    A participant with several sites or outcomes is in the stratum of all his sites, and among the events. A class of
    one participant is not kept apart from the rest of its site, nor a site of one participant from others like it.
    """
    people = rows.groupby("participant", sort=True)
    table = pd.DataFrame({"site": people["site"].agg(lambda sites: "+".join(sorted(set(sites))))})
    table["event"] = people["target"].max() if stratify else 0.0
    alone = table.groupby("site")["site"].transform("size") < MIN_STRATUM
    table.loc[alone, "site"] = "\n"  # no site is called so
    smallest = table.groupby(["site", "event"])["site"].transform("size").groupby(table["site"]).transform("min")
    table.loc[smallest < MIN_STRATUM, "event"] = 0.0
    strata = table.groupby(["site", "event"], sort=True).ngroup()
    return np.asarray(table.index, dtype=np.str_), np.asarray(strata, dtype=np.intp)


def _participant_draws(strata: NDArray[np.intp], num_replicates: int, seed: int) -> Iterator[FloatArray]:
    """Yield how often each participant was drawn within its stratum (replicates of the chunk, participants)."""
    generator = np.random.default_rng(seed)
    order = np.argsort(strata, kind="stable")
    sizes = np.bincount(strata)
    size_of_place = np.repeat(sizes, sizes)
    start_of_place = np.repeat(np.cumsum(sizes) - sizes, sizes)
    chunk = max(1, CHUNK_CELLS // len(strata))
    for start in range(0, num_replicates, chunk):
        uniform = generator.random((min(chunk, num_replicates - start), len(strata)))
        yield _counts(order[start_of_place + (uniform * size_of_place).astype(np.intp)], len(strata))


def _counts(drawn: NDArray[np.intp], size: int) -> FloatArray:
    """Return how often each of `size` things occurs in each row of a draw."""
    cells = drawn + np.arange(len(drawn))[:, None] * size
    return np.bincount(cells.ravel(), minlength=len(drawn) * size).reshape(len(drawn), size).astype(np.float64)


def _defined(replicates: FloatArray) -> FloatArray:
    """Return the defined replicates, none where too many are undefined."""
    defined: FloatArray = replicates[np.isfinite(replicates)]
    return defined if len(defined) >= MIN_DEFINED * len(replicates) else defined[:0]

"""A number with its interval, and the bootstrap over participants that gives the interval."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
"""Numbers in double precision."""
Statistic = Callable[[FloatArray], Mapping[str, FloatArray]]
"""From row weights (replicates, rows) to named values (replicates,), NaN where undefined."""

NUM_REPLICATES = 2000
CONFIDENCE = 0.95
MAX_CELLS = 2_000_000  # replicates x rows held at once: 16 MB per temporary array
MIN_DEFINED = 0.9  # share of replicates that must be defined before an interval is given


@dataclass(frozen=True)
class Estimate:
    """An estimate with its interval.

    Args:
        estimate: The value; NaN where it is undefined.
        low: Lower end of the interval; None where there is none.
        high: Upper end of the interval; None where there is none.
        interval: How the interval was computed: percentiles of the bootstrap, Wilson's for a proportion, DeLong's for
            an area under the ROC curve.
    """

    estimate: float
    low: float | None = None
    high: float | None = None
    interval: Literal["bootstrap", "Wilson", "DeLong"] = field(default="bootstrap", repr=False, kw_only=True)

    @property
    def defined(self) -> bool:
        """Whether there is a value."""
        return math.isfinite(self.estimate)

    def low_above(self, value: float) -> bool:
        """Whether the whole interval lies above a value.

        >>> Estimate(3.0, 0.5, 5.5).low_above(0.0), Estimate(3.0).low_above(0.0)
        (True, False)
        """
        return self.low is not None and self.low > value

    def as_dict(self) -> dict[str, float | None]:
        """Return the form of the JSON contract: an undefined value is null.

        >>> Estimate(float("nan")).as_dict()
        {'estimate': None, 'low': None, 'high': None}
        """
        return {"estimate": self.estimate if self.defined else None, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class PairedTest:
    """A difference between two models, with its interval and p-value.

    Args:
        difference: Value of B less that of A; NaN where it is undefined.
        low: Lower end of the 95 % interval; None where there is none.
        high: Upper end of the interval; None where there is none.
        p_value: Two-sided p-value; NaN where it is undefined.
        test: Name of the test.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float
    test: str


def bootstrap(
    statistic: Statistic,
    groups: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    centred: Collection[str] = (),
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    min_groups: int = 2,
) -> dict[str, Estimate]:
    """Estimate named values with percentile intervals, resampling whole groups of rows.

    A replicate draws as many groups as there are, with replacement; all rows of a drawn group enter it together, as
    often as the group was drawn. With strata, as many groups are drawn from each stratum as it has. The result depends
    on neither the order of the rows nor the size of the chunks. Values of one statistic come from the same replicates,
    so the interval of a difference computed inside it is a paired one.

    Args:
        statistic: Values of many replicates at once, from the weight of each row in each replicate; weights of one give
            the estimates themselves.
        groups: The group (participant) of each row.
        strata: The stratum (outcome) of each row, as a number; a group is in the highest of its rows.
        centred: Values that resampling inflates (a mean or maximum of distances): the replicates are shifted so that
            their median is the estimate, and cut at zero.
        num_replicates: Number of replicates; 0 gives estimates without intervals.
        seed: Seed of the draw.
        confidence: Coverage of the interval.
        min_groups: Fewest groups for which an interval is given.

    Returns:
        The estimates by name. An estimate that is undefined, or undefined in more than a tenth of the replicates, has
        no interval; fewer undefined replicates are left out.

    References:
        Efron B, Tibshirani RJ. An Introduction to the Bootstrap. Chapman & Hall, 1993. doi:10.1201/9780429246593

    >>> import numpy as np
    >>> value = np.array([1.0, 2.0, 3.0, 4.0])
    >>> mean = lambda weights: {"mean": weights @ value / weights.sum(axis=1)}
    >>> bootstrap(mean, ["a", "a", "b", "c"])["mean"]
    Estimate(estimate=2.5, low=1.5, high=4.0)
    """
    labels = np.asarray(groups)
    names, group_of_row = np.unique(labels, return_inverse=True)
    point = {name: float(value[0]) for name, value in statistic(np.ones((1, len(labels)))).items()}
    if num_replicates < 1 or len(names) < min_groups:
        return {name: Estimate(value) for name, value in point.items()}
    chunks: dict[str, list[FloatArray]] = {name: [] for name in point}
    stratum = None if strata is None else _stratum_of_groups(group_of_row, np.asarray(strata, dtype=np.float64))
    for counts in _counts(len(names), len(labels), num_replicates, seed, stratum):
        for name, values in statistic(counts[:, group_of_row]).items():
            chunks[name].append(values)
    found = {}
    for name, value in point.items():
        centre = value if name in centred else None
        ends = _percentiles(np.concatenate(chunks[name]), confidence, centre) if math.isfinite(value) else (None, None)
        found[name] = Estimate(value, *ends)
    return found


def _counts(
    num_groups: int, num_rows: int, num_replicates: int, seed: int, stratum: FloatArray | None
) -> Iterator[FloatArray]:
    """Yield how often each group was drawn (replicates of the chunk, groups)."""
    generator = np.random.default_rng(seed)
    size = max(1, MAX_CELLS // num_rows)
    for start in range(0, num_replicates, size):
        rows = min(size, num_replicates - start)
        if stratum is None:
            drawn = generator.integers(0, num_groups, size=(rows, num_groups))
        else:
            drawn = _within_strata(generator.random((rows, num_groups)), stratum)
        cells = drawn + np.arange(rows)[:, None] * num_groups
        counts = np.bincount(cells.ravel(), minlength=rows * num_groups)
        yield counts.reshape(rows, num_groups).astype(np.float64)


def _within_strata(uniform: FloatArray, stratum: FloatArray) -> NDArray[np.intp]:
    """Turn uniform numbers (replicates, groups) into drawn groups, each of the stratum of its column."""
    _, number, sizes = np.unique(stratum, return_inverse=True, return_counts=True)
    first = np.cumsum(sizes) - sizes
    members = np.argsort(stratum, kind="stable")
    drawn: NDArray[np.intp] = members[first[number] + (uniform * sizes[number]).astype(np.intp)]
    return drawn


def _stratum_of_groups(group_of_row: NDArray[np.intp], strata: FloatArray) -> FloatArray:
    stratum = np.full(group_of_row.max() + 1, -np.inf)
    np.maximum.at(stratum, group_of_row, strata)
    return stratum


def _percentiles(
    values: FloatArray, confidence: float, centre: float | None = None
) -> tuple[float | None, float | None]:
    defined = values[np.isfinite(values)]
    if len(defined) < MIN_DEFINED * len(values):
        return None, None
    if centre is not None:
        defined = np.clip(defined - np.median(defined) + centre, 0, None)
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def as_json(metrics: Mapping[str, Estimate], num_participants: int) -> dict[str, Any]:
    """Return the JSON contract of `fontanel evaluate --json`."""
    return {
        "metrics": {name: value.as_dict() for name, value in metrics.items()},
        "num_participants": num_participants,
    }

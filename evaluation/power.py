"""What a comparison of two arms on the same participants can show, before anything is trained.

It describes the test that a cross-validation reports with (`evaluation.gain`): the metric is computed in each test site
and run (repeat x seed), averaged over both, and tested by the percentile interval of the two-way bootstrap over
participants and runs. A mean over the combinations of several factors (participants with and without the outcome, runs)
has a variance component for every set of factors; the sampling variance divides each by the sizes of its factors, and
the bootstrap takes each for more than it is where it belongs to several factors, for it draws all of them at once.

References:
    Owen AB. The pigeonhole bootstrap. Annals of Applied Statistics 2007;1:386-411. doi:10.1214/07-AOAS122
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, combinations

from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm

from evaluation.estimate import CONFIDENCE
from evaluation.power_cohorts import drawn_power
from evaluation.power_models import ScoreModel

CORRELATION = 0.6
POWER = 0.8
MAX_PARTICIPANTS = 1e7  # beyond them nobody looks
LARGE_CLASS = 100  # participants of every class at every site from which the formula is exact enough
MIN_CLASS = 2  # the report leaves out a site with fewer participants of a class
Factors = frozenset[int]
RUN = -1  # the factor of the runs; those of the participants are the places of their classes


@dataclass(frozen=True)
class Comparison:
    """Two arms that are to be compared.

    Args:
        model: Of the metric.
        value: Expected metric of the reference.
        gain: How much better the other arm is expected to be; positive whatever the metric.
        sites: Participants of each class at each test site: (with the outcome, without), or of a regression (all,).
        num_runs: Runs (repeats x seeds) of each arm.
        correlation: Correlation of the scores of two arms for the same participant, within a class.
        run_correlation: The same of two runs of one arm; half-way between that of two arms and 1 by default.
        num_comparisons: Arms compared with the reference, among which Holm's method shares the 5 %.
    """

    model: ScoreModel
    value: float
    gain: float
    sites: tuple[tuple[float, ...], ...]
    num_runs: int = 1
    correlation: float = CORRELATION
    run_correlation: float | None = None
    num_comparisons: int = 1

    @property
    def better(self) -> float:
        """Expected metric of the other arm."""
        return self.value + (self.gain if self.model.larger_is_better else -self.gain)

    @property
    def num_participants(self) -> float:
        """Participants of all sites."""
        return sum(map(sum, self.sites))

    @property
    def same_arm(self) -> float:
        """Correlation of the scores of two runs of one arm."""
        return (1 + self.correlation) / 2 if self.run_correlation is None else self.run_correlation

    def power(self, alpha: float = 1 - CONFIDENCE) -> float:
        """Return the chance that the test tells the gain from none, in the right direction.

        Args:
            alpha: Two-sided level of the test.
        """
        if min(chain.from_iterable(self.sites)) >= LARGE_CLASS:
            return self.approximate_power(alpha)
        return drawn_power(self, alpha)

    def approximate_power(self, alpha: float = 1 - CONFIDENCE) -> float:
        """Return the power as it is where classes are large: of a normal gain and a known standard error."""
        deviation, error = self.errors()
        return float(norm.sf(norm.isf(alpha / 2) * error / deviation - self.gain / deviation))

    def power_after_holm(self) -> float:
        """Return the least power that Holm's adjustment for all arms leaves: that of the smallest p-value."""
        return self.power((1 - CONFIDENCE) / self.num_comparisons)

    def errors(self) -> tuple[float, float]:
        """Return the standard deviation of the gain over cohorts, and the standard error that the bootstrap finds."""
        return self._errors(lambda site, shared, same_run: self._of_difference(site, shared, same_run=same_run))

    def interval(self) -> tuple[float, float]:
        """Return the expected 95 % interval of the reference's metric."""
        _, error = self._errors(lambda site, shared, same_run: self._of_arm(site, shared, same_run=same_run))
        reach = float(norm.isf((1 - CONFIDENCE) / 2)) * error
        if self.model.task != "binary":
            return max(0.0, self.value - reach), self.value + reach
        reach /= self.value * (1 - self.value)
        return float(expit(logit(self.value) - reach)), float(expit(logit(self.value) + reach))

    def spread_of_runs(self) -> float:
        """Return the standard deviation of the reference's metric between runs that are equally good in truth."""
        pair = replace(self, num_runs=1)
        alone, _ = pair._errors(lambda site, shared, same_run: self._of_arm(site, shared, same_run=same_run))
        shared_part, _ = pair._errors(lambda site, shared, _same: self._of_arm(site, shared, same_run=False))
        return math.sqrt(max(0.0, alone**2 - shared_part**2))

    def detectable_gain(self, power: float = POWER) -> float | None:
        """Return the smallest gain that is told from none with a power, None where not even a perfect arm is.

        Args:
            power: The power wanted.
        """
        most = (1 - self.value if self.model.larger_is_better else self.value) * (1 - 1e-6)
        return _search(lambda gain: replace(self, gain=gain), 1e-9, most, power)

    def needed_participants(self, power: float = POWER) -> int | None:
        """Return how many participants, divided among sites and classes as these are, the gain needs; None: too many.

        Args:
            power: The power wanted.
        """
        if self.gain <= 0:
            return None
        fewest = self.num_participants * MIN_CLASS / min(chain.from_iterable(self.sites))
        found = _search(
            lambda size: self.with_participants(math.exp(size)), math.log(fewest), math.log(MAX_PARTICIPANTS), power
        )
        return None if found is None else math.ceil(math.exp(found) - 1e-6)

    def with_participants(self, number: float) -> "Comparison":
        """Return the same comparison with another number of participants."""
        scale = number / self.num_participants
        return replace(self, sites=tuple(tuple(scale * count for count in site) for site in self.sites))

    def _of_arm(self, site: Sequence[float], shared: Factors, *, same_run: bool) -> float:
        return self.model.shared(self.value, self.value, 1.0 if same_run else self.same_arm, shared, site)

    def _of_difference(self, site: Sequence[float], shared: Factors, *, same_run: bool) -> float:
        own = 1.0 if same_run else self.same_arm
        a, b = self.value, self.better
        alike = [self.model.shared(value, value, own, shared, site) for value in (a, b)]
        return sum(alike) - 2 * self.model.shared(a, b, self.correlation, shared, site)

    def _errors(self, covariance: Callable[[Sequence[float], Factors, bool], float]) -> tuple[float, float]:
        true = found = 0.0
        for site in self.sites:
            sizes = {**dict(enumerate(site)), RUN: self.num_runs}
            for factors, component in _components(len(site), partial(covariance, site)):
                share = component / math.prod(sizes[one] for one in factors)
                true += share
                found += share * (math.prod(2 - 1 / sizes[one] for one in factors) - 1)
        return math.sqrt(true) / len(self.sites), math.sqrt(max(found, 0.0)) / len(self.sites)


def _search(make: Callable[[float], Comparison], low: float, high: float, power: float) -> float | None:
    """Return the number at which a comparison reaches a power, None where none up to the highest does.

    The formula is searched; how far drawn cohorts are from it where that ends shifts what it is searched for.

    Args:
        make: Gives the comparison of a number, more powerful for larger ones.
        low: Lowest number.
        high: Highest number.
        power: The power wanted.
    """
    if make(high).power() < power:
        return None
    wanted = power
    for is_corrected in (False, True):
        if make(low).approximate_power() >= wanted:
            return low
        if make(high).approximate_power() < wanted:  # the formula falls short where drawn cohorts do not
            return float(brentq(lambda x: make(x).power() - power, low, high, xtol=(high - low) / 200))
        found = float(brentq(partial(_lack, make, wanted), low, high, xtol=1e-6))
        if not is_corrected:
            reached, expected = (min(max(one, 1e-4), 1 - 1e-4) for one in _both(make(found)))
            wanted = float(norm.cdf(norm.ppf(power) - norm.ppf(reached) + norm.ppf(expected)))
    return found


def _lack(make: Callable[[float], Comparison], wanted: float, number: float) -> float:
    return make(number).approximate_power() - wanted


def _both(comparison: Comparison) -> tuple[float, float]:
    return comparison.power(), comparison.approximate_power()


def _components(num_classes: int, covariance: Callable[[Factors, bool], float]) -> Iterator[tuple[Factors, float]]:
    """Yield every set of factors with its variance component.

    Args:
        num_classes: Classes of participants.
        covariance: Of two terms, given the classes that they have in common (at least one) and whether the run too.
    """
    found: dict[Factors, float] = {}
    for factors in _subsets((*range(num_classes), RUN)):
        classes = factors - {RUN}
        whole = covariance(classes, RUN in factors) if classes else 0.0  # all runs are equally good in truth
        found[factors] = whole - sum(part for smaller, part in found.items() if smaller < factors)
    yield from found.items()


def _subsets(items: Sequence[int]) -> Iterator[Factors]:
    """Yield every set of some of the items, smaller ones first."""
    sizes = range(1, len(items) + 1)
    yield from map(frozenset, chain.from_iterable(combinations(items, size) for size in sizes))

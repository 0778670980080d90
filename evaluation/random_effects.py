"""The mean of effects that differ between studies (sites), and what to expect in a new one."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from evaluation.estimate import CONFIDENCE, FloatArray

HeterogeneityMethod = Literal["DerSimonian-Laird", "Paule-Mandel"]
METHODS: tuple[HeterogeneityMethod, ...] = ("DerSimonian-Laird", "Paule-Mandel")


@dataclass(frozen=True)
class RandomEffects:
    """A random-effects mean over studies.

    Args:
        mean: The mean.
        standard_error: Its standard error.
        low: Lower end of its interval.
        high: Upper end of its interval.
        prediction_low: Lower end of the interval in which the effect of a new study lies.
        prediction_high: Upper end of that interval.
        tau2: Variance between studies.
        i2: Share of the variance between estimates that is heterogeneity, from Cochran's Q.
        q: Cochran's Q.
        num_studies: Number of studies.
        method: Estimator of tau2.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    prediction_low: float
    prediction_high: float
    tau2: float
    i2: float
    q: float
    num_studies: int
    method: HeterogeneityMethod


def random_effects(
    effect: ArrayLike,
    variance: ArrayLike,
    method: HeterogeneityMethod = "DerSimonian-Laird",
    *,
    hartung_knapp: bool = True,
    confidence: float = CONFIDENCE,
) -> RandomEffects:
    """Estimate the mean of effects that differ between studies.

    Args:
        effect: (K,) effects of two or more studies.
        variance: (K,) their variances, above zero.
        method: Estimator of the variance between studies.
        hartung_knapp: Whether the interval is Hartung and Knapp's (Student's t with K - 1 degrees of freedom); their
            standard error is used where it is larger than the plain one. Otherwise the interval is the normal one.
        confidence: Coverage of the intervals.

    Returns:
        The mean with its interval, and the prediction interval of a new study (Student's t, K - 2 degrees of freedom;
        NaN for two studies).

    Raises:
        ValueError: There are fewer than two studies, or a variance is not above zero.

    References:
        DerSimonian R, Laird N. Controlled Clinical Trials 1986;7:177-188. doi:10.1016/0197-2456(86)90046-2
        Paule RC, Mandel J. J Res Natl Bur Stand 1982;87:377-385. doi:10.6028/jres.087.022
        Hartung J, Knapp G. Statistics in Medicine 2001;20:3875-3889. doi:10.1002/sim.1009
        Röver C, Knapp G, Friede T. BMC Med Res Methodol 2015;15:99. doi:10.1186/s12874-015-0091-1
        Higgins JPT, Thompson SG, Spiegelhalter DJ. J R Stat Soc A 2009;172:137-159.
        doi:10.1111/j.1467-985X.2008.00552.x

    >>> result = random_effects([0.2, 0.8, 1.1], [0.04, 0.05, 0.03])
    >>> round(result.mean, 3), round(result.tau2, 3), round(result.i2, 3)
    (0.705, 0.19, 0.829)
    """
    y, v = np.asarray(effect, dtype=np.float64), np.asarray(variance, dtype=np.float64)
    if len(y) < 2 or not (v > 0).all() or not np.isfinite([*y, *v]).all():
        raise ValueError(f"Random effects need two or more finite effects with variances above 0, not {y} and {v}.")
    q, degrees = _q(y, v, 0.0), len(y) - 1
    tau2 = _dersimonian_laird(v, q) if method == "DerSimonian-Laird" else _paule_mandel(y, v)
    weight = 1 / (v + tau2)
    mean, error = float(weight @ y / weight.sum()), float(1 / np.sqrt(weight.sum()))
    tail = (1 + confidence) / 2
    if hartung_knapp:
        error *= math.sqrt(max(1.0, _q(y, v, tau2) / degrees))
        reach = float(stats.t.ppf(tail, degrees)) * error
    else:
        reach = float(stats.norm.ppf(tail)) * error
    new = float(stats.t.ppf(tail, degrees - 1)) * math.sqrt(tau2 + error**2) if degrees > 1 else math.nan
    return RandomEffects(
        mean=mean,
        standard_error=error,
        low=mean - reach,
        high=mean + reach,
        prediction_low=mean - new,
        prediction_high=mean + new,
        tau2=tau2,
        i2=max(0.0, (q - degrees) / q) if q > 0 else 0.0,
        q=q,
        num_studies=len(y),
        method=method,
    )


def _q(effect: FloatArray, variance: FloatArray, tau2: float) -> float:
    """Return the weighted squares about the weighted mean: Cochran's Q at tau2 = 0."""
    weight = 1 / (variance + tau2)
    return float(weight @ (effect - weight @ effect / weight.sum()) ** 2)


def _dersimonian_laird(variance: FloatArray, q: float) -> float:
    weight = 1 / variance
    return max(0.0, (q - (len(variance) - 1)) / float(weight.sum() - (weight**2).sum() / weight.sum()))


def _paule_mandel(effect: FloatArray, variance: FloatArray) -> float:
    """Return the tau2 at which the weighted squares equal their degrees of freedom."""
    degrees = len(effect) - 1
    if _q(effect, variance, 0.0) <= degrees:
        return 0.0
    most = float(((effect - effect.mean()) ** 2).sum())  # there the squares are below one
    return float(optimize.brentq(lambda tau2: _q(effect, variance, tau2) - degrees, 0.0, most, xtol=1e-14))

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from evaluation.random_effects import METHODS, random_effects

# BCG vaccine, 13 trials (Colditz 1994): cases and non-cases among the vaccinated, then among the others.
BCG = np.array(
    [
        (4, 119, 11, 128),
        (6, 300, 29, 274),
        (3, 228, 11, 209),
        (62, 13536, 248, 12619),
        (33, 5036, 47, 5761),
        (180, 1361, 372, 1079),
        (8, 2537, 10, 619),
        (505, 87886, 499, 87892),
        (29, 7470, 45, 7232),
        (17, 1699, 65, 1600),
        (186, 50448, 141, 27197),
        (5, 2493, 3, 2338),
        (27, 16886, 29, 17825),
    ],
    dtype=float,
)


@pytest.fixture
def bcg():
    """Log risk ratios and their variances."""
    a, b, c, d = BCG.T
    return np.log(a / (a + b)) - np.log(c / (c + d)), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)


def test_bcg_trials_give_the_published_values(bcg):
    found = random_effects(*bcg, hartung_knapp=False)
    assert found.tau2 == pytest.approx(0.308760, abs=5e-7)
    assert found.mean == pytest.approx(-0.714117, abs=5e-7)
    assert found.standard_error == pytest.approx(0.178742, abs=5e-7)
    assert found.q == pytest.approx(152.233, abs=5e-4)  # metafor
    assert found.i2 == pytest.approx(0.9212, abs=5e-5)
    assert (found.low, found.high) == pytest.approx((-1.0644, -0.3638), abs=5e-5)
    assert found.num_studies == 13
    reach = stats.t.ppf(0.975, 11) * math.sqrt(found.tau2 + found.standard_error**2)
    assert (found.prediction_low, found.prediction_high) == pytest.approx((found.mean - reach, found.mean + reach))


@pytest.mark.parametrize("method", METHODS)
def test_both_methods_agree_with_statsmodels(bcg, method):
    other = combine_effects(*bcg, method_re="iterated" if method == "Paule-Mandel" else "chi2", use_t=True, atol=1e-12)
    found = random_effects(*bcg, method)
    assert found.tau2 == pytest.approx(other.tau2, rel=1e-6)
    assert found.mean == pytest.approx(other.mean_effect_re, rel=1e-6)
    hksj = found.standard_error
    assert hksj == pytest.approx(max(other.sd_eff_w_re, other.sd_eff_w_re_hksj), rel=1e-6)
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 12) * hksj)
    assert found.method == method


@pytest.mark.parametrize("method", METHODS)
def test_equal_effects_have_no_variance_between_and_no_interval_that_vanishes(method):
    found = random_effects([0.4, 0.4, 0.4], [0.1, 0.2, 0.1], method)
    assert (found.tau2, found.i2, found.q) == (0, 0, pytest.approx(0, abs=1e-12))
    assert found.mean == pytest.approx(0.4)
    assert found.standard_error == pytest.approx(math.sqrt(1 / 25))


def test_paule_mandel_solves_its_equation():
    effect, variance = np.array([-2.0, 0.1, 3.0, 9.0]), np.array([0.1, 2.0, 0.5, 0.01])
    tau2 = random_effects(effect, variance, "Paule-Mandel").tau2
    weight = 1 / (variance + tau2)
    assert weight @ (effect - np.average(effect, weights=weight)) ** 2 == pytest.approx(3)


def test_two_studies_predict_nothing_and_fewer_are_refused():
    assert math.isnan(random_effects([0.1, 0.9], [0.1, 0.1]).prediction_high)
    for effect, variance in (([0.1], [0.1]), ([0.1, 0.2], [0.1, 0.0]), ([0.1, math.inf], [0.1, 0.1])):
        with pytest.raises(ValueError, match="two or more finite effects"):
            random_effects(effect, variance)


def test_hartung_knapp_covers_the_truth_with_few_studies():
    generator = np.random.default_rng(61)
    covered = []
    for _ in range(1500):
        variance = generator.uniform(0.02, 0.1, 4)
        found = random_effects(generator.normal(1.0, np.sqrt(0.1 + variance)), variance)
        covered.append(found.low < 1 < found.high)
    assert 0.93 < np.mean(covered) < 0.985

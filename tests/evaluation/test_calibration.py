import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit
from sklearn.metrics import brier_score_loss

from evaluation.calibration import (
    fit_platt,
    hosmer_lemeshow,
    recalibration_table,
    reliability_table,
    smooth_curve,
    weighted_ece,
    weighted_ici,
    weighted_intercept,
    weighted_slope,
)
from evaluation.operating_point import fit_temperature

# Low birth weight at Baystate (Hosmer and Lemeshow 1989), 130 births above 2500 g, then 59 below. A birth is age (two
# digits), mother's weight in pounds (three), race, smoking, premature labours, hypertension, uterine irritability.
BIRTHS = """
1918220001 3315530000 2010511000 2110811001 1810711001 2112430000 2211810000 1710330000 2912311000 2611311000
1909530000 1915030000 2209530010 3010730101 1810011000 1810011000 1509820000 2511811000 2012030001 2812011000
3212130000 3110010001 3620210000 2812030000 2512030001 2816710000 1712211000 2915010000 2616821000 1711320000
1711320000 2409011100 3512121100 2515510000 2512520000 2914011000 1913811000 2712411000 3121511000 3310911000
2118521000 1918910000 2313020000 2116010000 1809011001 1809011001 3213210000 1913230000 2411510000 2208531000
2212010010 2312830000 2213011000 3009511000 1911530000 1611030000 2111031001 3015330000 2010330000 1711930000
1711930000 2311930000 2411030000 2814010000 2613331200 2016930101 2411530000 2825031000 2014110201 2215820100
2211211200 3115031000 2311531000 1611220000 1613511000 1822920000 2514010000 3213411100 2012121000 2319010000
2213110000 3217010000 3011030000 2012730000 2312330000 1712031000 1910530000 2313010000 3617510000 2212510000
2413310000 2113430000 1923511010 2509511301 1613511000 2913510000 2915410000 1914711000 1914711000 3013710000
2411010000 1918411010 2411030100 2311010000 2012030000 2524120010 3011210000 2216910000 1812011000 1617020000
3218610000 1812030000 2913011000 3311710001 2017011000 2813430000 1413510000 2813030000 2512010000 1609530000
2015810000 2616030000 2111510000 2212910000 2513010000 3112010000 3517010100 1912011000 2411610000 4512310000
2812031101 2913010001 3418721010 2510530110 2508530001 2715030000 2309730001 2412820100 2413230010 2116511010
3210511000 1909111201 2511530000 1613030000 2509211000 2015011000 2120020001 2415511100 2110330000 2012530001
2508930200 1910210000 1911211001 2611711100 2413810000 1713031101 2012021000 2213011101 2713020001 2008031001
1711011000 2510530100 2010930000 1814830000 1811021100 2012111101 2110030100 2609630000 3110211100 1511010000
2318721000 2012221000 2410521000 1511530001 2312030000 3014211100 2213011000 1712011000 2311011100 1712020000
2615430110 2010630000 2619011000 1410131100 2809511000 1410030000 2309431000 1714220010 2113011010
"""


@pytest.fixture
def predicted():
    """Outcomes of 300 participants and predictions that are too extreme and too low."""
    generator = np.random.default_rng(51)
    odds = generator.normal(-1, 1, 300)
    return (generator.random(300) < expit(odds)).astype(float), expit(1.6 * odds - 0.5)


@pytest.fixture
def ones():
    return np.ones((1, 300))


def test_hosmer_lemeshow_gives_the_published_value_of_its_rule():
    digits = np.array([[int(digit) for digit in birth] for birth in BIRTHS.split()], dtype=float)
    age, weight, race = digits[:, :2] @ [10, 1], digits[:, 2:5] @ [100, 10, 1], digits[:, 5]
    terms = np.column_stack([np.ones(189), age, weight, race == 2, race == 3, digits[:, 6:]])
    low = np.repeat([0.0, 1.0], [130, 59])
    risk = sm.Logit(low, terms).fit(disp=0).predict()
    own = hosmer_lemeshow(low, risk, rows="development")
    assert (own.statistic, own.degrees_of_freedom) == (pytest.approx(9.6507, abs=5e-5), 8)
    assert own.p_value == pytest.approx(0.2904, abs=5e-5)
    assert own.groups["num_rows"].tolist() == [19] * 9 + [18]
    assert own.groups["expected"].sum() == pytest.approx(59)
    external = hosmer_lemeshow(low, risk)
    assert (external.statistic, external.degrees_of_freedom) == (own.statistic, 10)
    assert not hosmer_lemeshow([0, 1], [0.0, 0.4], num_groups=2).defined


def test_intercept_and_slope_agree_with_statsmodels_under_weights(predicted):
    target, risk = predicted
    weights = np.vstack([np.ones(300), np.random.default_rng(52).integers(0, 4, (3, 300))])
    large, (_, slope) = weighted_intercept(target, risk, weights), weighted_slope(target, risk, weights)
    for index, weight in enumerate(weights):
        options = {"family": sm.families.Binomial(), "freq_weights": weight}
        offset = sm.GLM(target, np.ones(300), offset=logit(risk), **options).fit(tol=1e-12)
        line = sm.GLM(target, sm.add_constant(logit(risk)), **options).fit(tol=1e-12)
        assert large[index] == pytest.approx(offset.params[0], abs=1e-7)
        assert slope[index] == pytest.approx(line.params[1], abs=1e-7)
    alone = [weighted_slope(target, risk, weight[None])[1][0] for weight in weights]
    assert slope == pytest.approx(alone, abs=1e-7)  # the start from all rows changes nothing


def test_shifted_and_stretched_odds_are_told_back(ones):
    risk = np.linspace(0.02, 0.98, 300)
    for shift, stretch in ((0.0, 1.0), (0.7, 1.0), (-0.4, 0.5)):
        # Outcomes as shares instead of 0 and 1 make the model exact.
        truth = expit(shift + stretch * logit(risk))
        intercept, slope = weighted_slope(truth, risk, ones)
        assert (intercept[0], slope[0]) == pytest.approx((shift, stretch), abs=1e-9)
        if stretch == 1:
            assert weighted_intercept(truth, risk, ones)[0] == pytest.approx(shift, abs=1e-9)


def test_what_is_undefined_is_nan(ones):
    risk = np.linspace(0.1, 0.9, 300)
    separated = (risk > 0.5).astype(float)
    assert np.isnan(weighted_slope(separated, risk, ones)[1][0])
    assert np.isfinite(weighted_intercept(separated, risk, ones)[0])
    assert np.isnan(weighted_slope(np.arange(300) % 2, np.full(300, 0.3), ones)[1][0])
    for function in (weighted_intercept, weighted_ici):
        assert np.isnan(function(np.ones(300), risk, ones)[0])
    extreme = np.where(np.arange(300) % 2, 1.0, 0.0)  # certain, and wrong in a tenth
    wrong = np.where(np.arange(300) < 30, 1 - extreme, extreme)
    assert weighted_intercept(wrong, extreme, ones)[0] == pytest.approx(0, abs=1e-6)
    assert weighted_slope(wrong, extreme, ones)[1][0] == pytest.approx(math.log(9) / logit(1 - 1e-7), rel=1e-3)


def test_ece_has_the_published_value_and_its_edges_belong_to_the_right():
    risk, target = np.array([0.25, 0.25, 0.55, 0.75, 0.75]), np.array([0.0, 0, 1, 1, 1])
    ece, mce = weighted_ece(target, risk, np.ones((1, 5)), num_bins=2)
    assert (ece[0], mce[0]) == pytest.approx((0.29, 0.95 / 3))
    assert brier_score_loss([0, 1, 1, 0], [0.1, 0.9, 0.8, 0.3]) == pytest.approx(0.0375)
    table = reliability_table([0, 1, 1, 1, 0], [0.0, 0.1, 0.3, 1.0, 0.299])
    assert table["start"].tolist() == [0.0, 0.1, 0.2, 0.3, 0.9]
    assert table["observed"].tolist() == [0, 1, 0, 1, 1]
    assert (table["observed_low"] < table["observed"].clip(lower=1e-9)).all()


def test_weights_are_repetitions(predicted):
    target, risk = predicted
    weight = np.random.default_rng(53).integers(0, 4, 300)
    rows = np.repeat(np.arange(300), weight)
    for function in (lambda *a: weighted_ece(*a)[0], lambda *a: weighted_ece(*a)[1]):
        repeated = function(target[rows], risk[rows], np.ones((1, len(rows))))
        assert function(target, risk, weight[None].astype(float)) == pytest.approx(repeated)
    assert weighted_ici(target, risk, weight[None].astype(float))[0] == pytest.approx(
        weighted_ici(target[rows], risk[rows], np.ones((1, len(rows))))[0], abs=2e-3
    )  # the places of the curve differ a little


def test_curve_is_the_lowess_of_statsmodels(predicted):
    target, risk = predicted
    places, observed = smooth_curve(target, risk)
    expected = sm.nonparametric.lowess(target, risk, frac=2 / 3, it=0, xvals=places)
    assert observed == pytest.approx(np.clip(expected, 0, 1), abs=2e-3)
    everywhere = sm.nonparametric.lowess(target, risk, frac=2 / 3, it=0, xvals=risk)
    index = np.abs(risk - np.clip(everywhere, 0, 1)).mean()
    assert weighted_ici(target, risk, np.ones((1, 300)))[0] == pytest.approx(index, abs=1e-3)
    tied = smooth_curve([0.0, 1, 0, 1, 1, 1], [0.2, 0.2, 0.2, 0.2, 0.9, 0.9])
    assert tied[1] == pytest.approx([0.5, 1.0])
    apart = weighted_ici(np.array([0.0, 1, 0, 1]), np.array([0.1, 0.1, 0.5, 0.9]), np.array([[1.0, 1, 0, 2]]))
    assert apart[0] == pytest.approx((0.4 + 0.4 + 2 * 0.1) / 4)


def test_recalibration_learns_from_other_rows(predicted):
    target, risk = predicted
    table = recalibration_table(target[150:], risk[150:], target[:150], risk[:150])
    assert table.index.tolist() == ["before", "temperature", "platt"]
    assert table.loc["before", "brier"] == pytest.approx(brier_score_loss(target[150:], risk[150:]))
    temperature = fit_temperature(target[:150], risk[:150])
    slope = table["calibration_slope"]
    assert slope["temperature"] == pytest.approx(slope["before"] * temperature)
    platt = fit_platt(target[:150], risk[:150])
    assert slope["platt"] == pytest.approx(slope["before"] / platt.slope)
    assert abs(table.loc["platt", "calibration_in_the_large"]) < abs(table.loc["before", "calibration_in_the_large"])
    assert (table.loc["platt", ["brier", "ece"]] < table.loc["before", ["brier", "ece"]]).all()
    own = recalibration_table(target, risk, target, risk).loc["platt"]
    assert (own["calibration_in_the_large"], own["calibration_slope"]) == pytest.approx((0, 1), abs=1e-6)


def test_platt_without_two_classes_changes_nothing():
    assert fit_platt([1, 1], [0.2, 0.7]).apply([0.2, 0.7]) == pytest.approx([0.2, 0.7])

import numpy as np
import pytest
from scipy import stats

from evaluation.gap_correction import CORRECTED_LABEL, GapCorrectionError, beheshti2019, cole2018


@pytest.fixture
def controls():
    generator = np.random.default_rng(21)
    age = generator.uniform(18, 90, 300)
    return age, 45 + 0.7 * (age - 45) + generator.normal(0, 4, 300)


def test_beheshti_subtracts_the_gap_that_the_controls_show(controls):
    age, prediction = controls
    line = stats.linregress(age, prediction - age)
    correction = beheshti2019(age, prediction)
    assert (correction.slope, correction.intercept) == pytest.approx((line.slope, line.intercept))
    assert correction.apply([30.0], [41.0])[0] == pytest.approx(41 - (line.slope * 30 + line.intercept))
    corrected = correction.apply(age, prediction)
    assert stats.linregress(age, corrected - age).slope == pytest.approx(0, abs=1e-10)


def test_cole_inverts_the_line_of_the_controls(controls):
    age, prediction = controls
    line = stats.linregress(age, prediction)
    correction = cole2018(age, prediction)
    assert correction.num_controls == 300
    assert correction.apply([0.0], [50.0])[0] == pytest.approx((50 - line.intercept) / line.slope)


def test_correction_is_fitted_on_the_controls_and_not_on_those_corrected(controls):
    patients_age = np.linspace(30, 60, 20)
    correction = beheshti2019(*controls)
    corrected = correction.apply(patients_age, 45 + 0.7 * (patients_age - 45) + 8)
    assert np.mean(corrected - patients_age) == pytest.approx(8, abs=0.7)  # a gap of patients survives


def test_useless_model_looks_accurate_after_beheshti():
    generator = np.random.default_rng(22)
    age, new_age = generator.uniform(0, 95, 2000), generator.uniform(0, 95, 2000)
    noise, new_noise = generator.normal(0, 1.03, 2000), generator.normal(0, 1.03, 2000)
    useless = 47.5 + new_noise
    assert np.mean(np.abs(useless - new_age)) == pytest.approx(23.8, abs=0.5)
    corrected = beheshti2019(age, 47.5 + noise).apply(new_age, useless)
    assert np.mean(np.abs(corrected - new_age)) == pytest.approx(0.82, abs=0.05)
    assert "not a performance measure" in CORRECTED_LABEL


@pytest.mark.parametrize("age", [np.arange(9.0), np.full(30, 40.0)])
@pytest.mark.parametrize("fit", [beheshti2019, cole2018])
def test_too_few_or_equal_controls_are_refused(fit, age):
    with pytest.raises(GapCorrectionError, match="at least 10 held-out controls"):
        fit(age, age + 1)


def test_a_line_without_slope_cannot_be_inverted():
    with pytest.raises(GapCorrectionError, match="Cole 2018"):
        cole2018(np.arange(30.0), np.full(30, 40.0))

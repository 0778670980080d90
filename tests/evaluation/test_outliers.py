"""Which images stand out, and which do not."""

import numpy as np
import pytest

from evaluation.outliers import LIMIT, MEASURES, Measure, compare, describe, score_images, similarity


def scores(values, sites=None, measure="skew"):
    measured = [{("t1w", measure): value} for value in values]
    return np.array([score.value for score in score_images(measured, sites or ["a"] * len(values))])


def test_z_is_the_distance_in_robust_standard_deviations():
    values = np.random.default_rng(0).normal(5, 2, 401)
    deviation = np.median(np.abs(values - np.median(values)))
    found = compare(values, ["a"] * 401, Measure("length"))
    # One of 401 distances is 0 by the choice of the median, which is given back: less than one in a hundred.
    np.testing.assert_allclose(found.z, (values - np.median(values)) / (1.4826 * deviation), rtol=0.01)


def test_outliers_do_not_hide_themselves():
    values = [*np.random.default_rng(1).normal(0, 1, 20), 40, 41, 42, 43, 44, 45]
    assert (scores(values)[20:] > 10).all()
    assert abs(values[-1] - np.mean(values)) / np.std(values) < LIMIT, "by mean and standard deviation it would"


def test_a_clean_cohort_has_few_outliers():
    rng = np.random.default_rng(2)
    flagged = [(scores(rng.normal(0, 1, 30), ["a"] * 15 + ["b"] * 15) >= LIMIT).mean() for _ in range(200)]
    assert np.mean(flagged) < 0.01


def test_an_image_is_compared_with_its_own_site():
    rng = np.random.default_rng(3)
    values = [*rng.normal(0, 1, 10), *rng.normal(100, 1, 10), 100.0]
    assert scores(values, ["a"] * 10 + ["b"] * 10 + ["a"])[-1] > LIMIT
    assert scores(values, ["a"] * 10 + ["b"] * 10 + ["b"])[-1] < LIMIT


def test_a_trifle_does_not_stand_out():
    assert scores([1.0] * 20 + [1.1])[-1] < LIMIT < scores([1.0] * 20 + [2.0])[-1]


def test_amounts_are_compared_by_their_ratio():
    values = [1.0, 1.1, 0.9, 1.2, 0.8, 1.0, 4.0, 0.25]
    many, few = scores(values, measure="foreground_volume")[-2:]
    assert many == pytest.approx(few)


def test_what_is_unknown_has_no_score():
    found = scores([0.0, 0.1, -0.1, 0.05, 0.0, np.nan])
    assert np.isnan(found[-1])
    assert np.isfinite(found[:-1]).all()
    assert np.isnan(scores([0.0, 0.1, -0.1, 9.0])).all(), "four images have no usual look"


def test_similarity_is_a_correlation_over_the_foreground():
    rng = np.random.default_rng(4)
    usual = rng.random(300)
    images = np.array([usual + rng.normal(0, 0.05, 300) for _ in range(9)] + [usual[::-1]])
    alike = similarity(images, ["a"] * 10)
    median = np.median(images, axis=0)
    inside = median > median.mean()
    np.testing.assert_allclose(alike[0], np.corrcoef(images[0][inside], median[inside])[0, 1], atol=1e-5)
    assert alike[-1] < 0.5 < 0.9 < alike[:-1].min()


def test_only_a_low_similarity_stands_out():
    values = [0.5] * 10 + [1.0, 0.0]
    found = score_images([{("t1w", "similarity"): value} for value in values], ["b"] * 5 + ["a"] * 7)
    assert not found[-2].is_outlying
    assert found[-1].is_outlying
    assert MEASURES["similarity"].low_only
    text = describe(found[-1].deviations[0], several_columns=True)
    assert text.startswith("similarity to the median image of t1w")
    assert "below the median of a (0.00, usually 0.50)" in text

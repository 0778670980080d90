import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from evaluation.discrimination import (
    auroc,
    delong,
    delong_paired,
    delong_unpaired,
    weighted_auroc,
    weighted_ranking,
)

# Turck 2010, aneurysmal subarachnoid haemorrhage: WFNS grade 1 to 5 of good and poor outcomes.
GOOD, POOR = [37, 20, 3, 8, 4], [2, 12, 1, 8, 18]


@pytest.fixture
def tied():
    """Scores of two models with many ties, on 40 participants."""
    generator = np.random.default_rng(21)
    target = (generator.random(40) < 0.4).astype(float)
    first = np.round(target + generator.normal(0, 1, 40), 0)
    return target, first, np.round(first + generator.normal(0.3, 1, 40), 1)


def placements(target, score):
    """Compare every pair, as the definition says."""
    above = np.sign(score[target == 1][:, None] - score[target == 0]) / 2 + 0.5
    return above.mean(axis=1), above.mean(axis=0)


def test_delong_gives_the_published_variance():
    grade = np.repeat(np.tile(np.arange(1, 6), 2), GOOD + POOR)
    target = np.repeat([0, 1], [sum(GOOD), sum(POOR)])
    found = delong(target, grade, scale="plain")
    assert found.auc == pytest.approx(0.8236788618, abs=1e-10)
    assert found.variance == pytest.approx(0.00146991470882363, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((0.7485, 0.8988), abs=5e-5)  # pROC: 0.7485-0.8988
    on_odds = delong(target, grade)
    odds, error = np.log(found.auc / (1 - found.auc)), math.sqrt(found.variance) / (found.auc * (1 - found.auc))
    ends = odds + np.array([-1, 1]) * stats.norm.ppf(0.975) * error
    assert (on_odds.low, on_odds.high) == pytest.approx(tuple(1 / (1 + np.exp(-ends))))


def test_midranks_equal_the_definition_over_all_pairs(tied):
    target, first, second = tied
    (x_a, y_a), (x_b, y_b) = placements(target, first), placements(target, second)
    covariance = np.cov(x_a, x_b) / len(x_a) + np.cov(y_a, y_b) / len(y_a)
    assert delong(target, first).variance == pytest.approx(covariance[0, 0])
    test = delong_paired(target, first, second)
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert test.difference == pytest.approx(roc_auc_score(target, second) - roc_auc_score(target, first))
    assert test.p_value == pytest.approx(2 * stats.norm.sf(abs(test.difference) / error))
    assert (test.high - test.low) / 2 == pytest.approx(1.959964 * error)
    back = delong_paired(target, second, first)
    assert (back.difference, back.low, back.high) == pytest.approx((-test.difference, -test.high, -test.low))


def test_variance_is_that_of_the_bootstrap():
    generator = np.random.default_rng(22)
    target = np.repeat([0.0, 1.0], [200, 100])
    score = target + generator.normal(0, 1.2, 300)
    weights = np.zeros((4000, 300))
    for rows in (slice(0, 200), slice(200, 300)):
        size = rows.stop - rows.start
        weights[:, rows] = generator.multinomial(size, np.full(size, 1 / size), 4000)
    assert delong(target, score).variance == pytest.approx(weighted_auroc(target, score, weights).var(), rel=0.1)


def test_weights_are_repetitions_and_ties_count_half(tied):
    target, score, _ = tied
    weights = np.random.default_rng(23).integers(0, 4, (20, 40)).astype(float)
    area, precision = weighted_ranking(target, score, weights)
    for index, count in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(40), count)
        assert area[index] == pytest.approx(roc_auc_score(target[rows], score[rows]))
        assert precision[index] == pytest.approx(average_precision_score(target[rows], score[rows]))
    assert weighted_auroc(target, score, weights) == pytest.approx(area)
    assert auroc(target, score) == pytest.approx(roc_auc_score(target, score))
    assert auroc([0, 1, 0, 1], [3, 3, 3, 3]) == 0.5


def test_unpaired_groups_have_welch_degrees_of_freedom(tied):
    target, first, second = tied
    mirrored = delong_unpaired(target, first, target, -first)
    area, variance = delong(target, first).auc, delong(target, first).variance
    assert mirrored.difference == pytest.approx(1 - 2 * area)
    # Two groups of one size and variance: twice as many degrees of freedom as one has.
    expected = stats.t(2 * 39).sf((2 * area - 1) / math.sqrt(2 * variance)) * 2
    assert mirrored.p_value == pytest.approx(expected)
    few = delong_unpaired(target, first, np.tile(target, 50), np.tile(second, 50))
    mean, v_few, v_many = few.difference, variance, delong(np.tile(target, 50), np.tile(second, 50)).variance
    degrees = (v_few + v_many) ** 2 / (v_few**2 / 39 + v_many**2 / 1999)
    reach = stats.t(degrees).ppf(0.975) * math.sqrt(v_few + v_many)
    assert (few.low, few.high) == pytest.approx((mean - reach, mean + reach))


def test_nothing_is_claimed_where_nothing_varies():
    perfect = delong([0, 0, 1, 1], [1, 2, 3, 4])
    assert (perfect.auc, perfect.variance, perfect.low, perfect.high) == (1.0, 0.0, None, None)
    one_class = delong([1, 1, 1], [1, 2, 3])
    assert math.isnan(one_class.auc)
    assert math.isnan(one_class.variance)
    assert one_class.low is None
    assert math.isnan(delong([0, 0, 1], [1, 3, 2]).variance)
    assert np.isnan(weighted_auroc([0, 1], [0, 1], np.array([[1.0, 0.0], [0.0, 0.0]]))).all()
    assert math.isnan(auroc([], []))


def test_equal_rankings_do_not_differ(tied):
    target, score, _ = tied
    same = delong_paired(target, score, 3 * score - 7)
    assert (same.difference, same.low, same.p_value) == (0.0, None, 1.0)
    assert math.isnan(delong_paired([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1]).p_value)

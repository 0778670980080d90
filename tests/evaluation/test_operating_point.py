import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit
from sklearn import metrics as reference
from statsmodels.stats.proportion import proportion_confint

from evaluation.operating_point import (
    apply_temperature,
    choose_threshold,
    confusion,
    fit_temperature,
    pooled_operating_point,
    weighted_decisions,
    wilson,
)


@pytest.fixture
def scores():
    """Overconfident probabilities of 400 participants, to two decimals."""
    generator = np.random.default_rng(31)
    odds = generator.normal(-0.5, 1.2, 400)
    target = (generator.random(400) < expit(odds)).astype(float)
    return target, expit(2.5 * odds).round(2).clip(0.01, 0.99)


def test_temperature_is_the_logistic_model_without_intercept(scores):
    target, probability = scores
    slope = sm.Logit(target, logit(probability)).fit(disp=0).params[0]
    assert fit_temperature(target, probability) == pytest.approx(1 / slope, rel=1e-6)
    assert fit_temperature(target, apply_temperature(probability, 1 / slope)) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(
    ("target", "probability", "expected"),
    [
        ([0, 0, 1, 1], [0.4, 0.45, 0.6, 0.7], 0.05),  # separated: as sharp as allowed
        ([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9], 20.0),  # the wrong way round: as flat as allowed
        ([1, 1], [0.1, 0.9], 1.0),
        ([0, 1, 1], [0.0, 1.0, 1.0], 0.05),
    ],
)
def test_temperature_stays_within_its_bounds(target, probability, expected):
    assert fit_temperature(target, probability) == pytest.approx(expected, abs=1e-12)


def test_temperature_keeps_order_and_half():
    found = apply_temperature([0.0, 0.2, 0.5, 0.9, 1.0], 3.0)
    assert np.all(np.diff(found) > 0)
    assert found[2] == 0.5
    assert apply_temperature([0.0, 1.0], 1.0).tolist() == [0.0, 1.0]


def test_youden_is_the_best_point_of_the_roc_curve(scores):
    target, probability = scores
    limit = choose_threshold(target, probability)
    false_rate, true_rate, _ = reference.roc_curve(target, probability)
    reached = reference.balanced_accuracy_score(target, probability >= limit) * 2 - 1
    assert reached == pytest.approx(np.max(true_rate - false_rate))
    assert not np.isclose(probability, limit).any()


def test_equally_good_thresholds_yield_to_the_one_nearest_half():
    target, probability = [0, 0, 1, 0, 1, 1], np.array([0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
    assert choose_threshold(target, probability) == pytest.approx(0.6)
    assert choose_threshold(target, probability + 0.09) == pytest.approx(0.34)  # now 0.34 is nearer than 0.69


def test_sensitivity_rule_keeps_its_promise_at_the_best_specificity(scores):
    target, probability = scores
    limit = choose_threshold(target, probability, rule="sensitivity", sensitivity=0.8)
    levels = np.unique(probability)
    caught = [(probability[target == 1] >= level).mean() for level in levels]
    highest = levels[np.flatnonzero(np.array(caught) >= 0.8)[-1]]
    assert levels[levels < limit][-1] < limit < highest
    assert (probability[target == 1] >= limit).mean() >= 0.8
    ten = np.arange(1, 11) / 20
    assert choose_threshold(np.r_[np.ones(10), 0], np.r_[ten, 0.01], "sensitivity", 0.9) == pytest.approx(0.075)
    everyone = choose_threshold([1, 0, 1], [0.2, 0.4, 0.6], rule="sensitivity", sensitivity=1.0)
    assert everyone == pytest.approx(0.1)


@pytest.mark.parametrize(("target", "probability"), [([1, 1], [0.2, 0.9]), ([0, 1], [0.7, 0.7]), ([], [])])
def test_threshold_is_half_where_there_is_nothing_to_choose(target, probability):
    assert choose_threshold(target, probability) == 0.5
    assert choose_threshold(target, probability, rule="sensitivity") == 0.5


def test_neighbouring_floats_are_told_apart():
    low = 0.3
    high = np.nextafter(low, 1)
    limit = choose_threshold([0, 1], [low, high])
    assert low < limit <= high


def test_pooled_operating_point_fits_all_folds_and_tells_its_spread(scores):
    target, probability = scores
    fold = np.arange(400) % 5
    found = pooled_operating_point(target, probability, fold, seed=1)
    temperature = fit_temperature(target, probability)
    cooled = apply_temperature(probability, temperature)
    assert (found.temperature, found.num_rows) == (temperature, 400)
    assert found.threshold == choose_threshold(target, cooled)
    assert found.fold_thresholds == tuple(choose_threshold(target[fold == f], cooled[fold == f]) for f in range(5))
    assert found.threshold_low <= found.threshold <= found.threshold_high
    assert found == pooled_operating_point(target, probability, fold, seed=1)
    small = pooled_operating_point(target[:40], probability[:40], fold[:40], seed=1)
    assert small.threshold_sd > found.threshold_sd > 0
    without = pooled_operating_point([1, 0, 0, 0], [0.9, 0.1, 0.2, 0.3], [0, 0, 1, 1], num_replicates=0)
    assert len(without.fold_thresholds) == 1  # a fold without an event has no threshold of its own
    assert math.isnan(without.threshold_sd)


def test_decisions_agree_with_scikit_learn_under_weights(scores):
    target, probability = scores
    decided = (probability >= 0.4).astype(float)
    weights = np.random.default_rng(32).integers(0, 3, (3, 400)).astype(float)
    found = weighted_decisions(target, decided, weights)
    for index, weight in enumerate(weights):
        expected = {
            "balanced_accuracy": reference.balanced_accuracy_score(target, decided, sample_weight=weight),
            "accuracy": reference.accuracy_score(target, decided, sample_weight=weight),
            "f1": reference.f1_score(target, decided, sample_weight=weight),
            "mcc": reference.matthews_corrcoef(target, decided, sample_weight=weight),
            "sensitivity": reference.recall_score(target, decided, sample_weight=weight),
            "specificity": reference.recall_score(target, decided, sample_weight=weight, pos_label=0),
            "ppv": reference.precision_score(target, decided, sample_weight=weight),
            "npv": reference.precision_score(target, decided, sample_weight=weight, pos_label=0),
        }
        assert {name: value[index] for name, value in found.items()} == pytest.approx(expected)
    counts = confusion(target, decided)
    tn, fp, fn, tp = reference.confusion_matrix(target, decided).ravel()
    assert (counts.true_negatives, counts.false_positives) == (tn, fp)
    assert (counts.false_negatives, counts.true_positives) == (fn, tp)


def test_nobody_called_leaves_the_predictive_value_undefined():
    found = weighted_decisions(np.array([0.0, 1.0]), np.zeros(2), np.ones((1, 2)))
    assert [name for name, value in found.items() if np.isnan(value[0])] == ["mcc", "ppv"]


@pytest.mark.parametrize(("successes", "total"), [(0, 8), (8, 8), (3, 11), (81, 263)])
def test_wilson_agrees_with_statsmodels(successes, total):
    assert wilson(successes, total) == pytest.approx(proportion_confint(successes, total, method="wilson"), abs=1e-12)


def test_a_prior_holds_the_temperature_of_a_few_separated_rows_and_yields_to_many():
    few = [0] * 6 + [1] * 6, [0.2] * 6 + [0.8] * 6
    assert fit_temperature(*few) == pytest.approx(0.05)
    assert 0.4 < fit_temperature(*few, prior_sd=0.5) < 0.8
    generator = np.random.default_rng(0)
    probability = generator.uniform(0.02, 0.98, 5000)
    target = generator.uniform(size=5000) < apply_temperature(probability, 2.0)
    assert fit_temperature(target, probability, prior_sd=0.5) == pytest.approx(
        fit_temperature(target, probability), rel=0.01
    )

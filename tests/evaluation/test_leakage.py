"""The statistics of the audit, against other implementations, brute force, and cohorts without any signal."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.formula.api import ols

from evaluation import leakage
from evaluation.leakage import (
    PENALTY,
    Finding,
    central,
    cramers_v,
    encode_facts,
    histogram_quantiles,
    inside_central,
    permutation_distribution,
    site_from_features,
    site_only_auc,
    variance_explained,
)


@pytest.fixture
def rng():
    return np.random.default_rng(17)


def test_cramers_v_agrees_with_scipy_before_the_correction_and_has_no_bias_after_it(rng):
    label, site = rng.integers(0, 3, 120), rng.integers(0, 4, 120)
    table = pd.crosstab(label, site).to_numpy()
    assert cramers_v(label, site).value == pytest.approx(stats.contingency.association(table, "cramer"))
    assert cramers_v(label, label).corrected == pytest.approx(1)
    third = cramers_v([0] * 30 + [1] * 30, [*"aab" * 10, *"abb" * 10])
    assert third.corrected == pytest.approx(np.sqrt((1 / 9 - 1 / 59) / (1 - 1 / 59)))
    null = [cramers_v(rng.integers(0, 2, 150), rng.integers(0, 6, 150)) for _ in range(60)]
    assert np.mean([found.value**2 for found in null]) > 0.025  # 5 degrees of freedom / 150 rows
    assert np.mean([found.corrected**2 for found in null]) < 0.012


def test_cramers_v_of_small_cells_permutes():
    label, site = np.repeat([0, 0, 1, 1], [3, 1, 1, 3]), np.repeat(["a", "b", "a", "b"], [3, 1, 1, 3])
    found = cramers_v(label, site)
    assert found.test == "chi-squared by permutation"
    exact = stats.fisher_exact([[3, 1], [1, 3]]).pvalue  # both order the tables with these margins alike
    assert found.p_value == pytest.approx(exact, abs=0.04)
    assert np.isnan(cramers_v([1, 1], ["a", "b"]).p_value)


def test_variance_explained_is_r_squared_of_the_site_and_its_adjusted_value(rng):
    frame = pd.DataFrame({"site": rng.choice(list("abc"), 40)})
    frame["age"] = rng.normal(50, 10, 40) + 8.0 * (frame["site"] == "a")
    found, reference = variance_explained(frame["age"], frame["site"]), ols("age ~ site", frame).fit()
    assert found.value == pytest.approx(reference.rsquared)
    assert found.corrected == pytest.approx(reference.rsquared_adj)
    assert np.isnan(variance_explained([1.0, 1.0, 1.0], ["a", "a", "b"]).value)


def pairs_one_by_one(label, site):
    won = []
    for case in np.flatnonzero(label == 1):
        for control in np.flatnonzero(label == 0):
            rest = np.delete(np.arange(len(label)), [case, control])
            own = [label[rest][site[rest] == site[row]] for row in (case, control)]
            score = [part.mean() if len(part) else label[rest].mean() for part in own]
            won.append(0.5 if abs(score[0] - score[1]) < 1e-12 else float(score[0] > score[1]))
    return np.mean(won)


def test_site_only_auc_leaves_each_pair_out(rng):
    for _ in range(20):
        label, site = (
            rng.permutation([1] * 9 + [0] * 12),
            rng.choice(list("abcdef"), 21, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05]),
        )
        assert site_only_auc(label, site).value == pytest.approx(pairs_one_by_one(label, site))
    assert site_only_auc([1, 0, 1, 0], ["a"] * 4).value == 0.5  # leaving out one at a time gives 0 here
    assert np.isnan(site_only_auc([1, 1], ["a", "b"]).value)
    without_signal = [site_only_auc(rng.integers(0, 2, 50), rng.choice(list("abc"), 50), seed=s) for s in range(40)]
    assert np.mean([found.distribution.mean() for found in without_signal]) == pytest.approx(0.5, abs=0.01)


def test_the_cheap_head_is_a_ridge_regression(rng):
    features = rng.normal(size=(40, 6))
    age = 50 + 5 * features[:, 0] + rng.normal(0, 5, 40)
    found = permutation_distribution(features, age, num_permutations=5, num_folds=40)
    reference = make_pipeline(StandardScaler(), Ridge(PENALTY * 39))
    predicted = cross_val_predict(reference, features, age, cv=LeaveOneOut())
    mean = (age.sum() - age) / 39
    assert found.metric == "r2"
    assert found.value == pytest.approx(1 - ((age - predicted) ** 2).sum() / ((age - mean) ** 2).sum())


def test_the_auc_counts_pairs_inside_a_fold(rng, monkeypatch):
    label, fold, features = rng.integers(0, 2, 60), np.arange(60) % 3, rng.normal(size=(60, 4))
    features[:, 0] += label
    monkeypatch.setattr(leakage, "_dealt", lambda *_: fold)
    won = pairs = 0.0
    for part in range(3):
        inside, outside = fold == part, fold != part
        head = make_pipeline(StandardScaler(), Ridge(PENALTY * outside.sum())).fit(features[outside], label[outside])
        number = label[inside].sum() * (1 - label[inside]).sum()
        won += number * roc_auc_score(label[inside], head.predict(features[inside]))
        pairs += number
    found = permutation_distribution(features, label, num_permutations=0)
    assert (found.metric, found.value) == ("auroc", pytest.approx(won / pairs))


def test_labels_are_permuted_inside_the_folds(rng, monkeypatch):
    fold = np.arange(30) % 3
    monkeypatch.setattr(leakage, "_dealt", lambda *_: fold)
    found = permutation_distribution(rng.normal(size=(30, 2)), fold * 10.0)
    assert found.distribution == pytest.approx(found.value)  # each fold has one label


def test_a_run_without_signal_lies_inside_and_one_with_a_signal_outside():
    outside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        found = permutation_distribution(rng.normal(size=(60, 9)), rng.integers(0, 2, 60), seed=seed)
        outside += not inside_central(found.value, found.distribution)
    assert outside <= 7  # 2 are expected; 8 or more have a probability below 0.001
    rng = np.random.default_rng(1)
    label = rng.integers(0, 2, 120)
    found = permutation_distribution(rng.normal(size=(120, 9)) + label[:, None], label)
    assert found.informative
    assert found.p_value == pytest.approx(1 / 201)


def test_groups_stay_together_and_are_permuted_as_one(rng):
    people = np.repeat(np.arange(40), 5)
    label, traits = rng.integers(0, 2, 40)[people], rng.normal(size=(40, 30))[people]
    apart = permutation_distribution(traits, label)
    together = permutation_distribution(traits, label, people)
    assert apart.value > 0.9  # knows them again
    assert not together.informative
    assert together.distribution.std() > 2 * apart.distribution.std()  # 40 people, not 200
    one_class = permutation_distribution(traits, np.ones(200))
    assert np.isnan(one_class.value)
    assert not one_class.informative


def test_fewer_than_199_permutations_prove_nothing():
    assert central(np.arange(199.0)) == (0.0, 198.0)
    with pytest.raises(ValueError, match=r"198 permutations have no central 99\.0%\. Draw at least 199\."):
        inside_central(0.5, np.arange(198.0))
    assert central(np.arange(99.0), coverage=0.9) == (4.0, 94.0)  # 5 of 99 on either side, ends included


def test_site_from_features_finds_a_site_and_nothing_in_noise(rng):
    site = np.repeat(list("abc"), [60, 30, 10])
    noise, chance = site_from_features(rng.normal(size=(100, 5)), site)
    assert chance == pytest.approx(1 / 3)
    assert not noise.low_above(chance)
    found, _ = site_from_features(rng.normal(size=(100, 5)) + 2 * (site == "b")[:, None], site)
    assert found.low_above(chance)
    assert found.low < found.estimate < found.high


def test_facts_become_numbers():
    facts = pd.DataFrame({"spacing": [1.0, 1.0], "orientation": ["RAS", None], "dtype": ["int16", "int16"]})
    assert encode_facts(facts).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert encode_facts(facts[["spacing", "dtype"]]).shape == (2, 0)
    volume = np.stack([np.zeros((3, 4, 5)), np.ones((3, 4, 5))]).astype(np.float16)
    assert histogram_quantiles(volume).tolist() == [0.0] * 9 + [1.0] * 9
    answer = json.loads(json.dumps(Finding("a", "ok", "b", {"x": float("nan"), "n": 3}).as_dict(), allow_nan=False))
    assert answer["numbers"] == {"x": None, "n": 3}

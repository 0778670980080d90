import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.datasets import make_moons
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
from sklearn.svm import SVC
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from evaluation.assessment import assess
from evaluation.discrimination import delong_paired
from evaluation.paired import compare, corrected_t, corrected_t_refusal, holm, mcnemar, nadeau_bengio
from evaluation.predictions import PredictionsError, normalise_predictions, scored_rows

SIDE = {"protocol": "holdout", "split": "test", "output": "death", "dataset": "d", "train_sites": "A+B"}


def binary_table(effect, seed=0, num_participants=80, runs=((0, 0),)):
    """Predictions of a binary outcome at two sites; the outcome is the same for every effect and seed."""
    target = (np.random.default_rng(9).random(num_participants) < 0.4).astype(float)
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame({"participant_id": [f"p{n:03}" for n in range(num_participants)], "target": target})
    frame["site"] = np.where(np.arange(num_participants) % 3, "A", "B")
    tables = []
    for repeat, run in runs:
        odds = effect * (target - 0.5) + generator.normal(0, 1, num_participants)
        tables.append(frame.assign(repeat=repeat, seed=run, prediction=1 / (1 + np.exp(-odds))))
    return pd.concat(tables, ignore_index=True).assign(**SIDE)


FEW = {"num_replicates": 60, "metrics": ["auroc", "brier", "sensitivity"]}
RUNS = [(0, 0), (0, 1), (1, 0)]


def test_corrected_t_gives_the_published_values():
    x, y = make_moons(noise=0.352, random_state=1, n_samples=100)
    folds = RepeatedStratifiedKFold(n_splits=10, n_repeats=10, random_state=0)
    rbf, linear = (
        cross_val_score(SVC(kernel=kernel, random_state=0), x, y, scoring="roc_auc", cv=folds)
        for kernel in ("rbf", "linear")
    )
    found = nadeau_bengio(rbf - linear, num_train=90, num_test=10)
    assert found.statistic == pytest.approx(0.7503126954, abs=1e-9)
    assert found.p_value / 2 == pytest.approx(0.2274229710, abs=1e-9)
    assert found.degrees == 99
    assert stats.ttest_1samp(rbf - linear, 0).statistic == pytest.approx(2.611, abs=5e-4)  # what it would be naively
    reach = (found.high - found.low) / 2
    assert found.difference / reach * stats.t.ppf(0.975, 99) == pytest.approx(found.statistic)


def test_corrected_t_without_variance_or_with_undefined_folds():
    assert nadeau_bengio([0.0, 0.0], 9, 1).p_value == 1
    assert nadeau_bengio([0.1, 0.1], 9, 1).p_value == 0
    for differences in ([0.1], [0.1, math.nan]):
        with pytest.raises(ValueError, match="two or more defined"):
            nadeau_bengio(differences, 9, 1)


@pytest.mark.parametrize(("only_a", "only_b", "both"), [(121, 59, 101), (3, 9, 4), (5, 5, 0), (0, 4, 2)])
def test_mcnemar_agrees_with_statsmodels(only_a, only_b, both):
    correct_a = np.repeat([True, False, True], [only_a, only_b, both])
    correct_b = np.repeat([False, True, True], [only_a, only_b, both])
    found, counts = mcnemar(correct_a, correct_b), [[both, only_a], [only_b, 0]]
    if only_a != only_b:  # statsmodels then corrects zero away from zero
        corrected = reference_mcnemar(counts, exact=False)
        assert (found.statistic, found.p_value) == pytest.approx((corrected.statistic, corrected.pvalue))
    assert found.p_exact == pytest.approx(reference_mcnemar(counts).pvalue)
    if only_a == 121:
        assert found.statistic == pytest.approx(20.672, abs=5e-4)
    assert mcnemar([True], [True]).p_exact == 1


def test_holm_agrees_with_statsmodels():
    p_values = {f"m{number}": p for number, p in enumerate(np.random.default_rng(3).random(9) ** 4)}
    expected = multipletests(list(p_values.values()), method="holm")[1]
    assert holm(p_values | {"none": math.nan}) == pytest.approx(dict(zip(p_values, expected, strict=True)))


def test_two_fixed_models_are_compared_by_delong_and_mcnemar():
    a, b = binary_table(0.5, 1), binary_table(1.5, 2).assign(threshold=0.3)
    found = compare(a, b.sample(frac=1, random_state=0))
    assert (found.task, found.num_runs, found.assumed_threshold) == ("binary", (1, 1), True)
    assert found.tests["auroc"] == delong_paired(a["target"], a["prediction"], b["prediction"])
    right = [table["target"] == (table["prediction"] >= limit) for table, limit in ((a, 0.5), (b, 0.3))]
    assert found.mcnemar == mcnemar(*right)
    assert found.tests["accuracy"].difference == pytest.approx(right[1].mean() - right[0].mean())
    assert found.detectable["auroc"] == pytest.approx(
        2.8 * (found.tests["auroc"].high - found.tests["auroc"].low) / 3.92, rel=0.1
    )
    visits = [pd.concat([table.assign(session_id=visit) for visit in "12"]) for table in (a, b)]
    twice = compare(*visits, metrics=["auroc"], num_replicates=50)
    assert twice.tests["auroc"].test == "bootstrap over participants"
    assert twice.mcnemar is None


def test_json_is_the_contract_and_differences_are_those_of_evaluate():
    a, b = binary_table(0.5, 1, runs=RUNS), binary_table(1.5, 2, runs=RUNS)
    document = compare(a, b, num_replicates=50).as_json()
    first, second = (assess(table, "binary", num_replicates=0).metrics for table in (a, b))
    assert set(document) == {"comparisons", "num_participants"}
    assert document["num_participants"] == 80
    assert set(first) - set(document["comparisons"]) == {"prevalence", "ici"}
    for name, entry in document["comparisons"].items():
        assert list(entry) == ["difference", "low", "high", "p_value", "test"]
        assert entry["difference"] == pytest.approx(second[name].estimate - first[name].estimate), name
        assert entry["low"] <= entry["difference"] <= entry["high"], name
        assert entry["test"] == "two-way bootstrap over participants and runs"
    json.dumps(document, allow_nan=False)
    flat = compare(a.assign(prediction=0.7), b, metrics=["calibration_slope", "auroc"], num_replicates=20)
    assert flat.as_json()["comparisons"]["calibration_slope"]["p_value"] is None
    assert list(flat.adjusted) == ["auroc"]  # no slope is better as such


@given(st.integers(0, 10_000))
@settings(max_examples=4, deadline=None)
def test_order_of_rows_means_nothing_and_sides_are_antisymmetric(seed):
    a, b = binary_table(0.5, seed, 40, RUNS), binary_table(1.0, seed + 1, 40, RUNS)
    found, back = compare(a, b, **FEW), compare(b, a, **FEW)
    shuffled = compare(a.sample(frac=1, random_state=seed), b.sample(frac=1, random_state=seed + 1), **FEW)
    for name, test in found.tests.items():
        values = (test.difference, test.low, test.high, test.p_value)
        other, mirrored = shuffled.tests[name], back.tests[name]
        assert (other.difference, other.low, other.high, other.p_value) == pytest.approx(values, abs=1e-12)
        ends = (-mirrored.difference, -mirrored.high, -mirrored.low, mirrored.p_value)
        assert ends == pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize("runs", [RUNS, RUNS[:1]])
def test_a_model_does_not_differ_from_itself(runs):
    table = binary_table(0.5, runs=runs)
    for test in compare(table, table.sample(frac=1, random_state=0), **FEW).tests.values():
        assert (test.difference, test.low, test.high, test.p_value) == pytest.approx((0, 0, 0, 1), abs=1e-12)


def test_models_of_single_sites_are_compared_site_by_site():
    a, b = (binary_table(effect, 3).assign(protocol="cross-site") for effect in (0.5, 1.5))
    for table in (a, b):
        table["train_sites"] = np.where(table["site"] == "A", "B", "A")
    found = compare(a, b, metrics=["auroc"], num_replicates=50)
    expected = [
        np.mean([roc_auc_score(own["target"], own["prediction"]) for _, own in table.groupby("site")])
        for table in (a, b)
    ]
    assert found.sites == ("A", "B")
    assert [value.estimate for value in found.values["auroc"]] == pytest.approx(expected)
    assert found.tests["auroc"].test == "bootstrap over participants"


def test_corrected_t_of_a_k_fold_is_that_of_its_folds():
    a, b = (binary_table(effect, 4, runs=[(r, s) for r in (0, 1) for s in (0, 1)]) for effect in (0.5, 1.0))
    fold = a["participant_id"].str[1:].astype(int) % 4 + 10 * a["repeat"]
    a, b = (table.assign(protocol="k-fold", fold=fold) for table in (a, b))
    per_fold = [
        table.groupby(["repeat", "fold", "seed"])[["target", "prediction"]]
        .apply(lambda own: roc_auc_score(own["target"], own["prediction"]))
        .groupby(level=[0, 1])
        .mean()
        for table in (a, b)
    ]
    found = compare(a, b, metrics=["brier"], num_replicates=0).corrected_t
    expected = nadeau_bengio(per_fold[1] - per_fold[0], num_train=60, num_test=20)
    assert vars(found) == pytest.approx(vars(expected))
    rows = [scored_rows(normalise_predictions(table)) for table in (a, b)]
    assert corrected_t_refusal(rows[0], rows[1].assign(fold=fold[::-1].to_numpy())).endswith(
        "same folds on both sides."
    )
    everywhere = [table.assign(protocol="cross-site") for table in rows]
    with pytest.raises(
        PredictionsError, match="for the protocol k-fold, not for 'cross-site': its folds are whole sites"
    ):
        corrected_t(*everywhere, "binary")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": 2.0}, "targets 0 and 1"),
        ({"task": "astrology"}, "There are: regression, binary"),
        ({"metrics": ["aucroc"]}, "no metric 'aucroc'. It has: auroc"),
    ],
)
def test_wrong_targets_tasks_and_metrics_are_refused(change, words):
    table = binary_table(1.0)
    if "target" in change:
        table = table.assign(target=table["target"] * change["target"])
    options = {"task": "binary"} | {name: value for name, value in change.items() if name != "target"}
    with pytest.raises(PredictionsError, match=words):
        compare(table, table, **options)

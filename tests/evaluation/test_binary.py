import time

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn import metrics as reference

from evaluation.binary import METRICS, NEEDS_PREVALENCE, QUICK, SLOW, assess_binary, decisions, statistic
from evaluation.calibration import smooth_curve
from evaluation.design import Design
from evaluation.discrimination import delong
from evaluation.estimate import bootstrap
from evaluation.operating_point import wilson


def rows_of(num_participants, num_runs=1, seed=81):
    """Make rows as `scored_rows` gives them: informative, overconfident predictions."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(-1, 1.2, num_participants)
    target = (generator.random(num_participants) < expit(odds)).astype(float)
    runs = [expit(1.5 * odds + generator.normal(0, 1, num_participants)) for _ in range(num_runs)]
    names = [f"p{number}" for number in range(num_participants)]
    parts = [
        pd.DataFrame({"participant": names, "run": run, "target": target, "prediction": prediction})
        for run, prediction in enumerate(runs)
    ]
    return pd.concat(parts, ignore_index=True)


def estimates(rows, **options):
    return {name: value.estimate for name, value in assess_binary(rows, num_replicates=0, seed=0, **options).items()}


def test_estimates_agree_with_other_implementations():
    rows = rows_of(200)
    target, risk, called = rows["target"], rows["prediction"], (rows["prediction"] >= 0.5).astype(float)
    places, observed = smooth_curve(target, risk)
    found = estimates(rows)
    assert list(found) == list(METRICS)
    expected = {
        "auroc": reference.roc_auc_score(target, risk),
        "auprc": reference.average_precision_score(target, risk),
        "f1": reference.f1_score(target, called),
        "mcc": reference.matthews_corrcoef(target, called),
        "brier": reference.brier_score_loss(target, risk),
        "scaled_brier": 1 - reference.brier_score_loss(target, risk) / (target.mean() * (1 - target.mean())),
        "prevalence": target.mean(),
        "oe_ratio": target.sum() / risk.sum(),
        "ici": np.abs(risk - np.interp(risk, places, observed)).mean(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["balanced_accuracy"] == pytest.approx((found["sensitivity"] + found["specificity"]) / 2)
    assert found["mce"] > found["ece"] > 0
    assert found["calibration_slope"] < 1


def test_published_brier_score():
    rows = pd.DataFrame({"target": [0.0, 1, 1, 0], "prediction": [0.1, 0.9, 0.8, 0.3]})
    assert statistic(rows, ["brier"])(np.ones((1, 4)))["brier"] == pytest.approx([0.0375])


def test_only_what_is_wanted_is_computed_and_the_same():
    rows, weights = rows_of(60), np.random.default_rng(0).integers(0, 3, (5, 60)).astype(float)
    everything = statistic(rows)(weights)
    assert tuple(everything) == QUICK
    for name in QUICK:
        alone = statistic(rows, [name])(weights)
        assert list(alone) == [name]
        assert alone[name] == pytest.approx(everything[name], nan_ok=True)
    assert list(statistic(rows, SLOW)(weights)) == ["ici"]


def test_each_replicate_is_the_metric_of_rows_resampled_inside_the_classes():
    names = ["auprc", "balanced_accuracy", "f1", "mcc", "brier", "oe_ratio", "calibration_slope"]
    rows = rows_of(60)
    order = np.argsort(rows["participant"].to_numpy())  # the draw goes by the order of the names
    target = rows["target"].to_numpy()[order]
    again = []
    for uniform in np.random.default_rng(0).random((100, 60)):
        drawn = np.empty(60, dtype=int)
        for label in (0, 1):
            members = np.flatnonzero(target == label)
            drawn[members] = members[(uniform[members] * len(members)).astype(int)]
        again.append(statistic(rows.iloc[order[drawn]], names)(np.ones((1, 60))))
    found = assess_binary(rows, num_replicates=100, seed=0)
    for name in names:
        low, high = np.quantile([one[name][0] for one in again], [0.025, 0.975])
        assert (found[name].low, found[name].high) == pytest.approx((low, high), rel=1e-6), name
    two_models = assess_binary(pd.concat([rows, rows.assign(run=1)]), num_replicates=10, seed=0)
    assert two_models["prevalence"].low is None  # resampled inside the classes, it never varies


def test_one_model_and_one_row_each_have_exact_intervals():
    rows = rows_of(150)
    found = assess_binary(rows, num_replicates=200, seed=0)
    area = delong(rows["target"], rows["prediction"])
    assert (found["auroc"].low, found["auroc"].high, found["auroc"].interval) == (area.low, area.high, "DeLong")
    events = rows["target"].sum()
    caught = (decisions(rows) * rows["target"]).sum()
    assert (found["sensitivity"].low, found["sensitivity"].high) == pytest.approx(wilson(caught, events))
    assert found["ppv"].interval == found["prevalence"].interval == "Wilson"
    assert found["brier"].interval == "bootstrap"
    for value in found.values():
        assert value.low < value.estimate < value.high
    visits = assess_binary(rows.assign(participant=rows["participant"].str[:2]), num_replicates=200, seed=0)
    assert {value.interval for value in visits.values()} == {"bootstrap"}


def test_metrics_are_averaged_over_runs():
    rows = rows_of(80, num_runs=3)
    each = [estimates(run) for _, run in rows.groupby("run")]
    mean = {name: np.mean([one[name] for one in each]) for name in METRICS}
    assert estimates(rows) == pytest.approx(mean)


def test_decision_is_taken_at_the_threshold_of_the_model():
    rows = rows_of(40, num_runs=2)
    assert decisions(rows).tolist() == (rows["prediction"] >= 0.5).astype(float).tolist()
    own = rows.assign(threshold=np.where(rows["run"] == 0, 0.2, rows["prediction"]))
    assert decisions(own)[40:].min() == 1  # a prediction on the threshold is called
    assert decisions(own)[:40].tolist() == (rows["prediction"][:40] >= 0.2).astype(float).tolist()


def test_case_control_rows_reweighted_are_the_cohort_they_were_drawn_from():
    cohort = rows_of(20_000)
    events = cohort["target"] == 1
    drawn = pd.concat([cohort[events], cohort[~events].iloc[::5]])
    truth = estimates(cohort)
    again = estimates(drawn, design=Design("case-control", truth["prevalence"]))
    for name in METRICS:
        assert again[name] == pytest.approx(truth[name], abs=0.02), name
    assert estimates(drawn)["ppv"] > truth["ppv"] + 0.1  # unweighted it is another number
    withheld = estimates(drawn, design=Design("case-control"))
    assert {name for name, value in withheld.items() if np.isnan(value)} == set(NEEDS_PREVALENCE)
    assert "calibration_in_the_large" in NEEDS_PREVALENCE
    plain = estimates(drawn)
    assert withheld["auroc"] == plain["auroc"]


def test_a_single_class_leaves_what_can_be_said():
    rows = rows_of(30).assign(target=0.0)
    found = assess_binary(rows, num_replicates=50, seed=0)
    defined = {name for name, value in found.items() if value.defined}
    assert defined == {"accuracy", "specificity", "npv", "brier", "prevalence", "oe_ratio", "ece", "mce", "f1", "ppv"}


def test_two_thousand_replicates_of_a_thousand_participants_take_seconds():
    rows = rows_of(1000)
    start = time.process_time()
    bootstrap(statistic(rows), rows["participant"], strata=rows["target"])
    assert time.process_time() - start < 3

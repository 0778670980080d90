import json
import math
import time

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from evaluation.gain import gains, label_efficiency, share_of_labels
from evaluation.paired import compare, holm, paired_test, smallest_detectable
from evaluation.predictions import PredictionsError
from evaluation.resampled import resample


def study(effects, sites="AAB", num_participants=90, num_seeds=3, num_repeats=1, **columns):
    """A predictions table of several arms; an arm's effect is the distance between its classes in log odds."""
    people = pd.DataFrame({"participant_id": [f"p{number:04}" for number in range(num_participants)]})
    people["site"] = np.resize(list(sites), num_participants)
    people["target"] = (np.random.default_rng(71).random(num_participants) < 0.4).astype(float)
    tables = []
    for number, (arm, effect) in enumerate(effects.items()):
        generator = np.random.default_rng([72, number])
        for repeat in range(num_repeats):
            for seed in range(num_seeds):
                odds = effect * (people["target"] - 0.5) + generator.normal(0, 1, num_participants)
                tables.append(people.assign(arm=arm, repeat=repeat, seed=seed, prediction=1 / (1 + np.exp(-odds))))
    frame = pd.concat(tables, ignore_index=True)
    return frame.assign(protocol="multi-site", split="test", output="death", dataset="d", train_sites="A+B").assign(
        **columns
    )


def auc(rows):
    return roc_auc_score(rows["target"], rows["prediction"])


def auc_per_run(frame, arm, site):
    rows = frame[(frame["arm"] == arm) & (frame["site"] == site)]
    return np.array([auc(run) for _, run in rows.groupby(["repeat", "seed"])])


@pytest.fixture
def frame():
    return study({"scratch": 1.0, "pretrained": 2.0, "scratch-again": 1.0, "worse": -1.0})


def test_gain_is_the_difference_of_the_means_over_runs_and_sites(frame):
    found = {(gain.arm, gain.site): gain for gain in gains(frame.sample(frac=1, random_state=0), num_replicates=300)}
    assert list(found) == [(arm, site) for arm in ("pretrained", "scratch-again", "worse") for site in (None, "A", "B")]
    for arm in ("pretrained", "worse"):
        own, base = ([auc_per_run(frame, name, site) for site in "AB"] for name in (arm, "scratch"))
        whole, at_b = found[arm, None], found[arm, "B"]
        assert whole.value.estimate == pytest.approx(np.mean(own))
        assert whole.reference_value.estimate == pytest.approx(np.mean(base))
        assert whole.gain.estimate == pytest.approx(np.mean(own) - np.mean(base))
        assert whole.spread == pytest.approx(np.mean(own, axis=0).std(ddof=1))
        assert at_b.gain.estimate == pytest.approx(own[1].mean() - base[1].mean())
        assert at_b.reference_spread == pytest.approx(base[1].std(ddof=1))
        assert (whole.num_participants, at_b.num_participants, whole.num_runs) == (90, 30, 3)
        assert whole.sites == ("A", "B")
    better, control, worse = (found[arm, None] for arm in ("pretrained", "scratch-again", "worse"))
    assert better.gain.low > 0
    assert worse.gain.high < 0
    assert [gain.negative_transfer for gain in (better, control, worse)] == [False, False, True]
    assert control.gain.low < 0 < control.gain.high
    adjusted = holm({gain.arm: gain.p_value for gain in (better, control, worse)})
    assert {gain.arm: gain.p_holm for gain in (better, control, worse)} == adjusted
    assert math.isnan(found["worse", "A"].p_holm)


def test_smaller_errors_are_gains_and_a_k_fold_has_its_corrected_test():
    frame = study({"scratch": 0.5, "pretrained": 2.0}, sites="A", num_seeds=2, protocol="k-fold")
    frame["fold"] = frame["participant_id"].str[1:].astype(int) % 3
    (found,) = gains(frame, metric="brier", num_replicates=200)
    arms = [frame[frame["arm"] == arm] for arm in ("scratch", "pretrained")]
    brier = [((rows["prediction"] - rows["target"]) ** 2).mean() for rows in arms]
    assert found.gain.estimate == pytest.approx(brier[0] - brier[1])
    assert found.gain.low < found.gain.estimate < found.gain.high
    assert found.corrected_t.difference == pytest.approx(brier[0] - brier[1])
    same = compare(*arms, metrics=["brier"], num_replicates=200)
    assert (-found.gain.high, -found.gain.low) == pytest.approx((same.tests["brier"].low, same.tests["brier"].high))
    assert found.detectable == pytest.approx(same.detectable["brier"])
    assert math.isnan(found.spread)  # two seeds
    document = found.as_dict()
    assert json.loads(json.dumps(document, allow_nan=False))["corrected_t"]["degrees"] == 2
    assert (document["spread"], document["negative_transfer"]) == (None, False)


def test_ensemble_is_the_metric_of_the_mean_prediction(frame):
    found = gains(frame, estimand="ensemble", num_replicates=100)[0]
    keys = ["arm", "site", "participant_id"]
    mean = frame.groupby(keys, as_index=False)[["target", "prediction"]].mean()
    own, base = (
        [auc(mean[(mean["arm"] == arm) & (mean["site"] == site)]) for site in "AB"] for arm in ("pretrained", "scratch")
    )
    assert found.gain.estimate == pytest.approx(np.mean(own) - np.mean(base))
    assert (found.estimand, found.num_runs, found.test) == ("ensemble", 3, "bootstrap over participants")
    assert math.isnan(found.spread)


def test_a_site_without_enough_of_a_class_is_left_out_and_named(frame):
    rare = frame[(frame["site"] == "A") | (frame["target"] == 0) | (frame["participant_id"] == "p0002")].copy()
    rare.loc[rare["participant_id"] == "p0002", "target"] = 1.0
    whole = gains(rare, num_replicates=50)[0]
    assert (whole.sites, whole.left_out) == (("A",), ("B",))
    assert whole.gain.estimate == pytest.approx(
        auc_per_run(frame, "pretrained", "A").mean() - auc_per_run(frame, "scratch", "A").mean()
    )


def test_arms_that_differ_in_participants_runs_or_targets_are_refused(frame):
    arm, seed = frame["arm"], frame["seed"]
    changed = frame.assign(target=frame["target"].where((arm != "worse") | (frame["participant_id"] != "p0003"), 0.5))
    cases = {
        "arm 'worse' lacks 'repeat 0, seed 2'": frame[(arm != "worse") | (seed < 2)],
        "arm 'scratch' lacks 'repeat 0, seed 2'": frame[(arm != "scratch") | (seed < 2)],
        "the scored participants differ: 1 in arm 'scratch' alone .'d/p0003'": frame[
            (arm != "worse") | (frame["participant_id"] != "p0003")
        ],
        "the target of 1 of 90 participants differs between arm 'scratch' and arm 'worse': 'd/p0003'": changed,
        "needs the arm 'scratch' and another one. There are: 'worse'": frame[arm == "worse"],
        "several protocols: 'k-fold', 'multi-site'": frame.assign(protocol=np.where(seed == 0, "k-fold", "multi-site")),
        "Choose one with --split": frame.assign(split=np.where(seed == 0, "val", "test")),
    }
    for words, table in cases.items():
        with pytest.raises(PredictionsError, match=words):
            gains(table)
    with pytest.raises(PredictionsError, match="no gain in it"):
        gains(frame, metric="calibration_slope")


def test_shares_of_labels_make_a_curve_and_have_references_of_their_own():
    effects = {"scratch@0.25": 0.2, "scratch": 1.0, "pretrained@0.25": 0.9, "pretrained": 1.5, "site-only": 0.1}
    frame = study(effects)
    curve = label_efficiency(frame, num_replicates=100)
    assert list(zip(curve["arm"], curve["fraction"], strict=True)) == [
        ("pretrained", 0.25),
        ("pretrained", 1.0),
        ("scratch", 0.25),
        ("scratch", 1.0),
        ("site-only", 1.0),
    ]
    assert curve["estimate"][0] == pytest.approx(np.mean([auc_per_run(frame, "pretrained@0.25", s) for s in "AB"]))
    assert (curve["low"] < curve["estimate"]).all()
    references = {gain.arm: gain.reference for gain in gains(frame, num_replicates=10)}
    assert references == {"pretrained": "scratch", "pretrained@0.25": "scratch@0.25", "site-only": "scratch"}
    assert share_of_labels("me@home") == ("me@home", 1.0)


def test_intervals_cover_the_true_gain_and_what_is_detectable_is_detected():
    generator, covered, found, detectable = np.random.default_rng(73), [], [], []
    people = np.repeat([f"p{number:02}" for number in range(40)], 8)
    rows = pd.DataFrame({"participant": people, "run": np.tile(range(8), 40), "site": "A", "target": 0.0})
    rows = rows.assign(repeat=0, seed=rows["run"], fold="0")
    smallest = 2.8 * math.sqrt(0.5**2 / 40 + 0.3**2 / 8 + 0.5**2 / 320)  # from the true variances

    def mean_of(rows):
        values = rows["prediction"].to_numpy()
        return lambda weights: {"mean": weights @ values / weights.sum(axis=1)}

    for _ in range(80):
        person, run = generator.normal(0, 0.5, (40, 1)), generator.normal(0, 0.3, (1, 8))
        effects = smallest + person + run + generator.normal(0, 0.5, (40, 8))
        arms = [rows.assign(prediction=0.0), rows.assign(prediction=effects.ravel())]
        a, b = (arm["mean"] for arm in resample(arms, mean_of, stratify=False, num_replicates=200))
        test = paired_test(a, b)
        covered.append(test.low < smallest < test.high)
        found.append(test.low > 0)
        detectable.append(smallest_detectable(a, b))
    assert 0.87 < np.mean(covered) < 1  # 0.95, and what 80 simulations leave open
    assert np.mean(found) == pytest.approx(0.8, abs=0.14)
    assert np.mean(detectable) == pytest.approx(smallest, rel=0.1)


def test_a_thousand_participants_in_fifteen_runs_take_seconds():
    frame = study({"scratch": 1.0, "pretrained": 1.5}, num_participants=1000, num_seeds=5, num_repeats=3)
    start = time.process_time()
    assert gains(frame)[0].gain.low_above(0)
    assert time.process_time() - start < 8

import numpy as np
import pandas as pd
import pytest

from evaluation.design import Design
from evaluation.gain import gains
from evaluation.predictions import normalise_predictions, scored_rows
from evaluation.report.arms import describe_arms, gain_of, lines_of, main_arm, scores

DEFINITIONS = {
    "scratch": {"baseline": [], "seed_offset": 0},
    "again": {"baseline": [], "seed_offset": 1000},
    "age": {"model.transfer.source": "RUN", "model.transfer.strategy": "frozen", "baseline": []},
    "wide": {"model.network.width": 32},
    "burden": {"baseline": ["lesion_ml", "sex"]},
}


@pytest.fixture
def rows():
    return {name: pd.DataFrame({"run": [0]}) for name in ("again", "burden", "age", "scratch", "wide")}


def test_arms_are_told_apart_by_what_the_lock_says_of_them(rows):
    arms = describe_arms(rows, DEFINITIONS, "scratch")
    assert [(arm.name, arm.kind) for arm in arms] == [
        ("scratch", "reference"),
        ("age", "transfer"),
        ("wide", "variant"),
        ("again", "noise"),
        ("burden", "baseline"),
    ]
    assert [arm.description for arm in arms] == [
        "network from random initial weights",
        "encoder started from pretrained weights, strategy frozen",
        "model.network.width 32",
        "the same as the reference, other initial weights",
        "regression on lesion_ml and sex, no image",
    ]
    assert main_arm(arms).name == "age"
    assert main_arm(arms[:1]) is None


def test_without_a_lock_arms_are_told_apart_by_their_names():
    names = ("scratch", "scratch-again", "pretrained", "site-only", "permuted-age")
    frames = {name: pd.DataFrame() for name in names}
    kinds = {arm.name: arm.kind for arm in describe_arms(frames, {}, "scratch", transferred=["permuted-age"])}
    assert kinds == {
        "scratch": "reference",
        "pretrained": "transfer",
        "permuted-age": "transfer",
        "scratch-again": "noise",
        "site-only": "baseline",
    }
    assert main_arm(describe_arms(frames, {}, "scratch", transferred=["permuted-age"])).name == "pretrained"


def test_arms_on_the_largest_share_of_the_labels_are_described():
    frames = {name: pd.DataFrame() for name in ("scratch@0.25", "scratch@0.5", "pretrained@0.25", "pretrained@0.5")}
    arms = describe_arms(frames, {}, "scratch")
    assert [(arm.name, arm.kind) for arm in arms] == [("scratch@0.5", "reference"), ("pretrained@0.5", "transfer")]


def test_reference_and_main_arm_keep_their_colours_and_noise_is_not_drawn(rows):
    arms = describe_arms(rows, DEFINITIONS, "scratch")
    lines = lines_of(arms, main_arm(arms))
    assert set(lines) == {"scratch", "age", "wide", "burden"}
    assert [name for name, line in lines.items() if line.band] == ["scratch", "age"]
    assert len({line.colour for line in lines.values()}) == 4


def test_scores_agree_with_gains_whatever_the_direction(simulate):
    table = simulate({"A": 30, "B": 40}, {"scratch": 1.0, "pretrained": 2.0})
    normal = normalise_predictions(table)
    arms = describe_arms({name: scored_rows(own) for name, own in normal.groupby("arm")}, {}, "scratch")
    names = ("auroc", "brier", "prevalence")
    found = scores(arms, names, task="binary", design=Design(), num_replicates=50, seed=3)
    for metric in ("auroc", "brier"):
        expected = gain_of(gains(table, metric=metric, num_replicates=50, seed=3), "pretrained")
        score = found[metric]["pretrained"]
        assert score.gain.as_dict() == pytest.approx(expected.gain.as_dict())
        assert score.value.as_dict() == pytest.approx(expected.value.as_dict())
        assert score.spread == pytest.approx(expected.spread)
        assert score.gain.estimate > 0
    assert found["prevalence"]["pretrained"].gain is None
    assert found["auroc"]["scratch"].gain is None


def test_site_of_one_class_is_left_out_of_the_mean(simulate):
    table = simulate({"A": 30, "B": 40}, {"scratch": 1.0, "pretrained": 2.0})
    table.loc[table["site"] == "B", "target"] = 0.0
    normal = normalise_predictions(table)
    arms = describe_arms({name: scored_rows(own) for name, own in normal.groupby("arm")}, {}, "scratch")
    score = scores(arms, ["auroc"], task="binary", design=Design(), num_replicates=0, seed=0)["auroc"]["pretrained"]
    assert score.left_out == ("B",)
    assert score.value.estimate == pytest.approx(score.sites["A"].estimate)
    assert np.isnan(score.sites["B"].estimate)

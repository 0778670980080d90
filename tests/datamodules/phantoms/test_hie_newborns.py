"""The law of the outcome, without images: what a perfect prediction reaches, and what it rests on."""

import json
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from datamodules.phantoms.hie_newborns import (
    MISSING,
    MODELS,
    NUM_NORMALS,
    PATTERNS,
    draw_newborns,
    remaining_drop,
    simulate,
)
from datamodules.phantoms.hie_outcome import HIEOutcomePhantom
from datamodules.phantoms.hie_truth import describe_truth, predictability, truth_path, write_truth

CLINICAL = ("gestational_age", "birth_weight", "sex", "apgar_5min", "cord_ph", "day_of_life")


@pytest.fixture(scope="module")
def draws():
    return {factor: simulate(model, 2, num_draws=100_000, seed=7) for factor, model in MODELS.items()}


def expected_auroc(probability):
    """The area that the true probabilities have on average over all outcomes they can give."""
    p = np.sort(probability)
    below = np.cumsum(1 - p) - (1 - p)
    return (p * below).sum() / (p.sum() * (1 - p).sum() - (p * (1 - p)).sum())


@pytest.mark.parametrize("factor", ["on", "off"])
def test_the_outcome_is_as_predictable_and_as_frequent_as_declared(draws, factor):
    truth = predictability(factor, 2)["monte_carlo"]
    drawn = draws[factor]
    for name, rows in {
        "overall": drawn["site"] >= 0,
        "site-a": drawn["site"] == 0,
        "site-b": drawn["site"] == 1,
    }.items():
        probability = expit(drawn["log_odds"][rows])
        assert truth[name]["bayes_auroc"] == pytest.approx(expected_auroc(probability), abs=0.004)
        assert truth[name]["prevalence"] == pytest.approx(probability.mean(), abs=0.006)
        assert truth[name]["injury_auroc"] <= truth[name]["image_auroc"] < truth[name]["bayes_auroc"]
    assert 0.85 < truth["overall"]["bayes_auroc"] < 0.90
    assert truth["site-a"]["prevalence"] == pytest.approx(0.58, abs=0.01)
    assert truth["site-b"]["prevalence"] == pytest.approx(0.37, abs=0.01)


def test_the_estimate_agrees_with_the_participants_of_a_large_cohort():
    phantom = HIEOutcomePhantom(2500, 11)
    people = [phantom.participant(index) for index in range(2500)]
    outcome, probability = (np.array([getattr(one, name) for one in people]) for name in ("outcome", "probability"))
    area = predictability("on", 2)["monte_carlo"]["overall"]["bayes_auroc"]
    assert roc_auc_score(outcome, probability) == pytest.approx(area, abs=4 * 0.0068)  # four standard errors
    for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 0.7), (0.7, 0.9), (0.9, 1)):
        rows = (probability >= low) & (probability < high)
        error = np.sqrt((probability * (1 - probability))[rows].sum()) / rows.sum()
        assert abs(outcome[rows].mean() - probability[rows].mean()) < 4 * error


def test_the_factor_makes_the_outcome_only_where_it_is_shared(draws):
    shared, apart = (np.corrcoef(draws[name]["latent_factor"], draws[name]["outcome"])[0, 1] for name in ("on", "off"))
    assert shared > 0.3
    assert abs(apart) < 4 / np.sqrt(100_000)
    same = set(draws["on"]) - {"log_odds", "image", "injury", "outcome"}
    assert all(np.array_equal(draws["on"][name], draws["off"][name]) for name in same)
    for name in ("severity", "deep_grey_injury", "watershed_injury", "cord_ph", "apgar_5min", "birth_weight"):
        assert abs(np.corrcoef(draws["on"]["latent_factor"], draws["on"][name])[0, 1]) < 0.015  # hidden from the table


def test_no_part_of_what_is_known_tells_it_all(draws):
    drawn = {name: values[:20_000] for name, values in draws["on"].items()}
    outcome = drawn["outcome"]
    burden = (
        11 * drawn["deep_grey_injury"] ** 0.8 + 33 * drawn["watershed_injury"] ** 0.8
    )  # about the ml of each region
    assert 0.65 < roc_auc_score(outcome, burden) < 0.72
    signs = np.column_stack([drawn[name] for name in CLINICAL])
    model = make_pipeline(StandardScaler(), LogisticRegression())
    assert (
        0.61 < roc_auc_score(outcome, cross_val_predict(model, signs, outcome, cv=3, method="decision_function")) < 0.68
    )


def test_newborns_are_plausible(draws):
    drawn = draws["on"]
    shares = np.bincount(drawn["pattern"].astype(int)) / 100_000
    assert dict(zip(PATTERNS, shares.round(2), strict=True)) == pytest.approx(
        {"none": 0.4, "watershed": 0.27, "basal-ganglia-thalamus": 0.23, "total": 0.1}, abs=0.02
    )
    deep, shed = drawn["deep_grey_injury"], drawn["watershed_injury"]
    assert not (deep + shed)[drawn["pattern"] == 0].any()
    assert (deep[drawn["pattern"] == 2].mean() > 3 * shed[drawn["pattern"] == 2].mean()) & (deep.max() <= 1)
    assert (shed[drawn["pattern"] == 1].mean() > 3 * deep[drawn["pattern"] == 1].mean()) & (shed.max() <= 1)
    assert min(deep[drawn["pattern"] == 3].mean(), shed[drawn["pattern"] == 3].mean()) > 0.5
    assert np.corrcoef(drawn["cord_ph"], drawn["severity"])[0, 1] < -0.25
    assert np.corrcoef(drawn["apgar_5min"], drawn["severity"])[0, 1] < -0.25
    assert np.corrcoef(drawn["birth_weight"], drawn["gestational_age"])[0, 1] > 0.3
    assert 0.08 < (drawn["day_of_life"] > 7).mean() < 0.2
    for name, share in MISSING.items():
        assert drawn[f"missing_{name}"].mean() == pytest.approx(share, abs=0.01)


def test_chance_is_nothing_that_can_be_seen(draws):
    chance = draws["on"]["chance"]
    assert (chance.min() > 0, chance.max() < 1, chance.mean()) == (True, True, pytest.approx(0.5, abs=0.005))
    others = [name for name in draws["on"] if name not in ("chance", "outcome", "site")]
    assert max(abs(np.corrcoef(chance, draws["on"][name])[0, 1]) for name in others) < 0.015


def test_one_newborn_is_drawn_like_many():
    normals = np.random.default_rng(0).standard_normal((NUM_NORMALS, 50))
    many = draw_newborns(normals)
    for place in (0, 17, 49):
        one = draw_newborns(normals[:, place : place + 1])
        assert all(one[name][0] == pytest.approx(many[name][place], abs=1e-12) for name in many)


def test_adc_deepens_pseudo_normalises_and_rises():
    drop = [remaining_drop(day) for day in range(15)]
    assert drop[0] < drop[1] < drop[2] == drop[4] == 1
    assert all(later <= earlier for earlier, later in pairwise(drop[4:]))
    assert drop[7] == 0.5
    assert abs(drop[9]) < 0.1
    assert drop[14] < -0.2


def test_truths_are_written_and_told_for_a_class_that_is_missing_too(tmp_path):
    table = tmp_path / "cohort.tsv"
    write_truth(table, "off", 2, [("site-a", 1, 0.9), ("site-b", 0, 0.2), ("site-a", 0, 0.3), ("site-b", 0, 0.95)])
    truth = json.loads(truth_path(table).read_text(encoding="utf-8"))
    assert truth["coefficients"]["factor"] == 0
    assert truth["cohort"]["overall"]["bayes_auroc"] == pytest.approx(2 / 3, abs=1e-4)
    assert truth["cohort"]["site-b"] == {
        "num_participants": 2, "num_adverse": 0, "bayes_auroc": None, "low": None, "high": None
    }  # fmt: skip
    lines = describe_truth(table)
    assert "shared factor off" in lines[0]
    assert any(line.startswith("  site-b, this cohort: undefined; 0 of 2") for line in lines)

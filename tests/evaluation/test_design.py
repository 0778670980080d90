import numpy as np
import pytest

from evaluation.design import Design, DesignError


def test_rows_are_reweighted_to_the_prevalence_in_every_replicate():
    generator = np.random.default_rng(71)
    target = (generator.random(50) < 0.5).astype(float)
    weights = generator.integers(0, 3, (20, 50)).astype(float)
    found = Design(prevalence=0.03).reweight(target, weights)
    assert found @ target / found.sum(axis=1) == pytest.approx(np.full(20, 0.03))
    assert found.sum(axis=1) == pytest.approx(weights.sum(axis=1))
    ratio = found[:, target == 1] / np.where(weights > 0, weights, np.nan)[:, target == 1]
    assert np.nanstd(ratio, axis=1) == pytest.approx(np.zeros(20), abs=1e-12)
    assert Design().reweight(target, weights) is weights


def test_a_missing_class_cannot_be_weighted():
    weights = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    found = Design(prevalence=0.2).reweight(np.array([0.0, 1.0]), weights)
    assert np.isnan(found).any(axis=1).tolist() == [True, True, False]


def test_only_a_case_control_study_without_prevalence_knows_no_risks():
    assert Design().knows_risks
    assert Design("case-control", 0.1).knows_risks
    refused = Design("case-control")
    assert not refused.knows_risks
    with pytest.raises(DesignError, match="the share of events in this table was chosen: the risk cannot be"):
        refused.require_risks("the risk")


@pytest.mark.parametrize(
    ("arguments", "words"), [(("nested",), "There are: cohort, case-control"), (("cohort", 1.0), "prevalence is 1.0")]
)
def test_nonsense_is_refused(arguments, words):
    with pytest.raises(DesignError, match=words):
        Design(*arguments)

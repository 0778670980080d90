import numpy as np
import pytest

from evaluation.decision_curve import decision_curve, net_benefit
from evaluation.design import Design, DesignError

LIMITS = [0.05, 0.10, 0.15, 0.20, 0.35]


@pytest.fixture
def family_history():
    """The binary marker of the published example: 750 participants, 105 events, 24 true and 91 false positives."""
    target = np.repeat([1.0, 0.0], [105, 645])
    return target, np.concatenate([np.repeat([1.0, 0.0], [24, 81]), np.repeat([1.0, 0.0], [91, 554])])


def test_published_net_benefits(family_history):
    table = decision_curve(*family_history, thresholds=LIMITS, num_replicates=0)
    assert table["treat_all"].tolist() == pytest.approx(
        [0.0947368421, 0.0444444444, -0.0117647059, -0.0750000000, -0.3230769231], abs=5e-11
    )
    assert table["net_benefit"].tolist() == pytest.approx(
        [0.0256140351, 0.0185185185, 0.0105882353, 0.0016666667, -0.0333333333], abs=5e-11
    )
    assert (table["treat_none"] == 0).all()
    avoided = (table["net_benefit"] - table["treat_all"]) * (1 - table["threshold"]) / table["threshold"] * 100
    assert table["interventions_avoided"].tolist() == pytest.approx(avoided.tolist())
    assert table[["net_benefit_low", "net_benefit_high"]].isna().all(axis=None)


def test_definition_on_probabilities_with_decisions_from_the_threshold_on():
    generator = np.random.default_rng(61)
    target = (generator.random(80) < 0.3).astype(float)
    risk = generator.random(80).round(1)
    for limit, found in zip((0.1, 0.3, 0.7), net_benefit(target, risk, [0.1, 0.3, 0.7]), strict=True):
        called = risk >= limit
        tp, fp = (called & (target == 1)).sum(), (called & (target == 0)).sum()
        assert found == pytest.approx(tp / 80 - fp / 80 * limit / (1 - limit))


def test_case_control_needs_the_prevalence_and_is_reweighted_to_it(family_history):
    target, marker = family_history
    chosen = np.r_[0:105, 105:196:7, 196:750:7]  # every event, one of seven others
    with pytest.raises(DesignError, match=r"decision curve cannot be computed without the prevalence.*--prevalence"):
        decision_curve(target[chosen], marker[chosen], design=Design("case-control"))
    design = Design("case-control", prevalence=0.14)
    again = decision_curve(target[chosen], marker[chosen], thresholds=LIMITS, design=design, num_replicates=0)
    share = len(range(105, 196, 7)) / (len(range(105, 196, 7)) + len(range(196, 750, 7)))
    odds = np.array(LIMITS) / (1 - np.array(LIMITS))
    assert again["net_benefit"].to_numpy() == pytest.approx(24 / 105 * 0.14 - share * 0.86 * odds)
    whole = decision_curve(target, marker, thresholds=LIMITS, num_replicates=0)
    assert again["treat_all"].tolist() == pytest.approx(whole["treat_all"].tolist())  # 105 of 750 are 14 %
    assert net_benefit(target[chosen], marker[chosen], LIMITS, prevalence=0.14) == pytest.approx(again["net_benefit"])


def test_band_is_that_of_true_and_false_positives(family_history):
    table = decision_curve(*family_history, thresholds=[0.2, 0.35], num_replicates=4000)
    odds = table["threshold"] / (1 - table["threshold"])
    sensitivity, fall_out = 24 / 105, 91 / 645
    variance = sensitivity * (1 - sensitivity) * 105 / 750**2 + fall_out * (1 - fall_out) * 645 / 750**2 * odds**2
    width = table["net_benefit_high"] - table["net_benefit_low"]
    assert width.tolist() == pytest.approx((2 * 1.96 * np.sqrt(variance)).tolist(), rel=0.06)
    assert table["net_benefit"].between(table["net_benefit_low"], table["net_benefit_high"]).all()


def test_runs_are_averaged_and_share_their_participants(family_history):
    target, marker = family_history
    people = np.arange(750)
    options = {"thresholds": [0.2], "num_replicates": 200}
    once = decision_curve(target, marker, participant_id=people, **options)
    twice = decision_curve(
        *(np.tile(one, 2) for one in (target, marker)),
        participant_id=np.tile(people, 2),
        run=np.repeat([0, 1], 750),
        **options,
    )
    assert twice.to_numpy() == pytest.approx(once.to_numpy())
    mixed = decision_curve(np.tile(target, 2), np.r_[marker, np.zeros(750)], run=np.repeat([0, 1], 750), **options)
    assert mixed["net_benefit"][0] == pytest.approx(once["net_benefit"][0] / 2)


@pytest.mark.parametrize("limit", [0.0, 1.0, -0.2])
def test_thresholds_outside_are_refused(limit):
    with pytest.raises(ValueError, match="between 0 and 1"):
        net_benefit([0, 1], [0.2, 0.8], [limit])

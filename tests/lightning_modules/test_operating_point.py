"""The operating point of binary outputs: chosen as `evaluation` chooses, or given, and carried by the state dict."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from evaluation.operating_point import choose_threshold, fit_temperature
from lightning_modules.networks import ModelError
from lightning_modules.operating_point import PRIOR_SD, OperatingPoint


def rows_of(target, probability, participants=None) -> pd.DataFrame:
    names = list(participants or (f"p{index}" for index in range(len(target))))
    score = np.array(probability, dtype=float)
    identity = {"dataset": "d", "participant_id": names, "session_id": "", "target": np.array(target, dtype=float)}
    return pd.DataFrame(identity | {"score_0": 1 - score, "score_1": score})


def test_temperature_comes_first_and_images_of_a_session_count_as_one():
    rows = rows_of([0, 0, 0, 1, 0, 1], [0.1, 0.5, 0.01, 0.9, 0.98, 0.8], [*"aabcde"])
    point = OperatingPoint(2)
    point.choose(1, rows)
    target, averaged = [0, 0, 1, 0, 1], [0.3, 0.01, 0.9, 0.98, 0.8]  # of a, b, c, d, e
    temperature = fit_temperature(target, averaged, PRIOR_SD)
    assert temperature > 1.2
    assert point.temperature.tolist() == pytest.approx([1, temperature], rel=1e-6)
    cooled = 1 / (1 + np.exp(-np.log(rows["score_1"] / rows["score_0"]) / temperature))
    units = [(cooled[0] + cooled[1]) / 2, *cooled[2:]]
    assert point.threshold.tolist() == pytest.approx([0.5, choose_threshold(target, units)], rel=1e-6)
    assert point.describe(1)["num_validation_participants"] == 5


def test_known_temperature():
    point = OperatingPoint(1)  # two log odds of 9 to 1 that come true 3 to 1: half of them
    point.choose(0, rows_of([0, 0, 1, 0, 1, 1, 1, 0] * 500, ([0.1] * 4 + [0.9] * 4) * 500))  # the prior hardly counts
    assert point.temperature.item() == pytest.approx(2.0, rel=5e-3)
    assert point.threshold.item() == pytest.approx(0.5)
    calibrated = point.calibrated(0, pd.Series([0.1, 1.0, 0.0]), pd.Series([0.9, 0.0, 1.0]))
    assert calibrated.tolist() == pytest.approx([0.75, 0.0, 1.0], abs=1e-3)
    few = OperatingPoint(1)
    few.choose(0, rows_of([0, 0, 1, 1], [0.4, 0.4, 0.6, 0.6]))  # separated by chance
    assert 0.5 < few.temperature.item() < 1


def test_sensitivity_rule():
    point = OperatingPoint(1, "sensitivity", 0.75, temperature=1)
    target, probability = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0.1, 0.5, 0.8, 0.2, 0.6, 0.7, 0.9])
    point.choose(0, rows_of(target, probability))
    assert point.threshold.item() == pytest.approx(0.55)
    facts = point.describe(0)
    assert (facts["rule"], facts["sensitivity"], facts["temperature"]) == ("sensitivity", 0.75, 1.0)
    assert (facts["source"], facts["temperature_source"]) == ("validation", "configuration")


def test_given_numbers_survive_rows_and_checkpoints():
    other = OperatingPoint(2)
    for output in (0, 1):
        other.choose(output, rows_of([0, 0, 1, 1], [0.1, 0.6, 0.5, 0.7]))
    point = OperatingPoint(2, threshold=[0.25, 0.75], temperature=2)
    point.choose(0, rows_of([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]))
    assert (point.threshold.tolist(), point.temperature.tolist()) == ([0.25, 0.75], [2, 2])
    torch.nn.ModuleList([point]).load_state_dict(torch.nn.ModuleList([other]).state_dict())
    assert (point.threshold.tolist(), point.temperature.tolist()) == ([0.25, 0.75], [2, 2])
    facts = point.describe(1)
    assert (facts["rule"], facts["source"], facts["small"]) == ("fixed", "configuration", False)
    chosen = OperatingPoint(2)
    chosen.load_state_dict(other.state_dict())
    assert chosen.describe(0) == other.describe(0)
    assert chosen.describe(0)["threshold"] != 0.5


@pytest.mark.parametrize("labels", [[], [1, 1, 1], [0, 0]])
def test_without_both_classes_nothing_is_chosen(labels):
    point = OperatingPoint(1)
    point.choose(0, rows_of([0, 0, 1, 1], [0.1, 0.6, 0.5, 0.7]))  # of an earlier epoch
    point.choose(0, rows_of(labels, [0.8, 0.7, 0.6][: len(labels)]))
    facts = point.describe(0)
    assert (facts["threshold"], facts["temperature"], facts["source"]) == (0.5, 1.0, "default")
    assert ("held one class only" if labels else "were none") in facts["reason"]
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize(("number", "is_small"), [(299, True), (300, False)])
def test_fewer_than_three_hundred_participants_are_few(number, is_small):
    generator = np.random.default_rng(0)
    target = np.arange(number) % 2
    point = OperatingPoint(1)
    point.choose(0, rows_of(target, np.clip(0.3 + 0.2 * target + 0.1 * generator.normal(size=number), 0.01, 0.99)))
    assert point.describe(0)["small"] is is_small
    point.choose(0, rows_of([*target] * 2, [0.2, 0.6] * number, [f"p{i}" for i in range(number)] * 2))
    assert point.describe(0)["num_validation_participants"] == number


def test_labels_that_differ_within_a_session_are_named():
    with pytest.raises(ModelError, match=r"differ in their label \(participants p1"):
        OperatingPoint(1).choose(0, rows_of([0, 1, 1, 0], [0.1, 0.2, 0.3, 0.4], ["p0", "p1", "p2", "p1"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.2}, "must be a probability"),
        ({"threshold": [0.2, 0.3, 0.4]}, "threshold has 3 values for 2 targets"),
        ({"temperature": 0.0}, "must be positive"),
        ({"sensitivity": 0.0}, "above 0"),
        ({"sensitivity": 90}, "sensitivity is 90"),
    ],
)
def test_numbers_outside_their_range_are_refused(options, message):
    with pytest.raises(ModelError, match=message):
        OperatingPoint(2, **options)

from dataclasses import replace

import numpy as np
import pytest

from datamodules.phantoms import PhantomError
from datamodules.phantoms.brain_age import BrainAgePhantom


def test_the_gap_is_hidden_noise_of_three_years():
    people = [BrainAgePhantom(1, 0).participant(index) for index in range(2000)]
    ages, gaps = np.array([person.age for person in people]), np.array([person.gap for person in people])
    assert abs(gaps.mean()) < 0.25
    assert gaps.std() == pytest.approx(3, rel=0.06)
    assert abs(np.corrcoef(ages, gaps)[0, 1]) < 0.06
    assert (ages.min() > 20, ages.max() < 90, ages.mean()) == (True, True, pytest.approx(55, abs=1.5))
    old = replace(people[0], age=50.0, gap=3.0)
    assert old.apparent_age == 53.0


@pytest.mark.parametrize(("scenario", "low", "high"), [("independent", -0.1, 0.1), ("confounded", 0.7, 0.99)])
def test_scenarios_differ_in_the_tie_of_site_and_age(scenario, low, high):
    people = [BrainAgePhantom(1, 3, scenario=scenario).participant(index) for index in range(600)]
    sites = [ord(person.scanner.site[-1]) for person in people]
    assert low < np.corrcoef([person.age for person in people], sites)[0, 1] < high
    assert min(np.bincount(sites)[-3:]) > 100


def test_newborns_have_small_heads_and_dark_white_matter():
    phantom = BrainAgePhantom(400, 0, shape=(32, 40, 32), age_range=(0, 20))
    people = sorted((phantom.participant(index) for index in range(400)), key=lambda person: person.age)
    youngest, oldest = people[:3], people[-3:]
    assert all(0.6 < person.head_scale < 0.85 and person.white_signal < 0.7 for person in youngest)
    assert all(person.head_scale > 0.88 and person.white_signal > 0.9 for person in oldest)
    assert all(person.apparent_age >= 0 for person in people)
    volumes = [sum(list(phantom.render(person)[1].values())[1:3]) for person in (youngest[0], oldest[0])]
    assert volumes[0] < 0.7 * volumes[1]


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"num_participants": 0}, "--num-participants"),
        ({"seed": -1}, "--seed"),
        ({"shape": (48, 56, 8)}, "--shape"),
        ({"spacing": (4.0, 4.0, 0.0)}, "--spacing"),
        ({"age_range": (50.0, 50.0)}, "--age-range"),
        ({"age_range": (-1.0, 50.0)}, "--age-range"),
        ({"num_sites": 0}, "--sites"),
        ({"anatomies": ("nobody",)}, "--anatomies"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong, remedy):
    with pytest.raises(PhantomError, match=remedy):
        BrainAgePhantom(**{"num_participants": 2, "seed": 0, **wrong})

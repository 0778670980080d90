"""Energy of a map inside a mask against closed forms."""

import math

import numpy as np
import pytest

from evaluation.saliency import energy_inside, peak


def test_an_even_map_has_the_energy_of_chance():
    mask = np.zeros((6, 7, 8))
    mask[1:3, 2:5, 4:8] = 2
    found = energy_inside(np.full(mask.shape, 0.3), mask)
    assert found.share == pytest.approx(found.chance) == pytest.approx(24 / 336)
    assert found.hit == pytest.approx(24 / 336), "every voxel is as large: a hit as often as chance"


def test_a_linear_ramp_has_the_energy_of_its_sum():
    ramp = np.broadcast_to(np.arange(10.0)[:, None, None], (10, 3, 4))
    mask = np.zeros(ramp.shape, dtype=bool)
    mask[8:] = True
    found = energy_inside(ramp, mask)
    assert (found.share, found.chance, found.hit) == (pytest.approx(17 / 45), pytest.approx(0.2), 1.0)
    mask[9] = False
    assert energy_inside(ramp, mask).hit == 0.0


def test_only_the_region_counts():
    ramp = np.broadcast_to(np.arange(10.0)[:, None], (10, 3))
    mask, region = np.zeros(ramp.shape), np.zeros(ramp.shape)
    mask[2:4], region[1:4] = 1, 1
    found = energy_inside(ramp, mask, region)
    assert (found.share, found.chance, found.hit) == (pytest.approx(5 / 6), pytest.approx(2 / 3), 1.0)


def test_the_scale_of_a_map_does_not_matter():
    generator = np.random.default_rng(0)
    values, mask = generator.random((5, 6, 7)), generator.random((5, 6, 7)) > 0.8
    assert energy_inside(values * 1e-6, mask).share == pytest.approx(energy_inside(values, mask).share)


@pytest.mark.parametrize(("values", "mask"), [(np.zeros(4), np.ones(4)), (np.ones(4), np.zeros(4))])
def test_without_a_map_or_a_mask_nothing_is_known(values, mask):
    found = energy_inside(values, mask)
    assert math.isnan(found.share)
    assert math.isnan(found.hit)
    assert found.chance == mask.mean()


def test_maps_that_have_no_energy_are_refused():
    with pytest.raises(ValueError, match="negative or undefined"):
        energy_inside([0.0, -1.0], [0, 1])
    with pytest.raises(ValueError, match="negative or undefined"):
        energy_inside([0.0, math.nan], [0, 1])
    with pytest.raises(ValueError, match=r"\(2,\), \(3,\) and \(2,\)"):
        energy_inside([0.0, 1.0], [0, 1, 1])


def test_the_peak_of_a_plateau_is_its_middle():
    values = np.zeros((5, 6, 7))
    values[1:4, 2:5, 3:6] = 1
    assert peak(values) == (2, 3, 4)
    values[4, 5, 6] = 2
    assert peak(values) == (4, 5, 6)

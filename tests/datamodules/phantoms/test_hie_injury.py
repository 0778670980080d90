import numpy as np
import pytest

from datamodules.phantoms.hie_injury import (
    DEEP_GREY,
    WATERSHED,
    anatomy_of_factor,
    injured_adc,
    injured_share,
    membership,
    normal_adc,
)
from datamodules.phantoms.tissue import aged

GRID = np.stack(np.meshgrid(*[np.arange(-90.0, 91.0, 4.0, dtype=np.float32)] * 3, indexing="ij"))


def pure(name):
    shape = (7, 8, 9)
    return {part: np.full(shape, float(part == name), np.float32) for part in ("white", "grey", "fluid")}


@pytest.mark.parametrize(
    ("tissue", "deep", "change", "expected"),
    [
        ("white", 0, 0, 1.6),
        ("white", 0, -0.1, 1.44),
        ("grey", 0, -0.1, 1.2),
        ("grey", 1, 0, 1.05),
        ("fluid", 1, 0, 2.9),
    ],
)
def test_adc_of_each_tissue(tissue, deep, change, expected):
    adc = normal_adc(pure(tissue), np.full((7, 8, 9), float(deep), np.float32), change)
    np.testing.assert_allclose(adc, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("injury", "day", "share", "expected"),
    [
        (1.0, 3, 1.0, 0.5),
        (1 / 7, 3, 1.0, 0.8),
        (1.0, 3, 0.5, 1.05),  # half way from 1.6
        (1.0, 7, 1.0, 1.05),  # half of the drop is left
        (1.0, 14, 1.0, 1.875),
        (1.0, 3, 0.0, 1.6),
    ],
)
def test_injury_lowers_adc_to_between_half_and_four_fifths(injury, day, share, expected):
    adc = np.full((7, 8, 9), 1.6, np.float32)
    shares = np.full_like(adc, share)
    np.testing.assert_allclose(injured_adc(adc, ((shares, injury),), day), expected, rtol=1e-5)
    assert (adc == np.float32(1.6)).all()


def test_regions_are_the_same_on_both_sides_and_apart():
    deep, watershed = membership(GRID, DEEP_GREY), membership(GRID, WATERSHED)
    for region, ellipsoids in ((deep, DEEP_GREY), (watershed, WATERSHED)):
        np.testing.assert_allclose(region, region[::-1], rtol=1e-6)
        centres = np.array([centre for centre, _ in ellipsoids], np.float32).T
        np.testing.assert_allclose(membership(centres, ellipsoids), 1, rtol=1e-6)
        (x, y, z), (_, _, height) = ellipsoids[0]
        apex = np.array([[x], [y], [z + height]], np.float32)
        assert membership(apex, ellipsoids[:1])[0] == pytest.approx(0, abs=1e-6)
    assert not ((deep > 0) & (watershed > 0)).any()
    assert (np.abs(GRID[0])[deep > 0] < 35).all()


def test_an_injury_fills_its_share_of_the_region_and_prefers_a_side():
    inside, brain = membership(GRID, WATERSHED), np.ones(GRID.shape[1:], np.float32)
    texture = np.random.default_rng(0).standard_normal(brain.shape).astype(np.float32)
    even = np.zeros_like(brain)
    volumes = [injured_share(inside, brain, texture, even, injury).sum() for injury in (0.0, 0.2, 0.5, 1.0)]
    region = (inside > 0).sum()
    np.testing.assert_allclose(volumes, [0, *(0.9 * np.array([0.2, 0.5, 1.0]) ** 0.8 * region)], rtol=0.12)
    share = injured_share(inside, brain, texture, 0.5 * np.sign(GRID[0]), 0.4)
    assert share[GRID[0] > 0].sum() > 1.5 * share[GRID[0] < 0].sum()
    assert not share[inside <= 0].any()
    assert not injured_share(inside, 0 * brain, texture, even, 1.0).any()  # no brain to injure
    assert share.max() <= 1


def test_the_factor_is_age():
    assert anatomy_of_factor(0.0) == aged(0.4, 1.0)
    assert anatomy_of_factor(1.0) == aged(0.65, 1.0)
    assert anatomy_of_factor(-3.0) == aged(0.0, 1.0)  # no younger than twenty

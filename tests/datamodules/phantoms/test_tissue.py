import numpy as np
import pytest

from datamodules.phantoms.anatomy import FIELDS
from datamodules.phantoms.tissue import BONE, CSF, FAT, GREY, MUSCLE, hypointensities, t1_signal, tissue_fractions

RADII = {"ventricles": 12.0, "white_matter": 50.0, "brain": 60.0, "intracranial": 65.0, "head": 90.0}
SPACING = 4.0


@pytest.fixture(scope="module")
def distance():
    """Concentric spheres."""
    axis = (np.arange(50) - 24.5) * SPACING
    radius = np.sqrt(sum(np.square(g) for g in np.meshgrid(axis, axis, axis, indexing="ij"))).astype(np.float32)
    fields = {name: radius - np.float32(size) for name, size in RADII.items()}
    return {**fields, "bone": np.maximum(radius - 72, 65 - radius), "radius": radius}


def ball_ml(radius):
    return 4 / 3 * np.pi * radius**3 / 1000


def measured_ml(fraction):
    return fraction.sum(dtype=np.float64) * SPACING**3 / 1000


def test_every_field_is_used(distance):
    assert set(FIELDS) <= set(distance)


def test_walls_move_by_millimetres(distance):
    tissue = tissue_fractions(distance, wall_shift=3.0, thinning=2.0, voxel=SPACING)
    assert measured_ml(tissue["ventricles"]) == pytest.approx(ball_ml(15), rel=0.06)
    assert measured_ml(tissue["white"]) == pytest.approx(ball_ml(50) - ball_ml(15), rel=0.02)
    assert measured_ml(tissue["grey"]) == pytest.approx(ball_ml(58) - ball_ml(50), rel=0.03)
    assert measured_ml(tissue["fluid"]) == pytest.approx(ball_ml(65) - ball_ml(58) + ball_ml(15), rel=0.05)
    assert measured_ml(tissue["bone"]) == pytest.approx(ball_ml(72) - ball_ml(65), rel=0.25)


def test_fractions_fill_the_head_exactly_once(distance):
    tissue = tissue_fractions(distance, 1.0, 0.5, SPACING)
    total = sum(tissue[name] for name in ("white", "grey", "fluid", "bone", "soft"))
    np.testing.assert_allclose(total[distance["radius"] < 60], 1, atol=0.02)
    assert total.max() < 1.05
    assert total[distance["radius"] > 96].max() < 0.01


def test_hypointensities_have_the_wanted_volume_and_place(distance):
    texture = np.random.default_rng(0).standard_normal(distance["radius"].shape).astype(np.float32)
    tissue = tissue_fractions(distance, 0.0, 0.0, SPACING)
    small, large = (hypointensities(tissue, texture, count) for count in (20.0, 200.0))
    assert small.sum() == pytest.approx(20, rel=0.4)
    assert large.sum() == pytest.approx(200, rel=0.3)
    assert (large <= tissue["white"] + 1e-6).all()
    assert np.average(tissue["from_wall"], weights=large) < np.average(tissue["from_wall"], weights=tissue["white"])
    assert not hypointensities(tissue, texture, 0.0).any()
    assert not hypointensities(tissue, texture, 1e7).any()  # no room


def test_signal_of_each_tissue(distance):
    tissue = tissue_fractions(distance, 0.0, 0.0, SPACING)
    none = np.zeros_like(distance["radius"])
    signal = t1_signal(tissue, none, none, white_signal=1.0)
    radius = distance["radius"]
    for low, high, expected in (
        (0, 8, CSF),
        (20, 42, 1.0),
        (54, 56, GREY),
        (67, 70, BONE),
        (76, 80, MUSCLE),
        (96, 200, 0),
    ):
        assert np.median(signal[(radius > low) & (radius < high)]) == pytest.approx(expected, abs=0.05)
    assert signal[(radius > 84) & (radius < 88)].mean() > (MUSCLE + FAT) / 2
    lesion = np.where((radius > 20) & (radius < 30), tissue["white"], 0)
    assert t1_signal(tissue, none, lesion, 1.0)[(radius > 22) & (radius < 28)].mean() == pytest.approx(
        (1 + GREY) / 2, abs=0.01
    )
    newborn = t1_signal(tissue, none, none, white_signal=0.55)
    assert newborn[(radius > 20) & (radius < 42)].mean() < newborn[(radius > 54) & (radius < 56)].mean()

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from datamodules.phantoms import PhantomError
from datamodules.phantoms.scanner import ORIENTATIONS, acquire, diffusion_scanner, make_scanners, store

SPACING = (3.0, 2.0, 1.5)


def ideal(**habits):
    scanner = make_scanners(1, 0, "on")[0]
    return replace(
        scanner, **{"gain": 100.0, "gamma": 1.0, "bias_amplitude": 0.0, "point_spread": 0.0, "noise": 0.0, **habits}
    )


def test_sites_keep_their_habits_when_sites_are_added():
    assert make_scanners(6, 7, "mixed")[:2] == make_scanners(2, 7, "mixed")
    assert make_scanners(2, 7, "mixed") != make_scanners(2, 8, "mixed")


def test_sites_differ_in_orientation_and_voxel_size():
    scanners = make_scanners(4, 0, "mixed")
    assert len({scanner.orientation for scanner in scanners}) == 4
    assert scanners[1].spacing((4.0, 4.0, 4.0)) != scanners[0].spacing((4.0, 4.0, 4.0))
    assert [scanner.skull for scanner in scanners] == [True, False, True, False]
    assert not any(scanner.skull for scanner in make_scanners(4, 0, "off"))
    assert all(set(code) & set("LR") and set(code) & set("AP") and set(code) & set("SI") for code in ORIENTATIONS)


@pytest.mark.parametrize("num_sites", [0, 27])
def test_a_number_of_sites_out_of_range_is_refused(num_sites):
    with pytest.raises(PhantomError, match="--sites"):
        make_scanners(num_sites, 0, "on")


def test_facts_name_the_voxel_size_and_hide_nothing():
    facts = make_scanners(2, 0, "on")[1].facts(SPACING)
    assert (facts["scanner_voxel_x"], facts["scanner_voxel_z"]) == make_scanners(2, 0, "on")[1].spacing(SPACING)[::2]
    assert facts["scanner_skull"] == 1.0
    assert facts["scanner_orientation"] == "PSR"


def test_gain_and_gamma():
    signal = np.random.default_rng(0).uniform(0, 1, (7, 8, 9)).astype(np.float32)
    rng = np.random.default_rng(1)
    np.testing.assert_allclose(acquire(signal, SPACING, ideal(), rng), 100 * signal, rtol=1e-5)
    np.testing.assert_allclose(acquire(signal, SPACING, ideal(gamma=2.0), rng), 100 * signal**2, rtol=1e-4, atol=1e-4)


def test_noise_is_rician():
    air, tissue = np.zeros((40, 40, 40), np.float32), np.full((40, 40, 40), 1, np.float32)
    scanner = ideal(noise=0.05)
    background = acquire(air, SPACING, scanner, np.random.default_rng(0)) / 100
    assert background.mean() == pytest.approx(0.05 * np.sqrt(np.pi / 2), rel=0.02)  # Rayleigh
    bright = acquire(tissue, SPACING, scanner, np.random.default_rng(0)) / 100
    assert bright.std() == pytest.approx(0.05, rel=0.02)


def test_blur_and_shading():
    point = np.zeros((21, 21, 21), np.float32)
    point[10, 10, 10] = 1
    blurred = acquire(point, SPACING, ideal(point_spread=4.0), np.random.default_rng(0))
    assert blurred[10, 10, 12] == pytest.approx(blurred[10, 10, 10] / 2, rel=0.05)  # half of the width away
    flat = np.ones((21, 21, 21), np.float32)
    first, second = (acquire(flat, (9.0,) * 3, ideal(bias_amplitude=0.1), np.random.default_rng(s)) for s in (0, 1))
    assert 0.02 < np.log(first).std() < 0.2
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.2  # the coil stays, the position varies
    assert not np.allclose(first, second)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_image_is_stored_in_its_orientation_and_means_the_same(orientation):
    values = np.arange(7 * 8 * 9, dtype=np.float32).reshape(7, 8, 9)
    image = store(values, SPACING, orientation)
    assert "".join(nib.aff2axcodes(image.affine)) == orientation
    assert image.get_data_dtype() == np.int16
    canonical = nib.as_closest_canonical(image)
    np.testing.assert_array_equal(np.asarray(canonical.dataobj), values)
    np.testing.assert_allclose(canonical.affine[:3, :3], np.diag(SPACING))
    np.testing.assert_allclose(canonical.affine @ [3, 3.5, 4, 1], [0, 0, 0, 1], atol=1e-6)
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1


def test_values_are_cut_at_the_range_of_int16_and_stripped():
    keep = np.zeros((7, 8, 9), bool)
    keep[2:5] = True
    stored = np.asarray(store(np.full((7, 8, 9), 1e6, np.float32), SPACING, "RAS", keep).dataobj)
    assert set(np.unique(stored[2:5])) == {32767}
    assert not stored[:2].any()
    assert not stored[5:].any()


def test_a_slope_keeps_fractions_and_signs():
    values = np.linspace(-10, 3, 504, dtype=np.float32).reshape(7, 8, 9)
    image = store(values, SPACING, "RAS", slope=0.001)
    read = nib.Nifti1Image.from_bytes(image.to_bytes())
    assert read.get_data_dtype() == np.int16
    np.testing.assert_allclose(read.get_fdata(), values, atol=0.0006)


def test_a_map_of_adc_is_noisier_and_hardly_depends_on_gain_contrast_and_shading():
    scanners = make_scanners(26, 3, "off")
    for scanner, diffusion in zip(scanners, map(diffusion_scanner, scanners), strict=True):
        assert abs(diffusion.gain - 1) < 0.06
        assert abs(diffusion.gamma - 1) < 0.06
        assert diffusion.bias_amplitude < 0.035
        assert diffusion.noise > scanner.noise
        assert (
            replace(
                scanner,
                **{name: getattr(diffusion, name) for name in ("gain", "gamma", "bias_amplitude", "noise")},
            )
            == diffusion
        )  # all else is the site's
    assert len({diffusion_scanner(scanner).gamma for scanner in scanners}) > 20

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from datamodules.phantoms import PhantomError
from datamodules.phantoms.hie_outcome import HIEOutcomePhantom

SMALL = (32, 40, 32)


def voxels(image):
    """What a reader of the file gets, in right-anterior-superior order."""
    return nib.as_closest_canonical(nib.Nifti1Image.from_bytes(image.to_bytes())).get_fdata()


def changed(newborn, **values):
    return replace(newborn, values={**newborn.values, **values})


@pytest.fixture(scope="module")
def phantom():
    return HIEOutcomePhantom(12, 4, shape=SMALL)


@pytest.fixture(scope="module")
def injured(phantom):
    """The most injured newborn of the first 300, scanned on the third day."""
    people = map(phantom.participant, range(300))
    return changed(max(people, key=lambda one: min(one.values["deep_grey_injury"], one.values["watershed_injury"])),
                   day_of_life=3.0)  # fmt: skip


def test_adc_is_that_of_a_newborn_and_low_where_it_is_injured(phantom, injured):
    healthy = changed(injured, deep_grey_injury=0.0, watershed_injury=0.0)
    images, _ = phantom.render(injured)
    adc, normal = voxels(images["adc"]), voxels(phantom.render(healthy)[0]["adc"])
    lesion = voxels(images["lesion"]) > 0
    brain = (normal > 0.6) & (normal < 1.9)
    assert 1.2 < np.median(normal[brain]) < 1.6  # cortex 1.2, white matter 1.6, voxels that hold both
    assert np.percentile(normal[normal > 0], 99.5) == pytest.approx(2.9, abs=0.4)  # fluid
    assert 0.5 < np.percentile(adc[lesion], 10) < np.median(adc[lesion]) < 0.85
    np.testing.assert_array_equal(adc[lesion] < normal[lesion], True)
    apart = ~voxels(phantom.render(healthy)[0]["lesion"]).astype(bool) & ~lesion
    assert np.abs(adc - normal)[apart].mean() < 0.02


def test_adc_pseudo_normalises_with_the_day_of_life(phantom, injured):
    lesion = voxels(phantom.render(injured)[0]["lesion"]) > 0
    means = {}
    for day in (0, 3, 9, 14):
        images, volumes = phantom.render(changed(injured, day_of_life=float(day)))
        means[day] = voxels(images["adc"])[lesion].mean(), voxels(images["zadc"])[lesion].mean()
        assert volumes["lesion_ml"] == phantom.render(injured)[1]["lesion_ml"]  # the tissue stays injured
    healthy = voxels(phantom.render(changed(injured, deep_grey_injury=0.0, watershed_injury=0.0))[0]["adc"])
    assert means[3][0] < means[0][0] - 0.1 < means[9][0] - 0.2
    assert means[9][0] == pytest.approx(healthy[lesion].mean(), abs=0.06)
    assert means[14][0] > healthy[lesion].mean() + 0.08
    assert means[3][1] < -2.5 < -1 < means[9][1]


def test_z_scores_are_cut_at_ten_and_near_zero_without_injury(phantom):
    average = changed(phantom.participant(1), deep_grey_injury=0.0, watershed_injury=0.0)
    healthy = replace(average, wall_shift=0.31, thinning=-0.16, white_change=-0.052)  # a latent factor of 0
    z = voxels(phantom.render(healthy)[0]["zadc"])
    inside = z != 0
    assert abs(z[inside].mean()) < 0.6
    assert 0.2 < z[inside].std() < 1.3
    extreme = voxels(phantom.render(replace(healthy, wall_shift=14.0))[0]["zadc"])
    assert extreme.max() == pytest.approx(10)
    assert extreme.min() >= -10


def test_masks_hold_the_lesion_that_the_table_names(phantom):
    for index in range(12):
        newborn = phantom.participant(index)
        images, volumes = phantom.render(newborn)
        lesion = voxels(images["lesion"])
        assert set(np.unique(lesion)) <= {0, 1}
        voxel_ml = np.prod(newborn.scanner.spacing(phantom.grid_spacing)) / 1000
        assert volumes["lesion_ml"] == pytest.approx(lesion.sum() * voxel_ml, abs=0.001)
        assert volumes["lesion_ml"] == pytest.approx(volumes["true_lesion_ml"], rel=0.25, abs=1.0)
        regions = volumes["deep_grey_injury_ml"] + volumes["watershed_injury_ml"]
        assert regions == pytest.approx(volumes["true_lesion_ml"], rel=0.05, abs=0.1)
        assert (lesion.sum() == 0) == (newborn.pattern == "none")


def test_the_factor_moves_what_age_moves_and_no_injury(phantom):
    base = HIEOutcomePhantom(300, 4, shape=SMALL)
    people = sorted(map(base.participant, range(300)), key=lambda one: one.values["latent_factor"])
    low, high = people[:40], people[-40:]
    for name, sign in (("wall_shift", 1), ("thinning", 1), ("white_change", -1)):
        gaps = [sign * (getattr(b, name) - getattr(a, name)) for a, b in zip(low, high, strict=True)]
        assert np.mean(np.array(gaps) > 0) > 0.9
    volumes = [phantom.render(one)[1] for one in (*low[:3], *high[:3])]
    assert max(row["ventricle_ml"] for row in volumes[:3]) < min(row["ventricle_ml"] for row in volumes[3:])


def test_t1_shows_severe_injury_of_deep_grey_matter_bright(injured):
    phantom = HIEOutcomePhantom(1, 4, shape=SMALL, images=("t1w",))
    hurt = changed(injured, deep_grey_injury=1.0, watershed_injury=0.0, day_of_life=6.0)
    bright = voxels(phantom.render(hurt)[0]["t1w"])
    normal = voxels(phantom.render(changed(hurt, deep_grey_injury=0.0))[0]["t1w"])
    lesion = voxels(phantom.render(hurt)[0]["lesion"]) > 0
    assert bright[lesion].mean() > 1.15 * normal[lesion].mean()
    assert abs(bright[~lesion].mean() / normal[~lesion].mean() - 1) < 0.03


def test_images_depend_on_nothing_but_seed_and_place(phantom, injured):
    everything = HIEOutcomePhantom(500, 4, shape=SMALL, images=("t1w", "zadc", "adc"), shared_factor="off")
    images, volumes = phantom.render(phantom.participant(3))
    others, same = everything.render(everything.participant(3))
    assert all(others[name].to_bytes() == images[name].to_bytes() for name in ("adc", "zadc", "lesion"))
    assert same == volumes
    strange = HIEOutcomePhantom(12, 5, shape=SMALL)
    assert strange.render(strange.participant(3))[0]["adc"].to_bytes() != images["adc"].to_bytes()


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"num_participants": 0}, "--num-participants"),
        ({"shape": (48, 56, 8)}, "--shape"),
        ({"num_sites": 27}, "--sites"),
        ({"images": ()}, "--images"),
        ({"images": ("adc", "adc")}, "--images"),
        ({"images": ("flair",)}, "--images"),
        ({"shared_factor": "both"}, "--shared-factor"),
        ({"anatomies": ("nobody",)}, "--anatomies"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong, remedy):
    with pytest.raises(PhantomError, match=remedy):
        HIEOutcomePhantom(**{"num_participants": 2, "seed": 0, **wrong})

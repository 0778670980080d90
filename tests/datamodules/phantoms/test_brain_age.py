from dataclasses import replace
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from datamodules.cohort import read_cohort
from datamodules.phantoms.brain_age import BrainAgePhantom

SMALL = (32, 40, 32)


def rendered(phantom):
    people = [phantom.participant(index) for index in range(phantom.num_participants)]
    return people, [phantom.render(person) for person in people]


@pytest.fixture(scope="module")
def cohort():
    return rendered(BrainAgePhantom(90, 5, shape=SMALL, skull="off"))


def canonical(image):
    turned = nib.as_closest_canonical(image)
    return np.asarray(turned.dataobj, dtype=np.float64), np.array(turned.header.get_zooms())


def features(image):
    """Volumes in ml of voxels by their signal relative to white matter, overall and where ventricles are."""
    values, spacing = canonical(image)
    values /= np.percentile(values[values > 0], 90)
    x, y, z = (np.abs(np.arange(n) - (n - 1) / 2) * size for n, size in zip(values.shape, spacing, strict=True))
    middle = (x[:, None, None] < 28) & (y[:, None] < 50) & (z < 28)
    bounds = (0.01, 0.35, 0.5, 0.65, 0.8, 0.95)
    bins = [(values >= low) & (values < high) for low, high in pairwise(bounds)]
    return [part.sum() * np.prod(spacing) / 1000 for part in (middle & (values < 0.6), *bins)]


def cross_validated_error(inputs, ages):
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13)))
    return np.abs(cross_val_predict(model, inputs, ages, cv=5) - ages).mean()


def test_age_can_be_read_from_the_images(cohort):
    people, results = cohort
    ages = np.array([person.age for person in people])
    predict_the_mean = np.abs(ages - ages.mean()).mean()
    sites = np.array([[person.scanner.site == site for site in ("site-b", "site-c")] for person in people], float)
    seen = np.column_stack([[features(image) for image, _ in results], sites])
    assert cross_validated_error(seen, ages) < 0.65 * predict_the_mean
    truths = np.array([list(volumes.values()) for _, volumes in results])
    assert cross_validated_error(truths, ages) < 0.5 * predict_the_mean
    assert cross_validated_error(np.random.default_rng(0).permutation(seen), ages) > 0.85 * predict_the_mean


def test_ventricles_grow_with_age_and_stand_apart_from_noise(cohort):
    people, results = cohort
    volumes = {name: np.array([row[name] for _, row in results]) for name in results[0][1]}
    ages = np.array([person.age for person in people])
    assert 0.4 < np.corrcoef(ages, volumes["ventricle_ml"])[0, 1] < 0.9
    assert np.corrcoef(ages, volumes["grey_matter_ml"])[0, 1] < -0.3
    assert volumes["hypointensity_ml"][ages > 70].mean() > 2 * volumes["hypointensity_ml"][ages < 50].mean()
    intended = np.array([person.lesion_ml for person in people])
    assert np.corrcoef(intended, volumes["hypointensity_ml"])[0, 1] > 0.95
    assert 1000 < (volumes["grey_matter_ml"] + volumes["white_matter_ml"]).mean() < 1350


def test_whole_heads_have_a_dark_skull_and_a_bright_scalp_and_share_the_brain_with_stripped_ones():
    heads, brains = (BrainAgePhantom(3, 1, shape=SMALL, skull=choice) for choice in ("on", "off"))
    for index in range(3):
        head, brain = (canonical(made.render(made.participant(index))[0])[0] for made in (heads, brains))
        inside = brain > 0
        np.testing.assert_array_equal(head[inside], brain[inside])
        white = np.percentile(brain[inside], 90)
        rings = np.ceil(ndimage.distance_transform_edt(~inside))  # counted in voxels of 6 mm
        top = np.s_[:, :, 20:]  # above the face
        skull, scalp = (np.median(head[top][rings[top] == ring]) for ring in (1, 2))
        assert skull < 0.45 * white
        assert scalp > 1.3 * skull
        assert head[:2, :2, -2:].mean() < 0.1 * white  # air


def test_a_participant_is_the_same_however_many_are_made():
    few, many = BrainAgePhantom(2, 4, shape=SMALL), BrainAgePhantom(500, 4, shape=SMALL)
    assert few.participant(1) == many.participant(1)
    first, second = few.render(few.participant(1)), many.render(many.participant(1))
    assert first[0].to_bytes() == second[0].to_bytes()
    assert first[1] == second[1]
    other = BrainAgePhantom(2, 5, shape=SMALL)
    assert other.render(other.participant(1))[0].to_bytes() != first[0].to_bytes()


def test_anatomy_does_not_depend_on_scanner_or_scenario():
    independent = BrainAgePhantom(3, 4, shape=SMALL)
    confounded = BrainAgePhantom(3, 4, shape=SMALL, scenario="confounded", num_sites=5)
    for index in range(3):
        one, other = independent.participant(index), confounded.participant(index)
        assert replace(one, scanner=other.scanner) == other
        assert independent.render(one)[1]["ventricle_ml"] == pytest.approx(
            confounded.render(other)[1]["ventricle_ml"], rel=0.1
        )


def test_the_table_hides_the_truth(tmp_path, label_folder):
    phantom = BrainAgePhantom(6, 9, shape=(16, 18, 16), labels=label_folder, anatomies=("head_b",), num_sites=2)
    cohort = read_cohort(phantom.write(tmp_path))
    visible = [column.name for column in cohort.schema.columns if column.role != "truth"]
    assert visible == ["participant_id", "dataset", "site", "t1w", "age", "sex", "anatomy_id"]
    assert [column.name for column in cohort.schema.of_role("covariate")] == ["sex"]
    assert [column.name for column in cohort.schema.of_role("group")] == ["anatomy_id"]
    np.testing.assert_allclose(cohort.frame["age"] + cohort.frame["brain_age_gap"], cohort.frame["true_brain_age"])
    assert set(cohort.frame["dataset"]) == {"phantom-brain-age-9"}
    assert set(cohort.frame["anatomy_id"]) == {"head_b"}
    for row in cohort.frame.to_dict("records"):
        image = nib.load(cohort.resolve(row["t1w"]))
        assert "".join(nib.aff2axcodes(image.affine)) == row["scanner_orientation"]
        sizes = [row[f"scanner_voxel_{axis}"] for axis in "xyz"]
        np.testing.assert_allclose(nib.as_closest_canonical(image).header.get_zooms(), sizes, rtol=1e-5)
        assert nib.as_closest_canonical(image).shape == (16, 18, 16)
        assert bytes(image.header["descrip"]).strip(b"\0") == b""

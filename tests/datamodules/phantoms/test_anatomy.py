from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from datamodules.phantoms import PhantomError, anatomy
from datamodules.phantoms.anatomy import FIELDS, list_anatomies, load_anatomy

BLUR = 1.4


@pytest.fixture(scope="module")
def icbm():
    return load_anatomy("icbm152", None, BLUR)


def volume_ml(head, field):
    return float((head.distances[..., FIELDS.index(field)] < 0).sum()) * head.step**3 / 1000


def positions(head):
    axes = [head.origin[axis] + head.step * np.arange(head.distances.shape[axis]) for axis in range(3)]
    return np.meshgrid(*axes, indexing="ij")


def test_icbm152_has_the_volumes_of_a_head(icbm):
    assert 1300 < volume_ml(icbm, "intracranial") < 1650
    assert 1050 < volume_ml(icbm, "brain") < 1450
    assert 400 < volume_ml(icbm, "white_matter") < 650
    assert 10 < volume_ml(icbm, "ventricles") < 35


def test_icbm152_lies_as_a_head_does(icbm):
    x, y, z = positions(icbm)
    inside = {name: icbm.distances[..., place] < 0 for place, name in enumerate(FIELDS)}
    ventricles = inside["ventricles"]
    assert 0.8 < ventricles[x < 0].sum() / ventricles[x > 0].sum() < 1.25  # left and right
    assert np.ptp(y[inside["brain"]]) > np.ptp(x[inside["brain"]])  # longer than wide
    face = inside["head"] & ~inside["intracranial"] & (z < -50)
    assert y[face].max() > y[inside["brain"]].max() - 10  # the face looks forward
    assert z[inside["head"] & (z > 0)].max() > z[inside["brain"]].max()
    for inner, outer in (("ventricles", "brain"), ("brain", "intracranial"), ("intracranial", "head")):
        assert (inside[inner] & ~inside[outer]).sum() < 0.01 * inside[inner].sum()


def test_fields_are_distances_in_mm(icbm):
    for place in range(len(FIELDS)):
        field = icbm.distances[..., place].astype(np.float64)
        slope = np.linalg.norm(np.gradient(field, icbm.step), axis=0)
        assert np.median(slope[(field > 4) & (field < 12)]) == pytest.approx(1, abs=0.08)


def test_sampling_agrees_with_scipy_and_holds_the_edge(icbm):
    rng = np.random.default_rng(0)
    extent = np.array(icbm.distances.shape[:3]) * icbm.step
    points = (np.array(icbm.origin)[:, None] + rng.uniform(-0.1, 1.1, (3, 500)) * extent[:, None]).astype(np.float32)
    found = icbm.sample(points)
    index = (points - np.array(icbm.origin, np.float32)[:, None]) / icbm.step
    for place in range(len(FIELDS)):
        field = icbm.distances[..., place].astype(np.float32)
        expected = ndimage.map_coordinates(field, index, order=1, mode="nearest")
        np.testing.assert_allclose(found[place], expected, atol=0.02)


def test_geometry_is_computed_once_and_kept(label_folder, monkeypatch):
    first = anatomy._load.__wrapped__("head_a", label_folder, BLUR)
    monkeypatch.setattr(anatomy, "_from_labels", lambda path: pytest.fail("computed again"))
    again = anatomy._load.__wrapped__("head_a", label_folder, BLUR)
    np.testing.assert_array_equal(first.distances, again.distances)
    assert (first.origin, first.step) == (again.origin, again.step)


def test_a_damaged_entry_is_computed_again(label_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("FONTANEL_CACHE", str(tmp_path))
    first = anatomy._load.__wrapped__("head_a", label_folder, BLUR)
    (entry,) = (anatomy.cache_folder() / "phantoms").glob("*.npz")
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 0xFF
    entry.write_bytes(content)
    np.testing.assert_array_equal(anatomy._load.__wrapped__("head_a", label_folder, BLUR).distances, first.distances)
    entry.write_bytes(content[:1000])
    np.testing.assert_array_equal(anatomy._load.__wrapped__("head_a", label_folder, BLUR).distances, first.distances)


def test_a_cache_that_cannot_be_written_costs_only_time(label_folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FONTANEL_CACHE", str(tmp_path / "file"))
    assert anatomy._load.__wrapped__("head_a", label_folder, BLUR).anatomy_id == "head_a"


@pytest.mark.parametrize("name", ["head_a", "head_b"])  # LAS in 4 mm, SPL in 2 x 4 x 2 mm
def test_label_maps_are_read_in_their_orientation_and_voxel_size(label_folder, name):
    head = load_anatomy(name, label_folder, BLUR)
    x, y, z = positions(head)
    ventricle = head.distances[..., FIELDS.index("ventricles")] < 0
    np.testing.assert_allclose([axis[ventricle].mean() for axis in (x, y, z)], [12, -20, 4], atol=2)
    assert volume_ml(head, "ventricles") == pytest.approx(4 / 3 * np.pi * 8 * 20 * 10 / 1000, rel=0.2)
    assert volume_ml(head, "intracranial") == pytest.approx(4 / 3 * np.pi * 64 * 84 * 70 / 1000, rel=0.06)


def test_faults_of_a_label_folder_are_named(tmp_path, label_folder):
    with pytest.raises(PhantomError, match="holds no label map"):
        list_anatomies(tmp_path / "absent")
    t1 = nib.Nifti1Image(np.full((7, 8, 9), 1000, np.int16), np.diag([3.0, 2.0, 4.0, 1.0]))
    nib.save(t1, label_folder / "t1.nii.gz")
    (label_folder / "torn.nii.gz").write_bytes((label_folder / "head_a.nii.gz").read_bytes()[:300])
    assert list_anatomies(label_folder) == ("head_a", "head_b", "t1", "torn")
    with pytest.raises(PhantomError, match=r"t1\.nii\.gz is no FreeSurfer label map"):
        load_anatomy("t1", label_folder, BLUR)
    with pytest.raises(PhantomError, match=r"torn\.nii\.gz cannot be read"):
        load_anatomy("torn", label_folder, BLUR)


def test_a_real_head_keeps_its_own_skull(test_data):
    folder: Path = test_data / "synthseg_labels_2mm"
    if not folder.is_dir():
        pytest.skip("FONTANEL_TEST_DATA has no synthseg_labels_2mm")
    assert len(list_anatomies(folder)) == 20
    head = load_anatomy("training_seg_01", folder, BLUR)
    labels = nib.load(folder / "training_seg_01.nii.gz")
    bone = np.isin(np.asarray(labels.dataobj), (515, 516)).sum() * 8e-3
    assert volume_ml(head, "bone") == pytest.approx(bone, rel=0.35)  # smoothing thins thin plates
    assert volume_ml(head, "ventricles") == pytest.approx(
        np.isin(np.asarray(labels.dataobj), anatomy._VENTRICLES).sum() * 8e-3, rel=0.2
    )
    assert 1100 < volume_ml(head, "intracranial") < 1900


def test_icbm152_ends_inside_its_grid_but_below(icbm):
    head = icbm.distances[..., FIELDS.index("head")]
    for edge in (head[0], head[-1], head[:, 0], head[:, -1], head[:, :, -1]):
        assert edge.min() > 2  # what touched the edge would be drawn out of the head for ever
    assert head[:, :, 0].min() < 0  # the neck goes on

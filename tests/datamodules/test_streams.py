"""NIfTI and MGH: the same facts as nibabel reports, in every variant of the formats."""

import gzip
import hashlib

import nibabel as nib
import numpy as np
import pytest

from datamodules.inspection import inspect_image
from datamodules.voxels import Limits

AFFINE = np.array([[0, 0, 3.0, -20], [-2.0, 0, 0, 30], [0, 2.5, 0, -11], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(0, 900, (7, 8, 9)).astype(np.int16)


def facts(path):
    result = inspect_image(path, path.parent, Limits())
    assert not result.findings
    return result.facts, result.affine


def images():
    floats = VOXELS.astype(np.float32)
    yield "one.nii.gz", nib.Nifti1Image(VOXELS, AFFINE)
    yield "one.nii", nib.Nifti1Image(VOXELS, AFFINE)
    yield "two.nii.gz", nib.Nifti2Image(VOXELS, AFFINE)
    yield "big.nii", nib.Nifti1Image(VOXELS, AFFINE, nib.Nifti1Header(endianness=">"))
    yield "doubles.nii.gz", nib.Nifti1Image(floats.astype(np.float64), AFFINE)
    yield "mgh.mgh", nib.MGHImage(floats, AFFINE.astype(np.float32))
    yield "mgz.mgz", nib.MGHImage(floats, AFFINE.astype(np.float32))
    yield "series-of-one.nii.gz", nib.Nifti1Image(VOXELS[..., None], AFFINE)
    extended = nib.Nifti1Image(VOXELS, AFFINE)
    extended.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 1000))
    yield "extended.nii.gz", extended


@pytest.mark.parametrize(("name", "image"), list(images()), ids=[name for name, _ in images()])
def test_facts_agree_with_nibabel(tmp_path, name, image):
    path = tmp_path / name
    nib.save(image, path)
    found, affine = facts(path)
    content = path.read_bytes()
    loaded = type(image).from_bytes(gzip.decompress(content) if path.suffix in (".gz", ".mgz") else content)
    assert found.shape == VOXELS.shape
    assert found.dtype == loaded.get_data_dtype().name
    assert found.spacing == (2.0, 2.5, 3.0)
    assert found.orientation == "".join(nib.aff2axcodes(loaded.affine)) == "PSR"
    np.testing.assert_allclose(affine, loaded.affine, atol=1e-5)
    assert found.size == len(content)
    little = np.asarray(loaded.dataobj).astype(loaded.get_data_dtype().newbyteorder("<"))
    assert found.voxel_sha256 == hashlib.sha256(little.tobytes(order="F")).hexdigest()
    assert found.sha256 == hashlib.sha256(content).hexdigest()


def test_an_affine_from_the_quaternion_is_read(tmp_path):
    image = nib.Nifti1Image(VOXELS, None)
    image.set_qform(AFFINE, 1)
    nib.save(image, tmp_path / "q.nii")
    np.testing.assert_allclose(facts(tmp_path / "q.nii")[1], AFFINE, atol=1e-5)


def test_a_volume_larger_than_a_chunk_is_scanned_to_its_end(tmp_path):
    voxels = np.ones((130, 140, 70), np.float32)  # 4.9 MiB
    voxels[-1, -1, -1] = 2
    path = tmp_path / "large.nii.gz"
    path.write_bytes(gzip.compress(nib.Nifti1Image(voxels, AFFINE).to_bytes(), 1))
    assert inspect_image(path, tmp_path, Limits()).constant is None
    voxels[-1, -1, -1] = np.inf
    path.write_bytes(gzip.compress(nib.Nifti1Image(voxels, AFFINE).to_bytes(), 1))
    assert "1 of 1274000 voxels" in inspect_image(path, tmp_path, Limits()).findings[0].message


def test_values_that_are_cut_by_the_end_of_a_chunk_are_put_together(tmp_path):
    voxels = np.random.default_rng(0).standard_normal((80, 90, 100))  # does not shrink, so chunks end anywhere
    path = tmp_path / "noise.nii.gz"
    path.write_bytes(gzip.compress(nib.Nifti1Image(voxels, AFFINE).to_bytes(), 1))
    assert facts(path)[0].voxel_sha256 == hashlib.sha256(voxels.tobytes(order="F")).hexdigest()


def test_gzip_may_have_several_members_and_zeros_at_the_end(tmp_path):
    raw = nib.Nifti1Image(VOXELS, AFFINE).to_bytes()
    path = tmp_path / "parts.nii.gz"
    path.write_bytes(gzip.compress(raw[:400]) + gzip.compress(raw[400:]) + bytes(512))
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "whole.nii")
    assert facts(path)[0].voxel_sha256 == facts(tmp_path / "whole.nii")[0].voxel_sha256


def test_a_constant_image_is_reported_with_its_scaled_value(tmp_path):
    image = nib.Nifti1Image(np.full((7, 8, 9), 3, np.int16), AFFINE)
    image.header.set_slope_inter(2, 1)
    nib.save(image, tmp_path / "c.nii")
    raw = bytearray((tmp_path / "c.nii").read_bytes())
    raw[112:120] = np.array([2, 1], np.float32).tobytes()
    (tmp_path / "c.nii").write_bytes(raw)
    stored = np.frombuffer(bytes(raw), "<i2", 1, 352)[0]
    assert inspect_image(tmp_path / "c.nii", tmp_path, Limits()).constant == stored * 2 + 1

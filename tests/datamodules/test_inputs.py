"""Every kind of input: right voxels, place and range, checked against nibabel, SimpleITK or known numbers."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk  # noqa: N813 - the library's own idiom
from nibabel.affines import apply_affine, voxel_sizes

from datamodules.base import BaseDataModule
from datamodules.cache import ImageFiles, VolumeCache
from datamodules.cohort import Column, Schema, read_cohort, schema_path
from datamodules.inspection import inspect_image
from datamodules.preprocessing import Preprocessing, PreprocessingError, read_volume
from datamodules.verify import verify_cohort, write_manifest
from datamodules.voxels import Limits

AFFINE = np.array([[0, -2.0, 0, 11], [1.5, 0, 0, -7], [0, 0, 3.0, 40], [0, 0, 0, 1]])
SERIES = np.random.default_rng(0).integers(1, 900, (7, 8, 9, 5)).astype(np.int16)
AS_IS = Preprocessing(spacing=None, shape=(9, 9, 9), centre="image", normalisation="none")


def inspect(path):
    result = inspect_image(path, path.parent, Limits())
    assert not result.findings
    return result


def place_of(image, index):
    """Return where ITK sees a voxel, in RAS millimetres."""
    return np.array(image.TransformContinuousIndexToPhysicalPoint([float(i) for i in index])) * [-1, -1, 1]


def same_as_itk(path, volume):
    """Compare with SimpleITK read directly: the range, a few voxels, and where they are."""
    image = sitk.ReadImage(str(path))
    shape = volume.data.shape[1:]
    assert shape == image.GetSize()
    low_high = sitk.MinimumMaximumImageFilter()
    low_high.Execute(sitk.Cast(image, sitk.sitkFloat64))
    assert (volume.data.min(), volume.data.max()) == pytest.approx((low_high.GetMinimum(), low_high.GetMaximum()))
    for index in ((0, 0, 0), tuple(n // 3 for n in shape), tuple(n - 1 for n in shape)):
        assert volume.data[(0, *index)] == pytest.approx(image[index])
        np.testing.assert_allclose(apply_affine(volume.affine, index), place_of(image, index), atol=1e-3)
    np.testing.assert_allclose(voxel_sizes(volume.affine), image.GetSpacing(), rtol=1e-5)


# Real files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "orientation", "dtype"),
    [
        ("ixi10/nifti/IXI012-HH-1211-T1_ds.nii.gz", "PSR", "uint8"),
        ("open_ms/patient07_FLAIR_2mm.nii.gz", None, None),
        ("ct/scct.nii.gz", None, None),
        ("child/subpixar009_T1w.nii.gz", "RAS", "float64"),
    ],
)
def test_real_nifti_files(test_data, name, orientation, dtype):
    path = test_data / name
    image, volume, facts = nib.load(path), read_volume(path), inspect(path).facts
    np.testing.assert_array_equal(volume.affine, image.affine)
    np.testing.assert_allclose(volume.data[0], image.get_fdata(), rtol=1e-6)
    assert facts.spacing == pytest.approx(tuple(voxel_sizes(image.affine)), abs=1e-5)
    assert facts.orientation == "".join(nib.aff2axcodes(image.affine))
    assert facts.dtype == image.get_data_dtype().name
    assert orientation in (None, facts.orientation)
    assert dtype in (None, facts.dtype)
    canonical = nib.as_closest_canonical(image)
    size = tuple(max(canonical.shape) for _ in range(3))
    seen = Preprocessing(spacing=None, shape=size, centre="image", normalisation="none")([volume])
    inside = np.round(apply_affine(np.linalg.inv(seen.affine) @ canonical.affine, (0, 0, 0))).astype(int)
    assert nib.aff2axcodes(seen.affine) == ("R", "A", "S")
    part = tuple(slice(start, start + length) for start, length in zip(inside, canonical.shape, strict=True))
    np.testing.assert_allclose(seen.data[0][part], canonical.get_fdata(), rtol=1e-5)


def test_the_test_data_hold_four_orientations(test_data):
    files = [path for path in test_data.rglob("*.nii.gz") if path.stat().st_size < 10e6]
    found = {"".join(nib.aff2axcodes(nib.load(path).affine)) for path in files}
    assert {"PSR", "LAS", "LPS", "RAS"} <= found


@pytest.mark.parametrize("volume", [0, 1])
def test_nibabels_own_mgz_file(volume):
    path = Path(nib.__file__).parent / "tests" / "data" / "test.mgz"
    image, read = nib.load(path), read_volume(path, volume)
    np.testing.assert_array_equal(read.data[0], image.get_fdata()[..., volume])
    np.testing.assert_array_equal(read.affine, image.affine)
    result = inspect_image(path, path.parent, Limits())
    assert result.facts.shape == image.shape
    np.testing.assert_allclose(result.affine, image.affine, atol=1e-6)


@pytest.fixture(scope="module")
def dicom():
    """A function that returns a file of pydicom-data."""
    store = pytest.importorskip("data_store", reason="pydicom-data is not installed")
    return lambda name: Path(store.DataStore().get_path(name))


@pytest.mark.parametrize(
    ("name", "shape", "orientation", "lowest", "highest"),
    [
        ("explicit_VR-UN.dcm", (512, 512, 1), "LAI", -1024, 1186),  # CT in Hounsfield units, JPEG 2000
        ("MR2_UNCR.dcm", (1024, 1024, 1), "PIR", 0, 2245.598),  # sagittal MR, 16 bits with slope and intercept
        ("MR-SIEMENS-DICOM-WithOverlays.dcm", (484, 484, 1), "LPS", 0, 1123),
        ("RG3_J2KR.dcm", (1760, 1760, 1), "LPS", 0, 1023),  # radiography has no place in space
        ("eCT_Supplemental.dcm", (512, 512, 2), "RPS", -1024, 172),  # two slices in one file
    ],
)
def test_real_dicom_files(dicom, tmp_path, name, shape, orientation, lowest, highest):
    path = tmp_path / "IM 0001"  # scanners name files as they like
    path.symlink_to(dicom(name))
    volume, facts = read_volume(path), inspect(path).facts
    same_as_itk(path, volume)
    assert (volume.data.shape[1:], facts.shape) == (shape, shape)
    assert facts.orientation == orientation == "".join(nib.aff2axcodes(volume.affine))
    assert facts.spacing == pytest.approx(tuple(voxel_sizes(volume.affine)), abs=1e-5)
    assert (volume.data.min(), volume.data.max()) == pytest.approx((lowest, highest), abs=1e-3)


def test_colour_dicom_is_refused_with_a_remedy(dicom):
    with pytest.raises(PreprocessingError, match="Convert the image to grey"):
        read_volume(dicom("SC_rgb.dcm"))
    result = inspect_image(dicom("SC_rgb.dcm"), dicom("SC_rgb.dcm").parent, Limits())
    assert [finding.code for finding in result.findings] == ["bad_header"]


@pytest.mark.parametrize("suffix", ["NII", "NII.GZ", "MGZ", "MHA", "NRRD"])
def test_a_suffix_may_be_in_upper_case(tmp_path, suffix):
    voxels = SERIES[..., 0]
    lower, path = tmp_path / f"a.{suffix.lower()}", tmp_path / f"Scan 1é.{suffix}"
    if suffix == "MGZ":
        nib.save(nib.MGHImage(voxels, AFFINE), lower)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(voxels.transpose()), lower)
    lower.rename(path)
    np.testing.assert_array_equal(read_volume(path).data[0], voxels)
    inspect(path)
    if suffix.startswith(("NII", "MG")):  # nibabel looks for .Nii.gz under the name .nii.gz
        path.rename(path.with_name(f"a.{suffix.title()}"))
        result = inspect_image(path.with_name(f"a.{suffix.title()}"), tmp_path, Limits())
        assert [finding.code for finding in result.findings] == ["unreadable"]
        assert f"Rename the file to .{suffix.lower()}" in result.findings[0].message


# Pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_grey_picture_is_a_volume_of_one_slice(tmp_path, dtype):
    grey = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (6, 4), endpoint=True).astype(dtype)
    grey[0, :2] = 0, np.iinfo(dtype).max
    image = sitk.GetImageFromArray(grey)  # rows, then columns
    sitk.WriteImage(image, tmp_path / "a.PNG")
    volume = read_volume(tmp_path / "a.PNG")
    assert volume.data.shape == (1, 4, 6, 1)
    np.testing.assert_array_equal(volume.data[0, :, :, 0], grey.T.astype(np.float32))
    assert np.linalg.det(volume.affine[:3, :3]) != 0
    np.testing.assert_array_equal(volume.affine, inspect(tmp_path / "a.PNG").affine)
    sitk.WriteImage(image, tmp_path / "a.mha")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mha").data, volume.data)
    nib.save(nib.Nifti1Image(grey.T.astype(np.int32), AFFINE), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").data, volume.data)


def test_a_colour_picture_is_refused_with_a_remedy(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((6, 4, 3), np.uint8), isVector=True), tmp_path / "a.png")
    with pytest.raises(PreprocessingError, match=r"a.png: the voxels are colours.* Convert the image to grey"):
        read_volume(tmp_path / "a.png")


# One volume of a 4D file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "a.nrrd"])
def test_the_index_chooses_a_volume(tmp_path, name):
    if name.endswith("nrrd"):
        parts = [sitk.GetImageFromArray(SERIES[..., index].transpose()) for index in range(5)]
        sitk.WriteImage(sitk.JoinSeries(parts), tmp_path / name)
    else:
        nib.save((nib.MGHImage if "mgz" in name else nib.Nifti1Image)(SERIES, AFFINE), tmp_path / name)
    np.testing.assert_array_equal(read_volume(tmp_path / name, 3).data[0], SERIES[..., 3])
    with pytest.raises(PreprocessingError, match=r'has 4 axes \(7x8x9x5\).*"volume": 0'):
        read_volume(tmp_path / name)
    for index in (5, -1):
        with pytest.raises(PreprocessingError, match=f"no volume {index}; the file holds 5"):
            read_volume(tmp_path / name, index)


@pytest.fixture
def series(tmp_path):
    """A function of volumes of columns that writes a table of one 4D file in two columns."""
    nib.save(nib.Nifti1Image(SERIES, AFFINE), tmp_path / "dwi.nii.gz")
    pd.DataFrame({"participant_id": ["p1"], "b0": ["dwi.nii.gz"], "dwi": ["dwi.nii.gz"]}).to_csv(
        tmp_path / "c.tsv", sep="\t", index=False
    )

    def write(*volumes):
        names = ("b0", "dwi")
        columns = [Column(n, "image", "path", grid="g", volume=v) for n, v in zip(names, volumes, strict=True)]
        schema_path(tmp_path / "c.tsv").write_text(Schema((Column("participant_id", "id", "text"), *columns)).to_json())
        return tmp_path / "c.tsv"

    return write


def test_the_sidecar_names_the_volume_and_verify_checks_it(series):
    assert verify_cohort(series(0, 3)).ok
    assert [(p.column, p.code) for p in verify_cohort(series(0, 5)).problems] == [("dwi", "out_of_range")]
    assert "holds 5 volumes, 0 to 4" in verify_cohort(series(0, 5)).problems[0].message
    problem = verify_cohort(series(None, 3)).problems[0]
    assert (problem.column, problem.code) == ("b0", "not_3d")
    assert '"volume": 0 to 4' in problem.message
    assert [(p.column, p.code) for p in verify_cohort(series(3, 3)).problems] == [("dwi", "duplicate_content")]


def test_the_volume_reaches_the_network_and_the_cache_tells_volumes_apart(series, tmp_path):
    seen = {}
    for volumes in ((0, 3), (0, 4)):
        table = series(*volumes)
        write_manifest(verify_cohort(table))
        data = BaseDataModule(table, ["b0", "dwi"], preprocessing=AS_IS, cache=tmp_path / "cache")
        data.prepare_data()
        data.setup("predict")
        (sample,) = data.samples
        batch = next(iter(data.predict_dataloader()))
        seen[volumes] = batch["image"][0].float().numpy()
        for channel, volume in enumerate(volumes):
            native = data.to_native(seen[volumes][channel], sample)
            np.testing.assert_allclose(native, SERIES[..., volume], atol=0.5)
    assert len(list((tmp_path / "cache" / "volumes").rglob("*.npy"))) == 2
    cache = VolumeCache(tmp_path / "cache", AS_IS)
    assert cache.key(("a",)) == cache.key(("a",), volumes=(None,)) != cache.key(("a",), volumes=(0,))
    assert cache.load(ImageFiles((tmp_path / "dwi.nii.gz",), volumes=(4,))).array.shape == (1, 9, 9, 9)


def test_a_volume_is_a_whole_number_of_an_image(series):
    for facts in ('"volume": -1', '"volume": 1.5', '"volume": true', '"volume": "1"'):
        sidecar = schema_path(series(0, 3))
        sidecar.write_text(sidecar.read_text().replace('"volume": 3', facts))
        with pytest.raises(ValueError, match="Give a whole number"):
            read_cohort(sidecar.with_suffix(""))


# Masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["0 and 1", "intensities", "labels"])
def test_a_mask_is_any_voxel_above_0_wherever_its_grid_lies(tmp_path, kind):
    """SynthStrip and HD-BET write 0 and 1 on the scan's grid; FreeSurfer's brainmask.mgz has intensities on its own."""
    scan = np.random.default_rng(1).integers(100, 900, (20, 22, 24)).astype(np.float32)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -20, -22, -24
    nib.save(nib.Nifti1Image(scan, affine), tmp_path / "t1.nii.gz")
    inside = np.zeros(scan.shape, bool)
    inside[5:15, 6:16, 7:17] = True
    if kind == "0 and 1":
        nib.save(nib.Nifti1Image(inside.astype(np.uint8), affine), tmp_path / "mask.nii.gz")
        mask = tmp_path / "mask.nii.gz"
    else:  # twice as fine, another origin, other axes (LIA, as FreeSurfer has them)
        fine = inside.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        own = affine @ np.diag([0.5, 0.5, 0.5, 1])
        own[:3, 3] -= 0.5
        values = fine * (np.random.default_rng(2).integers(1, 110, fine.shape) if kind == "intensities" else 17)
        image = nib.Nifti1Image(values.astype(np.uint8), own)
        codes = nib.orientations.axcodes2ornt("LIA")
        image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(own), codes))
        nib.save(nib.MGHImage(np.asarray(image.dataobj), image.affine), tmp_path / "brainmask.mgz")
        mask = tmp_path / "brainmask.mgz"
    options = Preprocessing(spacing=None, shape=(20, 22, 24), centre="image", foreground="mask")
    seen = options([read_volume(tmp_path / "t1.nii.gz")], read_volume(mask)).data[0]
    values = scan[inside].astype(np.float64)
    np.testing.assert_allclose(seen, (scan - values.mean()) / values.std(ddof=1), atol=1e-4)

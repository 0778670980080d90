import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from datamodules.preprocessing import Preprocessing, PreprocessingError, Volume, read_volume, to_native

AFFINE = np.array([[0, -2.0, 0, 11], [1.5, 0, 0, -7], [0, 0, 3.0, 40], [0, 0, 0, 1]])
SHEAR = np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
DATA = np.random.default_rng(0).random((7, 8, 9), np.float32)


def test_slope_and_affine_agree_with_nibabel_where_itk_differs(tmp_path):
    sheared = nib.Nifti1Image(DATA, AFFINE)
    sheared.set_sform(AFFINE @ SHEAR, 1)
    sheared.header["qform_code"] = 0
    disagreeing = nib.Nifti1Image(DATA, AFFINE)
    disagreeing.set_sform(AFFINE, 4)
    disagreeing.set_qform(np.diag([-2.0, 1.5, 3.0, 1]), 1)
    for name, image in {"sheared": sheared, "disagreeing": disagreeing}.items():
        for suffix in (".nii.gz", ".nii"):
            nib.save(image, tmp_path / (name + suffix))
            volume = read_volume(tmp_path / (name + suffix))
            np.testing.assert_array_equal(volume.affine, image.affine)
            np.testing.assert_array_equal(volume.data[0], DATA)


def test_other_formats_keep_voxels_and_place(tmp_path):
    image = sitk.GetImageFromArray((DATA * 1000).astype(np.int16).transpose())
    image.SetSpacing((1.5, 2.0, 3.0))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))  # LPS: i runs to anterior, j to the right
    image.SetOrigin((-11.0, 7.0, 40.0))
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    (tmp_path / "series").mkdir()
    for index in range(image.GetDepth()):
        piece = image[:, :, index]
        tags = {"0008|0060": "MR", "0020|000e": "1.2.826.0.1.3680043.2.1125.1", "0020|0013": str(index)}
        tags["0008|0018"] = f"1.2.826.0.1.3680043.2.1125.1.{index}"
        tags["0020|0032"] = "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, index))))
        tags["0020|0037"] = "0\\-1\\0\\1\\0\\0"
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(tmp_path / "series" / f"{index}.dcm"))
        writer.Execute(piece)
    nib.save(nib.MGHImage((DATA * 1000).astype(np.int16), AFFINE), tmp_path / "scan.mgz")
    for name in ("scan.mha", "series", "scan.mgz"):
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.data[0], (DATA * 1000).astype(np.int16), err_msg=name)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6, err_msg=name)
        assert volume.source == str(tmp_path / name)


def test_one_volume_of_a_4d_file(tmp_path):
    nib.save(nib.Nifti1Image(np.stack([DATA, 2 * DATA], axis=-1), AFFINE), tmp_path / "bold.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "bold.nii.gz", 1).data[0], 2 * DATA)
    with pytest.raises(PreprocessingError, match=r"bold.nii.gz: the image has 4 axes \(7x8x9x2\).*volume"):
        read_volume(tmp_path / "bold.nii.gz")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_truncated_files_are_refused_and_padded_ones_are_not(tmp_path, name):
    path = tmp_path / name
    nib.save(nib.Nifti1Image(DATA, AFFINE), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(PreprocessingError, match=name):
        read_volume(path)
    extra = gzip.compress(b"\0" * 100) if name.endswith("gz") else b"\0" * 100
    path.write_bytes(whole + extra)
    np.testing.assert_array_equal(read_volume(path).data[0], DATA)


@pytest.mark.parametrize("name", ["missing.nii.gz", "text.nii.gz", "text.mha", "folder", "colour.nii", "colour.mha"])
def test_what_is_no_volume_is_refused_by_name(tmp_path, name):
    (tmp_path / "folder").mkdir()
    for text in ("text.nii.gz", "text.mha"):
        (tmp_path / text).write_text("not an image")
    colours = np.zeros((7, 8, 9), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, AFFINE), tmp_path / "colour.nii")
    sitk.WriteImage(
        sitk.GetImageFromArray(np.zeros((7, 8, 9, 3), np.uint8), isVector=True), str(tmp_path / "colour.mha")
    )
    with pytest.raises(PreprocessingError, match=name):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("shear", [np.eye(4), SHEAR])
def test_maps_return_to_the_native_grid(shear):
    data = ndimage.gaussian_filter(np.random.default_rng(3).random((24, 26, 28)), 3).astype(np.float32)
    native = Volume(data[np.newaxis], AFFINE @ shear)
    cropped = Preprocessing(spacing=None, shape=(14, 15, 16), centre="image", normalisation="none")([native])
    back = to_native(cropped.data, cropped.affine, data.shape, native.affine)
    assert back.shape == (1, *data.shape)
    assert back.dtype == np.float32
    inside = to_native(np.ones((14, 15, 16), bool), cropped.affine, data.shape, native.affine, order=0)
    assert inside.dtype == bool
    assert inside.sum() == 14 * 15 * 16
    np.testing.assert_allclose(back[0], np.where(inside, data, 0), atol=1e-5)

    finer = Preprocessing(spacing=(1.2, 1.2, 1.2), shape=(60, 60, 80), centre="image", normalisation="none")([native])
    back = to_native(finer.data[0], finer.affine, data.shape, native.affine)
    np.testing.assert_allclose(back[2:-2, 2:-2, 2:-2], data[2:-2, 2:-2, 2:-2], atol=0.1 * data.std())
    labels = (finer.data[0] > np.median(data)).astype(np.int16) * 7
    back = to_native(labels, finer.affine, data.shape, native.affine, order=0)
    assert set(np.unique(back)) == {0, 7}
    assert ((back == 7) == (data > np.median(data))).mean() > 0.97


@pytest.mark.parametrize(
    ("images", "mask", "setting", "message"),
    [
        ([Volume(DATA[None], AFFINE, "a.nii")], None, {"foreground": "mask"}, r"a.nii: has no mask"),
        ([Volume(DATA[None] * np.nan, AFFINE, "a.nii")], None, {}, r"a.nii: has NaN"),
        ([Volume(DATA[None] * 0 + 3, AFFINE, "a.nii")], None, {"centre": "image"}, r"a.nii: no foreground voxels"),
        (
            [Volume(DATA[None] * 0 + 3, AFFINE, "a.nii")],
            None,
            {"foreground": "nonzero"},
            r"a.nii: a constant foreground",
        ),
        (
            [Volume(np.where(DATA[None] == DATA[tuple(n // 2 for n in DATA.shape)], 9.0, 5.0), AFFINE, "a.nii")],
            None,
            {"foreground": "nonzero", "clip": (1, 99)},
            r"a.nii: the foreground is constant once clipped to \(1, 99\)",
        ),
        ([Volume(DATA[None] * 0, AFFINE, "a.nii")], None, {}, r"a.nii: has no foreground to centre on"),
        ([Volume(DATA[None], np.diag([1.0, 1, 0, 1]), "a.nii")], None, {}, r"a.nii: the affine is singular"),
        ([Volume(DATA[None], AFFINE), Volume(DATA[None], -AFFINE + 900, "b.nii")], None, {}, r"b.nii: lies outside"),
    ],
)
def test_errors_name_the_image(images, mask, setting, message):
    with pytest.raises(PreprocessingError, match=message):
        Preprocessing(shape=(7, 8, 9), spacing=None, **setting)(images, mask)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (0, 4, 4)},
        {"spacing": (1, 1, 0)},
        {"clip": (90, 10)},
        {"normalisation": ()},
        {"normalisation": ("zscore", "minmax")},
    ],
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(PreprocessingError, match=next(iter(wrong))):
        Preprocessing(**wrong)

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torchio as tio
from nibabel.affines import apply_affine
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from datamodules.preprocessing import Preprocessing, PreprocessingError, Volume, read_volume

SHAPE = (7, 8, 9)
AFFINE = np.array([[2.0, 0, 0, -11], [0, 2.5, 0, 7], [0, 0, 3.0, 40], [0, 0, 0, 1]])
RAW = np.random.default_rng(0).integers(0, 250, SHAPE).astype(np.float32)
AS_IS = Preprocessing(spacing=None, shape=SHAPE, centre="image", normalisation="none")


def save(path, data, affine=AFFINE, *, codes="RAS", dtype=np.float32, slope=1.0, inter=0.0):
    """Write RAS data in another orientation; as uint8 the header says to multiply by slope and add the intercept."""
    change = ornt_transform(io_orientation(AFFINE), axcodes2ornt(codes))
    image = nib.Nifti1Image(data, affine).as_reoriented(change)
    image.header.set_data_dtype(dtype)
    if dtype == np.uint8:
        image.header.set_slope_inter(slope, inter)
    nib.save(image, path)
    return path


def rotated(spacing, degrees=12.0, origin=(-20.0, -25.0, -30.0)):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return nib.affines.from_matvec(turn * spacing, origin)


def ramp(shape, affine):
    """Make a volume whose value is a linear function of the world position, so that interpolation is exact."""
    world = apply_affine(affine, np.stack(np.indices(shape), axis=-1))
    return (world @ [1.0, 2.0, -3.0] + 500)[np.newaxis].astype(np.float32)


@pytest.mark.parametrize("codes", ["PSR", "LAS", "LPS", "RAS"])
@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii"])
def test_every_orientation_and_scaling_gives_the_same_canonical_volume(tmp_path, codes, name):
    path = save(tmp_path / name, RAW, codes=codes, dtype=np.uint8, slope=13.5, inter=4.0)
    output = AS_IS([read_volume(path)])
    assert output.data.shape == (1, *SHAPE)
    assert output.data.dtype == np.float32
    np.testing.assert_allclose(output.data[0], RAW * 13.5 + 4, rtol=1e-6)
    np.testing.assert_allclose(output.affine, AFFINE, atol=1e-6)


def test_real_scans_agree_with_nibabel():
    folder = Path(os.environ.get("FONTANEL_TEST_DATA", "missing")) / "ixi10" / "nifti"
    if not folder.is_dir():
        pytest.skip("real scans are absent: set FONTANEL_TEST_DATA")
    for path in sorted(folder.glob("*.nii.gz"))[:3]:
        reference = nib.as_closest_canonical(nib.load(path))
        mask = Path(str(path).replace("nifti", "dlmuse").replace("_ds", "_ds_DLMUSE"))
        brain = nib.as_closest_canonical(nib.load(mask)).get_fdata() > 0
        whole = Preprocessing(spacing=None, shape=reference.shape, centre="image", foreground="mask")
        output = whole([read_volume(path)], read_volume(mask))
        values = reference.get_fdata()
        expected = (values - values[brain].mean()) / values[brain].std(ddof=1)
        np.testing.assert_allclose(output.data[0], expected, atol=1e-4)
        np.testing.assert_allclose(output.affine, reference.affine)


@pytest.mark.parametrize("spacing", [(1.6, 1.6, 1.6), (2.0, 3.0, 2.5), None])
def test_every_image_lands_where_its_affine_says(spacing):
    first, second = rotated((2.0, 2.2, 1.8)), rotated((-1.5, 1.6, 1.4), 3.0, (25.0, -30.0, -30.0))
    images = [Volume(ramp((22, 24, 26), first), first), Volume(ramp((34, 36, 38), second), second)]
    output = Preprocessing(spacing=spacing, shape=(8, 9, 10), centre="image", normalisation="none")(images)
    assert nib.aff2axcodes(output.affine) == ("R", "A", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(output.affine), spacing or (2.0, 2.2, 1.8))
    expected = ramp((8, 9, 10), output.affine)
    np.testing.assert_allclose(output.data, np.concatenate([expected, expected]), atol=0.05)


@pytest.mark.parametrize("codes", ["RAS", "PSR"])
def test_landmark_stays_within_half_a_voxel(tmp_path, codes):
    data = np.zeros((30, 34, 38), np.float32)
    data[4:26, 5:29, 6:32] = 10
    data[20, 9, 25] = 400
    output = Preprocessing(spacing=(3.0, 3.0, 3.0), shape=(30, 30, 40), normalisation="none")(
        [read_volume(save(tmp_path / "scan.nii.gz", data, codes=codes))]
    )
    found = apply_affine(output.affine, np.unravel_index(output.data[0].argmax(), output.data[0].shape))
    assert (np.abs(found - apply_affine(AFFINE, (20, 9, 25))) <= 1.5 + 1e-6).all()
    box = np.argwhere(output.data[0] > 5)  # the foreground's bounding box is in the middle
    np.testing.assert_allclose((box.min(axis=0) + box.max(axis=0)) / 2, (14.5, 14.5, 19.5), atol=1)


def test_downsampling_does_not_alias():
    stripes = np.indices((48, 48, 48)).sum(axis=0) % 2 * 100.0
    image = Volume(stripes[np.newaxis].astype(np.float32), np.eye(4))
    output = Preprocessing(spacing=(3.0, 3.0, 3.0), shape=(10, 10, 10), centre="image", normalisation="none")([image])
    assert output.data.std() < 2  # plain sampling keeps a standard deviation of 50


def test_normalisation_uses_the_foreground():
    data = np.random.default_rng(1).gamma(2, 50, (1, 20, 22, 24)).astype(np.float32)
    data[:, :5] = 0
    mirrored = nib.affines.from_matvec(np.diag([-1.0, 1, 1]), [19, 0, 0])
    mask = Volume((data > 150).astype(np.float32)[:, ::-1].copy(), mirrored)
    for foreground, inside in {"mask": data > 150, "nonzero": data != 0, "above-mean": data > data.mean()}.items():
        setting = {"spacing": None, "shape": (20, 22, 24), "centre": "image", "foreground": foreground}
        image = Volume(data, np.eye(4))
        scaled = torch.from_numpy(Preprocessing(**setting)([image], mask).data)
        reference = tio.ZNormalization(lambda _, inside=inside: torch.from_numpy(inside))(torch.from_numpy(data))
        torch.testing.assert_close(scaled, reference)
        mapped = Preprocessing(**setting, clip=(5, 95), normalisation="percentile")([image], mask).data
        clipped = data.clip(*np.percentile(data[inside], (5, 95)))
        np.testing.assert_allclose(mapped, (clipped - clipped.min()) / np.ptp(clipped), atol=1e-5)


def test_what_is_not_zero_is_asked_of_the_file_and_not_of_its_blurred_copy():
    """Smoothing puts a rim of small values around a stripped brain; it is no foreground."""
    grid = np.stack(np.meshgrid(*[np.arange(60) - 29.5] * 3, indexing="ij"), -1)
    brain = np.linalg.norm(grid, axis=-1) < 22
    data = np.where(brain, np.random.default_rng(4).normal(1.2, 0.2, brain.shape), 0).astype(np.float32)[np.newaxis]
    settings = {"spacing": (2.0, 2.0, 2.0), "shape": (30, 30, 30), "centre": "image"}
    mask = Volume(brain[np.newaxis].astype(np.float32), np.eye(4))
    expected = Preprocessing(**settings, foreground="mask")([Volume(data, np.eye(4))], mask).data
    other = np.where(grid[..., 0] > 0, data, 0)  # each channel is asked by itself
    found = Preprocessing(**settings, foreground="nonzero")([Volume(other, np.eye(4)), Volume(data, np.eye(4))]).data
    np.testing.assert_array_equal(found[1:], expected)


def test_each_channel_has_its_own_normalisation_and_one_for_all_keeps_its_name():
    images = [Volume(ramp(SHAPE, AFFINE) * factor, AFFINE) for factor in (1, 7, -2)]
    setting = {"spacing": None, "shape": SHAPE, "centre": "image"}
    mixed = Preprocessing(**setting, normalisation=["zscore", "none", "percentile"])
    alone = [Preprocessing(**setting, normalisation=kind) for kind in ("zscore", "none", "percentile")]
    for channel, whole in enumerate(alone):
        np.testing.assert_array_equal(mixed(images).data[channel], whole(images).data[channel])
    assert mixed.canonical()["normalisation"] == "zscore/none/percentile"
    assert Preprocessing(normalisation=("zscore", "zscore")).canonical() == Preprocessing().canonical()
    assert Preprocessing().canonical() == {  # what the keys of caches are made of
        "spacing": [2.0, 2.0, 2.0],
        "shape": [96, 96, 96],
        "centre": "foreground",
        "normalisation": "zscore",
        "foreground": "above-mean",
        "clip": None,
    }
    with pytest.raises(PreprocessingError, match=r"3 ways \(zscore, none, percentile\) for 2 channels"):
        mixed(images[:2])


def test_the_mask_decides_what_is_in_the_middle():
    image, own_grid = Volume(ramp((40, 44, 48), np.eye(4)), np.eye(4)), rotated((-2.0, 1.5, 2.0), 0.0, (40.0, 0.0, 0.0))
    mask = Volume(np.zeros((1, 20, 30, 24), np.float32), own_grid)
    mask.data[:, 3:8, 12:15, 4:9] = 1
    middle = apply_affine(own_grid, (5, 13, 6))
    for spacing in (None, (1.5, 1.5, 1.5)):
        output = Preprocessing(spacing=spacing, shape=(11, 13, 15), foreground="mask")([image], mask)
        np.testing.assert_allclose(apply_affine(output.affine, (5, 6, 7)), middle, atol=0.5 + 1e-6)


def test_padding_takes_the_background():
    data = np.full((1, *SHAPE), -1000, np.float32)
    data[:, 2:5, 2:6, 2:7] = 40
    for spacing in (None, (1.5, 1.5, 1.5)):
        output = Preprocessing(spacing=spacing, shape=(24, 24, 24), normalisation="none")([Volume(data, AFFINE)]).data
        np.testing.assert_allclose(output[0, [0, -1]], -1000)


def test_result_does_not_depend_on_threads_and_leaves_the_random_state_alone():
    image = Volume(np.random.default_rng(2).random((1, 40, 40, 40), np.float32), np.eye(4))
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    outputs = []
    for number in (1, 2):
        torch.set_num_threads(number)
        outputs.append(Preprocessing(spacing=(1.5, 1, 1), shape=(44, 40, 40), clip=(1, 99))([image]).data)
    torch.set_num_threads(threads)
    np.testing.assert_array_equal(*outputs)
    assert torch.equal(torch.get_rng_state(), state)

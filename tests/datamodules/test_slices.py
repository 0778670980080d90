"""Slices are shown with the left on the left, in true aspect, whatever the orientation of the file."""

import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from datamodules.preprocessing import Volume
from datamodules.slices import TILE, Canonical, draw, window_of


def marked(orientation, spacing=(1.0, 1.0, 1.0), shape=(20, 24, 16)):
    """A volume that is bright at the participant's right, in front and above, stored in an orientation."""
    data = np.zeros(shape, np.float32)
    data[shape[0] // 2 :, shape[1] // 2 :, shape[2] // 2 :] = 100
    turn = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(orientation))
    affine = np.diag([*spacing, 1.0]) @ nib.orientations.inv_ornt_aff(turn, shape)
    return Volume(nib.apply_orientation(data, turn)[None], affine)


def tiles(volume, mask=None):
    picture = draw(Canonical.of(volume), (0.0, 100.0), mask)
    return np.asarray(Image.open(io.BytesIO(picture.content)).convert("RGB")), picture


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PSR", "ILA"])
def test_left_is_left_and_up_is_up(orientation):
    picture, thumbnail = tiles(marked(orientation))
    assert thumbnail.kind == "volume"
    for number in range(3):  # sagittal: front is right; coronal and axial: right is right
        tile = picture[:, number * (TILE + 4) : number * (TILE + 4) + TILE].mean(axis=2)
        rows, columns = np.nonzero(tile > 128)
        assert rows.max() < 0.55 * TILE
        assert columns.min() > 0.45 * TILE


def test_voxels_have_their_true_aspect():
    picture, _ = tiles(marked("LPS", spacing=(1.0, 1.0, 3.0)))
    sagittal = picture[:, :TILE].mean(axis=2) > 128
    height, width = (np.ptp(np.nonzero(sagittal)[axis]) + 1 for axis in (0, 1))
    assert height / width == pytest.approx(8 * 3 / 12, rel=0.1)


def test_a_mask_on_another_grid_is_outlined_where_it_lies():
    volume = marked("RAS")
    inside = np.zeros((10, 12, 8), np.float32)
    inside[5:, 6:, 4:] = 1
    picture, _ = tiles(volume, Volume(inside[None], np.diag([2.0, 2, 2, 1])))
    red, green, blue = picture[:, :TILE].astype(int).transpose(2, 0, 1)
    rows, columns = np.nonzero(np.minimum(green, blue) - red > 60)  # nothing else has a colour
    assert rows.size > TILE
    assert rows.max() < TILE * 0.55
    assert columns.min() > TILE * 0.45


def test_a_single_slice_is_one_tile_and_a_picture_lies_as_in_its_file():
    data = np.zeros((30, 40, 1), np.float32)
    data[:10, :5] = 9  # columns run to the right, rows down: the upper left corner
    volume = Volume(data[None], np.diag([-1.0, -1, 1, 1]))
    shown = Canonical.of(volume).as_picture(volume.affine)
    picture = draw(shown, window_of(shown.data))
    assert picture.kind == "picture"
    bright = np.nonzero(np.asarray(Image.open(io.BytesIO(picture.content)).convert("L")) > 128)
    assert max(bright[0]) < TILE
    assert max(bright[1]) < TILE
    assert draw(Canonical.of(volume), (0.0, 9.0)).kind == "z"

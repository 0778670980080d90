"""A head of ellipsoids as a FreeSurfer label map: cheap geometry for the tests that need no real anatomy."""

import nibabel as nib
import numpy as np
import pytest

CENTRE = np.array([12.0, -9.0, 5.0])  # mm
LABELS = ((507, (78, 98, 84)), (515, (70, 90, 76)), (24, (64, 84, 70)), (3, (61, 81, 67)), (2, (56, 76, 62)))
VENTRICLE = (43, (12, -20, 4), (8, 20, 10))  # on the right, behind the middle


@pytest.fixture(scope="session", autouse=True)
def _shared_geometry(tmp_path_factory):
    """Keep fixtures of a wider scope than a test away from the user's cache too, and compute ICBM152 once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FONTANEL_CACHE", str(tmp_path_factory.mktemp("geometry")))
        yield


def write_head(path, spacing=(4.0, 4.0, 4.0), orientation="LAS", ventricle=True):
    """Write the label map in a grid around `CENTRE` and return its affine."""
    shape = [int(220 / size) for size in spacing]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = CENTRE - (np.array(shape) - 1) * spacing / 2
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    position = grid * np.array(spacing) + affine[:3, 3] - CENTRE
    labels = np.zeros(shape, np.int16)
    for label, radii in LABELS:
        labels[((position / radii) ** 2).sum(-1) < 1] = label
    if ventricle:
        label, centre, radii = VENTRICLE
        labels[(((position - centre) / radii) ** 2).sum(-1) < 1] = label
    change = nib.orientations.axcodes2ornt(tuple(orientation))
    image = nib.Nifti1Image(labels, affine)
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), change)), path)


@pytest.fixture
def label_folder(tmp_path):
    """A folder of two label maps, in other orientations and voxel sizes."""
    folder = tmp_path / "labels"
    folder.mkdir()
    write_head(folder / "head_a.nii.gz")
    write_head(folder / "head_b.nii.gz", spacing=(2.0, 4.0, 2.0), orientation="SPL")
    return folder


@pytest.fixture(scope="session")
def head_folder(tmp_path_factory):
    """A folder of one label map, for the tests that render many participants."""
    folder = tmp_path_factory.mktemp("heads")
    write_head(folder / "head_a.nii.gz")
    return folder

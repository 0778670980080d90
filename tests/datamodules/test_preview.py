"""What is looked at of a row: the right volume, the right reasons, and no path of the machine."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from datamodules.cohort import check_table
from datamodules.inspection import FileFacts
from datamodules.preprocessing import Preprocessing
from datamodules.preview import Previewer, Recipe, default_preprocessing
from datamodules.verify import verify_cohort

SMALL = Preprocessing(spacing=(4.0, 4.0, 4.0), shape=(16, 16, 16), foreground="mask", centre="image")

REASON = (
    "No input for the network: 1_mask.nii: lies outside the output grid, which follows the first image. "
    "Check its affine."
)


@pytest.fixture
def table(tmp_path):
    """A table of two participants with masks, of which the second lies a metre away."""
    rng = np.random.default_rng(0)
    ball = (np.linalg.norm(np.indices((16, 18, 14)).T - (8, 9, 7), axis=-1).T < 5).astype(np.float32)
    for number, away in enumerate((0, 1000)):
        nib.save(
            nib.Nifti1Image(ball * (50 + rng.random(ball.shape)), np.diag([4, 4, 4, 1])), tmp_path / f"{number}.nii"
        )
        affine = np.diag([4.0, 4, 4, 1])
        affine[0, 3] = away
        nib.save(nib.Nifti1Image(ball, affine), tmp_path / f"{number}_mask.nii")
    rows = {"participant_id": ["p0", "p1"], "t1w": ["0.nii", "1.nii"], "brain_mask": ["0_mask.nii", "1_mask.nii"]}
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.tsv", sep="\t", index=False)
    return tmp_path / "cohort.tsv"


def look(table, **settings):
    cohort, _ = check_table(table)
    recipe = Recipe(("t1w",), **({"mask": "brain_mask", "preprocessing": SMALL} | settings))
    files = verify_cohort(table).files
    return [Previewer(cohort, files, recipe).look(row)[0] for row in cohort.frame.to_dict("records")]


def test_a_mask_elsewhere_is_a_reason_without_a_path(table):
    first, second = look(table)
    assert not first.reasons
    assert first.network is not None
    assert second.native is not None
    assert second.network is None
    assert second.reasons == [REASON]
    expected = np.count_nonzero(nib.load(table.parent / "0_mask.nii").get_fdata()) * 64 / 1000
    assert first.measures["foreground_volume"] == pytest.approx(expected)


def test_the_volume_that_the_sidecar_names_is_shown(table):
    path = table.parent / "0.nii"
    image = nib.load(path)
    stack = np.stack([image.get_fdata(), image.get_fdata() * 10], axis=-1)
    nib.save(nib.Nifti1Image(stack, image.affine), path)
    columns = {
        "participant_id": {"role": "id", "kind": "text"},
        "t1w": {"role": "image", "kind": "path", "volume": 1},
        "brain_mask": {"role": "mask", "kind": "path"},
    }
    (table.parent / "cohort.tsv.json").write_text(json.dumps({"format": 1, "columns": columns}))
    assert look(table)[0].measures["intensity"] == pytest.approx(505, rel=0.01)


@pytest.mark.parametrize(
    ("shapes", "orientation", "expected"),
    [
        ([(70, 90)] * 3, "LPS", (128, 128, 1)),
        ([(64, 64, 1)] * 3, "ASR", (1, 128, 128)),
        ([(64, 64, 20), (64, 64, 1)], "RAS", (96, 96, 96)),
        ([], "RAS", (96, 96, 96)),
    ],
)
def test_single_slices_have_a_default_of_their_own(shapes, orientation, expected):
    def facts(shape):
        values = {"shape": shape, "spacing": (1.0,) * len(shape), "orientation": orientation}
        known = {"sha256": "", "voxel_sha256": "", "size": 1, "mtime_ns": 1, "dtype": "uint8"}
        return FileFacts(**(known | values))

    assert default_preprocessing([facts(shape) for shape in shapes]).shape == expected

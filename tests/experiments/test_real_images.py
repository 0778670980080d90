"""Ten real T1 scans (IXI, stored P-S-R as uint8 with a slope) down the whole road."""

import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from datamodules.brain_age import BrainAgeDataModule
from datamodules.preprocessing import Preprocessing
from evaluation.predictions import read_predictions
from experiments.cli import main

CONFIG = "tests/conf/brain_age_regression.yaml"


@pytest.fixture(scope="module")
def ixi(test_data, tmp_path_factory):
    """The table of a verified cohort of ten real participants with brain masks."""
    folder = tmp_path_factory.mktemp("ixi")
    shutil.copytree(test_data / "ixi10", folder, dirs_exist_ok=True)
    people = pd.read_csv(folder / "lists" / "IXI_demog_n10.csv")
    masks = [f"masks/{name}.nii.gz" for name in people["MRID"]]
    (folder / "masks").mkdir()
    for name, mask in zip(people["MRID"], masks, strict=True):
        labels = nib.load(folder / "dlmuse" / f"{name}-T1_ds_DLMUSE.nii.gz")
        nib.save(nib.Nifti1Image((labels.get_fdata() > 0).astype(np.uint8), labels.affine), folder / mask)
    table = folder / "ixi.tsv"
    rows = {"participant_id": people["MRID"], "site": "hammersmith", "t1w": "nifti/" + people["MRID"] + "-T1_ds.nii.gz"}
    pd.DataFrame({**rows, "mask": masks, "age": people["Age"]}).to_csv(table, sep="\t", index=False)
    assert main(["verify", str(table)]) == 0
    return table


def test_real_scans_train_test_and_predict(ixi, tmp_path, capsys):
    words = ["--data.preprocessing.spacing", "[6,6,6]", "--data.held_out_sites", "[]", "--data.batch_size", "2"]
    words += ["--config", CONFIG, "--data.table", str(ixi), "--output-dir", str(tmp_path)]
    assert main(["fit", *words]) == 0
    assert main(["test", "scratch-holdout-0-r0-s3", "--output-dir", str(tmp_path)]) == 0
    image = ixi.parent / "nifti" / "IXI012-HH-1211-T1_ds.nii.gz"
    folder = tmp_path / "new"
    assert (
        main(["predict", "scratch-holdout-0-r0-s3", str(image), "--output", str(folder), "--output-dir", str(tmp_path)])
        == 0
    )
    assert np.isfinite(read_predictions(folder / "predictions.parquet")["prediction"]).all()


def test_what_the_network_sees_is_the_scan(ixi):
    """Compare with nibabel: orientation from the affine, values with their slope, the mask in its place."""
    options = Preprocessing(spacing=(2.0, 2.0, 2.0), shape=(96, 112, 96), normalisation="none", foreground="mask")
    data = BrainAgeDataModule(table=ixi, mask="mask", preprocessing=options, val_fraction=0.2, test_fraction=0.2)
    data.prepare_data()
    data.setup("fit")
    for sample in data.samples[:3]:
        cached = data.cache.get(sample.files.images, sample.files.mask, sample.files.sha256s)
        native = nib.load(sample.files.images[0])
        assert nib.aff2axcodes(native.affine) == ("P", "S", "R")
        assert nib.aff2axcodes(cached.affine) == ("R", "A", "S")
        inside = np.argwhere(nib.load(sample.files.mask).get_fdata() > 0)
        world = nib.affines.apply_affine(native.affine, inside)
        index = np.rint(nib.affines.apply_affine(np.linalg.inv(cached.affine), world)).astype(int)
        kept = ((index >= 0) & (index < cached.array.shape[1:])).all(axis=1)
        assert kept.mean() > 0.99
        seen = np.asarray(cached.array[0], dtype=np.float64)[tuple(index[kept].T)]
        stored = native.get_fdata()[tuple(inside[kept].T)]
        assert np.corrcoef(seen, stored)[0, 1] > 0.97
        assert seen.mean() == pytest.approx(stored.mean(), rel=0.02)

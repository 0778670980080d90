"""Maps of a finished run: files in native space, measured against a mask, and added to the run."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from torch import nn

from datamodules import BaseDataModule
from datamodules.preprocessing import Preprocessing, read_volume
from evaluation.saliency import energy_inside
from experiments import saliency
from experiments.cli import main
from experiments.runtime import ConfigurationError
from experiments.saliency import choose, merge_table, require_mask_column
from experiments.saliency_maps import file_stems, on_grid_of
from lightning_modules.networks import Encoder
from lightning_modules.saliency import METHODS, Saliency
from tracking.contract import read_contract
from tracking.store import Store

# Stored from front to back, from low to high, from left to right, with voxels of 3 x 2 x 4 mm.
PSR = np.array([[0.0, 0.0, 4.0, -40.0], [-3.0, 0.0, 0.0, 51.0], [0.0, 2.0, 0.0, -36.0], [0.0, 0.0, 0.0, 1.0]])
MIRROR = np.array([[1, 0, 0, 0], [0, -1, 0, 35], [0, 0, 1, 0], [0, 0, 0, 1]])  # of the second axis of 36 voxels
LESION = (slice(4, 9), slice(6, 12), slice(5, 11))


class BrightEncoder(Encoder):
    """Its feature map is the mean brightness of each 2x2x2 cell, as far as it is above 300."""

    def __init__(self) -> None:
        super().__init__(1, num_features=1)
        self.cells = nn.AvgPool3d(2)
        nn.init.ones_(self.head.weight)

    def forward_features(self, image):
        return self.cells(image).sub(300).relu()


@pytest.fixture
def held_out(tiny_cohort, tmp_path):
    """A table of three participants of the site that no training sees, without ages, and with a lesion for two."""
    frame = pd.read_csv(tiny_cohort, sep="\t")
    frame = frame[frame["site"] == "west"].head(3).drop(columns="age")
    (tmp_path / "images").mkdir()
    for name in frame["t1w"]:
        (tmp_path / name).write_bytes((tiny_cohort.parent / name).read_bytes())
    native = nib.load(tmp_path / frame["t1w"].iloc[0])
    mask = np.zeros(native.shape, dtype=np.uint8)
    mask[LESION] = 1
    nib.save(nib.Nifti1Image(mask, native.affine), tmp_path / "m.nii.gz")
    frame["lesion_mask"] = ["m.nii.gz", "", "m.nii.gz"]
    frame.to_csv(tmp_path / "new.tsv", sep="\t", index=False)
    return tmp_path / "new.tsv"


def test_maps_pictures_and_table_of_a_run(fitted, held_out, tmp_path, capsys):
    output, run_id = fitted
    folder, store = tmp_path / "maps", ["--output-dir", str(output)]
    words = ["saliency", run_id, "--data.table", str(held_out), "--mask", "lesion_mask", "--output", str(folder)]
    assert main([*words, "--layer", "blocks.0", "--toward", "lower", *store]) == 0
    assert "Making Grad-CAM maps: 3 items" in capsys.readouterr().err
    rows = pd.read_csv(folder / "saliency.tsv", sep="\t")
    assert set(rows["split"]) == {"external"}
    assert rows["target"].isna().all(), "the table has no ages"
    assert set(rows["layer_shape"]) == {"16x16x16"}
    assert rows["energy"].notna().tolist() == [True, False, True]
    for row in rows.to_dict("records"):
        native = nib.load(held_out.parent / "images" / f"{row['participant_id']}_T1w.nii.gz")
        assert row["map"] == f"{row['participant_id']}_age_grad-cam-lower.nii.gz"
        found = nib.load(folder / row["map"])
        assert found.shape == native.shape
        np.testing.assert_allclose(found.affine, native.affine)
        assert all(not found.header[name].tobytes().strip(b"\0") for name in ("descrip", "db_name", "aux_file"))
        values = found.get_fdata()
        assert values.min() >= 0
        assert values.max() > 0
        assert (folder / f"{row['participant_id']}_age_grad-cam-lower.png").read_bytes()[:4] == b"\x89PNG"
        if not np.isnan(row["energy"]):
            mask, brain = np.zeros(values.shape, dtype=bool), native.get_fdata() > native.get_fdata().mean()
            mask[LESION] = True
            assert row["energy"] == pytest.approx(values[mask].sum() / values.sum())
            assert row["chance"] == pytest.approx(mask.mean())
            assert row["foreground_energy"] == pytest.approx(values[mask].sum() / values[mask | brain].sum())
            assert row["foreground_chance"] == pytest.approx(mask.sum() / (mask | brain).sum())
    kept = Store(f"sqlite:///{output / 'mlflow.db'}", output).download(run_id, "saliency")
    names = {path.name for path in kept.iterdir()}
    assert names >= {"saliency.tsv", "summary_age_grad-cam-lower.png", "energy_age_grad-cam-lower.png"}
    assert main(["test", run_id, *store]) == 0
    assert main(["report", run_id, "--output", str(tmp_path / "report.html"), *store]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What makes the prediction lower: Grad-CAM of age in 3 participants (external)" in page
    assert "above chance in" in page
    assert page.count("data:image/png;base64,") == 2
    words = ["predict", run_id, "--data.table", str(held_out), "--output", str(tmp_path / "predicted")]
    assert main([*words, *store]) == 0
    predicted = pd.read_csv(tmp_path / "predicted" / "predictions.tsv", sep="\t")
    np.testing.assert_allclose(rows["prediction"], predicted["prediction"], rtol=1e-5)


def test_a_participant_of_the_training_is_shown_when_named_and_the_table_says_so(fitted, tmp_path, capsys):
    output, run_id = fitted
    parts = read_contract(output / "runs" / run_id).split["parts"]["train"]
    someone = next(key for keys in parts.values() for key in keys)
    words = ["saliency", run_id, "--participants", someone, "--toward", "lower", "--method", "guided-backprop"]
    assert main([*words, "--output", str(tmp_path), "--output-dir", str(output)]) == 0
    assert "1 of 1 maps are of participants of the training or validation part" in capsys.readouterr().out
    (row,) = pd.read_csv(tmp_path / "saliency.tsv", sep="\t").to_dict("records")
    assert (row["split"], row["map"]) == ("train", f"{row['participant_id']}_age_guided-backprop-lower.nii.gz")
    assert f"tiny/{row['participant_id']}" == someone
    assert np.isfinite(row["target"])
    assert main(["test", run_id, "--output-dir", str(output)]) == 0
    page = output / "runs" / run_id / "report.html"
    assert "Guided backpropagation of age in 1 participant (train)" in page.read_text(encoding="utf-8")


def test_only_those_held_out_are_chosen_and_unknown_names_are_refused(tiny_cohort):
    data = BaseDataModule(tiny_cohort, ["t1w"], ["age"], held_out_sites=["west"])
    data.assign_splits()
    chosen = choose(data, None, 3)
    assert [sample.image_id for sample in chosen] == [one.image_id for one in data.part("test", "external")[:3]]
    assert [sample.participant_id for sample in choose(data, ["sub-07", "tiny/sub-03"], 1)] == ["sub-03", "sub-07"]
    with pytest.raises(ConfigurationError, match="No participant is called nobody"):
        choose(data, ["sub-07", "nobody"], 1)
    with pytest.raises(ConfigurationError, match=r"no column site with the paths of masks; those with paths are t1w\."):
        require_mask_column(data, "site")
    data.samples = data.part("train")
    with pytest.raises(ConfigurationError, match="nobody to show"):
        choose(data, None, 3)


def test_a_bright_cube_returns_to_its_place_in_a_file_of_another_orientation(tmp_path):
    image = np.random.default_rng(0).normal(100, 5, (34, 36, 20)).astype(np.float32)
    image[5:13, 20:30, 3:7] = 900
    nib.save(nib.Nifti1Image(image, PSR), tmp_path / "a.nii.gz")
    (tmp_path / "cube.tsv").write_text("participant_id\timage\na\ta.nii.gz\n", encoding="utf-8")
    steps = Preprocessing(spacing=(2.5, 2.5, 2.5), shape=(40, 44, 36), centre="image", normalisation="none")
    data = BaseDataModule(tmp_path / "cube.tsv", ["image"], preprocessing=steps, allow_unverified=True)
    data.setup("predict")
    batch = data.on_after_batch_transfer(next(iter(data.predict_dataloader())), 0)
    maps = Saliency(BrightEncoder(), lambda outputs: outputs[:, 0])(batch["image"])
    native = data.to_native(maps[0].numpy(), data.samples[0])
    assert native.shape == image.shape
    inside = np.argwhere(native > native.max() / 2)
    edges = np.stack([inside.min(axis=0), inside.max(axis=0) + 1])
    assert np.abs(edges - [[5, 20, 3], [13, 30, 7]]).max() <= 1
    weights = native / native.sum()
    centre = [(weights * place).sum() for place in np.indices(native.shape)]
    np.testing.assert_allclose(centre, [8.5, 24.5, 4.5], atol=0.25)
    mirrored = nib.Nifti1Image((image > 500).astype(np.uint8)[:, ::-1], PSR @ MIRROR)
    nib.save(mirrored, tmp_path / "m.nii.gz")
    mask = on_grid_of(read_volume(tmp_path / "a.nii.gz"), tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(mask, image > 500)
    assert energy_inside(native, mask).hit == 1


def test_files_of_different_rows_have_different_names(tiny_cohort):
    data = BaseDataModule(tiny_cohort, ["t1w"])
    data.read()
    one, two = data.samples[:2]
    assert file_stems([one, two]) == ["sub-00", "sub-01"]
    assert file_stems([one, one]) == ["tiny-sub-00"] * 2


def test_the_command_line_offers_every_method():
    assert saliency.METHODS == METHODS  # the front door does not import torch to say so


def test_rows_of_the_same_map_are_replaced(tmp_path):
    row = {"dataset": "d", "participant_id": "01", "session_id": "", "image_id": "d/01", "output": "age"}
    row |= {"method": "grad-cam", "toward": "higher", "energy": 0.25}
    merge_table(tmp_path / "saliency.tsv", pd.DataFrame([row, row | {"participant_id": "02", "image_id": "d/02"}]))
    merge_table(tmp_path / "saliency.tsv", pd.DataFrame([row | {"energy": 0.5}, row | {"method": "guided-backprop"}]))
    merged = pd.read_csv(tmp_path / "saliency.tsv", sep="\t", dtype={"participant_id": str})
    assert merged["participant_id"].tolist() == ["02", "01", "01"]
    assert merged["energy"].tolist() == [0.25, 0.5, 0.25]

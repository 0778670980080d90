"""From a verified table to batches."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from datamodules.augmentation import Augmentation
from datamodules.base import BaseDataModule
from datamodules.brain_age import BrainAgeDataModule
from datamodules.cohort import CohortError, Column, Schema, read_cohort, schema_path
from datamodules.preprocessing import Preprocessing
from datamodules.verify import verify_cohort, write_manifest

SMALL = Preprocessing(spacing=(4.0, 4.0, 4.0), shape=(20, 18, 16))


def brain_age(table, **options):
    data = BrainAgeDataModule(table=table, **{"preprocessing": SMALL, "batch_size": 4, **options})
    data.prepare_data()
    return data


def copied(cohort, folder, name="tiny.tsv"):
    shutil.copytree(cohort.parent, folder, dirs_exist_ok=True)
    table = folder / "tiny.tsv"
    table.with_name("tiny.tsv.manifest.json").unlink()
    return table.rename(folder / name)


def verified(table):
    verification = verify_cohort(table)
    assert verification.ok, verification.problems
    write_manifest(verification)
    return table


def test_a_batch_keeps_the_contract(tiny_cohort):
    data = brain_age(tiny_cohort)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 1, *SMALL.shape)
    assert batch["image"].dtype == torch.float16
    assert batch["target"]["age"].shape == (4,)
    assert batch["affine"].shape == (4, 4, 4)
    assert batch["covariates"].shape == (4, 0)
    assert set(batch["split"]) == {"train"}
    for name in ("participant_id", "session_id", "image_id", "dataset", "site"):
        assert len(batch[name]) == 4
        assert all(isinstance(text, str) for text in batch[name])
    ready = data.on_after_batch_transfer(batch, 0)
    assert ready["image"].dtype == torch.float32


def test_targets_belong_to_their_images(tiny_cohort):
    data = brain_age(tiny_cohort)
    data.setup("fit")
    ages = pd.read_csv(tiny_cohort, sep="\t").set_index("participant_id")["age"]
    for batch in data.train_dataloader():
        for participant, age, image in zip(
            batch["participant_id"], batch["target"]["age"], batch["image"], strict=True
        ):
            assert float(age) == pytest.approx(ages[participant], abs=1e-3)
            volume = nib.load(tiny_cohort.parent / f"images/{participant}_T1w.nii.gz").get_fdata()
            foreground = (image > image.float().mean()).sum()
            assert int(foreground) == pytest.approx((volume > volume.mean()).sum(), rel=0.1)


def test_splits_are_disjoint_and_a_held_out_site_is_external(tiny_cohort):
    data = brain_age(tiny_cohort, held_out_sites=["west"])
    data.setup("fit")
    parts = {name: {s.participant_id for s in data.part(name)} for name in ("train", "val", "test", "external")}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 30
    assert {sample.site for sample in data.part("external")} == {"west"}
    assert {sample.site for sample in data.part("train", "val", "test")} == {"north", "south"}


def test_statistics_come_from_training_rows_alone(tiny_cohort):
    data = brain_age(tiny_cohort)
    data.setup("fit")
    expected = sorted(sample.targets["age"] for sample in data.part("train"))
    assert sorted(data.target_values("age").tolist()) == pytest.approx(expected)


def test_a_cohort_without_a_manifest_is_refused_unless_allowed(tiny_cohort, tmp_path):
    table = copied(tiny_cohort, tmp_path)
    with pytest.raises(CohortError, match="fontanel verify"):
        BrainAgeDataModule(table=table).read()
    data = BrainAgeDataModule(table=table, allow_unverified=True)
    data.assign_splits()
    assert data.cohort_facts()["verified"] is False


def test_a_changed_image_is_refused(tiny_cohort, tmp_path):
    table = verified(copied(tiny_cohort, tmp_path))
    image = tmp_path / "images" / "sub-00_T1w.nii.gz"
    volume = nib.load(image)
    nib.save(nib.Nifti1Image(np.asarray(volume.dataobj) + 1, volume.affine), image)
    with pytest.raises(CohortError, match="sub-00"):
        BrainAgeDataModule(table=table).read()


def test_a_missing_column_names_those_that_exist(tiny_cohort):
    with pytest.raises(CohortError, match=r"no column flair.*t1w"):
        BrainAgeDataModule(table=tiny_cohort, image="flair").read()


def test_a_hidden_truth_is_refused_as_a_target(tiny_cohort, tmp_path):
    table = copied(tiny_cohort, tmp_path)
    columns = [c if c.name != "age" else Column("age", "truth", "number") for c in read_cohort(table).schema.columns]
    schema_path(table).write_text(Schema(tuple(columns)).to_json())
    with pytest.raises(CohortError, match="hidden truth"):
        BrainAgeDataModule(table=verified(table)).read()


def test_tables_are_namespaced_by_dataset(tiny_cohort, tmp_path):
    other = verified(copied(tiny_cohort, tmp_path, "other.tsv"))
    data = BrainAgeDataModule(table=[tiny_cohort, other])
    data.assign_splits()
    assert {sample.dataset for sample in data.samples} == {"tiny", "other"}
    assert len(data.samples) == 60
    with pytest.raises(CohortError, match="are both of the dataset tiny"):
        BrainAgeDataModule(table=[tiny_cohort, tiny_cohort]).read()
    named = copied(tiny_cohort, tmp_path, tiny_cohort.name)  # two tables of one name, as two labs may well have
    pd.read_csv(named, sep="\t").assign(dataset="elsewhere").to_csv(named, sep="\t", index=False)
    data = BrainAgeDataModule(table=[tiny_cohort, verified(named)])
    data.read()
    assert {sample.dataset for sample in data.samples} == {"tiny", "elsewhere"}


def test_rows_without_an_image_are_all_named_with_the_condition_that_leaves_them_out(tiny_cohort, tmp_path):
    table = copied(tiny_cohort, tmp_path, "gaps.tsv")
    columns = read_cohort(table).schema.columns
    schema_path(table).write_text(Schema(tuple(replace(c, required=c.role == "id") for c in columns)).to_json())
    table.write_text(table.read_text().replace("images/sub-03_T1w.nii.gz", "").replace("images/sub-07_T1w.nii.gz", ""))
    verified(table)
    with pytest.raises(CohortError, match=r"2 missing_value.*data.rows \"t1w != ''\"") as caught:
        BrainAgeDataModule(table=table).read()
    assert [problem.participant_id for problem in caught.value.problems] == ["sub-03", "sub-07"]
    data = BrainAgeDataModule(table=table, rows="t1w != ''")
    data.read()
    assert len(data.samples) == 28


def test_augmentation_touches_training_batches_alone(tiny_cohort):
    class Stage:
        training, global_rank, world_size = True, 0, 1

    data = brain_age(tiny_cohort, augmentation=Augmentation())
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    data.trainer = Stage
    once, twice = (data.on_after_batch_transfer(batch, 0)["image"] for _ in range(2))
    assert torch.equal(once, twice)
    assert not torch.equal(once, batch["image"].float())
    later = data.on_after_batch_transfer({**batch, "epoch": batch["epoch"] + 1}, 0)["image"]
    assert not torch.equal(once, later)
    Stage.training = False
    assert torch.equal(data.on_after_batch_transfer(batch, 0)["image"], batch["image"].float())


def test_age_balanced_sampling_evens_out_the_age_ranges(tiny_cohort):
    data = brain_age(tiny_cohort, sampling="age-balanced", num_age_bins=3)
    data.setup("fit")
    samples = data.part("train")
    weights = np.array(data.sampling_weights(samples))
    ages = np.array([sample.targets["age"] for sample in samples])
    bins = np.digitize(ages, np.linspace(ages.min(), ages.max(), 4)[1:-1])
    shares = [weights[bins == index].sum() for index in range(3)]
    assert shares == pytest.approx([shares[0]] * 3)


def test_a_map_returns_to_the_native_grid(tiny_cohort):
    data = brain_age(tiny_cohort)
    data.setup("fit")
    sample = data.part("train")[0]
    cached = data.cache.get(sample.files.images, sample.files.mask, sample.files.sha256s)
    native = nib.load(sample.files.images[0])
    back = data.to_native(np.asarray(cached.array[0], dtype=np.float32), sample)
    assert back.shape == native.shape
    assert np.corrcoef(back.ravel(), native.get_fdata().ravel())[0, 1] > 0.98


def test_prediction_needs_neither_labels_nor_splits(tiny_cohort, tmp_path):
    table = copied(tiny_cohort, tmp_path, "new.tsv")
    pd.read_csv(table, sep="\t").drop(columns="age").to_csv(table, sep="\t", index=False)
    data = BaseDataModule(table=verified(table), images=["t1w"], targets=["age"], preprocessing=SMALL)
    data.labels_required = False
    data.prepare_data()
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert torch.isnan(batch["target"]["age"]).all()
    assert set(batch["split"]) == {"predict"}


def test_cohort_facts_hold_counts_and_no_identifier(tiny_cohort):
    data = brain_age(tiny_cohort, held_out_sites=["west"])
    data.setup("fit")
    facts = data.cohort_facts()
    assert sum(count["participants"] for count in facts["counts"]) == 30
    assert "sub-00" not in json.dumps(facts)

"""From ADC, its z-scores and an outcome to batches: units, channels, missing labels, visits that belong together."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from jsonargparse import ArgumentParser

from datamodules import BaseDataModule, HIEOutcomeDataModule
from datamodules.cohort import CohortError, Column, Schema, schema_path
from datamodules.preprocessing import Preprocessing, PreprocessingError
from datamodules.verify import verify_cohort, write_manifest

AFFINE = np.array([[0, 0, 2.0, -9], [-1.5, 0, 0, 8], [0, 1.25, 0, -3], [0, 0, 0, 1]])
SHAPE = (7, 8, 9)
AS_STORED = Preprocessing(
    spacing=None, shape=(9, 7, 8), centre="image", foreground="nonzero", normalisation=("none", "none")
)
NUM_PARTICIPANTS = 24
COLUMNS = (
    Column("participant_id", "id", "text"),
    Column("session_id", "session", "text"),
    Column("site", "site", "text"),
    Column("adc", "image", "path", unit="1e-3 mm2/s", grid="g"),
    Column("zadc", "image", "path", grid="g"),
    Column("outcome", "target", "number", required=False),
    Column("birth_weight", "covariate", "number", unit="g"),
    Column("sex", "group", "text"),
)


def write(folder, unit=1.0, columns=COLUMNS):
    """Write a cohort whose ADC is stored in `unit` times 1e-3 mm2/s; participant 5 has two visits, 6 no outcome."""
    generator = np.random.default_rng(0)
    inside = np.zeros(SHAPE, bool)
    inside[1:-1, 1:-1, 1:-1] = True
    rows = []
    for index in range(NUM_PARTICIPANTS):
        for visit in ("1", "2") if index == 5 else ("1",):
            adc = np.where(inside, generator.uniform(0.4, 2.0, SHAPE).round(3), 0)
            zadc = np.where(inside, generator.normal(-1, 2, SHAPE), 0)
            files = [f"{index}-{visit}-adc.nii", f"{index}-{visit}-zadc.nii"]
            for name, values in zip(files, (adc * unit, zadc), strict=True):
                nib.save(nib.Nifti1Image(values.astype(np.float32), AFFINE), folder / name)
            outcome = "n/a" if index == 6 else int(index % 3 == 0)
            known = [outcome, "n/a" if index % 2 else 3000 + index, "FM"[index % 2]]
            rows.append([f"p{index}", visit, "ab"[index // 12], *files, *known])
    table = folder / "hie.tsv"
    pd.DataFrame(rows, columns=[column.name for column in columns]).to_csv(table, sep="\t", index=False)
    schema_path(table).write_text(Schema(columns).to_json())
    verification = verify_cohort(table)
    assert verification.ok, verification.problems
    write_manifest(verification)
    return table


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write(tmp_path_factory.mktemp("hie"))


def hie(table, **options):
    return HIEOutcomeDataModule(table=table, **{"preprocessing": AS_STORED, "batch_size": 4, **options})


def test_adc_arrives_in_1e_3_mm2_per_s_whatever_the_file_holds(table, tmp_path):
    micro = tuple(c if c.name != "adc" else Column("adc", "image", "path", scale=1e-3, grid="g") for c in COLUMNS)
    other = write(tmp_path, unit=1000.0, columns=micro)
    volumes = []
    for data in (hie(table), hie(other)):
        data.prepare_data()
        data.setup("fit")
        volumes.append(next(iter(data.val_dataloader()))["image"].float())
    assert volumes[0].shape[1:] == (2, 9, 7, 8)
    torch.testing.assert_close(volumes[1], volumes[0])
    first = hie(table)
    first.setup("predict")
    native = nib.as_closest_canonical(nib.load(table.parent / "0-1-adc.nii")).get_fdata()
    image = next(iter(first.predict_dataloader()))["image"][0, 0]
    np.testing.assert_allclose(image, native, atol=1e-3)
    keys = {data.cache.key(("a", "b"), scales) for data in (first,) for scales in (None, (1.0, 1.0), (1e-3, 1.0))}
    assert len(keys) == 2  # and what is not scaled keeps the key that it had


def test_channels_are_normalised_apart_and_zadc_may_be_left_alone(table):
    both, first = (
        hie(table, preprocessing=Preprocessing(**{**AS_STORED.__dict__, "normalisation": kind}))
        for kind in ("zscore", ["zscore", "none"])
    )
    plain = hie(table)
    images = []
    for data in (both, first, plain):
        data.setup("predict")
        images.append(next(iter(data.predict_dataloader()))["image"][0].float())
    inside = images[2] != 0
    for channel in range(2):
        values = images[0][channel][inside[channel]]
        assert (float(values.mean()), float(values.std())) == (pytest.approx(0, abs=1e-3), pytest.approx(1, abs=1e-3))
    assert torch.equal(images[1][0], images[0][0])
    assert torch.equal(images[1][1], images[2][1])
    with pytest.raises(PreprocessingError, match=r"2 ways .* for 1 channels"):
        hie(table, images=["adc"])


def test_the_outcome_is_even_over_the_splits_and_visits_stay_together(table):
    for seed in range(5):
        data = hie(table, split_seed=seed, val_fraction=0.25, test_fraction=0.25)
        data.assign_splits()
        parts = data.frame(["outcome"]).dropna().groupby("split")["outcome"].agg(["sum", "size"])
        assert (abs(parts["sum"] - parts["size"] / 3) <= 1.5).all()
        assert len({sample.split for sample in data.samples if sample.participant_id == "p5"}) == 1


def test_an_image_without_outcome_trains_nothing_and_a_covariate_may_be_missing(table):
    data = hie(table, covariates=["birth_weight"], val_fraction=0, test_fraction=0, batch_size=1)
    data.setup("fit")
    assert "p6" in {sample.participant_id for sample in data.part("train")}
    batches = list(data.train_dataloader())
    assert "p6" not in {batch["participant_id"][0] for batch in batches}
    assert {float(batch["target"]["outcome"]) for batch in batches} == {0.0, 1.0}
    weights = {batch["participant_id"][0]: float(batch["covariates"]) for batch in batches}
    assert all(np.isnan(value) == int(name[1:]) % 2 for name, value in weights.items())
    everybody = hie(table)
    everybody.setup("predict")
    target = torch.cat([batch["target"]["outcome"] for batch in everybody.predict_dataloader()])
    assert int(target.isnan().sum()) == 1


def test_only_unknown_outcomes_leave_nobody_to_train(table):
    data = hie(
        table, rows="participant_id == 'p6' or site == 'b'", held_out_sites=["b"], val_fraction=0, test_fraction=0
    )
    with pytest.raises(CohortError, match="No participant with a known outcome is left"):
        data.setup("fit")


def test_what_is_no_outcome_and_no_number_is_refused(table, tmp_path):
    with pytest.raises(CohortError, match=r"covariate sex of hie.tsv is text \(F, M\)"):
        hie(table, covariates=["sex"]).read()
    with pytest.raises(CohortError, match=r"birth_weight .* neither 0 nor 1 in row 1 \(3000\), row 3"):
        hie(table, target="birth_weight").read()
    data = hie(table, target="unheard")
    with pytest.raises(CohortError, match="no column unheard"):
        data.read()
    data.labels_required = False
    data.read()
    with pytest.raises(CohortError, match="make-cohort hie-outcome"):
        hie(tmp_path / "none.tsv").read()


def test_a_configuration_names_it_and_sets_one_thing(table):
    parser = ArgumentParser()
    parser.add_subclass_arguments(BaseDataModule, "data")
    words = ["--data=datamodules.HIEOutcomeDataModule", f"--data.table={table}", "--data.covariates=[birth_weight]"]
    words += ["--data.preprocessing.normalisation=[zscore, none]", "--data.rows=birth_weight > 3000"]
    data = parser.instantiate(parser.parse_args(words)).data
    assert data.preprocessing.normalisation == ("zscore", "none")
    assert (data.preprocessing.foreground, data.images) == ("nonzero", ["adc", "zadc"])
    data.assign_splits()
    assert json.dumps(data.cohort_facts()["rows"]) == '{"expression": "birth_weight > 3000", "kept": 11, "of": 25}'

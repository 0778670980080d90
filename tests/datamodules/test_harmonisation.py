"""ComBat as an arm: fitted on the training part alone, the same for every image of a site, kept with the model."""

import io
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from datamodules.base import BaseDataModule
from datamodules.cohort import Column, Schema, schema_path
from datamodules.combat import Combat, HarmonisationError
from datamodules.harmonisation import SiteMaps, require_harmonisable
from datamodules.preprocessing import Preprocessing
from datamodules.protocols import PROTOCOLS, Design, plan_cells
from datamodules.splits import Split

SHAPE = (7, 6, 5)
AS_STORED = Preprocessing(spacing=None, shape=SHAPE, centre="image", foreground="nonzero", normalisation="none")
SITES = ("a", "b", "c")
COLUMNS = (
    Column("participant_id", "id", "text"),
    Column("session_id", "session", "text"),
    Column("site", "site", "text"),
    Column("t1", "image", "path", grid="g"),
    Column("t2", "image", "path", grid="g"),
    Column("outcome", "target", "number", required=False),
    Column("age", "covariate", "number", unit="years"),
    Column("sex", "group", "text"),
)
PARTS = ("train", "train", "train", "train", "train", "val", "test", "test")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A folder with a table of 24 participants at three sites of different gain, and who is in which part."""
    folder = tmp_path_factory.mktemp("sites")
    generator = np.random.default_rng(0)
    inside = np.zeros(SHAPE, bool)
    inside[1:-1, 1:-1, 1:-1] = True
    anatomy, rows = generator.uniform(1, 2, SHAPE), []
    parts = {part: {site: [] for site in SITES} for part in set(PARTS)}
    for index in range(24):
        name, site = f"p{index:02d}", SITES[index % 3]
        parts[PARTS[index // 3]][site].append(f"sites/{name}")
        for visit in "12" if index == 3 else "1":
            age = float(generator.uniform(20, 60) + 10 * (index % 3))
            files = [f"{name}-{visit}-{channel}.nii" for channel in ("t1", "t2")]
            for number, file in enumerate(files):
                noise = generator.normal(0, 0.1 * (1 + index % 3), SHAPE)
                values = np.where(inside, (anatomy + age / 100) * (1 + index % 3) + number + noise, 0)
                nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), folder / file)
            rows.append([name, visit, site, *files, index % 2, age, "FM"[index // 3 % 2]])
    table = folder / "sites.tsv"
    pd.DataFrame(rows, columns=[column.name for column in COLUMNS]).to_csv(table, sep="\t", index=False)
    schema_path(table).write_text(Schema(COLUMNS).to_json())
    keys = {part: {site: tuple(sorted(names)) for site, names in sites.items()} for part, sites in parts.items()}
    Split("k-fold", 0, keys).write(folder / "folds.json")
    return folder


def module(folder, stage="fit", **options):
    chosen = {"images": ["t1", "t2"], "targets": ["outcome"], "preprocessing": AS_STORED, "batch_size": 3}
    chosen |= {"split_file": folder / "folds.json", "harmonisation": "combat", "allow_unverified": True}
    data = BaseDataModule(table=folder / "sites.tsv", **{**chosen, **options})
    data.setup(stage)
    return data


def images(data, loader):
    return {
        image_id: image
        for batch in loader
        for image_id, image in zip(batch["image_id"], data.on_after_batch_transfer(batch, 0)["image"], strict=True)
    }


def everybody(data):
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    return {name: image for loader in loaders for name, image in images(data, loader).items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])), name


def maps_of(folder, **options):
    state = module(folder, **options).state_dict()["combat"]
    return {name: state[name] for name in ("inside", "scale", "shift")}


def changed(folder, target, change):
    """Copy the cohort with another table; the function may change images beside it, too."""
    shutil.copytree(folder, target)
    change(pd.read_csv(target / "sites.tsv", sep="\t"), target).to_csv(target / "sites.tsv", sep="\t", index=False)
    return target


def held(table, part):
    return table.index[[PARTS[int(name[1:]) // 3] == part for name in table["participant_id"]]]


def add_noise(table, folder, rows):
    for file in table.loc[rows, ["t1", "t2"]].to_numpy().ravel():
        volume = nib.load(folder / file)
        noise = np.random.default_rng(1).normal(0, 5, SHAPE)
        nib.save(nib.Nifti1Image((volume.get_fdata() + noise).astype(np.float32), np.eye(4)), folder / file)
    return table


def test_every_image_of_a_site_goes_through_the_map_that_training_gave(cohort):
    plain, ours = module(cohort, harmonisation="none"), module(cohort)
    before, after = everybody(plain), everybody(ours)
    assert len(after) == 24  # the incomplete last batch of the training is left out, and p03 came twice
    first = [s for s in plain.part("train") if (s.participant_id, s.session_id) != ("p03", "2")]
    volumes = [plain.cache.get(s.files.images, sha256s=s.files.sha256s).array.astype(np.float64) for s in first]
    inside = np.zeros(SHAPE, bool)
    inside[1:-1, 1:-1, 1:-1] = True
    sites = {sample.image_id: sample.site for sample in plain.samples}
    for channel in range(2):
        rows = np.array([volume[channel][inside] for volume in volumes])
        combat = Combat.fit(rows, [sample.site for sample in first])
        for name, image in after.items():
            expected = before[name][channel].numpy().copy()
            expected[inside] = combat.transform(expected[inside][None], [sites[name]])[0]
            np.testing.assert_allclose(image[channel], expected, rtol=1e-5, atol=1e-6)
            assert image.dtype == torch.float32
            assert not image[channel][~inside].any()
    gaps = [{site: [] for site in SITES} for _ in range(2)]
    for gap, seen in zip(gaps, (before, after), strict=True):
        for name, image in seen.items():
            gap[sites[name]].append(float(image[:, 1:-1, 1:-1, 1:-1].mean()))
    spread = [np.ptp([np.mean(values) for values in gap.values()]) for gap in gaps]
    assert spread[1] < 0.2 * spread[0]


def test_nothing_of_those_who_are_tested_and_no_outcome_enters(cohort, tmp_path):
    def away(table, folder):
        for part in ("val", "test"):
            add_noise(table, folder, held(table, part))
            table.loc[held(table, part), "outcome"] ^= 1
            table.loc[held(table, part), "age"] += 50
        return table

    def shuffled(table, folder):
        outcome = ["n/a", "1", *table["outcome"][:-2].astype(str)]  # who is not labelled is not trained on, but seen
        return table.assign(outcome=outcome).sort_values(["outcome", "age"])

    options = {"harmonise_covariates": ["age", "sex"]}
    first = maps_of(cohort, **options)
    for number, change in enumerate((away, shuffled)):
        assert_same(maps_of(changed(cohort, tmp_path / str(number), change), **options), first)
    assert_same(maps_of(cohort, permute_targets=True, **options), first)
    trained = changed(cohort, tmp_path / "trained", lambda table, folder: add_noise(table, folder, [0]))
    older = changed(cohort, tmp_path / "older", lambda table, _: table.assign(age=table["age"] ** 2))
    for other in (maps_of(trained, **options), maps_of(older, **options), maps_of(cohort)):
        assert not torch.equal(other["shift"], first["shift"])


def test_readers_of_any_kind_give_the_same_batches(cohort):
    alone = module(cohort)
    beside = module(cohort, num_workers=2)
    assert alone.train_dataloader().reads_ahead
    assert_same(everybody(alone), everybody(beside))


def test_a_model_takes_its_maps_along_and_fits_nothing_again(cohort, monkeypatch):
    trained = module(cohort, harmonise_covariates=["age"])
    expected = everybody(trained)
    content = io.BytesIO()
    torch.save(trained.state_dict(), content)
    content.seek(0)
    state = torch.load(content, weights_only=True)
    monkeypatch.setattr(SiteMaps, "fit", None)
    for stage in ("fit", "test", "predict"):
        data = module(cohort, stage, harmonise_covariates=["age"])
        data.load_state_dict(state)
        for name, image in images(data, data.test_dataloader()).items():
            assert torch.equal(image, expected[name])
    for changes in (
        {"harmonisation": "none"},
        {"preprocessing": Preprocessing(spacing=None, shape=SHAPE)},
        {"harmonise_covariates": ["sex"]},
    ):
        with pytest.raises(HarmonisationError, match=f"data.{next(iter(changes))} would give it others"):
            module(cohort, "test", **{"harmonise_covariates": ["age"], **changes}).load_state_dict(state)
    with pytest.raises(HarmonisationError, match="the checkpoint holds no fitted ComBat"):
        module(cohort, "test").test_dataloader()


def test_sites_that_training_does_not_have_are_refused_before_it(cohort, tmp_path):
    with pytest.raises(HarmonisationError, match=r"not seen.* c has none among those of a, b\. .*zscore"):
        module(cohort, split_file=None, held_out_sites=["c"], stratify_by="outcome")
    data = module(cohort, harmonisation="none")
    frame = pd.concat([table.frame for table in data.cohorts], ignore_index=True)
    for protocol in PROTOCOLS:
        sites = ("b",) if protocol == "external" else ()
        cells = plan_cells(frame, Design(protocol, num_folds=3, external_sites=sites), "outcome")
        for cell in cells:
            if protocol in ("k-fold", "multi-site"):
                require_harmonisable(cell.split)
                continue
            with pytest.raises(HarmonisationError, match="the single site" if protocol == "same-site" else "not seen"):
                require_harmonisable(cell.split)
    parts = Split.read(cohort / "folds.json").parts
    few = Split("k-fold", 0, {**parts, "train": {**parts["train"], "c": parts["train"]["c"][:1]}})
    with pytest.raises(HarmonisationError, match=r"fewer of c \(1\)"):
        require_harmonisable(few)
    module(cohort, harmonisation="none").require_harmonisable(few)
    elsewhere = changed(cohort, tmp_path / "new", lambda table, _: table.assign(site="d"))
    new = module(elsewhere, "predict", split_file=None)
    new.load_state_dict(module(cohort).state_dict())
    with pytest.raises(HarmonisationError, match=r"not seen.* d has none"):
        new.predict_dataloader()


def test_covariates_are_columns_of_numbers_or_words_and_never_the_target(cohort):
    for name, reason in (("outcome", "must not see"), ("site", "must not see"), ("t2", "files"), ("x", "no column x")):
        with pytest.raises(ValueError, match=reason):
            module(cohort, harmonise_covariates=["age", name])
    assert module(cohort, harmonise_covariates=["sex"]).describe_harmonisation()["covariates"] == ["sex"]
    assert module(cohort, harmonisation="none").data_contract()["harmonisation"] is None


def test_a_voxel_that_a_site_does_not_have_is_left_alone():
    generator = np.random.default_rng(0)
    volumes = generator.normal(3, 1, (12, 1, 4, 4, 4)).astype(np.float16)
    volumes[:, :, 0] = 0
    volumes[:5, :, 1] = 0  # site a sees one image there
    site = ["a"] * 6 + ["b"] * 6
    maps = SiteMaps.fit(list(volumes), site)
    assert maps.inside[0].any(dim=(1, 2)).tolist() == [False, False, True, True]
    image = torch.from_numpy(volumes[[0, 11]])
    result = maps.apply(image, ["a", "b"])
    assert torch.equal(result[:, :, :2], image[:, :, :2].float())
    assert not torch.isclose(result[:, :, 2:], image[:, :, 2:].float()).any()
    with pytest.raises(HarmonisationError, match="No voxel of channel 0"):
        SiteMaps.fit(list(volumes[:, :, :1]), site)

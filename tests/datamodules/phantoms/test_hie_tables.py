"""What a cohort of newborns leaves on disk: bytes, tables over the same images, and what a model may read of them."""

import hashlib
import json

import numpy as np
import pytest

from datamodules import HIEOutcomeDataModule
from datamodules.cohort import CohortError, read_cohort
from datamodules.phantoms import PhantomError
from datamodules.phantoms.hie_columns import OUTCOME_COLUMNS
from datamodules.phantoms.hie_outcome import HIEOutcomePhantom
from datamodules.verify import check_manifest

TINY = (16, 18, 16)
VISIBLE = {
    "id": ["participant_id"],
    "dataset": ["dataset"],
    "site": ["site"],
    "image": ["adc", "zadc"],
    "mask": ["lesion"],
    "target": ["outcome"],
    "covariate": ["gestational_age", "birth_weight", "sex", "apgar_5min", "cord_ph", "day_of_life", "lesion_ml"],
    "group": ["anatomy_id"],
}


def newborns(folder, num_participants=40, **options):
    return HIEOutcomePhantom(num_participants, 9, shape=TINY, labels=folder, **options)


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "manifest" not in path.name)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory, head_folder):
    folder = tmp_path_factory.mktemp("hie")
    return newborns(head_folder).write(folder)


def test_the_table_hides_the_truth_and_misses_values(written):
    cohort = read_cohort(written)
    roles = {role: [column.name for column in cohort.schema.of_role(role)] for role in VISIBLE}
    assert roles == VISIBLE
    assert len(check_manifest(cohort).files) == 40 * 3
    frame = cohort.frame
    assert set(frame["dataset"]) == {"phantom-hie-9"}
    assert 0.15 < frame["birth_weight"].isna().mean() < 0.65
    assert frame[["sex", "day_of_life", "outcome", "lesion_ml", "true_cord_ph"]].notna().all(axis=None)
    known = frame["cord_ph"].notna()
    assert (frame["cord_ph"] == frame["true_cord_ph"])[known].all()
    assert not known.all()
    for name in VISIBLE["covariate"]:
        assert cohort.schema.column(name).required is False
    assert (cohort.schema.column("adc").unit, cohort.schema.column("birth_weight").unit) == ("1e-3 mm2/s", "g")
    np.testing.assert_allclose(frame["bayes_probability"], 1 / (1 + np.exp(-frame["linear_predictor"])), atol=1e-5)


@pytest.mark.parametrize("name", ["latent_factor", "bayes_probability", "deep_grey_injury", "true_lesion_ml"])
def test_no_model_reads_a_truth(written, name):
    module = HIEOutcomeDataModule(table=written, covariates=[name])
    with pytest.raises(CohortError, match="hidden truth"):
        module.assign_splits()


def test_bytes_do_not_depend_on_workers_or_on_how_many_are_made(tmp_path, written, head_folder):
    newborns(head_folder).write(tmp_path / "together", num_workers=2)
    assert digests(tmp_path / "together") == digests(written.parent)
    table = newborns(head_folder, 3).write(tmp_path / "few")
    few, many = (path.read_text(encoding="utf-8").splitlines() for path in (table, written))
    assert few == many[:4]
    images = {name: digest for name, digest in digests(tmp_path / "few").items() if name.startswith("images")}
    assert len(images) == 9
    assert images.items() <= digests(written.parent).items()


def test_the_switch_changes_the_outcome_and_nothing_else(tmp_path, written, head_folder):
    apart = newborns(head_folder, shared_factor="off").write(tmp_path)
    images = [{k: v for k, v in digests(table.parent).items() if k.startswith("images")} for table in (written, apart)]
    assert images[0] == images[1]
    on, off = (read_cohort(table).frame for table in (written, apart))
    others = [name for name in on.columns if name not in OUTCOME_COLUMNS]
    assert on[others].equals(off[others])
    assert (on["linear_predictor"] != off["linear_predictor"]).all()
    assert 0 < (on["outcome"] != off["outcome"]).sum() < 30


def test_a_second_table_over_the_same_images_is_the_one_that_rendering_gives(tmp_path, written, head_folder):
    rendered = newborns(head_folder, shared_factor="off").write(tmp_path / "rendered")
    newborns(head_folder).write(tmp_path / "reused")
    before = digests(tmp_path / "reused")
    table = newborns(head_folder, shared_factor="off").relabel(tmp_path / "reused")
    assert table.name == "cohort_shared-factor-off.tsv"
    assert table.read_bytes() == rendered.read_bytes()
    assert len(check_manifest(read_cohort(table)).files) == 120
    truths = [json.loads(path.with_name(path.name + ".truth.json").read_text()) for path in (table, rendered)]
    assert truths[0] == truths[1]
    assert before.items() <= digests(tmp_path / "reused").items()
    with pytest.raises(PhantomError, match="--overwrite"):
        newborns(head_folder, shared_factor="off").relabel(tmp_path / "reused")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_participants": 39}, "40 participants instead of 39"),
        ({"images": ("adc",)}, "other columns"),
        ({"num_sites": 3}, "row 3 has site site-a, but these options give site-c"),
    ],
)
def test_images_of_other_newborns_are_not_reused(written, head_folder, options, message):
    with pytest.raises(PhantomError, match=message):
        newborns(head_folder, **options).relabel(written.parent)
    assert not written.with_name("cohort_shared-factor-on.tsv").exists()


def test_nothing_is_reused_where_nothing_is(tmp_path, head_folder):
    with pytest.raises(PhantomError, match="Make the cohort first"):
        newborns(head_folder).relabel(tmp_path)

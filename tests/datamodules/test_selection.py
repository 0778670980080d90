"""A part of the rows by an expression, and columns as a table; an error names the columns that there are."""

import pandas as pd
import pytest

from datamodules.brain_age import BrainAgeDataModule
from datamodules.cohort import CohortError, Column, Schema, read_cohort, schema_path

KEYS = ["dataset", "participant_id", "session_id", "image_id", "site", "split"]


@pytest.fixture
def truthful(tmp_path):
    """A table with a hidden truth, and text with missing values."""
    table = tmp_path / "t.tsv"
    rows = ["p1\t1.nii\t3\tF\t0.1\ta", "p2\t2.nii\t8\t\t0.9\ta", "p3\t3.nii\tn/a\tM\t0.4\tb", "p4\t4.nii\t5\tM\t0.2\tb"]
    table.write_text("\n".join(["participant_id\tt1w\tage\tsex\tgap\tsite", *rows]) + "\n")
    columns = [Column("participant_id", "id", "text"), Column("t1w", "image", "path"), Column("site", "site", "text")]
    columns += [Column("age", "target", "number", required=False), Column("sex", "group", "text")]
    schema_path(table).write_text(Schema((*columns, Column("gap", "truth", "number"))).to_json())
    return table


def brain_age(table, **options):
    return BrainAgeDataModule(table=table, allow_unverified=True, **options)


@pytest.mark.parametrize(
    ("expression", "kept"),
    [
        ("age <= 5", ["p1", "p4"]),
        ("age <= 5 and site == 'b'", ["p4"]),
        ("sex in ['F', 'M']", ["p1", "p3", "p4"]),
        ("age.isna() or sex == ''", ["p2", "p3"]),
        ("participant_id != 'p1'", ["p2", "p3", "p4"]),
        ("2 < age < 4", ["p1"]),
    ],
)
def test_rows_are_those_for_which_the_expression_is_true(truthful, expression, kept):
    data = brain_age(truthful, rows=expression)
    data.read()
    assert [sample.participant_id for sample in data.samples] == kept
    assert data.frame([])["participant_id"].tolist() == kept
    assert data.num_rows == 4


@pytest.mark.parametrize(
    "expression",
    ["agee < 3", "age <", "age + 1", "sex < 3", "", "gap > 0", "@pd", "age.__abs__() > 1", "True", "nobody()"],
)
def test_an_expression_that_chooses_nothing_names_itself_and_the_columns(truthful, expression):
    with pytest.raises(CohortError) as caught:
        brain_age(truthful, rows=expression).read()
    assert f"`{expression}`" in str(caught.value)
    assert "t.tsv" in str(caught.value)
    assert "participant_id, t1w, site, age, sex, session_id" in str(caught.value)
    assert "gap," not in str(caught.value)
    with pytest.raises(CohortError, match=r"`age > 99` is true for no row of t.tsv"):
        brain_age(truthful, rows="age > 99").read()


def test_the_filter_comes_before_the_split_and_is_recorded(tiny_cohort):
    data = BrainAgeDataModule(table=tiny_cohort, rows="age < 60")
    data.assign_splits()
    ages = pd.read_csv(tiny_cohort, sep="\t")["age"]
    assert data.cohort_facts()["rows"] == {"expression": "age < 60", "kept": int((ages < 60).sum()), "of": 30}
    young = read_cohort(tiny_cohort).frame.query("age < 60")
    assert {key for part in ("train", "val", "test") for key in data.split.keys(part)} == {
        f"tiny/{name}" for name in young["participant_id"]
    }
    whole = BrainAgeDataModule(table=tiny_cohort)
    whole.assign_splits()
    assert whole.cohort_facts()["rows"] is None
    data = BrainAgeDataModule(table=tiny_cohort, rows="age < 60")
    data.labels_required = False  # a prediction takes every row
    data.setup("predict")
    assert len(data.samples) == 30


def test_a_frame_has_keys_and_the_columns_that_were_asked_for(truthful):
    data = brain_age(truthful)
    frame = data.frame(["sex", "age", "site", "sex"])
    assert frame.columns.tolist() == [*KEYS, "sex", "age"]
    assert frame["age"].isna().tolist() == [False, False, True, False]
    assert frame["sex"].tolist() == ["F", "", "M", "M"]
    assert frame["site"].tolist() == ["a", "a", "b", "b"]
    with pytest.raises(CohortError, match=r"t.tsv has no column weight; it has participant_id, t1w"):
        data.frame(["age", "weight"])
    with pytest.raises(CohortError, match=r"gap in t.tsv is a hidden truth"):
        data.frame(["gap"])
    assert data.frame(["gap"], allow_truth=True)["gap"].tolist() == [0.1, 0.9, 0.4, 0.2]

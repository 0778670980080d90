"""The sidecar: what a column means, read, written and guessed."""

import pandas as pd
import pytest

from datamodules.cohort import CohortError, Column, Schema, check_table, schema_path
from datamodules.problems import CohortError as SameError

FRAME = pd.DataFrame(
    {
        "participant_id": ["p1", "p2", "p3"],
        "session_id": ["a", "b", "c"],
        "site": ["1", "2", "3"],
        "age": ["40", "forty", "41"],
        "sex": ["F", "M", "F"],
        "weight": ["60", "n/a", ""],
        "family_id": ["1", "1", "2"],
        "outcome": ["", "", ""],
        "t1w": ["1.nii.gz", "2.nii", "3.mha"],
        "flair": ["1.nii.gz", "", "3.nii.gz"],
        "brain_mask": ["1.nii.gz", "", "3.nii.gz"],
        "lesion": ["1.nii.gz", "", "3.nii.gz"],
        "truth_gap": ["0.1", "0.2", "0.3"],
        "series": ["dicom", "dicom2", "dicom3"],
        "remark": ["x" * 5000, "", "."],
        "folder": ["..", ".", "n/a"],
    }
)


def test_a_guess_names_roles_and_kinds(tmp_path):
    (tmp_path / "dicom").mkdir()
    schema = Schema.guess(FRAME, tmp_path)
    assert schema.guessed
    assert {column.name: (column.role, column.kind) for column in schema.columns} == {
        "participant_id": ("id", "text"),
        "session_id": ("session", "text"),
        "site": ("site", "text"),
        "age": ("target", "number"),
        "sex": ("group", "text"),
        "weight": ("covariate", "number"),
        "family_id": ("group", "number"),
        "outcome": ("target", "number"),
        "t1w": ("image", "path"),
        "flair": ("image", "path"),
        "brain_mask": ("mask", "path"),
        "lesion": ("target", "path"),
        "truth_gap": ("truth", "number"),
        "series": ("image", "path"),
        "remark": ("group", "text"),
        "folder": ("group", "text"),
    }
    age = schema.column("age")
    assert (age.unit, age.minimum, age.required) == ("years", 0.0, True)
    assert [schema.column(name).required for name in ("t1w", "weight", "outcome", "lesion")] == [True] + [False] * 3
    assert [schema.column(name).grid for name in ("t1w", "brain_mask", "flair")] == ["t1w", "t1w", None]


def test_the_sidecar_keeps_everything(tmp_path):
    column = Column("age", "target", "number", "years", 0, 97.5, required=False, description="at the scan")
    images = Column("adc", "image", "path", grid="g", scale=0.001), Column("m", "mask", "path", may_be_empty=True)
    schema = Schema((Column("id", "id", "text"), Column("t1w", "image", "path", grid="g"), *images, column))
    assert Schema.from_json(schema.to_json()) == schema
    guess = Schema.guess(FRAME, tmp_path)
    assert Schema.from_json(guess.to_json()).columns == guess.columns
    assert schema_path(tmp_path / "c.tsv") == tmp_path / "c.tsv.json"
    assert SameError is CohortError


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ('{"role": "labell", "kind": "number"}', "labell"),
        ('{"role": "target", "kind": "int"}', "int"),
        ('{"role": "target"}', "no kind"),
        ('{"role": "image", "kind": "text"}', "path"),
        ('{"role": "site", "kind": "number"}', "text"),
        ('{"role": "target", "kind": "text", "minimum": 0}', "minimum"),
        ('{"role": "target", "kind": "number", "minimum": "0"}', "not a number"),
        ('{"role": "target", "kind": "number", "minimum": 9, "maximum": 1}', "above"),
        ('{"role": "target", "kind": "number", "grid": "g"}', "grid"),
        ('{"role": "target", "kind": "number", "required": "no"}', "required"),
        ('{"role": "target", "kind": "number", "max": 3}', "max"),
        ('{"role": "target", "kind": "number", "scale": 3}', "scale"),
        ('{"role": "image", "kind": "path", "scale": 0}', "scale"),
        ('{"role": "image", "kind": "path", "scale": "0.1"}', "scale"),
        ('{"role": "mask", "kind": "path", "may_be_empty": 1}', "may_be_empty"),
        ('{"role": "image", "kind": "path", "may_be_empty": true}', "may_be_empty"),
        ('{"role": ["target"], "kind": "number"}', "text"),
        ("3", "object"),
    ],
)
def test_each_fault_of_a_sidecar_names_its_column(tmp_path, facts, word):
    table = tmp_path / "c.tsv"
    table.write_text("p\tt1w\tx\np1\t1.nii.gz\t2\n")
    columns = f'"p": {{"role": "id", "kind": "text"}}, "x": {facts}, "y": {facts}'
    schema_path(table).write_text(f'{{"format": 1, "columns": {{{columns}}}}}')
    cohort, problems = check_table(table)
    assert cohort is None
    assert [(problem.column, problem.code) for problem in problems] == [("x", "unreadable"), ("y", "unreadable")]
    assert word in problems[0].message


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2, "columns": {}}', '{"format": 1, "columns": {}}'])
def test_what_is_no_sidecar_is_refused(tmp_path, text):
    table = tmp_path / "c.tsv"
    table.write_text("participant_id\tt1w\np1\t1.nii.gz\n")
    schema_path(table).write_text(text)
    cohort, problems = check_table(table)
    assert cohort is None
    assert [problem.code for problem in problems] == ["unreadable"]
    assert "c.tsv.json" in problems[0].message


def test_a_role_has_one_holder_and_a_name_one_column():
    identifier = Column("p", "id", "text")
    for columns in [(), (identifier, Column("q", "id", "text")), (identifier, identifier)]:
        with pytest.raises(CohortError):
            Schema(columns)
    with pytest.raises(CohortError, match="has no column 'x'"):
        Schema((identifier,)).column("x")


def test_names_that_are_taken_cannot_mean_something_else(tmp_path):
    table = tmp_path / "c.tsv"
    table.write_text("p\tt1w\tsite\trow\np1\t1.nii.gz\t3\t4\n")
    columns = [Column("p", "id", "text"), Column("t1w", "image", "path")]
    columns += [Column(name, "covariate", "number") for name in ("site", "row")]
    problems = check_table(table, schema=Schema(tuple(columns)))[1]
    assert [problem.column for problem in problems] == ["site", "row"]
    assert {problem.code for problem in problems} == {"bad_identifier"}

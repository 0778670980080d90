"""The cohort table: what is read, and which faults are found, all at once."""

import math
import pickle

import pytest

from datamodules.cohort import CohortError, Column, Schema, check_table, participant_key, read_cohort, schema_path

SCHEMA = Schema(
    (
        Column("participant_id", "id", "text"),
        Column("session_id", "session", "text"),
        Column("site", "site", "text"),
        Column("t1w", "image", "path", grid="native"),
        Column("mask", "mask", "path", grid="native"),
        Column("age", "target", "number", unit="years", minimum=0, maximum=100),
        Column("iq", "covariate", "number"),
        Column("truth_gap", "truth", "number"),
    )
)
HEADER = "participant_id\tsession_id\tsite\tt1w\tmask\tage\tiq\ttruth_gap"
ROWS = ["p1\ts1\tnorth\ta/1.nii.gz\tm.nii.gz\t33.5\t101\t0.5", "p2\t\t.\ta/2.nii.gz\t\t20\tn/a\t-1"]


@pytest.fixture
def write(tmp_path):
    def write(*rows, header=HEADER, name="cohort.tsv", schema=SCHEMA):
        table = tmp_path / name
        table.write_text("\n".join([header, *rows]) + "\n")
        if schema:
            schema_path(table).write_text(schema.to_json())
        return table

    return write


def faults(table, **options):
    return [(p.row, p.participant_id, p.column, p.code) for p in check_table(table, **options)[1]]


def test_values_and_derived_columns(write):
    cohort = read_cohort(write(*ROWS))
    frame = cohort.frame
    assert frame["age"].tolist() == [33.5, 20.0]
    assert frame["iq"].dtype == float
    assert math.isnan(frame["iq"][1])
    assert frame["t1w"].tolist() == ["a/1.nii.gz", "a/2.nii.gz"]
    assert frame["mask"].tolist() == ["m.nii.gz", ""]
    assert frame["participant_id"].tolist() == ["p1", "p2"]
    assert frame["session_id"].tolist() == ["s1", ""]
    assert frame["site"].tolist() == ["north", "unknown"]
    assert frame["dataset"].tolist() == ["cohort", "cohort"]
    assert frame["image_id"].tolist() == ["cohort/p1/s1", "cohort/p2"]
    assert frame["row"].tolist() == [1, 2]
    assert [column.name for column in cohort.schema.of_role("truth")] == ["truth_gap"]
    assert not cohort.schema.guessed
    assert participant_key("cohort", "p1") == "cohort/p1"


def test_every_fault_of_a_table_comes_at_once(write):
    table = write(
        "p1\ts1\tnorth\t1.nii.gz\t\tforty\t1\t0",  # text in a number column
        "p2\ts1\tnorth\t2.nii.gz\t\t430\t1\t0",  # months instead of years
        "p3\ts1\tnorth\t3.nii.gz\t\tNaN\t1\t0",
        "p4\ts1\tnorth\t4.nii.gz\t\t\t1\t0",  # a required value is missing
        "p5\ts1\tnorth\t\t\t40\t1\t0",
        "\ts1\tnorth\t6.nii.gz\t\t40\t1\t0",
        "p 7\ts1\tnor/th\t7.nii.gz\t\t40\t1\t0",
        "p1\ts1\tnorth\t1.nii.gz\t\t40\t1\t0",  # row 1 again
        "p9\ts1\tnorth\t9.nii.gz\t\t-1\t12,5\t0",
        "p10\ts1\tnorth\t10.nii.gz",
        "p11\ts1\tnorth\t11.nii.gz\t\t40\t1\t0\tstray",
    )
    assert faults(table) == [
        (1, "p1", "age", "not_a_number"),
        (2, "p2", "age", "out_of_range"),
        (3, "p3", "age", "not_a_number"),
        (4, "p4", "age", "missing_value"),
        (5, "p5", "t1w", "missing_value"),
        (6, None, "participant_id", "missing_value"),
        (7, "p 7", "participant_id", "bad_identifier"),
        (7, "p 7", "site", "bad_identifier"),
        (8, "p1", "participant_id", "duplicate_row"),
        (9, "p9", "age", "out_of_range"),
        (9, "p9", "iq", "not_a_number"),
        (10, None, None, "missing_column"),
        (10, "p10", "age", "missing_value"),
        (11, None, None, "unknown_column"),
    ]
    with pytest.raises(CohortError) as caught:
        read_cohort(table)
    text = str(caught.value)
    assert len(caught.value.problems) == 14
    assert "14 problems" in text
    assert "row 2, participant p2, column age: 430 is above the maximum of 100 years. Correct" in text
    assert "(out_of_range)" in text
    assert "The decimal mark is a point" in text
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


def test_columns_that_are_unknown_missing_or_doubled(write):
    table = write("p1\t1\t2\t3", header="participant_id\tweight\tiq\tiq")
    assert faults(table) == [
        (None, None, "iq", "unknown_column"),
        (None, None, "weight", "unknown_column"),
        (None, None, "t1w", "missing_column"),
        (None, None, "age", "missing_column"),
    ]


def test_a_participant_twice_needs_sessions(write):
    header = "participant_id\tt1w\tage"
    twice = write("p1\t1.nii.gz\t30", "p1\t2.nii.gz\t31", header=header, schema=None)
    assert faults(twice) == [(2, "p1", "participant_id", "duplicate_row")]
    rows = ["p1\ta\t1.nii.gz", "p1\ta\tx/1.nii.gz", "p1\tb\t3.nii.gz"]
    sessions = write(*rows, header="participant_id\tsession_id\tt1w", schema=None)
    cohort = read_cohort(sessions, dataset="ixi")
    assert cohort.frame["image_id"].tolist() == ["ixi/p1/a/1", "ixi/p1/a/x/1", "ixi/p1/b"]


def test_dataset_comes_from_its_column_then_the_argument_then_the_name(write):
    header = "participant_id\tdataset\tt1w"
    table = write("p1\tixi\t1.nii.gz", "p1\t\t2.nii.gz", header=header, name="my cohort.csv", schema=None)
    assert read_cohort(table).frame["dataset"].tolist() == ["ixi", "my-cohort"]
    assert read_cohort(table, dataset="bhb").frame["dataset"].tolist() == ["ixi", "bhb"]
    assert faults(table, dataset="a/b")[0][3] == "bad_identifier"


def test_a_table_without_images_is_still_checked(write):
    table = write("p1\t430", header="participant_id\tage", schema=None)
    assert faults(table) == [(None, None, None, "missing_column"), (1, "p1", "age", "out_of_range")]


def test_what_is_no_table_is_said_in_one_problem(tmp_path):
    for name, content, code in [
        ("gone.tsv", None, "missing_file"),
        ("empty.tsv", b"", "empty_table"),
        ("header.tsv", b"participant_id\tt1w\n", "empty_table"),
        ("excel.xlsx", b"PK\x03\x04\xff\xfe", "unreadable"),
        ("names.tsv", b"name\tt1w\nx\t1.nii.gz\n", "missing_column"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        cohort, problems = check_table(tmp_path / name)
        assert cohort is None
        assert [(problem.row, problem.code) for problem in problems] == [(None, code)]

"""The manifest: written for every verified cohort, and refused as soon as it describes it no more."""

import json
import os
import shutil

import pytest

from datamodules.cohort import CohortError, Schema, read_cohort, schema_path
from datamodules.verify import check_manifest, manifest_path, verify_cohort, write_manifest


@pytest.fixture
def table(tiny_cohort, tmp_path):
    """A verified cohort that a test may damage."""
    shutil.copytree(tiny_cohort.parent, tmp_path / "tiny")
    return tmp_path / "tiny" / tiny_cohort.name


def refusal(table, **options):
    with pytest.raises(CohortError) as caught:
        check_manifest(read_cohort(table, **options))
    return str(caught.value)


def test_a_manifest_knows_every_file(table):
    verification = verify_cohort(table)
    manifest = check_manifest(read_cohort(table))
    assert manifest.files == verification.files
    assert len(manifest.files) == 30
    facts = manifest.files["images/sub-07_T1w.nii.gz"]
    assert (facts.shape, facts.spacing, facts.orientation, facts.dtype) == (
        (18, 16, 17),
        (4.0, 4.0, 4.0),
        "PSR",
        "int16",
    )
    assert manifest.problems == ()
    written = json.loads(manifest_path(table).read_text())
    assert written["format"] == 1
    assert set(written) == {"format", "tool", "table_sha256", "schema_sha256", "files", "problems", "digest"}
    assert not list(table.parent.glob("*.part"))


def test_writing_again_changes_no_byte(table):
    before = manifest_path(table).read_bytes()
    write_manifest(verify_cohort(table, num_workers=2))
    assert manifest_path(table).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda table: manifest_path(table).unlink(), "has not been verified"),
        (lambda table: manifest_path(table).write_text("{"), "cannot be used"),
        (lambda table: manifest_path(table).write_text("[]"), "cannot be used"),
        (lambda table: manifest_path(table).write_text('{"format": 1}'), "cannot be used"),
        (lambda table: edit(manifest_path(table), '"PSR"', '"RAS"'), "digest"),
        (lambda table: edit(table, "north", "north-east"), "was changed after it was verified"),
        (lambda table: schema_path(table).write_text(changed_schema(table)), "schema of"),
        (lambda table: (table.parent / "images/sub-03_T1w.nii.gz").unlink(), "sub-03_T1w.nii.gz is gone"),
        (lambda table: os.utime(table.parent / "images/sub-03_T1w.nii.gz", ns=(1, 1)), "sub-03_T1w.nii.gz was changed"),
        (lambda table: (table.parent / "images/sub-03_T1w.nii.gz").write_bytes(b"x"), "sub-03_T1w.nii.gz was changed"),
    ],
)
def test_every_change_after_verification_is_refused(table, change, word):
    change(table)
    text = refusal(table)
    assert word in text
    assert f"fontanel verify {table}" in text


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def changed_schema(table):
    return Schema(read_cohort(table).schema.columns).to_json().replace("125.0", "126.0")


def test_a_manifest_with_problems_is_written_and_refused(table):
    (table.parent / "images/sub-04_T1w.nii.gz").write_bytes(b"")
    assert write_manifest(verify_cohort(table)) == manifest_path(table)
    text = refusal(table)
    assert "row 5, participant sub-04, column t1w" in text
    assert f"fontanel verify {table}" in text


def test_the_sidecar_of_the_guess_keeps_the_manifest(table):
    schema_path(table).write_text(read_cohort(table).schema.to_json())
    assert check_manifest(read_cohort(table))


def test_a_table_that_cannot_be_read_leaves_no_manifest(tmp_path):
    verification = verify_cohort(tmp_path / "gone.tsv")
    assert not verification.ok
    with pytest.raises(CohortError, match="missing_file"):
        write_manifest(verification)


def test_a_folder_that_cannot_be_written_is_named_with_a_way_out(table):
    manifest_path(table).unlink()
    verification = verify_cohort(table)
    manifest_path(table).mkdir()
    with pytest.raises(CohortError, match="--root"):
        write_manifest(verification)
    assert not list(table.parent.glob("*.part"))

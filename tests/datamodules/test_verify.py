"""A whole cohort in one pass: every fault with its row and column, duplicates, grids, and silence about clean files."""

import gzip

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from datamodules.verify import Limits, verify_cohort

AFFINE = np.array([[0, 0, 3.0, -20], [-2.0, 0, 0, 30], [0, 2.5, 0, -11], [0, 0, 0, 1]])
SHAPE = (7, 8, 9)


def scan(seed, affine=AFFINE, shape=SHAPE, dtype=np.int16):
    return nib.Nifti1Image(np.random.default_rng(seed).integers(0, 900, shape).astype(dtype), affine)


@pytest.fixture
def cohort(tmp_path):
    """A function that writes a cohort of clean scans with one shared mask."""

    def write(num_rows, *more_rows):
        (tmp_path / "t1").mkdir()
        nib.save(nib.Nifti1Image((np.indices(SHAPE).sum(0) > 9).astype(np.uint8), AFFINE), tmp_path / "mask.nii.gz")
        lines = ["participant_id\tsession_id\tt1w\tmask\tage"]
        for index in range(num_rows):
            nib.save(scan(index, dtype=(np.int16, np.float32, np.uint16)[index % 3]), tmp_path / f"t1/{index}.nii.gz")
            lines.append(f"p{index}\t\tt1/{index}.nii.gz\tmask.nii.gz\t{20 + index % 60}")
        (tmp_path / "cohort.tsv").write_text("\n".join([*lines, *more_rows]) + "\n")
        return tmp_path / "cohort.tsv"

    return write


def found(table, **options):
    return [(p.row, p.participant_id, p.column, p.code) for p in verify_cohort(table, **options).problems]


def test_a_hundred_clean_files_raise_nothing(cohort):
    verification = verify_cohort(cohort(100))
    assert verification.as_json() == {"ok": True, "problems": []}
    assert len(verification.files) == 101
    assert verification.schema_guessed


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_faults_come_at_once_with_row_and_column(cohort, tmp_path, num_workers):
    table = cohort(9, "p9\t\t../x.nii.gz\tmask.nii.gz\tforty")
    images = [tmp_path / f"t1/{index}.nii.gz" for index in range(9)]
    images[0].write_bytes(images[0].read_bytes()[:-200])
    raw = bytearray(images[1].read_bytes())
    raw[len(raw) // 2] ^= 1
    images[1].write_bytes(raw)
    nib.save(nib.Nifti1Image(np.full(SHAPE, np.nan, np.float32), AFFINE), images[2])
    nib.save(scan(90, shape=(7, 8, 9, 2)), images[3])
    flat = bytearray(scan(91).to_bytes())
    flat[312:328] = bytes(16)  # the last row of the affine
    images[4].write_bytes(gzip.compress(flat))
    nib.save(nib.Nifti1Image(np.full(SHAPE, 5, np.int16), AFFINE), images[5])
    images[6].unlink()
    images[7].write_bytes(b"garbage" * 60)
    counts = []
    verification = verify_cohort(table, num_workers=num_workers, on_file=lambda *count: counts.append(count))
    codes = ["corrupt_gzip", "corrupt_gzip", "non_finite", "not_3d", "bad_affine", "constant_image", "missing_file"]
    codes += ["corrupt_gzip"]
    expected = [(row, f"p{row - 1}", "t1w", code) for row, code in enumerate(codes, start=1)]
    expected.insert(4, (4, "p3", "mask", "grid_mismatch"))
    expected += [(10, "p9", "t1w", "path_escape"), (10, "p9", "age", "not_a_number")]
    assert sorted((p.row, p.participant_id, p.column, p.code) for p in verification.problems) == sorted(expected)
    assert [problem.row for problem in verification.problems] == sorted(row for row, *_ in expected)
    assert counts == [(number, 10) for number in range(1, 11)]
    assert {"row", "participant_id", "column", "code", "message"} == set(verification.as_json()["problems"][0])


def test_the_same_scan_under_two_names_is_found_and_both_are_named(cohort, tmp_path):
    table = cohort(
        4,
        "p4\t\tcopy.nii.gz\tmask.nii.gz\t40",  # the bytes of p0
        "p5\t\tpacked.nii.gz\tmask.nii.gz\t40",  # the voxels of p1, compressed again
        "p6\t\tplain.nii\tmask.nii.gz\t40",  # the voxels of p3 in another format
        "p2\tlater\tt1/2.nii.gz\tmask.nii.gz\t41",  # two sessions cannot be one scan
    )
    (tmp_path / "copy.nii.gz").write_bytes((tmp_path / "t1/0.nii.gz").read_bytes())
    (tmp_path / "packed.nii.gz").write_bytes(gzip.compress(gzip.decompress((tmp_path / "t1/1.nii.gz").read_bytes()), 1))
    image = nib.load(tmp_path / "t1/3.nii.gz")
    image.header["descrip"] = b"exported again"
    nib.save(image, tmp_path / "plain.nii")
    problems = verify_cohort(table).problems
    assert [(problem.row, problem.code) for problem in problems] == [(row, "duplicate_content") for row in (5, 6, 7, 8)]
    for problem, (own, other, row) in zip(problems, [("p4", "p0", 1), ("p5", "p1", 2), ("p6", "p3", 4)], strict=False):
        assert problem.participant_id == own
        assert f"{own} has the same scan as {other} (row {row}, column t1w" in problem.message


def test_a_repeated_row_is_one_fault_not_two(cohort):
    assert found(cohort(2, "p0\t\tt1/0.nii.gz\tmask.nii.gz\t20")) == [(3, "p0", "participant_id", "duplicate_row")]


def test_two_channels_of_a_row_cannot_be_the_same_scan(cohort, tmp_path):
    frame = pd.read_csv(cohort(2), sep="\t", dtype=str, keep_default_na=False)
    frame.assign(flair=frame["t1w"]).iloc[:1].to_csv(tmp_path / "two.tsv", sep="\t", index=False)
    assert found(tmp_path / "two.tsv") == [(1, "p0", "flair", "duplicate_content")]


def test_masks_and_lesion_maps_may_be_shared_alike_or_empty(cohort, tmp_path):
    table = cohort(2)
    (tmp_path / "copy.nii.gz").write_bytes((tmp_path / "mask.nii.gz").read_bytes())
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE), tmp_path / "none.nii.gz")
    frame = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
    frame["mask"] = ["mask.nii.gz", "copy.nii.gz"]
    frame["lesion"] = "none.nii.gz"
    frame.to_csv(table, sep="\t", index=False)
    assert found(table) == []
    frame["mask"] = "none.nii.gz"  # but an empty brain mask is a failed export, told once
    frame.to_csv(table, sep="\t", index=False)
    assert found(table) == [(1, "p0", "mask", "constant_image")]
    assert "1 more rows" in verify_cohort(table).problems[0].message


def moved(by, axis=3):
    affine = AFFINE.copy()
    affine[0, axis] += by
    return affine


@pytest.mark.parametrize(
    ("affine", "shape", "differs"),
    [
        (moved(0.0005), SHAPE, False),
        (moved(0.002), SHAPE, True),
        (moved(0.0001, axis=2), SHAPE, False),
        (moved(0.0005, axis=2), SHAPE, True),  # 0.0005 mm a voxel is 0.004 mm at the other end
        (AFFINE, (7, 9, 8), True),
        (np.diag([-1, 1, 1, 1]) @ AFFINE, SHAPE, True),
    ],
)
def test_image_and_mask_lie_on_one_grid(cohort, tmp_path, affine, shape, differs):
    table = cohort(1)
    mask = nib.Nifti1Image((np.indices(shape).sum(0) > 9).astype(np.uint8), affine)
    nib.save(mask, tmp_path / "mask.nii.gz")
    assert found(table) == ([(1, "p0", "mask", "grid_mismatch")] if differs else [])


def test_limits_can_be_tightened(cohort):
    table = cohort(1)
    for limits in (Limits(max_voxels=503), Limits(max_file_bytes=60), Limits(max_uncompressed_bytes=503)):
        assert {code for *_, code in found(table, limits=limits)} == {"too_large"}
    assert found(table, limits=Limits(max_voxels=504)) == []

"""One file at a time: what is wrong with it, and that nothing is said about a good one."""

import gzip
import os
import time
import tracemalloc
import zlib
from itertools import count

import nibabel as nib
import numpy as np
import pytest

from datamodules.inspection import inspect_image
from datamodules.voxels import Limits

AFFINE = np.array([[0, 0, 3.0, -20], [-2.0, 0, 0, 30], [0, 2.5, 0, -11], [0, 0, 0, 1]])
SHAPE = (7, 8, 9)
SEEDS = count()


def scan(shape=SHAPE, affine=AFFINE, dtype=np.int16, kind=nib.Nifti1Image):
    return kind(np.random.default_rng(next(SEEDS)).integers(0, 900, shape).astype(dtype), affine)


def edited(**fields):
    """Return an image whose header says something that nibabel would not write."""
    image = scan()
    raw = bytearray(image.to_bytes())
    for name, value in fields.items():
        place, offset = image.header.template_dtype.fields[name][:2]
        raw[offset : offset + place.itemsize] = np.asarray(value, place.base).tobytes()
    return bytes(raw)


def with_value(value):
    image = scan(dtype=np.float32)
    voxels = image.get_fdata()
    voxels[3, 4, 5] = value
    return nib.Nifti1Image(voxels.astype(np.float32), AFFINE).to_bytes()


def flipped(content, bit):
    raw = bytearray(content)
    raw[bit // 8] ^= 1 << bit % 8
    return bytes(raw)


CLEAN = gzip.compress(scan().to_bytes(), mtime=0)
FAULTS = [
    ("corrupt_gzip", CLEAN[:-300]),
    ("corrupt_gzip", CLEAN[:-4]),  # only the length in the trailer is gone
    ("corrupt_gzip", flipped(CLEAN, 4 * len(CLEAN))),
    ("corrupt_gzip", flipped(CLEAN, 8 * len(CLEAN) - 40)),  # the checksum itself
    ("corrupt_gzip", CLEAN + b"tail"),
    ("corrupt_gzip", b"not an image" * 50),
    ("corrupt_gzip", scan().to_bytes()),
    ("unreadable", b""),
    ("unreadable", gzip.compress(scan().to_bytes()[:-50])),
    ("unreadable", gzip.compress(scan().to_bytes()[:350])),
    ("bad_header", gzip.compress(b"not an image" * 50)),
    ("bad_header", gzip.compress(b"")),
    ("bad_header", gzip.compress(edited(magic=b"ni1"))),
    ("bad_header", gzip.compress(edited(datatype=9999))),
    ("bad_header", gzip.compress(edited(datatype=128))),  # colours
    ("bad_header", gzip.compress(edited(dim=[3, 7, -8, 9, 1, 1, 1, 1]))),
    ("bad_header", gzip.compress(edited(dim=[0, 7, 8, 9, 1, 1, 1, 1]))),
    ("bad_header", gzip.compress(edited(vox_offset=np.inf))),
    ("bad_header", gzip.compress(edited(vox_offset=8))),
    ("bad_header", gzip.compress(edited(scl_slope=2, scl_inter=np.nan))),
    ("too_large", gzip.compress(edited(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]))),
    ("too_large", gzip.compress(scan().to_bytes() + bytes(5_000_000))),
    ("non_finite", gzip.compress(with_value(np.nan))),
    ("non_finite", gzip.compress(with_value(-np.inf))),
    ("non_finite", gzip.compress(edited(scl_slope=3e38, scl_inter=0))),
    ("not_3d", gzip.compress(scan((7, 8, 9, 2)).to_bytes())),
    ("not_3d", gzip.compress(scan((7, 8)).to_bytes())),
    ("bad_affine", gzip.compress(edited(srow_y=[0, 0, 0, 30]))),
    ("bad_affine", gzip.compress(edited(srow_x=[0, 0, np.nan, -20]))),
    ("bad_affine", gzip.compress(edited(srow_y=[-2, -2, 0, 30], srow_z=[0, 0, 0, -11]))),  # two axes in one direction
    ("bad_affine", gzip.compress(edited(sform_code=0, qform_code=1, quatern_b=3))),
    ("bad_affine", gzip.compress(edited(pixdim=[1, 2, 0, 3, 0, 0, 0, 0]))),
    ("bad_affine", gzip.compress(scan(affine=np.diag([2000.0, 2000, 2000, 1])).to_bytes())),  # micrometres
]


@pytest.mark.parametrize(("code", "content"), FAULTS, ids=[f"{code}-{n}" for n, (code, _) in enumerate(FAULTS)])
def test_each_fault_is_found_and_no_other(tmp_path, code, content):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    findings = inspect_image(path, tmp_path, Limits()).findings
    assert [finding.code for finding in findings] == [code]
    assert ". " in findings[0].message or ": " in findings[0].message, "a fault and a remedy"


def test_faults_of_header_and_voxels_are_told_together(tmp_path):
    nib.save(nib.Nifti1Image(np.full((7, 8, 9, 2), np.nan, np.float32), np.diag([1, 1, 1000.0, 1])), tmp_path / "a.nii")
    findings = inspect_image(tmp_path / "a.nii", tmp_path, Limits()).findings
    assert [finding.code for finding in findings] == ["not_3d", "bad_affine", "non_finite"]


def test_no_flipped_bit_of_a_gzip_file_changes_voxels_unseen(tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(CLEAN)
    voxels = inspect_image(path, tmp_path, Limits()).facts.voxel_sha256
    found = 0
    for bit in range(0, 8 * len(CLEAN), 11):
        path.write_bytes(flipped(CLEAN, bit))
        result = inspect_image(path, tmp_path, Limits())
        found += bool(result.findings)
        assert result.findings or result.facts.voxel_sha256 == voxels  # the file name and time in the header may change
    assert found >= 8 * len(CLEAN) // 11 - 10


def test_a_bomb_is_refused_from_its_header(tmp_path):
    head = edited(dim=[3, 2000, 2000, 2000, 1, 1, 1, 1])
    packer = zlib.compressobj(1, wbits=31)
    bomb = b"".join(packer.compress(part) for part in [head, *[bytes(2**24)] * 8]) + packer.flush()
    (tmp_path / "bomb.nii.gz").write_bytes(bomb)
    tracemalloc.start()
    start = time.perf_counter()
    result = inspect_image(tmp_path / "bomb.nii.gz", tmp_path, Limits())
    assert time.perf_counter() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert [finding.code for finding in result.findings] == ["too_large"]


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii.gz")  # opening it would wait for ever
    assert (
        "neither a file nor a folder" in inspect_image(tmp_path / "pipe.nii.gz", tmp_path, Limits()).findings[0].message
    )
    assert inspect_image(tmp_path / "gone.nii.gz", tmp_path, Limits()).findings[0].code == "missing_file"

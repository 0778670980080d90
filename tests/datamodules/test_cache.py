import json
import os
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from datamodules import cache as cache_module
from datamodules.cache import ImageFiles, VolumeCache
from datamodules.preprocessing import Preprocessing, PreprocessingError, read_volume

PREPROCESSING = Preprocessing(spacing=(2.0, 2.0, 2.0), shape=(6, 7, 8))
AFFINE = np.array([[0, -2.0, 0, 11], [1.5, 0, 0, -7], [0, 0, 3.0, 40], [0, 0, 0, 1]])


@pytest.fixture
def scans(tmp_path):
    paths = []
    for index in range(6):
        data = np.random.default_rng(index).integers(0, 900, (7, 8, 9)).astype(np.int16)
        nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / f"scan{index}.nii")
        paths.append(tmp_path / f"scan{index}.nii")
    return paths


@pytest.fixture
def cache(tmp_path):
    return VolumeCache(tmp_path / "cache", PREPROCESSING)


@pytest.fixture
def computed(monkeypatch):
    """Count the image sets that are really computed in this process."""
    calls = []
    original = VolumeCache._compute
    monkeypatch.setattr(VolumeCache, "_compute", lambda *arguments: calls.append(1) or original(*arguments))
    return calls


def entry(cache):
    (path,) = (cache.folder / "volumes").rglob("*.npy")
    return path


def test_a_hit_equals_what_was_computed(cache, scans, computed):
    expected = PREPROCESSING([read_volume(scans[0]), read_volume(scans[1])])
    first, second = cache.get(scans[:2]), VolumeCache(cache.folder, PREPROCESSING).get(scans[:2])
    assert (first.hit, second.hit, len(computed)) == (False, True, 1)
    for cached in (first, second):
        assert cached.array.dtype == np.float16
        assert cached.array.flags.c_contiguous
        np.testing.assert_array_equal(cached.array, expected.data.astype(np.float16))
        np.testing.assert_array_equal(cached.affine, expected.affine)
        np.testing.assert_array_equal(cached.native_affine, AFFINE)
        assert cached.native_shape == (7, 8, 9)


def test_writing_to_the_array_leaves_the_file_alone(cache, scans):
    mapped = cache.get(scans[:1]).array
    before = entry(cache).read_bytes()
    mapped[:] = 0
    assert entry(cache).read_bytes() == before


def test_one_changed_byte_or_parameter_misses(cache, scans, computed):
    cache.get(scans[:1])
    changed = bytearray(scans[0].read_bytes())
    changed[-1] ^= 1
    times = scans[0].stat()
    scans[0].write_bytes(changed)
    os.utime(scans[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not cache.get(scans[:1]).hit
    parameters = {
        "spacing": (2.0, 2.0, 2.1),
        "shape": (6, 7, 9),
        "centre": "image",
        "normalisation": "percentile",
        "foreground": "nonzero",
        "clip": (1.0, 99.0),
    }
    for name, value in parameters.items():
        assert not VolumeCache(cache.folder, replace(PREPROCESSING, **{name: value})).get(scans[:1]).hit, name
    assert len(computed) == 2 + len(parameters)


def test_the_key_covers_order_mask_and_versions(cache, scans, monkeypatch):
    one, two = "1" * 64, "2" * 64
    masked = VolumeCache(cache.folder, replace(PREPROCESSING, foreground="mask"))
    assert cache.key([one, two]) != cache.key([two, one])
    assert masked.key([one, two]) != cache.key([one, two])
    assert cache.get(scans[:1], scans[1]).hit is False
    assert cache.get(scans[:1], scans[2]).hit is True  # the mask is not used
    assert masked.get(scans[:1], scans[1]).hit is False
    assert masked.get(scans[:1], scans[2]).hit is False
    before = cache.key([one])
    monkeypatch.setattr(cache_module, "CACHE_VERSION", 0)
    assert cache.key([one]) != before


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "no facts", "torn facts", "other shape", "text"])
def test_damaged_entries_are_computed_again(cache, scans, computed, damage):
    expected = np.array(cache.get(scans[:1]).array)
    path = entry(cache)
    facts, content = path.with_suffix(".json"), bytearray(path.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
    if damage == "no facts":
        facts.unlink()
    if damage == "torn facts":
        facts.write_bytes(facts.read_bytes()[:50])
    if damage == "other shape":
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "shape": [1, 6, 7, 9]}))
    path.write_bytes({"truncated": content[:-9], "empty": b"", "text": b"hello"}.get(damage, content))
    again = VolumeCache(cache.folder, PREPROCESSING).get(scans[:1])
    assert (again.hit, len(computed)) == (False, 2)
    np.testing.assert_array_equal(again.array, expected)


def test_second_build_computes_nothing(cache, scans, computed):
    items = [ImageFiles((path,)) for path in scans]
    progress = []
    assert cache.build(items[:2]) == 2
    assert cache.build(items, on_item=lambda done, total: progress.append((done, total))) == 4  # resumes
    assert progress == [(number, 6) for number in range(1, 7)]
    assert VolumeCache(cache.folder, PREPROCESSING).build(items) == 0
    assert len(computed) == 6


def test_every_failure_is_reported_after_all_were_tried(cache, scans):
    items = [ImageFiles((path,)) for path in [scans[0].with_name("gone.nii"), scans[1].with_name("text.nii"), scans[2]]]
    items[1].images[0].write_text("no image")
    with pytest.raises(PreprocessingError, match=r"(?s)2 of 3 image sets failed.*gone.nii.*text.nii"):
        cache.build(items)
    assert cache.get(scans[2:3]).hit

import errno
import multiprocessing
import os
import shutil
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from datamodules import cache as cache_module
from datamodules import folders
from datamodules.cache import ImageFiles, VolumeCache
from datamodules.folders import cache_folder
from datamodules.preprocessing import Preprocessing, PreprocessingError

AFFINE = np.array([[0, -2.0, 0, 11], [1.5, 0, 0, -7], [0, 0, 3.0, 40], [0, 0, 0, 1]])


@pytest.fixture
def items(tmp_path):
    made = []
    for index in range(12):
        data = np.random.default_rng(index).integers(0, 900, (7, 8, 9)).astype(np.int16)
        nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / f"scan{index}.nii")
        made.append(ImageFiles((tmp_path / f"scan{index}.nii",)))
    return made


@pytest.fixture
def cache(tmp_path):
    return VolumeCache(tmp_path / "cache", Preprocessing(shape=(6, 7, 8)))


@pytest.fixture
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["datamodules.cache"])
    return context


def test_processes_share_one_cache(cache, items, processes):
    with ProcessPoolExecutor(3, mp_context=processes) as executor:
        counts = [future.result() for future in [executor.submit(cache.build, items) for _ in range(3)]]
    assert sum(counts) == len(items)  # each entry was computed by exactly one of them
    alone = VolumeCache(cache.folder.with_name("alone"), cache.preprocessing)
    for item in items:
        shared = cache.get(item.images)
        assert shared.hit
        np.testing.assert_array_equal(shared.array, alone.get(item.images).array)


def test_workers_compute_what_one_process_computes(cache, items, monkeypatch):
    monkeypatch.setattr("datamodules.cache.WORKER_START", -1.0)  # any work left is worth workers
    seen = []
    assert cache.build(items, num_workers=2, on_item=lambda done, _: seen.append(done)) == len(items)
    assert seen == list(range(1, len(items) + 1))
    assert cache.build(items, num_workers=2) == 0
    alone = VolumeCache(cache.folder.with_name("alone"), cache.preprocessing)
    for item in items:
        np.testing.assert_array_equal(cache.get(item.images).array, alone.get(item.images).array)


@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_builder_leaves_nothing_that_is_trusted_wrongly(cache, items, processes, kills):
    reference = VolumeCache(cache.folder.with_name("reference"), cache.preprocessing)
    expected = {item: reference.get(item.images).array for item in items}
    random = np.random.default_rng(0)
    unfinished = 0
    for _ in range(kills):
        shutil.rmtree(cache.folder, ignore_errors=True)
        builder = processes.Process(target=cache.build, args=(items,))
        builder.start()
        deadline = time.monotonic() + 30
        while not (cache.folder / "locks").exists() and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(random.uniform(0, 0.04))  # a build takes about as long
        os.kill(builder.pid, signal.SIGKILL)
        builder.join(10)
        after = VolumeCache(cache.folder, cache.preprocessing)
        found = [after._open(after.key(after._hashes(item)), hit=True) for item in items]
        unfinished += None in found
        for item, volume in zip(items, found, strict=True):
            assert volume is None or np.array_equal(volume.array, expected[item])
    assert unfinished > kills / 4
    VolumeCache(cache.folder, cache.preprocessing).build(items)
    for item in items:
        np.testing.assert_array_equal(cache.get(item.images).array, expected[item])


def test_other_users_may_read_what_the_umask_lets_them(cache, items):
    before = os.umask(0o002)
    try:
        cache.get(items[0].images)
    finally:
        os.umask(before)
    files = [path for path in cache.folder.rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o664}


def test_a_leftover_of_a_killed_writer_is_removed(cache, items):
    cache.get(items[0].images)
    (path,) = (cache.folder / "volumes").rglob("*.npy")
    (path.parent / "torn.tmp").write_bytes(b"half")
    path.unlink()
    assert not cache.get(items[0].images).hit
    assert sorted(file.suffix for file in path.parent.iterdir()) == [".json", ".npy"]


@pytest.mark.parametrize(("module", "step"), [(os, "fsync"), (Path, "replace")])
def test_full_disk_is_named_and_leaves_nothing(cache, items, monkeypatch, module, step):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, step, full)
        with pytest.raises(PreprocessingError, match=r"cache: cannot be written \(No space left on device\)"):
            cache.get(items[0].images)
    assert not [file for file in (cache.folder / "volumes").rglob("*") if file.is_file()]
    assert not cache.get(items[0].images).hit


def test_values_beyond_half_precision_are_refused(tmp_path, items):
    nib.save(nib.Nifti1Image(np.linspace(0, 7e4, 504, dtype=np.float32).reshape(7, 8, 9), AFFINE), tmp_path / "ct.nii")
    raw = VolumeCache(tmp_path / "cache", Preprocessing(spacing=None, shape=(7, 8, 9), normalisation="none"))
    with pytest.raises(PreprocessingError, match=r"ct.nii: 70000 is above 65504"):
        raw.get([tmp_path / "ct.nii"])


def test_a_file_is_hashed_once_until_it_is_touched(cache, items, monkeypatch):
    path = items[0].images[0]
    monkeypatch.setattr(cache_module, "SETTLED", -(10**12))  # files of this moment count as settled
    first = cache.content_hash(path)
    with monkeypatch.context() as patch:
        patch.setattr(cache_module.hashlib, "file_digest", None)  # reading would fail
        assert VolumeCache(cache.folder, cache.preprocessing).content_hash(path) == first
    times = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert cache.content_hash(path) != first


def test_a_file_that_may_still_change_is_not_remembered(cache, items):
    cache.content_hash(items[0].images[0])
    assert not (cache.folder / "hashes").exists()


def test_a_folder_is_hashed_by_names_and_contents(cache, tmp_path):
    hashes = set()
    for name, content in [("1.dcm", b"a"), ("1.dcm", b"b"), ("2.dcm", b"b")]:
        folder = tmp_path / f"series{len(hashes)}"
        folder.mkdir()
        (folder / name).write_bytes(content)
        hashes.add(cache.content_hash(folder))
    assert len(hashes) == 3


def test_known_hashes_save_reading(cache, items, monkeypatch):
    monkeypatch.setattr(VolumeCache, "content_hash", None)  # calling it would fail
    assert not cache.get(items[0].images, None, ["a" * 64]).hit
    assert cache.get(items[0].images, None, ["a" * 64]).hit


def test_the_cache_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("FONTANEL_CACHE", str(tmp_path / "own"))
    assert cache_folder() == VolumeCache(None, Preprocessing()).folder == tmp_path / "own"
    monkeypatch.delenv("FONTANEL_CACHE")
    monkeypatch.setattr(folders.sys, "platform", "linux")
    assert cache_folder() == tmp_path / "user" / "fontanel"

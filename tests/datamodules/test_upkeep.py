"""The limit, the verification and the clearing of the cache; also while other processes use it."""

import errno
import json
import multiprocessing
import os
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from datamodules import cache as cache_module
from datamodules import upkeep
from datamodules.cache import ImageFiles, VolumeCache
from datamodules.preprocessing import Preprocessing
from datamodules.upkeep import Amount, CacheError, CacheWarning

HOUR = 3600.0
PREPROCESSING = Preprocessing(shape=(6, 7, 8))


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch):
    """What a process remembers about folders."""
    monkeypatch.setattr(upkeep, "_written", type(upkeep._written)())
    monkeypatch.setattr(upkeep, "_warned", set())


@pytest.fixture
def items(tmp_path):
    made = []
    for index in range(8):
        data = np.random.default_rng(index).integers(0, 900, (7, 8, 9)).astype(np.int16)
        nib.save(nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1])), tmp_path / f"scan{index}.nii")
        made.append(ImageFiles((tmp_path / f"scan{index}.nii",), None, (f"{index:064}",)))
    return made


@pytest.fixture
def cache(tmp_path):
    return VolumeCache(tmp_path / "cache", PREPROCESSING)


@pytest.fixture
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["datamodules.cache"])
    return context


def path_of(cache, item):
    return cache._path(cache.key(item.sha256s))


def get(cache, item):
    return cache.get(item.images, item.mask, item.sha256s)


def is_there(cache, item):
    return path_of(cache, item).exists() and path_of(cache, item).with_suffix(".json").exists()


def set_age(cache, item, hours):
    """Say that an entry was last used so many hours ago."""
    moment = time.time() - hours * HOUR
    os.utime(path_of(cache, item).with_suffix(".json"), (moment, moment))


def age(cache, item):
    """Return the hours since the last use."""
    return (time.time() - path_of(cache, item).with_suffix(".json").stat().st_mtime) / HOUR


def size_of(cache, item):
    return sum(path_of(cache, item).with_suffix(suffix).stat().st_size for suffix in (".npy", ".json"))


@pytest.fixture
def filled(cache, items):
    """A cache whose entries were used 8, 7, ... hours ago."""
    assert cache.build(items) == len(items)
    for number, item in enumerate(items):
        set_age(cache, item, len(items) - number)
    return VolumeCache(cache.folder, PREPROCESSING)


# Last use -------------------------------------------------------------------------------------------------------------


def test_a_use_is_marked_at_first_and_every_quarter_of_an_hour(filled, items, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(cache_module.time, "monotonic", lambda: clock[0])
    marked = []
    for seconds in (0, 1, 899, 901, 1700, 1802):
        set_age(filled, items[0], 5)
        clock[0] = 1000.0 + seconds
        assert get(filled, items[0]).hit
        marked.append(age(filled, items[0]) < 1)
    assert marked == [True, False, False, True, False, True]


def test_a_build_marks_what_is_there(filled, items):
    get(filled, items[0])
    set_age(filled, items[0], 5)
    assert filled.build(items) == 0
    assert max(age(filled, item) for item in items) < 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_cache_that_may_only_be_read_is_read(number, filled, items, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(number, "no")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(VolumeCache, "_compute", None)  # calling it would fail
    assert get(filled, items[0]).hit
    assert filled.build(items) == 0


def test_what_comes_in_the_place_of_a_removed_entry_is_checked_anew(filled, items):
    get(filled, items[0])
    content = bytearray(path_of(filled, items[0]).read_bytes())
    upkeep.clear(filled.folder)
    assert not get(filled, items[0]).hit
    assert get(filled, items[0]).hit
    upkeep.clear(filled.folder)
    other = VolumeCache(filled.folder, PREPROCESSING)
    filled._open(filled.key(items[0].sha256s), hit=True)  # sees that it is gone
    get(other, items[0])
    content[-1] ^= 1
    path_of(filled, items[0]).write_bytes(content)
    assert not get(filled, items[0]).hit


# The limit ------------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_go_first(filled, items):
    set_age(filled, items[0], 2.5)  # the oldest entry, used again
    size = size_of(filled, items[0])
    evicted = upkeep.evict(filled.folder, 4 * size + size // 2)
    assert [is_there(filled, item) for item in items] == [True, False, False, False, False, True, True, True]
    assert evicted == upkeep.Eviction(Amount(4, 4 * size), 4 * size)
    assert upkeep.evict(filled.folder, 4 * size).removed.number == 0  # exactly the limit is within it


def test_what_was_used_within_the_hour_stays(filled, items):
    set_age(filled, items[3], 0.9)
    set_age(filled, items[4], 1.1)
    evicted = upkeep.evict(filled.folder, 1)
    assert [item for item in items if is_there(filled, item)] == [items[3]]
    assert evicted.size == size_of(filled, items[3])


def test_what_the_caller_needs_stays(filled, items):
    evicted = upkeep.evict(filled.folder, 1, since=time.time() - 4.5 * HOUR)
    assert [is_there(filled, item) for item in items] == [False] * 4 + [True] * 4
    assert evicted.removed.number == 4


def test_an_entry_used_after_it_was_listed_stays(filled, items, monkeypatch):
    listed = upkeep._entries(filled.folder)
    set_age(filled, items[0], 0)
    monkeypatch.setattr(upkeep, "_entries", lambda folder: listed)
    evicted = upkeep.evict(filled.folder, 1)
    assert [item for item in items if is_there(filled, item)] == [items[0]]
    assert evicted.size == size_of(filled, items[0])


def test_an_entry_that_vanished_after_it_was_listed_is_skipped(filled, items, monkeypatch):
    listed = upkeep._entries(filled.folder)
    upkeep.clear(filled.folder)
    monkeypatch.setattr(upkeep, "_entries", lambda folder: listed)
    assert upkeep.evict(filled.folder, 1) == upkeep.Eviction(Amount(0, 0), 0)
    assert upkeep.clear(filled.folder) == Amount(0, 0)
    assert upkeep.verify(filled.folder).damaged == ()
    assert upkeep.summarise(filled.folder).entries == Amount(0, 0)


def test_a_file_that_vanishes_while_the_folder_is_listed_is_skipped(filled, items, monkeypatch):
    path = path_of(filled, items[0])
    other = path.with_name(f"{path.name[:2]}{'0' * 62}.npy")
    for suffix in (".npy", ".json"):
        other.with_suffix(suffix).write_bytes(path.with_suffix(suffix).read_bytes())
    original = os.scandir

    class Listing:
        """Lists a folder, and removes the entry before anybody can look at it."""

        def __init__(self, folder):
            self.items = sorted(original(folder), key=lambda item: item.name != path.name)

        def __enter__(self):
            if path.name in [item.name for item in self.items]:
                upkeep._unlink(path)
            return iter(self.items)

        def __exit__(self, *problem):
            return None

    monkeypatch.setattr(os, "scandir", Listing)
    assert upkeep.summarise(filled.folder).entries.number == len(items)  # the other one instead
    assert not path.exists()


def test_the_facts_are_removed_first(filled, items, monkeypatch):
    original, removed = Path.unlink, []
    monkeypatch.setattr(Path, "unlink", lambda path: removed.append(path.suffix) or original(path))
    upkeep.clear(filled.folder)
    assert removed == [".json", ".npy"] * len(items)


def test_an_evicted_array_stays_valid_for_who_has_it(filled, items):
    mapped = get(filled, items[0]).array
    before = np.array(mapped)
    upkeep.clear(filled.folder)
    assert not is_there(filled, items[0])
    np.testing.assert_array_equal(mapped, before)


def test_without_a_limit_nothing_is_looked_at(cache, items, monkeypatch):
    monkeypatch.setattr(upkeep, "_entries", None)  # calling it would fail
    cache.build(items[:3])
    assert not get(cache, items[3]).hit


def test_a_limit_is_looked_after_once_for_every_part_of_it_and_at_the_end(cache, items, monkeypatch):
    array_size = 2 * 6 * 7 * 8
    looks = []
    monkeypatch.setattr(upkeep, "LOOKS_PER_LIMIT", 4)
    monkeypatch.setattr(upkeep, "evict", lambda *arguments: looks.append(1) or upkeep.Eviction(Amount(0, 0), 0))
    upkeep.write_limit(cache.folder, 4 * 3 * array_size)
    seen = []
    assert cache.build(items, on_item=lambda done, total: seen.append(len(looks))) == 8
    assert (seen, len(looks)) == ([0, 0, 1, 1, 1, 2, 2, 2], 3)
    upkeep.clear(cache.folder)
    for item in items:
        get(cache, item)
    assert len(looks) == 3 + 2
    for item in items:
        assert get(cache, item).hit
    assert len(looks) == 3 + 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_build_makes_room_for_what_it_computes(num_workers, filled, items, monkeypatch):
    monkeypatch.setattr("datamodules.cache.WORKER_START", -1.0)  # any work left is worth workers
    size = size_of(filled, items[0])
    upkeep.write_limit(filled.folder, 9 * size)
    news = [ImageFiles(item.images, None, (f"{number:064}",)) for number, item in enumerate(items[:5], start=100)]
    assert filled.build([items[0], *news], num_workers) == 5
    assert [is_there(filled, item) for item in items] == [True, *[False] * 4, True, True, True]
    assert all(is_there(filled, item) for item in news)


def test_a_build_longer_than_an_hour_does_not_remove_what_it_computed(cache, items, monkeypatch):
    upkeep.write_limit(cache.folder, 1)
    began = time.time()
    with pytest.warns(CacheWarning, match="because what is left is in use"):
        cache.build(items, on_item=lambda *_: monkeypatch.setattr(time, "time", lambda: began + 2 * HOUR))
    assert all(is_there(cache, item) for item in items)


def test_a_limit_that_cannot_be_kept_is_a_warning_once(cache, items):
    upkeep.write_limit(cache.folder, 10**3)
    with pytest.warns(CacheWarning, match=r"above its limit of 0.0 GB.*fontanel cache --limit") as found:
        cache.build(items[:4])
    assert len(found) == 1
    with warnings.catch_warnings(action="error"):
        cache.build(items)
        get(cache, ImageFiles(items[0].images, None, ("a" * 64,)))
    assert all(is_there(cache, item) for item in items)


@pytest.mark.parametrize("text", ["", "200GB", "[]", "{}", '{"limit": "200GB"}', '{"limit": 0}', '{"limit": true}'])
def test_a_limit_that_cannot_be_read_is_named_and_stops_no_training(text, cache, items):
    upkeep.write_limit(cache.folder, 1)
    (cache.folder / "limit.json").write_text(text)
    with pytest.raises(CacheError, match=r"limit.json holds no limit.*--limit none"):
        upkeep.read_limit(cache.folder)
    with pytest.warns(CacheWarning, match="limit.json holds no limit"):
        assert cache.build(items[:2]) == 2
    upkeep.write_limit(cache.folder, None)
    assert upkeep.read_limit(cache.folder) is None


def build_with_warnings(cache, items):
    """Build in another process and put its exit code to 7 where it was warned that the limit is not kept."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        cache.build(items)
    raise SystemExit(7 if any(isinstance(warning.message, CacheWarning) for warning in found) else 0)


def test_other_processes_obey_the_limit(filled, items, processes):
    size = size_of(filled, items[0])
    upkeep.write_limit(filled.folder, 3 * size)
    builder = processes.Process(target=build_with_warnings, args=(filled, items[6:]))
    builder.start()
    builder.join(60)
    assert builder.exitcode == 0
    assert [is_there(filled, item) for item in items] == [*[False] * 5, True, True, True]
    upkeep.write_limit(filled.folder, size)
    builder = processes.Process(target=build_with_warnings, args=(filled, items[6:]))
    builder.start()
    builder.join(60)
    assert builder.exitcode == 7
    assert [is_there(filled, item) for item in items] == [*[False] * 6, True, True]


def test_permissions_are_explained(filled, items, monkeypatch):
    def refuse(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    upkeep.write_limit(filled.folder, 1)
    monkeypatch.setattr(Path, "unlink", refuse)
    for work in (upkeep.clear, lambda folder: upkeep.evict(folder, 1), lambda folder: upkeep.write_limit(folder, None)):
        with pytest.raises(CacheError, match=r"cache cannot be .*changed \(Permission denied: .*\)\. Ask its owner"):
            work(filled.folder)
    with pytest.warns(CacheWarning, match="Permission denied"):
        assert filled.build(items[:2]) == 0


# Verification ---------------------------------------------------------------------------------------------------------


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


DAMAGE = {
    "a voxel": lambda path: flip(path, -3),
    "the header": lambda path: flip(path, 118),
    "the end": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "more than the end": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "everything": lambda path: path.write_bytes(b""),
    "the facts": lambda path: path.with_suffix(".json").write_bytes(path.with_suffix(".json").read_bytes()[:90]),
    "a fact": lambda path: path.with_suffix(".json").write_text(
        path.with_suffix(".json").read_text().replace("native_shape", "native_shade")
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_entry_is_found_removed_and_computed_again(what, filled, items):
    expected = np.array(get(filled, items[2]).array)
    times = [age(filled, item) for item in items]
    DAMAGE[what](path_of(filled, items[2]))
    size = size_of(filled, items[2])
    found = upkeep.verify(filled.folder)
    assert found == upkeep.Verification(8, (path_of(filled, items[2]),), size, Amount(0, 0))
    assert not path_of(filled, items[2]).exists()
    assert not path_of(filled, items[2]).with_suffix(".json").exists()
    assert upkeep.verify(filled.folder).damaged == ()
    assert [age(filled, item) for item in items[3:]] == pytest.approx(times[3:], abs=0.1)  # looking is no use
    again = get(VolumeCache(filled.folder, PREPROCESSING), items[2])
    assert not again.hit
    np.testing.assert_array_equal(again.array, expected)


def test_any_bit_of_a_header_may_change(filled, items):
    key, path = filled.key(items[0].sha256s), path_of(filled, items[0])
    whole = path.read_bytes()
    expected = np.array(get(filled, items[0]).array)
    for position in range(128):
        for bit in (0, 3, 6):
            flip(path, position, bit)
            opened = VolumeCache(filled.folder, PREPROCESSING)._open(key, hit=True)
            assert opened is None or np.array_equal(opened.array, expected)
            path.write_bytes(whole)


def test_an_entry_that_may_not_be_read_is_not_damaged(filled, items, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(upkeep, "read_facts", refuse)
    with pytest.raises(CacheError, match="Permission denied"):
        upkeep.verify(filled.folder)
    assert all(is_there(filled, item) for item in items)


def foreign_files(folder, key):
    """Write what looks much like files of the cache, and is not."""
    paths = [
        folder / "notes.txt",
        folder / "phantoms" / f"{key}.npz",
        folder / "volumes" / f"{key}.npy",
        folder / "volumes" / "README.md",
        folder / "volumes" / key[:2] / "mine.npy",
        folder / "volumes" / key[:2] / "mine.tmp",
        folder / "volumes" / key[:2] / f"{key}.npz",
        folder / "volumes" / key[:2] / f"{key}.npy.bak",
        folder / "volumes" / key[:2] / f"{'f' if key[0] != 'f' else '0'}{key[1:]}.npy",
        folder / "volumes" / key[:2] / f"{key[:2]}{'A' * 62}.json",
        folder / "hashes" / key[:2] / "list.json",
        folder / "elsewhere" / key[:2] / f"{key}.npy",
    ]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    (folder / "volumes" / key[:2] / f"{key[:2]}{'0' * 62}.npy").symlink_to(paths[0])
    (folder / "volumes" / "zz").write_bytes(b"no folder")
    other = next(name for name in ("00", "01") if not (folder / "volumes" / name).exists())
    (folder / "volumes" / other).write_bytes(b"no folder either")
    return [*paths, folder / "volumes" / key[:2] / f"{key[:2]}{'0' * 62}.npy", folder / "volumes" / other]


def test_what_killed_writers_left_is_removed(filled, items):
    paths = [path_of(filled, item) for item in items]
    paths[0].unlink()
    paths[1].with_suffix(".json").unlink()
    left = [paths[2].with_name("0123456789abcdef.tmp"), filled.folder / "hashes" / "aa" / "0000000000000000.tmp"]
    fresh = filled.folder / "hashes" / "aa" / "1111111111111111.tmp"
    fresh.parent.mkdir(parents=True)
    for path in (*left, fresh):
        path.write_bytes(b"")
    os.utime(left[1], (1, 1))
    foreign = foreign_files(filled.folder, paths[3].stem)
    assert upkeep.summarise(filled.folder).unfinished.number == 3
    found = upkeep.verify(filled.folder)
    assert (found.entries, found.damaged, found.leftovers.number) == (8, (), 4)
    assert [is_there(filled, item) for item in items] == [False, False, *[True] * 6]
    assert not any(path.exists() for path in (*paths[:2], *left))
    assert fresh.exists()  # its writer may be at work: no lock guards it
    assert all(path.exists() for path in foreign)


# Clearing -------------------------------------------------------------------------------------------------------------


def test_clearing_removes_entries_and_hashes_and_nothing_else(filled, items, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "SETTLED", -(10**12))  # files of this moment count as settled
        filled.content_hash(items[0].images[0])
    (note,) = (filled.folder / "hashes").rglob("*.json")
    foreign = foreign_files(filled.folder, path_of(filled, items[0]).stem)
    upkeep.write_limit(filled.folder, 10**9)
    size = sum(size_of(filled, item) for item in items) + note.stat().st_size
    assert upkeep.clear(filled.folder) == Amount(8, size)
    assert not any(path_of(filled, item).with_suffix(s).exists() for item in items for s in (".npy", ".json"))
    assert not note.exists()
    assert all(path.exists() for path in foreign)
    assert upkeep.read_limit(filled.folder) == 10**9
    assert upkeep.clear(filled.folder) == Amount(0, 0)


def test_clearing_by_last_use(filled, items):
    assert upkeep.clear(filled.folder, unused_for=5.5 * HOUR).number == 3
    assert [is_there(filled, item) for item in items] == [False] * 3 + [True] * 5


def test_outdated_entries(filled, items, monkeypatch):
    facts = path_of(filled, items[0]).with_suffix(".json")
    facts.write_text(json.dumps({k: v for k, v in json.loads(facts.read_text()).items() if k != "computed_with"}))
    facts = path_of(filled, items[1]).with_suffix(".json")
    facts.write_text(json.dumps({k: v for k, v in json.loads(facts.read_text()).items() if k != "cache_version"}))
    assert upkeep.summarise(filled.folder).outdated.number == 2
    assert upkeep.clear(filled.folder, outdated=True).number == 2
    assert [is_there(filled, item) for item in items] == [False, False] + [True] * 6
    assert upkeep.clear(filled.folder, outdated=True).number == 0
    versions = {**upkeep.versions(), "torch": "3.0"}
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "versions", lambda: versions)
        patch.setattr(upkeep, "versions", lambda: versions)
        assert not get(filled, items[7]).hit
        assert upkeep.summarise(filled.folder).outdated.number == 6
        assert upkeep.summarise(filled.folder).entries.number == 7
    assert upkeep.summarise(filled.folder).outdated.number == 1  # the one of the versions to come
    monkeypatch.setattr(upkeep, "CACHE_VERSION", upkeep.CACHE_VERSION + 1)
    assert upkeep.clear(filled.folder, outdated=True).number == 7


def test_a_summary_by_recipe(filled, items):
    other = VolumeCache(filled.folder, Preprocessing(spacing=None, shape=(4, 5, 6), normalisation="none"))
    get(other, items[0])
    set_age(other, items[0], 2)
    path_of(filled, items[1]).with_suffix(".json").write_text("torn")
    set_age(filled, items[1], 30)
    summary = upkeep.summarise(filled.folder)
    known = [recipe.preprocessing for recipe in summary.recipes]
    assert known == [PREPROCESSING.canonical(), other.preprocessing.canonical(), None]
    assert [recipe.entries.number for recipe in summary.recipes] == [7, 1, 1]
    assert sum(recipe.entries.size for recipe in summary.recipes) == summary.entries.size
    assert summary.entries.number == 9
    assert summary.outdated.number == 1  # what cannot be read cannot be used
    assert (time.time() - summary.oldest_use) / HOUR == pytest.approx(30, abs=0.1)
    assert (time.time() - summary.newest_use) / HOUR == pytest.approx(1, abs=0.1)


# All at once ----------------------------------------------------------------------------------------------------------


def use(cache, items, expected, seconds):
    """Build and read without end; fail on the first wrong voxel."""
    deadline, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        fresh = VolumeCache(cache.folder, cache.preprocessing)
        if rounds % 2:
            fresh.build(items)
        for _ in range(2):
            for item, array in zip(items, expected, strict=True):
                np.testing.assert_array_equal(get(fresh, item).array, array)
        rounds += 1
    assert rounds > 1


def tidy(folder, seconds):
    """Evict, clear and verify without end; nothing is ever damaged."""
    upkeep.IN_USE = -1.0  # nothing is in use: the worst that may happen
    deadline, removed = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        removed += upkeep.evict(folder, 2000).removed.number
        found = upkeep.verify(folder)
        assert found.damaged == ()
        assert found.leftovers == Amount(0, 0)
        upkeep.summarise(folder)
        removed += upkeep.clear(folder, unused_for=0.0).number
        removed += upkeep.clear(folder).number
    assert removed > 0


def test_processes_use_and_tidy_one_cache_at_once(cache, items, processes):
    alone = VolumeCache(cache.folder.with_name("alone"), PREPROCESSING)
    expected = [np.array(get(alone, item).array) for item in items]
    upkeep.write_limit(cache.folder, 4000)
    workers = [
        processes.Process(target=use, args=(cache, items, expected, 3.0)),
        processes.Process(target=use, args=(cache, items[::-1], expected[::-1], 3.0)),
        processes.Process(target=tidy, args=(cache.folder, 3.0)),
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert upkeep.verify(cache.folder).damaged == ()
    upkeep.write_limit(cache.folder, None)
    cache.build(items)
    for item, array in zip(items, expected, strict=True):
        assert get(cache, item).hit
        np.testing.assert_array_equal(get(cache, item).array, array)

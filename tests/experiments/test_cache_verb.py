"""`fontanel cache`: what it prints, what it removes, and its exit codes."""

import json
import os
import sys
import time

import nibabel as nib
import numpy as np
import pytest

from datamodules import upkeep
from datamodules.cache import ImageFiles, VolumeCache
from datamodules.preprocessing import Preprocessing
from experiments.cli import main

DAY = 86400.0


@pytest.fixture
def items(tmp_path):
    made = []
    for index in range(5):
        data = np.random.default_rng(index).integers(0, 900, (7, 8, 9)).astype(np.int16)
        nib.save(nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1])), tmp_path / f"scan{index}.nii")
        made.append(ImageFiles((tmp_path / f"scan{index}.nii",), None, (f"{index:064}",)))
    return made


@pytest.fixture
def cache(tmp_path, monkeypatch, items):
    """The user's cache, with entries that were used 0, 10, 20, ... days ago."""
    monkeypatch.setenv("FONTANEL_CACHE", str(tmp_path / "cache"))
    cache = VolumeCache(None, Preprocessing(shape=(6, 7, 8)))
    cache.build(items)
    for number, item in enumerate(items):
        moment = time.time() - 10 * DAY * number
        os.utime(path_of(cache, item).with_suffix(".json"), (moment, moment))
    return cache


def path_of(cache, item):
    return cache._path(cache.key(item.sha256s))


def present(cache, items):
    return [path_of(cache, item).exists() for item in items]


def said(capsys, *words, code=0):
    """Run the verb and return what it printed."""
    assert main(["cache", *map(str, words)]) == code
    return capsys.readouterr().out


def refused(capsys, *words, code):
    """Run the verb and return its complaint."""
    assert main(["cache", *map(str, words)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize("words", [[], ["--info"]])
def test_what_the_cache_holds(words, cache, capsys):
    lines = said(capsys, *words).splitlines()
    assert lines[0].startswith(f"{cache.folder}: 5 entries, 0 MB; no limit; ")
    assert lines[0].endswith(" GB free on the disk.")
    oldest, today = (time.strftime("%Y-%m-%d", time.localtime(time.time() - days * DAY)) for days in (40, 0))
    assert lines[1].startswith(f"Last used between {oldest} ")
    assert f" and {today} " in lines[1]
    assert lines[2:] == [
        "spacing 2x2x2, shape 6x7x8, centre foreground, normalisation zscore, foreground above-mean, clip none: "
        f"5 entries, 0 MB, last used {today}"
    ]


def test_the_same_as_json(cache, items, capsys):
    said(capsys, "--limit", "1.5GB")
    path_of(cache, items[0]).unlink()
    found = json.loads(said(capsys, "--json"))
    size = sum(file.stat().st_size for item in items[1:] for file in path_of(cache, item).parent.glob("*.*"))
    assert found["folder"] == str(cache.folder)
    assert found["limit"] == 1_500_000_000
    assert found["free"] > 0
    assert found["entries"] == {"number": 4, "size": size}
    assert found["unfinished"]["number"] == 1
    assert found["outdated"] == {"number": 0, "size": 0}
    assert found["recipes"] == [
        {
            "preprocessing": cache.preprocessing.canonical(),
            "entries": found["entries"],
            "last_used": found["newest_use"],
        }
    ]
    assert time.time() - found["newest_use"] == pytest.approx(10 * DAY, abs=60)
    assert time.time() - found["oldest_use"] == pytest.approx(40 * DAY, abs=60)


def test_a_table_on_a_terminal(cache, items, capsys, monkeypatch):
    clipped = Preprocessing(spacing=None, shape=(4, 4, 4), normalisation="percentile", clip=(0.5, 99.5))
    VolumeCache(None, clipped).build(items[:1])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    text = said(capsys)
    assert "┃" in text
    words = " ".join(text.replace("│", " ").split())
    assert "spacing none, shape 4x4x4" in words
    assert "clip 0.5 to 99.5" in words


def test_what_is_of_no_more_use_is_named_with_its_remedy(cache, items, capsys, monkeypatch):
    path_of(cache, items[0]).with_suffix(".json").unlink()
    monkeypatch.setattr(upkeep, "CACHE_VERSION", upkeep.CACHE_VERSION + 1)
    text = said(capsys)
    assert "Outdated, made by other versions of the libraries: 4 entries, 0 MB. --clear --outdated removes" in text
    assert "Unfinished, of writers at work or killed: 1 file, 0 MB. --verify removes" in text


def test_a_cache_that_is_not_there_is_not_made(tmp_path, capsys):
    folder = tmp_path / "none"
    for words in ([], ["--verify"], ["--clear"], ["--limit", "none"]):
        assert said(capsys, "--folder", folder, *words).startswith(f"{folder}: ")
    assert json.loads(said(capsys, "--folder", folder, "--json"))["oldest_use"] is None
    assert not folder.exists()


def test_another_folder(cache, items, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = VolumeCache(tmp_path / "other", cache.preprocessing)
    other.build(items[:2])
    assert said(capsys, "--folder", "other") == said(capsys, "--folder", tmp_path / "other")
    assert "2 entries removed" in said(capsys, "--folder", "other", "--clear")
    assert present(cache, items) == [True] * 5


def test_a_file_is_no_cache(items, capsys):
    assert "scan0.nii is no folder" in refused(capsys, "--folder", items[0].images[0], "--clear", code=1)


def test_verification_of_a_whole_cache(cache, capsys):
    assert main(["cache", "--verify"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{cache.folder}: 5 entries read, none damaged.\n"
    assert "Verifying entries: 5 items" in err


def test_verification_removes_what_is_damaged_and_it_is_computed_again(cache, items, capsys):
    path = path_of(cache, items[1])
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    text = said(capsys, "--verify", code=1)
    assert "5 entries read, 1 damaged." in text
    assert f"Removed, to be computed again when needed: volumes/{path.parent.name}/{path.name} (0 MB)." in text
    assert VolumeCache(None, cache.preprocessing).build(items) == 1
    path.write_bytes(content)
    found = json.loads(said(capsys, "--verify", "--json", code=1))
    assert found["damaged"] == [f"volumes/{path.parent.name}/{path.name}"]
    assert (found["entries"], found["leftovers"]) == (5, {"number": 0, "size": 0})
    assert found["damaged_size"] > 600


def test_many_damaged_entries_are_counted(cache, items, capsys, monkeypatch):
    from experiments import checks

    monkeypatch.setattr(checks, "MAXIMUM_NAMES", 2)
    for item in items:
        path_of(cache, item).write_bytes(b"")
    text = said(capsys, "--verify", code=1)
    assert "5 damaged" in text
    assert text.count("volumes/") == 2
    assert " and 3 more (" in text


def test_leftovers_are_no_damage(cache, items, capsys):
    path_of(cache, items[0]).unlink()
    path_of(cache, items[1]).with_name("0123456789abcdef.tmp").write_bytes(bytes(3_000_000))
    text = said(capsys, "--verify")
    assert "5 entries read, none damaged." in text
    assert "Removed, left behind by killed writers: 2 files (3 MB)." in text
    assert "killed" not in said(capsys, "--verify")


def test_clearing_all(cache, items, capsys):
    assert said(capsys, "--clear") == f"{cache.folder}: 5 entries removed, 0 MB freed.\n"
    assert present(cache, items) == [False] * 5
    assert said(capsys, "--clear") == f"{cache.folder}: 0 entries removed, 0 MB freed.\n"


def test_clearing_what_was_not_used(cache, items, capsys):
    removed = json.loads(said(capsys, "--clear", "--unused-for", "35", "--json"))["removed"]
    assert removed["number"] == 1
    assert removed["size"] > 600
    assert present(cache, items) == [True, True, True, True, False]
    assert "2 entries removed" in said(capsys, "--clear", "--unused-for", "12.5")
    assert present(cache, items) == [True, True, False, False, False]


def test_clearing_what_is_outdated(cache, items, capsys, monkeypatch):
    assert "0 entries removed" in said(capsys, "--clear", "--outdated")
    monkeypatch.setattr(upkeep, "versions", lambda: {"torch": "9"})
    assert "5 entries removed" in said(capsys, "--clear", "--outdated")
    assert present(cache, items) == [False] * 5


def test_a_limit_makes_room_at_once_and_stays(cache, items, capsys, monkeypatch):
    from experiments import cache as verb

    monkeypatch.setitem(verb.UNITS, "MB", 1000)
    assert said(capsys, "--limit", "5.5MB").endswith(": limit 0 MB; 2 entries removed, 0 MB freed.\n")
    assert present(cache, items) == [True, True, True, False, False]
    assert "; limit 0 MB; " in said(capsys)
    assert upkeep.read_limit(cache.folder) == 5500
    text = said(capsys, "--limit", "1 mb")
    assert "2 entries removed" in text
    assert "0 MB are left, all used within the last hour." in text
    assert present(cache, items) == [True, False, False, False, False]
    assert json.loads(said(capsys, "--limit", "2TB", "--json")) == {
        "limit": 2 * 10**12,
        "removed": {"number": 0, "size": 0},
    }
    assert said(capsys, "--limit", "None") == f"{cache.folder}: no limit.\n"
    assert json.loads(said(capsys, "--limit", "none", "--json"))["limit"] is None
    assert "; no limit; " in said(capsys)


@pytest.mark.parametrize(
    ("text", "size"), [("200GB", 200 * 10**9), ("1.5TB", 1.5e12), ("500MB", 5e8), ("2 gb", 2e9), ("0.5 GB", 5e8)]
)
def test_sizes(text, size, tmp_path, capsys):
    said(capsys, "--folder", tmp_path / "cache", "--limit", text)
    assert upkeep.read_limit(tmp_path / "cache") == size


@pytest.mark.parametrize(
    "text", ["200", "GB", "", "-5GB", "0GB", "200GiB", "1,5TB", "1e3GB", "nanGB", "5KB", "9" * 400]
)
def test_nonsense_is_no_size(text, tmp_path, capsys):
    folder = tmp_path / "cache"
    error = refused(capsys, "--folder", folder, f"--limit={text}", code=2)
    assert f"'{text}' is no size. Write one such as 500MB, 200GB or 1.5TB, or none." in error
    assert not folder.exists()


@pytest.mark.parametrize("text", ["a week", "-1", "nan", "inf", ""])
def test_nonsense_is_no_number_of_days(text, cache, items, capsys):
    error = refused(capsys, "--clear", f"--unused-for={text}", code=2)
    assert f"'{text}' is no number of days" in error
    assert present(cache, items) == [True] * 5


@pytest.mark.parametrize(
    "words",
    [
        ["--clear", "--verify"],
        ["--info", "--clear"],
        ["--verify", "--limit", "1GB"],
        ["--clear", "--unused-for", "3", "--outdated"],
        ["--unused-for", "3"],
        ["--verify", "--outdated"],
        ["--limit"],
    ],
    ids=" ".join,
)
def test_options_that_exclude_each_other(words, cache, items, capsys):
    assert "error: " in refused(capsys, *words, code=2)
    assert present(cache, items) == [True] * 5
    assert upkeep.read_limit(cache.folder) is None


def test_a_limit_that_cannot_be_read_is_an_error_with_its_remedy(cache, capsys):
    (cache.folder / "limit.json").write_text("200GB")
    assert "limit.json holds no limit" in refused(capsys, code=1)
    said(capsys, "--limit", "none")
    said(capsys)

"""The sealed archive: what fits is read, and any other byte, name or size is refused before it is used."""

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest

from tracking.packs import FORMAT, REQUIRED, PackError, is_pack, read_pack, write_pack

MEMBERS = {name: f"content of {name}\n".encode() * 20 for name in REQUIRED}


@pytest.fixture
def pack(tmp_path):
    write_pack(tmp_path / "model.fontanel", MEMBERS, {"name": "ours"})
    return tmp_path / "model.fontanel"


def sealed(entries, path, number=FORMAT, manifest=None):
    """Write an archive as somebody would who seals what is no pack."""
    hashes = {
        entry.filename: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for entry, content in entries
    }
    described = manifest or {"format": FORMAT, "members": hashes}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("manifest.json", json.dumps(described))
        for entry, content in entries:
            archive.writestr(entry, content)
        archive.comment = f"fontanel-pack-{number} sha256:".encode() + b"0" * 64
    unsealed = buffer.getvalue()[:-64]
    path.write_bytes(unsealed + hashlib.sha256(unsealed).hexdigest().encode())
    return path


def entries_of(members=MEMBERS):
    return [(zipfile.ZipInfo(name), content) for name, content in members.items()]


def test_what_was_written_is_read_and_the_same_content_makes_the_same_file(pack, tmp_path):
    found = read_pack(pack)
    assert dict(found.members) == MEMBERS
    assert found.manifest["name"] == "ours"
    write_pack(tmp_path / "again.fontanel", MEMBERS, {"name": "ours"})
    assert (tmp_path / "again.fontanel").read_bytes() == pack.read_bytes()
    with zipfile.ZipFile(pack) as archive:
        assert archive.testzip() is None


def test_a_pack_is_known_by_its_ending_and_by_its_seal(pack, tmp_path):
    renamed = pack.rename(tmp_path / "model.zip")
    assert is_pack(renamed)
    assert is_pack("absent.fontanel")
    (tmp_path / "table.tsv").write_text("participant_id\n")
    assert not is_pack(tmp_path / "table.tsv")
    assert not is_pack(tmp_path)


def test_every_flipped_byte_is_refused(pack):
    whole = pack.read_bytes()
    places = {*np.linspace(0, len(whole) - 1, 200).astype(int).tolist(), *range(len(whole) - 120, len(whole))}
    for place in sorted(places):
        changed = bytearray(whole)
        changed[place] ^= 1
        pack.write_bytes(changed)
        with pytest.raises(PackError, match="Ask the sender"):
            read_pack(pack)
    pack.write_bytes(whole)
    read_pack(pack)


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole[:-1],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole + b"\n",
        lambda whole: b"#!/bin/sh\n" + whole,
        lambda whole: b"",
    ],
)
def test_what_was_cut_or_added_is_refused(pack, change):
    pack.write_bytes(change(pack.read_bytes()))
    with pytest.raises(PackError, match=r"no pack, or was cut|not what was sealed"):
        read_pack(pack)


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "folder/card.md", "evil.pkl", "CARD.MD"])
def test_a_member_of_another_name_is_refused_and_nothing_is_written(name, tmp_path):
    path = sealed([*entries_of(), (zipfile.ZipInfo(name), b"x")], tmp_path / "model.fontanel")
    with pytest.raises(PackError, match="which no pack holds"):
        read_pack(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_member_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = sealed([*entries_of(), (zipfile.ZipInfo("card.md"), b"another")], tmp_path / "model.fontanel")
    with pytest.raises(PackError, match="twice"):
        read_pack(path)


def test_a_bomb_is_refused_before_it_is_read(tmp_path, monkeypatch):
    entries = entries_of()
    bomb = zipfile.ZipInfo("card.md")
    bomb.compress_type = zipfile.ZIP_DEFLATED
    entries = [(bomb, b"0" * (200 << 20)) if entry.filename == "card.md" else (entry, text) for entry, text in entries]
    path = sealed(entries, tmp_path / "model.fontanel")
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with pytest.raises(PackError, match="compressed"):
        read_pack(path)


def test_members_that_overlap_to_seem_larger_than_the_file_are_refused(pack, monkeypatch):
    real = zipfile.ZipFile.infolist

    def swollen(archive):
        found = real(archive)
        found[-1].file_size = 1 << 40
        return found

    monkeypatch.setattr(zipfile.ZipFile, "infolist", swollen)
    with pytest.raises(PackError, match="larger than the file"):
        read_pack(pack)


def test_an_unknown_format_asks_for_a_newer_version(tmp_path):
    with pytest.raises(PackError, match="Update Fontanel"):
        read_pack(sealed(entries_of(), tmp_path / "a.fontanel", number=2))
    with pytest.raises(PackError, match="Update Fontanel"):
        read_pack(sealed(entries_of(), tmp_path / "b.fontanel", manifest={"format": 7}))


def test_a_member_that_the_manifest_does_not_describe_is_refused(tmp_path):
    entries = entries_of()
    hashes = {entry.filename: {"sha256": "0" * 64, "size": len(content)} for entry, content in entries}
    with pytest.raises(PackError, match="does not describe"):
        read_pack(sealed(entries, tmp_path / "a.fontanel", manifest={"format": FORMAT, "members": hashes}))


def test_addresses_and_absent_files_are_refused(tmp_path):
    for address in ("https://host/model.fontanel", "s3:/bucket/model.fontanel"):
        with pytest.raises(PackError, match="is a URL"):
            read_pack(address)
    with pytest.raises(PackError, match="no pack"):
        read_pack(tmp_path / "absent.fontanel")


def test_what_is_no_pack_is_not_written(tmp_path):
    with pytest.raises(PackError, match=r"card\.md is missing"):
        write_pack(tmp_path / "a.fontanel", {n: c for n, c in MEMBERS.items() if n != "card.md"}, {})
    with pytest.raises(PackError, match="which no pack holds"):
        write_pack(tmp_path / "a.fontanel", MEMBERS | {"split.json": b""}, {})
    assert not (tmp_path / "a.fontanel").exists()


def test_a_member_of_another_pack_is_refused(pack, tmp_path):
    other = MEMBERS | {"weights.safetensors": MEMBERS["weights.safetensors"].swapcase()}
    write_pack(tmp_path / "other.fontanel", other, {"name": "ours"})
    whole, theirs = pack.read_bytes(), (tmp_path / "other.fontanel").read_bytes()
    start = whole.index(MEMBERS["weights.safetensors"])
    end = start + len(MEMBERS["weights.safetensors"])
    pack.write_bytes(whole[:start] + theirs[start:end] + whole[end:])
    with pytest.raises(PackError, match="not what was sealed"):
        read_pack(pack)
    swapped = sealed(entries_of(other), tmp_path / "c.fontanel", manifest=read_pack_manifest(whole))
    with pytest.raises(PackError, match="does not describe"):
        read_pack(swapped)


def read_pack_manifest(whole):
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return json.loads(archive.read("manifest.json"))

"""The file that one hospital hands to another: a sealed archive of a model and of what is needed to use it.

A pack is a zip archive of stored (not compressed) members with fixed names. Its comment, the very end of the file, is
the seal: the sha256 of every byte before it. A byte that is changed, added or lost anywhere, in the structures of the
archive too, breaks the seal. The seal is no signature: who makes a pack can seal whatever they like, so nothing in one
is executed, unpickled or written to a place that it names, and sizes are limited before anything is read.
"""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from tracking.files import is_url, write_file

FORMAT = 1
SUFFIX = ".fontanel"
MANIFEST, CONFIG, CONTRACT = "manifest.json", "config.yaml", "contract.json"
MODEL, ENVIRONMENT, CARD, LICENCE = "model.json", "environment.json", "card.md", "LICENSE"
WEIGHTS, DATA_STATE, ONNX = "weights.safetensors", "data.safetensors", "model.onnx"
TEXTS = (CONFIG, CONTRACT, MODEL, ENVIRONMENT, CARD, LICENCE)
REQUIRED = (*TEXTS, WEIGHTS)
OPTIONAL = (DATA_STATE, ONNX)
MAXIMUM_TEXT = 64 << 20  # bytes of a member that is text: the hashes of a million images
_SEAL = re.compile(rb"fontanel-pack-(\d{1,4}) sha256:([0-9a-f]{64})\Z")
_SEAL_END = 128  # bytes at the end of the file among which the seal is
_TIME = (1980, 1, 1, 0, 0, 0)  # of every member: the same model makes the same bytes, and nobody learns when
_ASK = "Ask the sender for it again."


class PackError(ValueError):
    """A pack that cannot be made, trusted or read; says which file and what to do."""


@dataclass(frozen=True)
class Pack:
    """A pack whose seal and hashes fit.

    Args:
        path: The file.
        members: Content of each member but the manifest.
        manifest: Format, version, name, licence, agreement of the ONNX model, and hash and size of each member.
    """

    path: Path
    members: Mapping[str, bytes]
    manifest: Mapping[str, Any]

    def text(self, name: str) -> str:
        """Return a member that is text."""
        try:
            return self.members[name].decode("utf-8")
        except UnicodeDecodeError as error:
            raise PackError(f"{name} in {self.path} is no text. {_ASK}") from error

    def record(self, name: str) -> dict[str, Any]:
        """Return a member that is JSON."""
        return _json_object(self.text(name), f"{name} in {self.path}")

    @cached_property
    def model(self) -> dict[str, Any]:
        """What the model takes and gives (`model.json`)."""
        return self.record(MODEL)


def is_pack(reference: str | Path) -> bool:
    """Tell whether a reference names a pack: by its ending, or by the seal of a file that was renamed."""
    if Path(reference).suffix == SUFFIX:
        return True
    path = Path(reference)
    if is_url(reference) or not path.is_file():
        return False
    with path.open("rb") as file:
        return _SEAL.search(_end_of(file)) is not None


def write_pack(path: Path, members: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
    """Write a pack, whole or not at all; the same content makes the same bytes.

    Args:
        path: File to write.
        members: Content by name, in order.
        facts: What else the manifest says, in JSON types.

    Raises:
        PackError: A member is missing, unknown or too large.
    """
    if problem := _membership_problem({name: len(content) for name, content in members.items()}):
        raise PackError(f"{path} cannot be written: {problem}.")
    hashes = {name: {"sha256": _sha256(content), "size": len(content)} for name, content in members.items()}
    manifest = json.dumps({"format": FORMAT, **facts, "members": hashes}, indent=1, ensure_ascii=False) + "\n"
    buffer = io.BytesIO()
    label = f"fontanel-pack-{FORMAT} sha256:".encode()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {MANIFEST: manifest.encode("utf-8"), **members}.items():
            archive.writestr(zipfile.ZipInfo(name, _TIME), content)
        archive.comment = label + b"0" * 64
    unsealed = buffer.getvalue()[:-64]
    write_file(path, unsealed + _sha256(unsealed).encode())


def read_pack(path: str | Path) -> Pack:
    """Read a pack after checking its seal; nothing in it is executed, and nothing is written.

    Raises:
        PackError: It is missing, changed, cut, of another format, an address, or holds what no pack holds.
    """
    if is_url(path):
        raise PackError(f"{path} is a URL. Download the file, check where it is from, and give its path.")
    target = Path(path).expanduser()
    try:
        with target.open("rb") as file:
            _require_seal(file, target)
            file.seek(0)
            return _read(file, target)
    except FileNotFoundError:
        raise PackError(f"There is no pack {target}. Check the path.") from None
    except IsADirectoryError:
        raise PackError(f"{target} is a folder and no pack.") from None
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise PackError(f"{target} is damaged or no pack ({type(error).__name__}: {error}). {_ASK}") from error


def _end_of(file: BinaryIO) -> bytes:
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _SEAL_END))
    return file.read()


def _require_seal(file: BinaryIO, path: Path) -> None:
    """Compare the seal with every byte before it.

    Raises:
        PackError: It does not fit, or is that of a later format.
    """
    seal = _SEAL.search(_end_of(file))
    size = file.seek(0, io.SEEK_END)
    if seal is None:
        raise PackError(f"{path} has no seal at its end: it is no pack, or was cut or changed. {_ASK}")
    file.seek(0)
    digest, left = hashlib.sha256(), size - 64
    while left:
        block = file.read(min(left, 1 << 20))
        if not block:
            raise PackError(f"{path} changed while it was read. Try again.")
        digest.update(block)
        left -= len(block)
    if digest.hexdigest().encode() != seal[2]:
        raise PackError(f"{path} is not what was sealed: its sha256 is another, so it was changed on the way. {_ASK}")
    if int(seal[1]) != FORMAT:
        raise PackError(
            f"{path} has format {int(seal[1])}; this version of Fontanel reads format {FORMAT}. Update Fontanel."
        )


def _read(file: BinaryIO, path: Path) -> Pack:
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        sizes = {entry.filename: entry.file_size for entry in entries}
        if len(sizes) < len(entries):
            raise PackError(f"{path} holds a member twice. {_ASK}")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1:
                raise PackError(f"{path} holds {entry.filename!r} compressed or encrypted, as no pack does. {_ASK}")
        problem = _membership_problem({name: length for name, length in sizes.items() if name != MANIFEST})
        if problem is None and (MANIFEST not in sizes or sum(sizes.values()) > size or sizes[MANIFEST] > MAXIMUM_TEXT):
            problem = f"{MANIFEST} is missing, or members claim to be larger than the file"
        if problem:
            raise PackError(f"{path} cannot be used: {problem}. {_ASK}")
        members = {entry.filename: archive.read(entry) for entry in entries}
    manifest = _json_object(members.pop(MANIFEST).decode("utf-8", "replace"), f"{MANIFEST} in {path}")
    if manifest.get("format") != FORMAT:
        raise PackError(f"{path} has format {manifest.get('format')}; this version reads {FORMAT}. Update Fontanel.")
    hashes = {name: {"sha256": _sha256(content), "size": len(content)} for name, content in members.items()}
    if manifest.get("members") != hashes:
        raise PackError(f"{path} holds members that its {MANIFEST} does not describe. {_ASK}")
    return Pack(path, members, manifest)


def _membership_problem(sizes: Mapping[str, int]) -> str | None:
    """Say what is wrong with the names and sizes of the members, None for nothing."""
    if missing := [name for name in REQUIRED if name not in sizes]:
        return f"{', '.join(missing)} is missing"
    if unknown := [name for name in sizes if name not in (*REQUIRED, *OPTIONAL)]:
        return f"it holds {', '.join(map(repr, unknown[:5]))}, which no pack holds"
    if large := [name for name in TEXTS if sizes[name] > MAXIMUM_TEXT]:
        return f"{', '.join(large)} is larger than {MAXIMUM_TEXT >> 20} MiB"
    return None


def _json_object(text: str, name: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PackError(f"{name} does not read as JSON ({type(error).__name__}). {_ASK}") from error
    if not isinstance(content, dict):
        raise PackError(f"{name} holds no JSON object. {_ASK}")
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""Preprocessed volumes on disk, addressed by content: computed once, mapped into memory ever after."""

import contextlib
import hashlib
import io
import json
import math
import multiprocessing
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the library's own idiom
import torch

from datamodules.folders import cache_folder
from datamodules.preprocessing import Affine, Preprocessing, PreprocessingError, Volume, read_volume, scaled
from datamodules.upkeep import (
    CACHE_VERSION,
    READ_ERRORS,
    EntryFacts,
    HalfArray,
    entry_lock,
    keep_limit,
    map_array,
    mark_used,
    read_facts,
    versions,
)

WORKER_START = 15.0  # seconds of work left from which starting processes (about 8 s of imports) pays
SETTLED = 2 * 10**9  # ns; a file younger than this may still change without a visible change of its times
MARK_INTERVAL = 900.0  # seconds after which a process that goes on using an entry says so again


@dataclass(frozen=True)
class ImageFiles:
    """The files that make one entry.

    Args:
        images: One file per channel; the first sets the grid.
        mask: Foreground mask, where the preprocessing uses one.
        sha256s: Content hashes of the images, then of the mask, where a manifest already knows them.
        scales: What the voxels of each image are multiplied by when it is read; as they are by default.
        volumes: Which volume of each 4D image, counted from 0; None for those with three axes, as all are by default.
    """

    images: tuple[Path, ...]
    mask: Path | None = None
    sha256s: tuple[str, ...] | None = None
    scales: tuple[float, ...] | None = None
    volumes: tuple[int | None, ...] | None = None

    @property
    def channels(self) -> list[tuple[Path, int | None]]:
        """The file of each channel, and which of its volumes."""
        return list(zip(self.images, self.volumes or (None,) * len(self.images), strict=True))


@dataclass(frozen=True, eq=False)
class CachedVolume:
    """A preprocessed image set.

    Args:
        array: (C, D, H, W), float16, mapped copy-on-write: writing changes this copy only, never the file.
        affine: Of the array, (4, 4), RAS+ mm.
        native_shape: Voxels of the first image in its file.
        native_affine: Of the first image in its file.
        hit: Whether the entry was already there.
    """

    array: HalfArray
    affine: Affine
    native_shape: tuple[int, int, int]
    native_affine: Affine
    hit: bool


class VolumeCache:
    """Preprocess each image set once per content and parameters, whatever run, fold or process asks for it.

    An entry is `volumes/<2 digits>/<key>.npy` with a `.json` beside it that is written last: without it, or where the
    two disagree, the entry is computed again. A process compares an entry with its hash when it first opens it, and
    notes then, and every quarter of an hour, that it is in use. Where the folder has a limit, what was not used for
    longest makes room for what is written.

    Args:
        folder: Where the cache lives; else the environment variable `FONTANEL_CACHE`, else the user's cache folder.
        preprocessing: What is done to the images.
    """

    def __init__(self, folder: Path | None, preprocessing: Preprocessing) -> None:
        self.folder = cache_folder() if folder is None else Path(folder)
        self.preprocessing = preprocessing
        self._known: dict[str, tuple[EntryFacts, float]] = {}  # of entries checked here, and when last marked as used

    def key(
        self,
        sha256s: Sequence[str],
        scales: Sequence[float] | None = None,
        volumes: Sequence[int | None] | None = None,
    ) -> str:
        """Return the name of an entry.

        Args:
            sha256s: Content hashes of the images in order, then of the mask where the foreground is "mask".
            scales: What the voxels of each image are multiplied by; as they are by default.
            volumes: Which volume of each 4D image.
        """
        recipe = self._recipe(sha256s, scales, volumes)
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    def load(self, files: ImageFiles) -> CachedVolume:
        """Open the entry of a sample's files, computing it first where it is missing or damaged.

        Raises:
            PreprocessingError: An image cannot be read or preprocessed.
        """
        cached = self._fetch(files)
        if not cached.hit:
            keep_limit(self.folder, cached.array.nbytes)
        return cached

    def get(
        self,
        images: Sequence[Path],
        mask: Path | None = None,
        sha256s: Sequence[str] | None = None,
    ) -> CachedVolume:
        """Open the entry of images that are taken as they are, computing it first where it is missing or damaged.

        Args:
            images: One file per channel; the first sets the grid.
            mask: Foreground mask, read only where the foreground is "mask".
            sha256s: Content hashes of the images, then of the mask; else the files are hashed.

        Raises:
            PreprocessingError: An image cannot be read or preprocessed.
        """
        return self.load(ImageFiles(tuple(images), mask, None if sha256s is None else tuple(sha256s)))

    def build(
        self,
        items: Sequence[ImageFiles],
        num_workers: int = 0,
        on_item: Callable[[int, int], None] | None = None,
    ) -> int:
        """Compute every missing entry; an interrupted build continues where it stopped.

        Args:
            items: The image sets.
            num_workers: Processes to compute in, started once the work left is worth it; 0 or 1 computes in this one.
            on_item: Called with the number of items done and of all items.

        Returns:
            How many entries were computed.

        Raises:
            PreprocessingError: After all items were tried, with every image that failed.
        """
        began = time.time()
        problems: list[str] = []
        computed = 0
        for done, outcome in enumerate(self._outcomes(items, num_workers), start=1):
            if isinstance(outcome, str):
                problems.append(outcome)
            elif outcome > 0:
                computed += 1
                keep_limit(self.folder, outcome, since=began)
            if on_item is not None:
                on_item(done, len(items))
        keep_limit(self.folder, since=began)
        if problems:
            summary = f"{len(problems)} of {len(items)} image sets failed:"
            raise PreprocessingError("\n".join([summary, *dict.fromkeys(problems)]))
        return computed

    def content_hash(self, path: Path) -> str:
        """Return the sha256 of a file, or of the names and contents of a folder's files.

        The hash is remembered by path, size and times of change, so a file is read once as long as it stays untouched.
        """
        path = Path(path)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            listing = [f"{file.relative_to(path).as_posix()}\0{self.content_hash(file)}\n" for file in files]
            return hashlib.sha256("".join(listing).encode()).hexdigest()
        name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
        note = self.folder / "hashes" / name[:2] / f"{name}.json"
        facts = _file_facts(path)
        with contextlib.suppress(OSError, ValueError, TypeError):
            *noted, sha256 = json.loads(note.read_bytes())
            if noted == facts:
                return str(sha256)
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        if _file_facts(path) == facts and max(facts[1:]) < time.time_ns() - SETTLED:
            _write(note, json.dumps([*facts, sha256]).encode(), durable=False)
        return sha256

    def _fetch(self, item: ImageFiles) -> CachedVolume:
        hashes = self._hashes(item)
        key = self.key(hashes, item.scales, item.volumes)
        cached = self._open(key, hit=True)
        if cached is None:
            with self._lock(key):
                cached = self._open(key, hit=True)  # another process may have been faster
                if cached is None:
                    self._write_entry(key, *self._compute(item, hashes))
                    cached = self._open(key, hit=False)
        if cached is None:
            raise PreprocessingError(f"{self._path(key)}: does not read back as it was written. Check the disk.")
        return cached

    def _recipe(
        self, sha256s: Sequence[str], scales: Sequence[float] | None, volumes: Sequence[int | None] | None
    ) -> dict[str, object]:
        preprocessing = self.preprocessing.canonical()
        if scales is not None and any(scale != 1 for scale in scales):
            preprocessing["scale"] = "/".join(repr(float(scale)) for scale in scales)
        if volumes is not None and any(volume is not None for volume in volumes):
            preprocessing["volume"] = "/".join("-" if volume is None else str(volume) for volume in volumes)
        return {
            "sha256s": list(sha256s),
            "preprocessing": preprocessing,
            "computed_with": versions(),
            "cache_version": CACHE_VERSION,
        }

    def _mask(self, item: ImageFiles) -> Path | None:
        return item.mask if self.preprocessing.foreground == "mask" else None

    def _hashes(self, item: ImageFiles) -> list[str]:
        mask = self._mask(item)
        files = [*item.images] if mask is None else [*item.images, mask]
        if item.sha256s is not None:
            return list(item.sha256s[: len(files)])
        try:
            return [self.content_hash(path) for path in files]
        except OSError as error:
            raise PreprocessingError(f"{error.filename}: {error.strerror}. Correct the cohort table.") from error

    def _path(self, key: str) -> Path:
        return self.folder / "volumes" / key[:2] / f"{key}.npy"

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        """Let one process at a time write below a prefix; say so where the folder cannot be written."""
        try:
            with entry_lock(self.folder, key):
                yield
        except OSError as error:
            remedy = "Free space there, or set FONTANEL_CACHE to a folder of yours."
            raise PreprocessingError(f"{self.folder}: cannot be written ({error.strerror}). {remedy}") from error

    def _open(self, key: str, *, hit: bool, check_content: bool = True) -> CachedVolume | None:
        path = self._path(key)
        try:
            known = self._known.get(key)
            facts, marked = known or (read_facts(path), -math.inf)
            array = map_array(path, facts)
            if check_content and known is None and hashlib.sha256(array.data).hexdigest() != facts.array_sha256:
                return None
            if not check_content or time.monotonic() - marked > MARK_INTERVAL:  # a build marks all it will use
                mark_used(path)
                marked = time.monotonic()
            if check_content:
                self._known[key] = facts, marked
        except READ_ERRORS:
            self._known.pop(key, None)  # what comes in its place is checked anew
            return None
        return CachedVolume(array, facts.affine, facts.native_shape, facts.native_affine, hit)

    def _compute(self, item: ImageFiles, hashes: list[str]) -> tuple[HalfArray, dict[str, object]]:
        scales = item.scales or (1.0,) * len(item.images)
        channels = zip(item.channels, scales, strict=True)
        images = [scaled(read_volume(path, volume), scale) for (path, volume), scale in channels]
        mask = self._mask(item)
        volume = self.preprocessing(images, None if mask is None else read_volume(mask))
        array = _to_half(volume)
        return array, {
            "shape": array.shape,
            "array_sha256": hashlib.sha256(array.data).hexdigest(),
            "affine": volume.affine.tolist(),
            "native_shape": images[0].data.shape[1:],
            "native_affine": images[0].affine.tolist(),
            **self._recipe(hashes, item.scales, item.volumes),
        }

    def _write_entry(self, key: str, array: HalfArray, facts: dict[str, object]) -> None:
        path = self._path(key)
        for leftover in path.parent.glob("*.tmp"):  # of a process killed here: this one holds the lock
            leftover.unlink()
        path.with_suffix(".json").unlink(missing_ok=True)
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        _write(path, content.getbuffer(), durable=True)
        _write(path.with_suffix(".json"), json.dumps(facts).encode(), durable=True)

    def _outcomes(self, items: Sequence[ImageFiles], num_workers: int) -> Iterator[int | str]:
        """Yield the bytes of every entry computed, 0 for every one that was there, the message for every failure."""
        waiting = []
        for item in items:
            if self._is_built(item):
                yield 0
            else:
                waiting.append(item)
        start = time.monotonic()
        for done, item in enumerate(waiting, start=1):
            yield _build_one(self, item)
            left = (time.monotonic() - start) / done * (len(waiting) - done)
            if num_workers > 1 and left > WORKER_START:
                yield from self._outcomes_of_workers(waiting[done:], num_workers)
                return

    def _is_built(self, item: ImageFiles) -> bool:
        try:
            key = self.key(self._hashes(item), item.scales, item.volumes)
            return self._open(key, hit=True, check_content=False) is not None
        except PreprocessingError:
            return False

    def _outcomes_of_workers(self, items: Sequence[ImageFiles], num_workers: int) -> Iterator[int | str]:
        # Forking this process would copy the locks of its running threads; the fork server imports once and has none.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        executor = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_one_thread)
        try:
            futures = [executor.submit(_build_one, self, item) for item in items]
            yield from (future.result() for future in as_completed(futures))
        except BrokenProcessPool as error:
            message = f"{self.folder}: a worker was killed, perhaps for want of memory. Use fewer workers."
            raise PreprocessingError(message) from error
        finally:
            executor.shutdown(cancel_futures=True)


def _build_one(cache: VolumeCache, item: ImageFiles) -> int | str:
    try:
        cached = cache._fetch(item)
    except PreprocessingError as error:
        return str(error)
    return 0 if cached.hit else cached.array.nbytes


def _one_thread() -> None:
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _file_facts(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _to_half(volume: Volume) -> HalfArray:
    with np.errstate(over="ignore"):
        array = volume.data.astype(np.float16)
    if not np.isfinite(array).all():
        peak = f"{volume.source}: {np.abs(volume.data).max():g} is above 65504, the largest half-precision value."
        raise PreprocessingError(f"{peak} Choose a normalisation other than none, or rescale the image.")
    return array


def _write(path: Path, content: bytes | memoryview, *, durable: bool) -> None:
    """Put a file in place as a whole: readers see the old one or the new one; durable survives a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{secrets.token_hex(8)}.tmp")  # tempfile's would be closed to other users of the cache
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

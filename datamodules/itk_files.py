"""MetaImage, NRRD, PNG and DICOM, which SimpleITK reads; what it passes over in silence is checked here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the library's own idiom

from datamodules.problems import CohortError, ProblemCode
from datamodules.streams import CHUNK, check_deflate
from datamodules.voxels import Digest, Layout, Limits, VoxelScan, trim_axes

READERS = {".mha": "MetaImageIO", ".nrrd": "NrrdImageIO", ".png": "PNGImageIO", ".dcm": "GDCMImageIO"}
MAX_HEADER_BYTES = 2**16
UNEVEN_SLICES = 0.01  # of the distance between slices
DTYPES = {
    sitk.sitkUInt8: np.uint8,
    sitk.sitkInt8: np.int8,
    sitk.sitkUInt16: np.uint16,
    sitk.sitkInt16: np.int16,
    sitk.sitkUInt32: np.uint32,
    sitk.sitkInt32: np.int32,
    sitk.sitkUInt64: np.uint64,
    sitk.sitkInt64: np.int64,
    sitk.sitkFloat32: np.float32,
    sitk.sitkFloat64: np.float64,
}


def scan_file(path: Path, digest: Digest, limits: Limits) -> Iterator[Layout | VoxelScan]:
    """Read a file that only SimpleITK knows, yielding its layout, then what its voxels are.

    Args:
        path: A .mha, .nrrd or .png file, or DICOM under any name.
        digest: A hash object that takes the bytes of the file as they lie on disk.
        limits: What is refused from the header.

    Raises:
        CohortError: With one of the codes bad_header, corrupt_gzip, path_escape, too_large, unreadable.
    """
    name = _reader_of(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(name)
    reader.SetFileName(str(path))
    data = _own_data(path) if name in ("MetaImageIO", "NrrdImageIO") else None
    with _as_problem("bad_header"):
        reader.ReadImageInformation()
        layout = _layout(reader)
    yield layout
    limits.check(layout.shape, layout.dtype.itemsize)
    if data is not None:
        _check_own_data(path, data, layout.num_bytes)
    with _as_problem("unreadable"):
        scan = _scan(reader.Execute())
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    yield scan


def scan_series(folder: Path, root: Path, digest: Digest, limits: Limits) -> Iterator[Layout | VoxelScan]:
    """Read the folder of a DICOM series, yielding its layout, then what its voxels are.

    Args:
        folder: A folder with the files of one series.
        root: The cohort's folder, which links in the folder must not leave.
        digest: A hash object that takes the files' hashes.
        limits: What is refused from the header.

    Raises:
        CohortError: With one of the codes bad_affine, bad_header, path_escape, too_large, unreadable.
    """
    if not all(file.resolve().is_relative_to(root.resolve()) for file in folder.iterdir()):
        # Which one is not said: scanners and archives name DICOM files after patients.
        message = "A file in the folder is a link out of the cohort's folder. Put the file itself there."
        raise CohortError.single(message, "path_escape")
    with _as_problem("bad_header"):
        files = _series_files(folder)
        first = sitk.ImageFileReader()
        first.SetImageIO("GDCMImageIO")
        first.SetFileName(files[0])
        first.ReadImageInformation()
        limits.check((*first.GetSize()[:2], len(files)), _layout(first).dtype.itemsize)
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    with _as_problem("unreadable"):
        image = reader.Execute()
        _check_slices(reader, image, len(files))
        layout = _layout(image)
    yield layout
    # Sorted by content: the same series is known again under other file names.
    for content in sorted(hashlib.sha256(Path(file).read_bytes()).digest() for file in files):
        digest.update(content)
    yield _scan(image)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep SimpleITK's warnings off the terminal."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


@contextmanager
def _as_problem(code: ProblemCode) -> Iterator[None]:
    """Turn what SimpleITK raises into a finding, and keep its warnings off the terminal."""
    try:
        with quiet():
            yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip().removeprefix("sitk::ERROR: ")[:200]
        said = "" if "/" in reason or "\\" in reason else f" ({reason})"  # a path may hold a patient's name
        raise CohortError.single(f"SimpleITK cannot read it{said}. Convert or export it again.", code) from error


def _reader_of(path: Path) -> str:
    known = READERS.get(path.suffix.casefold())
    if known is None:
        with path.open("rb") as stream:  # scanners name DICOM files as they like
            if not stream.read(132).endswith(b"DICM"):
                message = "The format is not known. Use .nii, .nii.gz, .mgz, .mha, .nrrd, .png, or DICOM."
                raise CohortError.single(message, "unreadable")
    return known or "GDCMImageIO"


def _series_files(folder: Path) -> Sequence[str]:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        found = f"{len(series)} DICOM series" if series else "no DICOM series"
        message = f"The folder holds {found}. Give each row the folder of one series, or a file."
        raise CohortError.single(message, "unreadable")
    files: Sequence[str] = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    return files


def _check_slices(reader: sitk.ImageSeriesReader, image: sitk.Image, num_files: int) -> None:
    """Refuse a series with a slice missing, which would silently stretch the head."""
    tag = "0020|0032"  # image position (patient)
    if num_files < 3 or not all(reader.HasMetaDataKey(index, tag) for index in range(num_files)):
        return
    normal = np.asarray(image.GetDirection()).reshape(3, 3)[:, 2]
    positions = [
        float(normal @ np.array(reader.GetMetaData(index, tag).split("\\"), np.float64)) for index in range(num_files)
    ]
    steps = np.abs(np.diff(positions))
    usual = float(np.median(steps))
    if np.abs(steps - usual).max() > UNEVEN_SLICES * usual:
        raise CohortError.single(
            f"The slices are {steps.min():.3g} to {steps.max():.3g} mm apart, so at least one is missing or double. "
            "Export the series again.",
            "bad_affine",
        )


def _layout(source: sitk.Image | sitk.ImageFileReader) -> Layout:
    """Return the layout of an image, or of a reader that has read the header."""
    dtype = DTYPES.get(source.GetPixelIDValue())
    if dtype is None:
        raise CohortError.single(
            "The values are colours, complex numbers or vectors instead of one number per voxel. Convert them to grey.",
            "bad_header",
        )
    num_axes = source.GetDimension()
    count = min(num_axes, 3)
    affine = np.eye(4)
    direction = np.asarray(source.GetDirection()).reshape(num_axes, num_axes)[:count, :count]
    affine[:count, :count] = direction * np.asarray(source.GetSpacing())[:count]
    affine[:count, 3] = source.GetOrigin()[:count]
    affine[:2] *= -1  # LPS to RAS
    return Layout(trim_axes(tuple(source.GetSize())), np.dtype(dtype), 0, affine)


def _scan(image: sitk.Image) -> VoxelScan:
    voxels = sitk.GetArrayViewFromImage(image)
    scan = VoxelScan(voxels.dtype)
    scan.add(voxels)
    return scan


@dataclass(frozen=True)
class _OwnData:
    """Where the voxels of a MetaImage or NRRD file begin, and how they are encoded ("" if that cannot be checked)."""

    start: int
    encoding: str
    compressed_size: int | None = None


def _own_data(path: Path) -> _OwnData:
    """Find the voxels in a file of a format whose header may name another file instead, which could be anywhere."""
    with path.open("rb") as stream:
        head = stream.read(MAX_HEADER_BYTES)
    is_nrrd = path.suffix.casefold() == ".nrrd"
    end = re.search(rb"\r?\n\r?\n" if is_nrrd else rb"^\s*ElementDataFile\s*[=:]\s*(.*?)\r?\n", head, re.M)
    if end is None:
        raise CohortError.single(
            "The file does not begin with the header of its format. Export it again.", "bad_header"
        )
    fields = head[: end.end()]
    elsewhere = re.search(rb"^data ?file\s*:", fields, re.M | re.I) if is_nrrd else end[1].strip().upper() != b"LOCAL"
    if elsewhere:
        message = "The voxels are in another file, which the header names. Store header and voxels in one file."
        raise CohortError.single(message, "path_escape")
    return _nrrd_data(fields) if is_nrrd else _metaimage_data(fields)


def _nrrd_data(fields: bytes) -> _OwnData:
    encoding = re.search(rb"^encoding\s*:\s*(\w+)", fields, re.M | re.I)
    skips = re.search(rb"^(line|byte) ?skip\s*:", fields, re.M | re.I)
    return _OwnData(len(fields), "" if skips or encoding is None else encoding[1].decode().casefold())


def _metaimage_data(fields: bytes) -> _OwnData:
    # MetaIO tells upper from lower case, and takes what begins with T for True.
    if not re.search(rb"^\s*CompressedData\s*[=:]\s*[Tt1]", fields, re.M):
        is_binary = re.search(rb"^\s*BinaryData\s*[=:]\s*[Tt1]", fields, re.M)
        return _OwnData(len(fields), "raw" if is_binary else "")
    size = re.search(rb"^\s*CompressedDataSize\s*[=:]\s*(\d+)", fields, re.M)
    if size is None:
        message = "The header has no CompressedDataSize, without which voxels are read wrongly. Export it again."
        raise CohortError.single(message, "bad_header")
    return _OwnData(len(fields), "zlib", int(size[1]))


def _check_own_data(path: Path, data: _OwnData, num_bytes: int) -> None:
    """Check length and checksum, which MetaIO only mentions on the terminal."""
    with path.open("rb") as stream:
        stream.seek(data.start)
        present = path.stat().st_size - data.start
        if data.encoding in ("zlib", "gzip", "gz"):
            used = check_deflate(stream, 15 if data.encoding == "zlib" else 31, num_bytes)
            if data.compressed_size not in (None, used):
                message = (
                    f"CompressedDataSize is {data.compressed_size}, but {used} bytes follow. Export the file again."
                )
                raise CohortError.single(message, "bad_header")
        elif data.encoding == "raw" and present < num_bytes:
            message = f"The file ends after {present} of {num_bytes} bytes of voxels. Copy or export it again."
            raise CohortError.single(message, "unreadable")

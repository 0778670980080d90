"""NIfTI and MGH files as a stream: header, gzip checksum and voxels in one pass, in constant memory."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.spatialimages import HeaderDataError, SpatialHeader

from datamodules.problems import CohortError
from datamodules.voxels import Affine, Digest, Layout, Limits, VoxelScan, trim_axes

CHUNK = 2**20
GZIP_MAGIC = b"\x1f\x8b"
TRAILING_BYTES = 2**20  # MGH keeps text after the voxels; nothing needs more
NIFTI1_OFFSET, NIFTI2_OFFSET, MGH_OFFSET = 352, 544, 284


def scan_volume(path: Path, digest: Digest, limits: Limits) -> Iterator[Layout | VoxelScan]:
    """Read a NIfTI or MGH file once, yielding its layout as soon as the header is known, then what its voxels are.

    Args:
        path: A .nii, .nii.gz, .mgh or .mgz file.
        digest: A hash object that takes the bytes of the file as they lie on disk.
        limits: What is refused from the header.

    Raises:
        CohortError: With one of the codes corrupt_gzip, bad_header, too_large, unreadable.
    """
    name = path.name.casefold()
    with path.open("rb") as stream:
        chunks = _unpack(stream, digest) if name.endswith((".gz", ".mgz")) else _plain(stream, digest)
        head = b""
        while len(head) < NIFTI2_OFFSET and (chunk := next(chunks, b"")):
            head += chunk
        layout = _mgh_layout(head) if name.endswith((".mgh", ".mgz")) else _nifti_layout(head)
        yield layout
        limits.check(layout.shape, layout.dtype.itemsize)
        scan = VoxelScan(layout.dtype)
        start = 0
        first, last = layout.offset, layout.offset + layout.num_bytes
        for chunk in chain([head], chunks):
            scan.update(chunk[max(first - start, 0) : max(last - start, 0)])
            start += len(chunk)
            if start > last + TRAILING_BYTES:
                raise CohortError.single(
                    f"The file goes on beyond the {last} bytes that its header announces. It is damaged or crafted: "
                    "export it again.",
                    "too_large",
                )
        if start < last:
            raise CohortError.single(
                f"The file ends after {start} of the {last} bytes that its header announces. Copy or export it again.",
                "unreadable",
            )
        yield scan


def check_deflate(stream: BinaryIO, wbits: int, num_bytes: int) -> int:
    """Decompress the rest of a file, compare checksum and length, and return how many compressed bytes there were.

    Args:
        stream: A file, at the beginning of its compressed part.
        wbits: 15 for zlib, 31 for gzip.
        num_bytes: Size that the decompressed data must have.

    Raises:
        CohortError: With the code corrupt_gzip.
    """
    decoder = zlib.decompressobj(wbits)
    total = used = 0
    try:
        while not decoder.eof and total <= num_bytes and (data := decoder.unconsumed_tail or stream.read(CHUNK)):
            total += len(decoder.decompress(data, CHUNK))
            used += len(data) - len(decoder.unconsumed_tail) - len(decoder.unused_data)
    except zlib.error as error:
        raise _damaged(str(error)) from error
    if not decoder.eof or total != num_bytes:
        raise _damaged(f"{total} of {num_bytes} bytes unpacked")
    return used


def _damaged(reason: str) -> CohortError:
    return CohortError.single(
        f"The compressed data are damaged or cut short ({reason}). Copy or download the file again.", "corrupt_gzip"
    )


def _plain(stream: BinaryIO, digest: Digest) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
        yield chunk


def _unpack(stream: BinaryIO, digest: Digest) -> Iterator[bytes]:
    """Yield the decompressed bytes of a gzip file in bounded pieces; zlib compares the CRC of every member."""
    decoder = zlib.decompressobj(31)
    try:
        for number, raw in enumerate(_plain(stream, digest)):
            if number == 0 and not raw.startswith(GZIP_MAGIC):
                raise _damaged("it does not begin like a gzip file")
            data = raw
            while data:
                if decoder.eof:
                    data = data.lstrip(b"\0")  # tapes and some servers pad with zeros
                    if not data:
                        break
                    decoder = zlib.decompressobj(31)
                piece = decoder.decompress(data, CHUNK)
                data = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
                if piece:
                    yield piece
        while not decoder.eof and (piece := decoder.decompress(b"", CHUNK)):
            yield piece
    except zlib.error as error:
        raise _damaged(str(error)) from error
    if not decoder.eof:
        raise _damaged("the end is missing")


def _bad_header(reason: str) -> CohortError:
    return CohortError.single(f"{reason} Convert or export the image again.", "bad_header")


def _checked_dtype(header: SpatialHeader) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(header.get_data_dtype())
    except (KeyError, HeaderDataError) as error:
        raise _bad_header("The header names an unknown data type.") from error
    if dtype.kind not in "iuf":
        raise _bad_header("The values are colours, complex numbers or bits instead of one number per voxel.")
    return dtype


def _nifti_layout(head: bytes) -> Layout:
    sizes = {int.from_bytes(head[:4], order): order for order in ("big", "little")}
    if 348 in sizes and head[344:348] == b"n+1\0":
        header, lowest_offset, order = nib.Nifti1Header, NIFTI1_OFFSET, sizes[348]
    elif 540 in sizes and head[4:8] == b"n+2\0":
        header, lowest_offset, order = nib.Nifti2Header, NIFTI2_OFFSET, sizes[540]
    else:
        raise _bad_header("The file does not begin with the header of a single-file NIfTI image.")
    if len(head) < lowest_offset:
        raise CohortError.single("The file ends within its header. Copy or export it again.", "unreadable")
    block = head[: lowest_offset - 4]
    parsed = header(block, endianness="<" if order == "little" else ">", check=False)
    num_axes = int(parsed["dim"][0])
    shape = tuple(int(length) for length in parsed.get_data_shape()) if 1 <= num_axes <= 7 else ()
    if not shape or min(shape) < 1:
        raise _bad_header(f"The header's dimensions are {[int(length) for length in parsed['dim']]}.")
    dtype = _checked_dtype(parsed)
    offset = float(parsed["vox_offset"])
    if not lowest_offset <= offset <= lowest_offset + 64 * 2**20:
        raise _bad_header(f"The header places the voxels at byte {offset:g}.")
    slope, intercept = float(parsed["scl_slope"]), float(parsed["scl_inter"])
    if not math.isfinite(slope) or slope == 0:  # the standard: no scaling
        slope, intercept = 1.0, 0.0
    if not math.isfinite(intercept):
        raise _bad_header("The header's intensity intercept is not a number.")
    return Layout(trim_axes(shape), dtype, int(offset), _nifti_affine(parsed), slope, intercept)


def _nifti_affine(header: nib.Nifti1Header) -> Affine:
    spacing = np.asarray(header["pixdim"][1:4], np.float64)
    try:
        affine = np.asarray(header.get_best_affine(), np.float64)
    except ValueError:  # a quaternion that is no rotation
        return np.full((4, 4), np.nan)
    # Readers disagree on where the voxel size comes from, so both places must hold one.
    return affine if np.isfinite(spacing).all() and spacing.all() else affine @ np.diag([*spacing, 1.0])


def _mgh_layout(head: bytes) -> Layout:
    if len(head) < MGH_OFFSET:
        raise CohortError.single("The file ends within its header. Copy or export it again.", "unreadable")
    header = MGHHeader(head[:MGH_OFFSET], check=False)
    shape = tuple(int(length) for length in header["dims"])
    if int(header["version"]) != 1 or min(shape) < 1:
        raise _bad_header("The file does not begin with the header of an MGH image.")
    return Layout(trim_axes(shape), _checked_dtype(header), MGH_OFFSET, np.asarray(header.get_affine(), np.float64))

"""One image file at a time: what it is, and whether a network may be trained on it."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from datamodules.itk_files import scan_file, scan_series
from datamodules.problems import CohortError, ProblemCode
from datamodules.schema import strip_suffix
from datamodules.streams import scan_volume
from datamodules.voxels import Affine, Layout, Limits, VoxelScan, affine_fault

STREAMED = (".nii", ".nii.gz", ".mgh", ".mgz")
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class FileFacts:
    """What was found in an image file, or in the folder of a DICOM series.

    Args:
        sha256: Hash of the file as it lies on disk.
        size: Bytes on disk.
        mtime_ns: Time of the last change, in nanoseconds.
        shape: Voxels per axis, in the file's own orientation.
        spacing: Length of a voxel along each axis, in mm.
        orientation: Directions that the axes point to, such as RAS.
        dtype: Type of the stored values.
        voxel_sha256: Hash of the voxels alone; the same for the same scan in another file, format or compression.
    """

    sha256: str
    size: int
    mtime_ns: int
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    orientation: str
    dtype: str
    voxel_sha256: str


@dataclass(frozen=True)
class Finding:
    """A fault of a file, before it is known which row it belongs to."""

    code: ProblemCode
    message: str


@dataclass
class Inspection:
    """The result of reading one file.

    Args:
        facts: What it holds; None unless it could be read to its end.
        shape: Voxels per axis as the header has them; () where it cannot be read.
        affine: Voxel index to RAS millimetres, (4, 4); None where it is unknown or unusable.
        constant: The value that every voxel has, if it is one.
        findings: What is wrong with it.
    """

    facts: FileFacts | None = None
    shape: tuple[int, ...] = ()
    affine: Affine | None = None
    constant: float | None = None
    findings: list[Finding] = field(default_factory=list)


def inspect_image(path: Path, root: Path, limits: Limits) -> Inspection:
    """Read an image file to its end and list everything that is wrong with it.

    Args:
        path: The file, or the folder of a DICOM series.
        root: The cohort's folder, which the files of a series must not leave.
        limits: What is refused unread.
    """
    result = Inspection()
    try:
        size, mtime_ns = size_and_mtime(path)
        if size == 0:
            raise CohortError.single("The file is empty. Copy or export it again.", "unreadable")
        if size > limits.max_file_bytes:
            raise CohortError.single(f"The file has {size / 2**30:.1f} GiB. Is it an image of one head?", "too_large")
        _check_suffix(path)
        digest = hashlib.sha256()
        if path.is_dir():
            steps = scan_series(path, root, digest, limits)
        elif path.name.casefold().endswith(STREAMED):
            steps = scan_volume(path, digest, limits)
        else:
            steps = scan_file(path, digest, limits)
        for step in steps:
            if isinstance(step, Layout):
                layout = step
                _judge_layout(result, layout, path)
            else:
                result.facts = _facts(digest.hexdigest(), size, mtime_ns, layout, step)
                _judge_voxels(result, layout, step)
    except CohortError as error:
        result.findings += [Finding(problem.code, problem.message) for problem in error.problems]
    except FileNotFoundError:
        message = "There is no such file. Correct the path, or name the folder that paths start from with --root."
        result.findings.append(Finding("missing_file", message))
    except OSError as error:
        message = f"The file cannot be read ({error.strerror or error}). Check its permissions and its disk."
        result.findings.append(Finding("unreadable", message))
    return result


def size_and_mtime(path: Path) -> tuple[int, int]:
    """Return the size in bytes and the time of the last change in nanoseconds, of a file or of all files in a folder.

    Raises:
        CohortError: When it is neither, with the code unreadable.
        OSError: When it is not there.
    """
    facts = path.stat()
    if stat.S_ISREG(facts.st_mode):
        return facts.st_size, facts.st_mtime_ns
    if not stat.S_ISDIR(facts.st_mode):
        raise CohortError.single("It is neither a file nor a folder. Put the image itself there.", "unreadable")
    parts = [file.stat() for file in path.iterdir() if file.is_file()]
    return sum(part.st_size for part in parts), max((part.st_mtime_ns for part in parts), default=0)


def _check_suffix(path: Path) -> None:
    """Refuse .Nii.Gz, which nibabel and ITK look for under other names.

    Raises:
        CohortError: When the suffix of a NIfTI or MGH file mixes upper and lower case.
    """
    suffix = path.name[len(strip_suffix(path.name)) :]
    if suffix.casefold() in STREAMED and suffix not in (suffix.lower(), suffix.upper()):
        message = f"The suffix {suffix} mixes upper and lower case. Rename the file to {suffix.lower()}."
        raise CohortError.single(message, "unreadable")


def _judge_layout(result: Inspection, layout: Layout, path: Path) -> None:
    result.shape = layout.shape
    if len(layout.shape) != 3 and not (len(layout.shape) == 2 and path.suffix.casefold() == ".png"):
        axes = "x".join(map(str, layout.shape))
        message = f"The image has {len(layout.shape)} axes ({axes}). Give each row one volume with three axes"
        last = layout.shape[3] - 1 if len(layout.shape) == 4 else 0
        message += f', or say in the sidecar which one the column means: "volume": 0 to {last}.' if last else "."
        result.findings.append(Finding("not_3d", message))
    fault = affine_fault(layout.affine)
    if fault:
        result.findings.append(Finding("bad_affine", fault))
    else:
        result.affine = layout.affine


def _judge_voxels(result: Inspection, layout: Layout, scan: VoxelScan) -> None:
    if scan.num_non_finite:
        share = f"{scan.num_non_finite} of {scan.num_values} voxels"
        message = f"{share} are NaN or infinite. Replace them, or repeat the processing that made the file."
        result.findings.append(Finding("non_finite", message))
    elif max(abs(value * layout.slope + layout.intercept) for value in (scan.lowest, scan.highest)) > FLOAT32_MAX:
        message = "Intensities exceed what float32 holds. Correct the slope and intercept of the header."
        result.findings.append(Finding("non_finite", message))
    elif scan.lowest == scan.highest:
        result.constant = scan.lowest * layout.slope + layout.intercept


def _facts(sha256: str, size: int, mtime_ns: int, layout: Layout, scan: VoxelScan) -> FileFacts:
    usable = affine_fault(layout.affine) is None
    spacing = np.linalg.norm(layout.affine[:3, :3], axis=0)[: len(layout.shape)] if usable else ()
    return FileFacts(
        sha256=sha256,
        size=size,
        mtime_ns=mtime_ns,
        shape=layout.shape,
        spacing=tuple(round(float(length), 6) for length in spacing),
        orientation="".join(nib.aff2axcodes(layout.affine)) if usable else "",
        dtype=layout.dtype.name,
        voxel_sha256=scan.digest.hexdigest(),
    )

"""Base geometry of a head: signed distance fields, computed once per anatomy and kept in a small file.

A phantom never computes a distance transform per participant: it samples these fields on the participant's deformed
grid and turns them into soft tissue boundaries, which costs milliseconds.
"""

import hashlib
import tempfile
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813 - the library's own idiom
from numpy.typing import NDArray
from scipy import ndimage

from datamodules.folders import cache_folder
from datamodules.phantoms import PhantomError

FIELDS = ("ventricles", "white_matter", "brain", "intracranial", "bone", "head")
GRID_MM = 2.0
CHUNK = 32768  # points sampled at a time: the temporaries stay in the processor's cache
REACH_MM = 24.0  # distances beyond this are of no use to any boundary
ICBM152 = "icbm152"
ICBM152_SIZE = 0.94  # the template is larger than an average head: this gives 1450 ml inside the skull
GEOMETRY_VERSION = 2  # raise it whenever the same anatomy gives other fields

# FreeSurfer and SynthSeg numbers.
_BRAIN_STEM = 16
_VENTRICLES = (4, 5, 14, 15, 43, 44, 72)
_WHITE = (2, 7, 16, 28, 41, 46, 60, 77, 85, 192, 251, 252, 253, 254, 255)
_GREY = (3, 8, 10, 11, 12, 13, 17, 18, 26, 42, 47, 49, 50, 51, 52, 53, 54, 58, 136, 137, 163, 164)
_CSF = (24, 25, 30, 57, 62)
_BONE = (515, 516)
_EYES = (506, 508)

# MNI centre and radii in mm: eyes, frontal sinus, maxillary sinuses, nose, throat.
_HOLLOWS = (
    ((32, 62, -34), (12, 12, 12)),
    ((-32, 62, -34), (12, 12, 12)),
    ((0, 70, -18), (14, 8, 12)),
    ((24, 50, -62), (13, 15, 15)),
    ((-24, 50, -62), (13, 15, 15)),
    ((0, 56, -55), (7, 26, 16)),
    ((0, 12, -82), (9, 9, 34)),
)

Mask = NDArray[np.bool_]
Field = NDArray[np.float32]


@dataclass(frozen=True)
class Anatomy:
    """Signed distances of one head in mm, negative inside, on a RAS+ grid of about 2 mm around the centre of the brain.

    Args:
        anatomy_id: `icbm152`, or the name of a label map without its suffix.
        distances: Distances (D, H, W, 6) in the order of `FIELDS`, cut at +-24 mm.
        origin: Position of the first voxel in mm; (0, 0, 0) is the centre of the brain.
        step: Distance between voxels in mm.
    """

    anatomy_id: str
    distances: NDArray[np.float16]
    origin: tuple[float, float, float]
    step: float

    def sample(self, points: Field) -> Field:
        """Interpolate all fields trilinearly; a point outside the grid takes the value at its edge.

        Args:
            points: Positions (3, N) in mm.

        Returns:
            Distances (6, N) in mm.
        """
        num_points = points.shape[1]
        found = np.empty((self.distances.shape[3], num_points), np.float32)
        for start in range(0, num_points, CHUNK):
            found[:, start : start + CHUNK] = self._sample(points[:, start : start + CHUNK]).T
        return found

    def _sample(self, points: Field) -> Field:
        shape = self.distances.shape[:3]
        rows = self.distances.reshape(-1, self.distances.shape[3])
        lower, fraction = [], []
        for axis in range(3):
            position = np.clip((points[axis] - self.origin[axis]) / np.float32(self.step), 0, shape[axis] - 1.001)
            cell = position.astype(np.int32)
            lower.append(cell)
            fraction.append((position - cell).astype(np.float32))
        first = (lower[0] * shape[1] + lower[1]) * shape[2] + lower[2]
        total = np.zeros((points.shape[1], rows.shape[1]), np.float32)
        for x in (0, 1):
            weight_x = fraction[0] if x else 1 - fraction[0]
            for y in (0, 1):
                weight_xy = weight_x * (fraction[1] if y else 1 - fraction[1])
                for z in (0, 1):
                    weight = weight_xy * (fraction[2] if z else 1 - fraction[2])
                    corner = rows.take(first + ((x * shape[1] + y) * shape[2] + z), axis=0)
                    total += corner * weight[:, None]
        return total


def list_anatomies(labels: Path | None) -> tuple[str, ...]:
    """Name the anatomies at hand, in a fixed order.

    Args:
        labels: Folder of whole-head label maps with FreeSurfer numbers (`.nii`, `.nii.gz`, `.mgz`); None for ICBM152.

    Raises:
        PhantomError: The folder holds no label map.
    """
    if labels is None:
        return (ICBM152,)
    files = _label_files(labels)
    if not files:
        raise PhantomError(
            f"{labels} holds no label map (.nii, .nii.gz or .mgz). Name a folder of FreeSurfer label maps."
        )
    return tuple(sorted(files))


def load_anatomy(anatomy_id: str, labels: Path | None, blur: float) -> Anatomy:
    """Read an anatomy from the cache, computing it at its first use.

    Args:
        anatomy_id: One of `list_anatomies(labels)`.
        labels: Folder of label maps; None for ICBM152.
        blur: Standard deviation in mm of the smoothing of the fields: about a third of the voxel size of the images to
            be rendered, so that folds thinner than a voxel fade instead of aliasing.
    """
    return _load(anatomy_id, labels, round(max(blur, 1.0), 1))


@lru_cache(maxsize=4)  # 13 MB each
def _load(anatomy_id: str, labels: Path | None, blur: float) -> Anatomy:
    source = b"icbm152" if labels is None else _label_files(labels)[anatomy_id].read_bytes()
    key = hashlib.sha256(source + f"/{GEOMETRY_VERSION}/{blur}".encode()).hexdigest()
    entry = cache_folder() / "phantoms" / f"{key}.npz"
    try:
        with entry.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return Anatomy(anatomy_id, stored["distances"], tuple(stored["origin"].tolist()), float(stored["step"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # absent or torn: compute it again
        pass
    masks, origin = _icbm152() if labels is None else _from_labels(_label_files(labels)[anatomy_id])
    size = ICBM152_SIZE if labels is None else 1.0
    anatomy = Anatomy(
        anatomy_id,
        np.stack([(_field(masks[name], blur) * np.float32(size)).astype(np.float16) for name in FIELDS], axis=-1),
        (origin[0] * size, origin[1] * size, origin[2] * size),
        GRID_MM * size,
    )
    _store(entry, anatomy)
    return anatomy


def _store(entry: Path, anatomy: Anatomy) -> None:
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent) as folder:
            partial = Path(folder) / entry.name
            np.savez(partial, distances=anatomy.distances, origin=np.array(anatomy.origin), step=np.array(anatomy.step))
            partial.replace(entry)
    except OSError:  # a read-only or full cache costs seconds, not the cohort
        return


def _label_files(labels: Path) -> dict[str, Path]:
    files = [path for path in labels.glob("*") if path.name.endswith((".nii", ".nii.gz", ".mgz")) and path.is_file()]
    return {path.name.split(".")[0]: path for path in files}


def _icbm152() -> tuple[dict[str, Mask], tuple[float, float, float]]:
    """Segment nilearn's packaged grey and white matter maps; skull, scalp, face and neck are parametric."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

    below = 20  # voxels under the maps, so that the neck is inside the grid
    grey, white = (
        np.pad(_halved(np.asarray(load(resolution=1).dataobj, np.float32)), ((5, 5), (5, 10), (below, 8)))
        for load in (load_mni152_gm_template, load_mni152_wm_template)
    )
    origin = np.array([-97.5 - 10, -133.5 - 10, -71.5 - 2 * below])  # MNI mm of the first 2 mm voxel
    x, y, z = np.meshgrid(*(origin[axis] + GRID_MM * np.arange(grey.shape[axis]) for axis in range(3)), indexing="ij")
    tissue = grey + white
    parenchyma = _largest(tissue > 0.75)  # the maps are an average of heads: sulci are dips, not gaps
    hull = ndimage.binary_fill_holes(_closed(parenchyma, 12.0))
    ventricles = _icbm152_ventricles(tissue, hull, (x, y, z))
    intracranial = _grown(hull, 2.5)
    bone = _grown(intracranial, 6.0) & ~intracranial
    hollow = np.zeros_like(bone)  # eyes, sinuses, nose and throat: dark, like bone
    for centre, radii in _HOLLOWS:
        hollow |= _inside((x, y, z), centre, radii)
    face = _inside((x, y, z), (0, 30, -66), (60, 62, 66)) | _inside((x, y, z), (0, 88, -52), (14, 18, 20))
    neck = ((x / 58) ** 2 + ((y + 28) / 62) ** 2 < 1) & (z < -30)
    skull = intracranial | bone
    head = _closed(_grown(skull, 6.0) | (face & ~skull) | neck, 14.0)
    return {
        "ventricles": ventricles,
        "white_matter": (white > grey) & (parenchyma | ventricles),
        "brain": parenchyma | ventricles,
        "intracranial": intracranial,
        "bone": bone | (hollow & ~intracranial),
        "head": head,
    }, _centred(origin, hull)


def _icbm152_ventricles(tissue: Field, hull: Mask, position: tuple[Field, Field, Field]) -> Mask:
    """Find the lateral and third ventricles: deep gaps in the tissue that are neither cistern nor fissure."""
    x, y, z = position
    deep = _signed_distance(hull) < -20
    box = (np.abs(x) < 36) & (y > -60) & (y < 36) & (z > -10) & (z < 34)
    cisterns = (np.abs(x) < 14) & (y < -26)
    insula = (np.abs(x) >= 14) & (z < 6) & (y > -22)
    callosal_sulcus = (np.abs(x) < 7) & (z > 19)
    below_splenium = (np.abs(x) < 20) & (z < -8) & (y < -20)
    gaps = deep & box & (tissue < 0.7) & ~(cisterns | insula | callosal_sulcus | below_splenium)
    return _parts(gaps, minimum=100)


def _from_labels(path: Path) -> tuple[dict[str, Mask], tuple[float, float, float]]:
    """Read a FreeSurfer label map; a map without skull or scalp gets parametric ones."""
    try:
        image = nib.as_closest_canonical(nib.load(path))
        labels = np.asarray(image.dataobj).astype(np.int32)
    except Exception as error:
        raise PhantomError(f"{path} cannot be read as a label map ({error}). Remove it from the folder.") from error
    if labels.ndim != 3 or not np.isin(labels, _WHITE).any() or not np.isin(labels, _VENTRICLES).any():
        raise PhantomError(
            f"{path} is no FreeSurfer label map of a brain (3D, white matter 2/41, ventricles 4/43). Remove it."
        )
    spacing = np.abs(np.asarray(image.header.get_zooms()[:3]))
    if not np.allclose(spacing, GRID_MM, atol=1e-3):
        labels = ndimage.zoom(labels, spacing / GRID_MM, order=0, grid_mode=True, mode="nearest")
    labels = np.pad(labels, ((8, 8), (8, 8), (0, 8)))  # no air below: the neck goes on
    white, grey, ventricles = np.isin(labels, _WHITE), np.isin(labels, _GREY), np.isin(labels, _VENTRICLES)
    brain = _largest(white | grey | ventricles)
    hull = _closed(brain & (labels != _BRAIN_STEM), 12.0)
    fluid = np.isin(labels, _CSF) & _grown(hull, 8.0)  # not that of the spine and the orbits
    intracranial = ndimage.binary_fill_holes(_largest(hull | brain | fluid))
    bone = np.isin(labels, _BONE)
    if not bone.any():
        intracranial = _grown(intracranial, 2.5)
        bone = _grown(intracranial, 6.0) & ~intracranial
    head = labels > 0
    if (head & ~intracranial).sum() < intracranial.sum() / 4:
        head = _grown(intracranial, 12.0)
    bone = (bone | np.isin(labels, _EYES)) & ~intracranial
    white |= ventricles & (_signed_distance(white) < _signed_distance(grey))  # what a smaller ventricle uncovers
    masks = {"ventricles": ventricles, "white_matter": white, "brain": brain, "intracranial": intracranial}
    return {**masks, "bone": bone, "head": head}, _centred(np.zeros(3), hull)


def _field(mask: Mask, blur: float) -> Field:
    smooth: Field = ndimage.gaussian_filter(np.clip(_signed_distance(mask), -REACH_MM, REACH_MM), blur / GRID_MM)
    return smooth


def _signed_distance(mask: Mask) -> Field:
    """Return the distance in mm to the mask's boundary, which lies half a voxel outside its last voxels' centres."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    maurer = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False, useImageSpacing=False)
    distance: Field = (sitk.GetArrayFromImage(maurer) - 0.5) * np.float32(GRID_MM)
    return distance


def _halved(array: Field) -> Field:
    """Average blocks of 2 x 2 x 2 voxels; an odd last plane is dropped."""
    even = array[tuple(slice(0, size // 2 * 2) for size in array.shape)]
    a, b, c = (size // 2 for size in even.shape)
    halved: Field = even.reshape(a, 2, b, 2, c, 2).mean(axis=(1, 3, 5))
    return halved


def _grown(mask: Mask, radius: float) -> Mask:
    return _signed_distance(mask) <= radius - GRID_MM / 2


def _closed(mask: Mask, radius: float) -> Mask:
    margin = int(radius / GRID_MM) + 2
    grown = _grown(np.pad(mask, margin), radius)
    closed = _signed_distance(grown) < GRID_MM / 2 - radius
    return closed[margin:-margin, margin:-margin, margin:-margin]


def _largest(mask: Mask) -> Mask:
    parts, _ = ndimage.label(mask)
    largest: Mask = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    return largest


def _parts(mask: Mask, minimum: int) -> Mask:
    parts, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    kept: Mask = (sizes >= minimum)[parts]
    return kept


def _inside(position: tuple[Field, Field, Field], centre: tuple[int, int, int], radii: tuple[int, int, int]) -> Mask:
    x, y, z = (((p - c) / r) ** 2 for p, c, r in zip(position, centre, radii, strict=True))
    inside: Mask = x + y + z < 1
    return inside


def _centred(origin: NDArray[np.float64], brain: Mask) -> tuple[float, float, float]:
    """Return the origin of a grid whose zero is the middle of the brain's extent."""
    ranges = [np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    middle = [origin[axis] + GRID_MM * (found[0] + found[-1]) / 2 for axis, found in enumerate(ranges)]
    x, y, z = (round(float(first - centre), 3) for first, centre in zip(origin, middle, strict=True))
    return x, y, z

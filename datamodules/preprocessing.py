"""Deterministic preprocessing: from an image file to an array of fixed shape, orientation and intensity scale."""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - the library's own idiom
import torch
import torchio as tio
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from nibabel.filebasedimages import ImageFileError

from datamodules.itk_files import READERS

FloatArray = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]
Normalisation = Literal["zscore", "percentile", "none"]

SAME_SPACING = 1e-3  # relative; below it the native voxels are kept instead of interpolated
SAME_LATTICE = 1e-4  # voxels; below it two grids share their voxel centres
GZIP_TRAILER = 4  # bytes; the uncompressed size modulo 2**32 ends every gzip file


class PreprocessingError(ValueError):
    """An image that cannot be read or preprocessed; the message names it and says what to do."""


@dataclass(frozen=True, eq=False)
class Volume:
    """An image with its place in the world.

    Args:
        data: Intensities, (C, D, H, W), float32.
        affine: Voxel index -> RAS+ world coordinates in mm, (4, 4), float64.
        source: What errors call the image: its path where it came from a file.
    """

    data: FloatArray
    affine: Affine
    source: str = "image"


def read_volume(path: Path, volume_index: int | None = None) -> Volume:
    """Read one volume in the file's own orientation, with slope and intercept applied.

    SimpleITK decodes; nibabel takes over where SimpleITK refuses (an affine with shear) or cannot read (`.mgz`, one
    volume of a 4D file). The affine of a NIfTI file always comes from nibabel (sform before qform), because ITK prefers
    the qform where the two disagree. SimpleITK turns NaN into 0: finding NaN is the work of `fontanel verify`.

    Args:
        path: NIfTI, MetaImage, NRRD, MGH, PNG or DICOM file, or a folder that holds one DICOM series. An image with two
            axes becomes a volume of one slice.
        volume_index: Which volume of a file with four axes, counted from 0.

    Raises:
        PreprocessingError: The file is missing, truncated, not an image, has no such volume, or no single one.
    """
    path = Path(path)
    if not path.exists():
        raise PreprocessingError(f"{path}: there is no such file. Correct the path in the cohort table.")
    try:
        if path.name.lower().endswith((".nii", ".nii.gz", ".mgz", ".mgh")):
            data, affine = _read_with_header(path, volume_index)
        else:
            data, affine = _read_itk(path, volume_index)
    except (RuntimeError, OSError, EOFError, zlib.error, ImageFileError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise PreprocessingError(f"{path}: cannot be read ({reason}). Run `fontanel verify` on its table.") from error
    return Volume(data[np.newaxis], affine, str(path))


def scaled(volume: Volume, scale: float) -> Volume:
    """Return a volume in another unit: its intensities times `scale`."""
    return volume if scale == 1 else replace(volume, data=volume.data * np.float32(scale))


def _read_with_header(path: Path, volume_index: int | None) -> tuple[FloatArray, Affine]:
    image: Any = nib.load(path)
    shape, dtype = image.shape, image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise PreprocessingError(f"{path}: voxels are of type {dtype}. Convert the image to integers or real numbers.")
    _check_volume(path, shape, volume_index)
    if isinstance(image, nib.Nifti1Image):
        _check_complete(path, image.dataobj.offset + int(np.prod(shape)) * dtype.itemsize)
    affine = np.asarray(image.affine, dtype=np.float64)
    if len(shape) == 2:
        return np.asarray(image.dataobj, dtype=np.float32)[..., np.newaxis], affine
    if len(shape) == 4:
        return np.asarray(image.dataobj[..., volume_index or 0], dtype=np.float32), affine
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.GlobalWarningDisplayOff()  # ITK's remarks on the orientation: nibabel's is used
    try:
        return _decode(sitk.ReadImage(str(path), sitk.sitkFloat32)), affine
    except RuntimeError:
        return image.get_fdata(dtype=np.float32), affine
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _check_volume(path: Path, shape: Sequence[int], volume_index: int | None) -> None:
    """Refuse a shape that holds no volume, or several without saying which."""
    count = shape[3] if len(shape) == 4 else 1
    if len(shape) not in (2, 3, 4) or (count > 1 and volume_index is None):
        axes = "x".join(map(str, shape))
        raise PreprocessingError(
            f"{path}: the image has {len(shape)} axes ({axes}). Extract one volume with three axes, or say in the "
            'sidecar of the table which one of four axes is meant ("volume": 0).'
        )
    if volume_index is not None and not 0 <= volume_index < count:
        raise PreprocessingError(f"{path}: there is no volume {volume_index}; the file holds {count}, counted from 0.")


def _read_itk(path: Path, volume_index: int | None) -> tuple[FloatArray, Affine]:
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.GlobalWarningDisplayOff()  # remarks on odd DICOM; what matters is raised
    try:
        image = _itk_image(path)
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    components = image.GetNumberOfComponentsPerPixel()
    if components > 1 or "complex" in image.GetPixelIDTypeAsString():
        raise PreprocessingError(
            f"{path}: the voxels are colours, complex numbers or vectors instead of one number each. Convert the image "
            "to grey."
        )
    _check_volume(path, image.GetSize(), volume_index)
    if image.GetDimension() == 4:
        image = image[..., volume_index or 0]
    affine = tio.data.io.get_ras_affine_from_sitk(image)
    voxels = _decode(sitk.Cast(image, sitk.sitkFloat32))
    return voxels if voxels.ndim == 3 else voxels[..., np.newaxis], affine


def _itk_image(path: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader() if path.is_dir() else sitk.ImageFileReader()
    if path.suffix.casefold() in READERS:
        reader.SetImageIO(READERS[path.suffix.casefold()])  # ITK itself knows .mha, but not .MHA
    if path.is_dir():
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
        if len(series) != 1:
            raise PreprocessingError(f"{path}: the folder holds {len(series)} DICOM series. Give each its own folder.")
        reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series[0]))
    else:
        reader.SetFileName(str(path))
    return reader.Execute()


def _decode(image: sitk.Image) -> FloatArray:
    """Return the voxels in the order (i, j, k); ITK's arrays are (k, j, i)."""
    voxels: FloatArray = sitk.GetArrayFromImage(image).transpose()
    return voxels


def _check_complete(path: Path, expected: int) -> None:
    """Refuse a NIfTI file shorter than its header promises: SimpleITK fills the rest with zeros and says nothing."""
    if not path.name.lower().endswith(".gz"):
        available = path.stat().st_size
    else:
        with path.open("rb") as stream:
            stream.seek(-GZIP_TRAILER, 2)
            matches = int.from_bytes(stream.read(GZIP_TRAILER), "little") == expected % 2**32
        available = expected if matches else _uncompressed_size(path)
    if available < expected:
        raise PreprocessingError(
            f"{path}: holds {available} of {expected} bytes. The file is truncated: copy it again."
        )


def _uncompressed_size(path: Path) -> int:
    size = 0
    with gzip.open(path) as stream:
        while block := stream.read(1 << 20):
            size += len(block)
    return size


@dataclass(frozen=True)
class Preprocessing:
    """Bring images to one orientation (RAS+), voxel size, shape and intensity scale.

    The first image sets the output grid: its axes after flipping and permuting to RAS+ (no rotation), `spacing` and
    `shape`. Further images and the mask are sampled on that grid by their affines. Where it falls on the voxels of
    an image nothing is interpolated. Before an image is sampled more coarsely it is smoothed, so that detail below the
    new voxel size does not alias. Voxels outside an image take the median of its outer faces: air, or the zero around a
    stripped brain.

    Args:
        spacing: Voxel size of the output in mm; none keeps the first image's own.
        shape: Voxels of the output, (D, H, W) = left-right, posterior-anterior, inferior-superior.
        centre: What lies in the middle of the output: the middle of the first image, or of its foreground's bounding
            box.
        normalisation: `zscore` subtracts the foreground's mean and divides by its standard deviation, `percentile` maps
            the clipped range to [0, 1], `none` keeps the unit of the file. Every channel by itself; a list gives each
            its own, such as [zscore, none] for ADC beside a map that holds z-scores already.
        foreground: Voxels that count: those of the mask, those above the image's mean, or those that are not zero in
            the file.
        clip: Percentiles of the foreground at which intensities are cut off before they are normalised.

    References:
        Cardoso et al. Scale factor point spread function matching: beyond aliasing in image resampling. MICCAI 2015.
        doi:10.1007/978-3-319-24571-3_81
    """

    spacing: tuple[float, float, float] | None = (2.0, 2.0, 2.0)
    shape: tuple[int, int, int] = (96, 96, 96)
    centre: Literal["image", "foreground"] = "foreground"
    normalisation: Normalisation | tuple[Normalisation, ...] = "zscore"
    foreground: Literal["mask", "above-mean", "nonzero"] = "above-mean"
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise PreprocessingError(f"shape is {self.shape}; give three numbers of voxels, each at least 1.")
        if self.spacing is not None and (len(self.spacing) != 3 or min(self.spacing) <= 0):
            raise PreprocessingError(f"spacing is {self.spacing}; give three voxel sizes in mm, each above 0.")
        if self.clip is not None and not 0 <= self.clip[0] < self.clip[1] <= 100:
            raise PreprocessingError(f"clip is {self.clip}; give two rising percentiles between 0 and 100.")
        if not isinstance(self.normalisation, str):
            object.__setattr__(self, "normalisation", tuple(self.normalisation))
        strange = sorted({str(kind) for kind in self._kinds} - set(get_args(Normalisation)))
        if strange or not self._kinds:
            known = ", ".join(get_args(Normalisation))
            raise PreprocessingError(f"normalisation is {self.normalisation}; give one of {known}, or a list of them.")

    @property
    def _kinds(self) -> tuple[Normalisation, ...]:
        return (self.normalisation,) if isinstance(self.normalisation, str) else self.normalisation

    def normalisations(self, num_channels: int) -> tuple[Normalisation, ...]:
        """Return the normalisation of each channel.

        Raises:
            PreprocessingError: When there is a list and it has another length.
        """
        if isinstance(self.normalisation, str):
            return (self.normalisation,) * num_channels
        if len(self.normalisation) != num_channels:
            listed = ", ".join(self.normalisation)
            raise PreprocessingError(
                f"normalisation lists {len(self.normalisation)} ways ({listed}) for {num_channels} channels. Give one "
                "per channel, or a single one for all."
            )
        return self.normalisation

    def canonical(self) -> dict[str, object]:
        """Return the parameters as JSON types, equal for equal results.

        >>> Preprocessing(spacing=(2, 2, 2)).canonical() == Preprocessing(spacing=(2.0, 2.0, 2.0)).canonical()
        True
        >>> Preprocessing(normalisation=("zscore", "none")).canonical()["normalisation"]
        'zscore/none'
        >>> Preprocessing(normalisation=("none", "none")).canonical()["normalisation"]
        'none'
        """
        kinds = self._kinds if len(set(self._kinds)) > 1 else self._kinds[:1]
        # "nonzero" was once taken after resampling, when smoothing had put a rim of small values around the brain.
        foreground = "nonzero in the file" if self.foreground == "nonzero" else self.foreground
        return {
            "spacing": None if self.spacing is None else [float(size) for size in self.spacing],
            "shape": [int(size) for size in self.shape],
            "centre": self.centre,
            "normalisation": "/".join(kinds),
            "foreground": foreground,
            "clip": None if self.clip is None else [float(percentile) for percentile in self.clip],
        }

    def __call__(self, images: Sequence[Volume], mask: Volume | None = None) -> Volume:
        """Preprocess the images of one participant together.

        Args:
            images: One volume per channel; the first sets the grid.
            mask: Foreground where it is above 0; needed when `foreground` is "mask", unused otherwise.

        Returns:
            (C, D, H, W) float32 with C the number of images, and its affine.

        Raises:
            PreprocessingError: An image has no usable foreground, is not finite or lies elsewhere than the first.
        """
        if self.foreground == "mask" and mask is None:
            raise PreprocessingError(
                f"{images[0].source}: has no mask. Add a mask column or choose another foreground."
            )
        kinds = self.normalisations(len(images))
        scalars = [_to_canonical(tio.ScalarImage, image) for image in images]
        label = _to_canonical(tio.LabelMap, mask) if mask is not None and self.foreground == "mask" else None
        affine = self._output_affine(scalars[0], label, images[0].source)
        if label is not None and mask is not None:
            label = _sample(label, self.shape, affine, mask.source)
        channels: list[FloatArray] = []
        for image, scalar, kind in zip(images, scalars, kinds, strict=True):
            chosen = label
            if self.foreground == "nonzero":
                chosen = _sample(_nonzero(scalar), self.shape, affine, image.source)
            sampled = _sample(scalar, self.shape, affine, image.source)
            channels.append(self._normalise(sampled.numpy()[0], kind, chosen, image.source))
        return Volume(np.stack(channels), affine, images[0].source)

    def _output_affine(self, first: tio.Image, label: tio.Image | None, source: str) -> Affine:
        native = first.affine
        middle = (np.array(first.spatial_shape) - 1) / 2
        if self.centre == "foreground":
            reference = first if label is None else label
            inside = self._inside(first.numpy()[0], None if label is None else label.numpy()[0])
            box = _bounding_box(inside, source)
            middle = apply_affine(np.linalg.inv(native) @ reference.affine, box.mean(axis=0))
        ratio = np.ones(3)
        if self.spacing is not None:
            ratio = np.array(self.spacing) / voxel_sizes(native)
            ratio[np.abs(ratio - 1) < SAME_SPACING] = 1
        start = middle - ratio * (np.array(self.shape) - 1) / 2
        start = np.where(ratio == 1, np.rint(start.round(6)), start)
        affine: Affine = native @ from_matvec(np.diag(ratio), start)
        return affine

    def _inside(self, data: npt.NDArray[Any], mask: npt.NDArray[Any] | None) -> npt.NDArray[np.bool_]:
        if mask is not None:
            return np.asarray(mask > 0)
        if self.foreground == "nonzero":
            return np.asarray(data != 0)
        return np.asarray(data > data.mean(dtype=np.float64))

    def _normalise(self, channel: FloatArray, kind: Normalisation, label: tio.Image | None, source: str) -> FloatArray:
        data = np.ascontiguousarray(channel)
        if kind == "none" and self.clip is None:
            return data
        inside = self._inside(data, None if label is None else label.numpy()[0])
        values = data[inside]
        if values.size < 2 or values.min() == values.max():
            what = "no foreground voxels" if values.size < 2 else f"a constant foreground ({values[0]:g})"
            raise PreprocessingError(f"{source}: {what} ({self.foreground}) on the output grid. Look at the image.")
        if kind == "percentile":
            return _rescale(data, inside, self.clip or (0.0, 100.0))
        if self.clip is not None:
            low, high = np.percentile(values, self.clip)
            data = tio.Clamp(float(low), float(high)).clamp(torch.from_numpy(data)).numpy()
            values = data[inside]
        if kind == "none":
            return data
        # torchio's ZNormalization sums in float32 with torch, so its last bit depends on the number of threads: a cache
        # built by workers would differ from one built in the main process.
        mean, sd = values.mean(dtype=np.float64), values.std(dtype=np.float64, ddof=1)
        if sd == 0:
            raise PreprocessingError(f"{source}: the foreground is constant once clipped to {self.clip}. Widen clip.")
        return (data - np.float32(mean)) / np.float32(sd)


def to_native(
    array: npt.NDArray[Any],
    affine: Affine,
    native_shape: Sequence[int],
    native_affine: Affine,
    *,
    order: Literal[0, 1] = 1,
) -> npt.NDArray[Any]:
    """Bring a map on the output grid back to an image's own grid; zero outside the output grid.

    Args:
        array: (D, H, W) or (C, D, H, W).
        affine: Of the array.
        native_shape: Voxels of the image in its file.
        native_affine: Of the image in its file.
        order: 0 for labels (nearest voxel, type kept), 1 for real-valued maps (linear, float32).
    """
    channels = array if array.ndim == 4 else array[np.newaxis]
    # ITK knows neither half precision nor booleans.
    work = np.float32 if order == 1 or array.dtype.kind == "f" else np.uint8 if array.dtype.kind == "b" else array.dtype
    image = tio.LabelMap if order == 0 else tio.ScalarImage
    subject = tio.Subject(image=image(tensor=np.ascontiguousarray(channels, dtype=work), affine=affine))
    grid = (tuple(int(size) for size in native_shape), np.asarray(native_affine, dtype=np.float64))
    sampled = _apply(tio.Resample(grid), subject)["image"].numpy().astype(array.dtype if order == 0 else np.float32)
    native: npt.NDArray[Any] = sampled if array.ndim == 4 else sampled[0]
    return native


def _apply(transform: tio.Transform, subject: tio.Subject) -> tio.Subject:
    """Apply a torchio transform in place; calling it would draw from torch's global generator and copy the subject."""
    return transform.apply_transform(subject)


def _to_canonical(kind: type[tio.Image], volume: Volume) -> tio.Image:
    if not np.linalg.det(volume.affine[:3, :3]):
        raise PreprocessingError(f"{volume.source}: the affine is singular. Repair the header or exclude the image.")
    if not np.isfinite(volume.data).all():
        raise PreprocessingError(f"{volume.source}: has NaN or infinite voxels. Repair or exclude the image.")
    subject = tio.Subject(image=kind(tensor=volume.data, affine=volume.affine))
    return _apply(tio.ToCanonical(), subject)["image"]


def _nonzero(image: tio.Image) -> tio.LabelMap:
    """Return where an image is not zero, on its own grid: smoothing and interpolation spread it beyond its edge."""
    return tio.LabelMap(tensor=(image.data != 0).to(torch.uint8), affine=image.affine)


def _bounding_box(inside: npt.NDArray[np.bool_], source: str) -> npt.NDArray[np.int64]:
    """Return the first and the last index of the foreground, (2, 3)."""
    edges = []
    for axis in range(3):
        used = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
        if used.size == 0:
            raise PreprocessingError(f"{source}: has no foreground to centre on. Look at the image and its mask.")
        edges.append((used[0], used[-1]))
    return np.array(edges).T


def _sample(image: tio.Image, shape: tuple[int, int, int], affine: Affine, source: str) -> tio.Image:
    """Sample a canonical image on a grid: crop and pad where the voxels coincide, smooth and interpolate elsewhere."""
    step = np.linalg.inv(image.affine) @ affine
    _check_overlap(step, shape, image.spatial_shape, source)
    scalar = isinstance(image, tio.ScalarImage)
    background = _border_median(image.numpy()) if scalar else 0.0
    subject = tio.Subject(image=image)
    offset = np.rint(step[:3, 3]).astype(int)
    if np.abs(step - from_matvec(np.eye(3), offset)).max() < SAME_LATTICE:
        return _crop_or_pad(subject, shape, offset, background)["image"]
    if scalar:
        # ITK fills with 0 what lies outside the image; shifting makes that the background.
        image.set_data(image.data.float() - background)
        _smooth(subject, affine)
    sampled = _apply(tio.Resample((shape, affine)), subject)["image"]
    if scalar:
        sampled.set_data(sampled.data + background)
    return sampled


def _check_overlap(step: Affine, shape: Sequence[int], image_shape: Sequence[int], source: str) -> None:
    corners = np.stack(np.meshgrid(*[(0, size - 1) for size in shape]), axis=-1).reshape(-1, 3)
    indices = apply_affine(step, corners)
    if (indices.max(axis=0) < 0).any() or (indices.min(axis=0) > np.array(image_shape) - 1).any():
        raise PreprocessingError(
            f"{source}: lies outside the output grid, which follows the first image. Check its affine."
        )


def _border_median(data: FloatArray) -> float:
    faces = [np.take(data, index, axis=axis).ravel() for axis in (1, 2, 3) for index in (0, -1)]
    return float(np.median(np.concatenate(faces)))


def _crop_or_pad(
    subject: tio.Subject, shape: Sequence[int], offset: npt.NDArray[np.int64], background: float
) -> tio.Subject:
    spare = np.array(subject.spatial_shape) - offset - np.array(shape)
    margins = np.stack([offset, spare], axis=1).ravel().tolist()  # first and last margin of every axis
    if max(margins) > 0:
        subject = _apply(tio.Crop(tuple(max(margin, 0) for margin in margins), copy=False), subject)
    if min(margins) < 0:
        subject = _apply(tio.Pad(tuple(max(-margin, 0) for margin in margins), padding_mode=background), subject)
    return subject


def _smooth(subject: tio.Subject, affine: Affine) -> None:
    """Blur each axis that will be sampled more coarsely, by the width that matches the two voxels' point spreads."""
    native, target = np.array(subject.spacing), voxel_sizes(affine)
    variance = np.maximum(target**2 - native**2, 0) / (8 * np.log(2))  # full width at half maximum -> variance, mm2
    if (variance > 0).any():
        _apply(tio.Blur(tuple(np.sqrt(variance).tolist())), subject)


def _rescale(data: FloatArray, inside: npt.NDArray[np.bool_], percentiles: tuple[float, float]) -> FloatArray:
    mask = torch.from_numpy(inside)[np.newaxis]
    transform = tio.RescaleIntensity(out_min_max=(0, 1), percentiles=percentiles, masking_method=lambda _: mask)
    subject = tio.Subject(image=tio.ScalarImage(tensor=data[np.newaxis]))
    rescaled: FloatArray = _apply(transform, subject)["image"].numpy()[0]
    return rescaled

"""Random augmentation of a batch on its device: one resampling, then intensities, each sample by its own key."""

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.geometry import Array, Warp, affine_matrix, cut, inverse_warp, move
from datamodules.intensity import Intensity, change_intensity, foreground_sd, retain_statistics

# Streams of random numbers below one key: an operation draws the same whatever the others are set to.
GEOMETRY, ELASTIC, INTENSITY, CROP = range(4)
CHUNK = 2**20  # voxels


def sample_key(seed: int, epoch: int, image_id: str, occurrence: int = 0) -> int:
    """Return the 64-bit key of one sample in one epoch, the same on every machine.

    Args:
        seed: Of the run.
        epoch: Counted from 0.
        image_id: Of the sample.
        occurrence: How often the image came before in this epoch.

    >>> sample_key(0, 3, "IXI012", 0) == sample_key(0, 3, "IXI012", 0)
    True
    >>> len({sample_key(0, epoch, "IXI012", occurrence) for epoch in range(9) for occurrence in range(9)})
    81
    """
    text = f"{seed}\0{epoch}\0{occurrence}\0{image_id}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class Augmentation(nn.Module):
    """Vary a batch as scanners and heads do: crop, flip, affine, elastic, then blur, bias field, gamma, noise.

    Geometry is one resampling; what comes from outside takes the channel's minimum. Intensities are changed above that
    minimum, relative to the channel's range. All numbers come from the sample's key, so a sample looks the same alone
    and in any batch, on the same kind of device with the same number of threads. With every range at 0 nothing changes.

    Args:
        flip: Probability to mirror each of `flip_axes`.
        flip_axes: Axes that may be mirrored; 0 is left-right.
        rotation: Largest angle about each axis in degrees.
        scale: Largest relative change of size along each axis.
        translation: Largest shift along each axis as a fraction of the image's size.
        shear: Largest off-diagonal term of the shear.
        elastic: Largest displacement along each axis as a fraction of the image's size.
        elastic_points: Control points of the displacement per axis.
        bias_field: Largest logarithm of the multiplicative field.
        bias_points: Control points of the field per axis; 4 make it a cubic polynomial.
        gamma: Largest logarithm of the exponent.
        noise: Largest standard deviation of Gaussian noise, relative to that of the foreground (above the mean).
        blur: Largest standard deviation of Gaussian blur in voxels.
        probability: Of each intensity operation, for each channel.
        spatial_probability: Of moving and deforming a sample at all. The others keep their voxels, flipped or not:
            resampling smooths, and a network with batch normalisation that meets only resampled images in training is
            biased on the untouched ones of an evaluation.
        retain_statistics: Bring mean and standard deviation of each channel's foreground (its voxels above the mean)
            back to what they were before the intensities changed. Images that are normalised one by one need it: the
            network would otherwise undo a gamma by the shift of the mean that comes with it, which no normalised image
            of another scanner shows.
        spacing: Voxel size in mm, where voxels are not cubes: rotations then keep their shape in the world.
        crop: Voxels of the output, where it is smaller than the image: a window that lies anywhere in training and in
            the middle in evaluation.
        kernel: What computes volumes on a CPU: `fused` compiles one pass over the voxels with numba (the extra `fast`),
            `torch` does without, `auto` takes numba where it is installed. They differ by rounding. GPUs use torch.

    References:
        Van Leemput et al. Automated model-based bias field correction of MR images of the brain. IEEE TMI 1999.
        doi:10.1109/42.811268
        Isensee et al. nnU-Net. Nature Methods 2021. doi:10.1038/s41592-020-01008-z (a gamma that retains statistics)
        Rueckert et al. Nonrigid registration using free-form deformations. IEEE TMI 1999. doi:10.1109/42.796284
    """

    def __init__(
        self,
        flip: float = 0.5,
        flip_axes: tuple[int, ...] = (0,),
        rotation: float = 10.0,
        scale: float = 0.1,
        translation: float = 0.05,
        shear: float = 0.0,
        elastic: float = 0.0,
        elastic_points: int = 7,
        bias_field: float = 0.3,
        bias_points: int = 4,
        gamma: float = 0.3,
        noise: float = 0.1,
        blur: float = 0.5,
        probability: float = 0.5,
        spatial_probability: float = 0.5,
        retain_statistics: bool = False,
        spacing: tuple[float, ...] | None = None,
        crop: tuple[int, ...] | None = None,
        kernel: Literal["auto", "fused", "torch"] = "auto",
    ) -> None:
        super().__init__()
        self.flip, self.flip_axes = flip, flip_axes
        self.rotation, self.scale, self.translation, self.shear = rotation, scale, translation, shear
        self.elastic, self.elastic_points = elastic, elastic_points
        self.bias_field, self.bias_points = bias_field, bias_points
        self.gamma, self.noise, self.blur, self.probability = gamma, noise, blur, probability
        self.spatial_probability = spatial_probability
        self.retain_statistics = retain_statistics
        self.spacing = spacing
        self.crop = crop
        has_numba = importlib.util.find_spec("numba") is not None
        if kernel == "fused" and not has_numba:
            raise ValueError("augmentation: kernel is fused, which needs numba. Install fontanel[fast], or use torch.")
        self.fused = kernel == "fused" or (kernel == "auto" and has_numba)
        self._check()
        self.resamples = any((rotation, scale, translation, shear, elastic))
        self.changes_intensity = probability > 0 and any((bias_field, gamma, noise, blur))

    def _check(self) -> None:
        shares = ("flip", "probability", "spatial_probability")
        ranges = ("rotation", "scale", "translation", "shear", "elastic", "bias_field", "gamma", "noise", "blur")
        for name in (*ranges, *shares):
            if getattr(self, name) < 0:
                raise ValueError(f"augmentation: {name} is {getattr(self, name)}. Give 0 (off) or a larger number.")
        for name in shares:
            if getattr(self, name) > 1:
                raise ValueError(f"augmentation: {name} is {getattr(self, name)}. Give a probability, 0 to 1.")
        if not set(self.flip_axes) <= {0, 1, 2}:
            raise ValueError(f"augmentation: flip_axes is {self.flip_axes}. Name axes 0 (left-right), 1 or 2.")
        if min(self.elastic_points, self.bias_points) < 4:
            raise ValueError("augmentation: elastic_points and bias_points must be at least 4 (a cubic spline).")
        limit = 0.4 / (self.elastic_points - 3)  # Choi & Lee 2000, doi:10.1006/gmod.2000.0531: no folding below it
        if self.elastic > limit:
            raise ValueError(
                f"augmentation: elastic {self.elastic} folds the image on {self.elastic_points} points. "
                f"Stay at or below {limit:.3g}, or use fewer points."
            )

    @torch.no_grad()
    def forward(
        self, image: Tensor, keys: Sequence[int], masks: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            image: (B, C, D, H, W) or (B, C, H, W), half or single precision.
            keys: `sample_key` of every sample.
            masks: Of the same batch and size, any number of channels; moved with the image, nearest voxel.

        Returns:
            The image in single precision; with masks, both.
        """
        if len(keys) != len(image):
            raise ValueError(f"augmentation: {len(keys)} keys for {len(image)} images. Give one key per image.")
        size = self.output_size(image.shape[2:])
        augmented = torch.empty((*image.shape[:2], *size), dtype=torch.float32, device=image.device)
        moved = None if masks is None else masks.new_empty(*masks.shape[:2], *size)
        # On a CPU more samples at once than there are threads only save calls, and cost memory.
        step = len(keys) if image.is_cuda else max(torch.get_num_threads(), CHUNK // math.prod(image.shape[1:]))
        with torch.autocast(image.device.type, enabled=False):
            for start in range(0, len(keys), step):
                part = slice(start, start + step)
                warps = [self.draw_warp(key, image.shape[2:]) for key in keys[part]]
                self._augment(image[part], keys[part], warps, augmented[part])
                if self.retain_statistics and self.changes_intensity:
                    retain_statistics(image[part], augmented[part])
                if masks is not None and moved is not None:
                    moved[part] = move(masks[part], warps, "nearest", size)
        return augmented if moved is None else (augmented, moved)

    def kernel_on(self, device: torch.device) -> Literal["fused", "torch"]:
        """Return what computes volumes on a device."""
        return "fused" if self.fused and device.type == "cpu" else "torch"

    def output_size(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the voxels of the output.

        Args:
            shape: Of the image, two or three axes.
        """
        if self.crop is None:
            return tuple(shape)
        if len(self.crop) != len(shape) or not all(0 < part <= shape[axis] for axis, part in enumerate(self.crop)):
            raise ValueError(f"augmentation: crop {self.crop} does not fit into images of {tuple(shape)} voxels.")
        return self.crop

    def window_start(self, shape: Sequence[int]) -> list[int]:
        """Return the first voxel of the window in the middle, which an evaluation uses.

        Args:
            shape: Of the image, two or three axes.
        """
        return [(whole - part) // 2 for whole, part in zip(shape, self.output_size(shape), strict=True)]

    def centre(self, image: Tensor) -> Tensor:
        """Return what an evaluation sees of a batch: the window in the middle."""
        shape = image.shape[2:]
        return torch.stack([cut(sample, self.window_start(shape), (), self.output_size(shape)) for sample in image])

    def draw_warp(self, key: int, shape: Sequence[int]) -> Warp:
        """Draw a sample's geometry.

        Args:
            key: Of the sample.
            shape: Of the image, two or three axes.
        """
        axes = len(shape)
        random = _stream(key, GEOMETRY)
        mirrored = random.random(3) < self.flip
        unit = random.uniform(-1, 1, (4, 3))
        moved = random.random() < self.spatial_probability
        unit *= moved
        signs = np.array([-1.0 if axis in self.flip_axes and mirrored[axis] else 1.0 for axis in range(axes)])
        angles, translation = unit[0] * self.rotation, unit[1, :axes] * self.translation * np.array(shape)
        matrix = affine_matrix(
            angles if axes == 3 else angles[2:], 1 + unit[2, :axes] * self.scale, unit[3] * self.shear
        )
        warp = inverse_warp(matrix, translation, self.spacing)
        displacement = None
        if self.elastic > 0 and moved:
            limit = (signs * self.elastic * np.array(shape)).reshape(-1, *[1] * axes)
            displacement = _stream(key, ELASTIC).uniform(-1, 1, (axes, *[self.elastic_points] * axes)) * limit
        linear = signs[:, np.newaxis] * warp.linear
        return Warp(linear, signs * warp.offset + linear @ self._draw_window(key, shape), displacement)

    def _draw_window(self, key: int, shape: Sequence[int]) -> Array:
        """Draw the middle of a sample's window, in voxels from the middle of the image."""
        spare = np.array(shape) - np.array(self.output_size(shape))
        start = _stream(key, CROP).integers(spare, endpoint=True) if spare.any() else spare
        return np.asarray(start - spare / 2, dtype=np.float64)

    def draw_intensities(self, key: int, num_channels: int, num_axes: int) -> list[Intensity]:
        """Draw what happens to each channel of a sample.

        Args:
            key: Of the sample.
            num_channels: Of the image; the first channels draw the same whatever follows.
            num_axes: Two or three.
        """
        points = [self.bias_points] * num_axes
        drawn = _stream(key, INTENSITY).random((num_channels, 8 + math.prod(points)))
        intensities = []
        for channel in drawn:
            blurred, biased, bent, noisy = channel[:4] < self.probability
            blur, gamma, noise, noise_seed = channel[4:8].tolist()
            control = (2 * channel[8:].reshape(points) - 1) * self.bias_field
            intensities.append(
                Intensity(
                    blur=blur * self.blur if blurred else 0.0,
                    log_bias=control if biased and self.bias_field > 0 else None,
                    gamma=math.exp((2 * gamma - 1) * self.gamma) if bent else 1.0,
                    noise=noise * self.noise if noisy else 0.0,
                    noise_seed=int(noise_seed * 2**32),
                )
            )
        return intensities

    def _augment(self, image: Tensor, keys: Sequence[int], warps: Sequence[Warp], out: Tensor) -> None:
        if not (self.resamples or self.changes_intensity):
            out.copy_(move(image, warps, "linear", out.shape[2:]))
            return
        drawn = [self.draw_intensities(key, image.shape[1], image.ndim - 2) for key in keys]
        if image.ndim == 5 and self.kernel_on(image.device) == "fused":
            from datamodules.fused import augment_volume  # numba takes a second to import

            for sample, warp, intensities, target in zip(image, warps, drawn, out, strict=True):
                for channel, intensity, part in zip(sample, intensities, target, strict=True):
                    augment_volume(channel, warp, intensity, part)
            return
        image = image.float()
        extremes = [[channel.aminmax() for channel in sample] for sample in image]
        lowest = torch.stack([low for sample in extremes for low, _ in sample])
        above = image - lowest.view(*image.shape[:2], *[1] * (image.ndim - 2))
        sds = [[foreground_sd(channel) for channel in sample] for sample in above] if self.noise else None
        above = move(above, warps, "linear", out.shape[2:])
        for sample, intensities in enumerate(drawn):
            for channel, intensity in enumerate(intensities):
                low, high = extremes[sample][channel]
                sd = low if sds is None else sds[sample][channel]
                changed = change_intensity(above[sample, channel], intensity, high - low, sd)
                torch.add(changed, low, out=out[sample, channel])


def _stream(key: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([key, stream], dtype=np.uint64)))

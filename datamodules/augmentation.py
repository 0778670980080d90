"""Random augmentation of a batch on its device: one resampling, then intensities, each sample by its own key."""

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Array = npt.NDArray[np.float64]

# Streams of random numbers below one key: an operation draws the same whatever the others are set to.
GEOMETRY, ELASTIC, INTENSITY = range(3)
FAINT = 2.0**-11  # relative; a smaller weight changes nothing at half precision
CHUNK = 2**20  # voxels
STATISTICS_STRIDE = 7  # voxels; every seventh is enough for a standard deviation, odd so that no axis is cut short


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


@dataclass(frozen=True)
class Warp:
    """Where a sample's voxels come from, in voxels from the centre: input = linear @ output + offset + displacement.

    Args:
        linear: (d, d).
        offset: (d,).
        displacement: Control values on the elastic lattice, (d, *points); none without elastic deformation.
    """

    linear: Array
    offset: Array
    displacement: Array | None = None

    @property
    def is_mirror(self) -> bool:
        """Whether no voxel comes from between voxels."""
        straight = np.array_equal(np.abs(self.linear), np.eye(len(self.offset))) and not self.offset.any()
        return straight and self.displacement is None


@dataclass(frozen=True)
class Intensity:
    """What happens to one channel of a sample; each default leaves the channel as it is.

    Args:
        blur: Standard deviation of the Gaussian in voxels.
        log_bias: Logarithm of the multiplicative field on the bias lattice.
        gamma: Exponent.
        noise: Standard deviation of the noise over that of the foreground.
        noise_seed: Of the noise.
    """

    blur: float = 0.0
    log_bias: Array | None = None
    gamma: float = 1.0
    noise: float = 0.0
    noise_seed: int = 0


class Augmentation(nn.Module):
    """Vary a batch as scanners and heads do: flip, affine, elastic, then blur, bias field, gamma, noise.

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
        spacing: Voxel size in mm, where voxels are not cubes: rotations then keep their shape in the world.

    References:
        Van Leemput et al. Automated model-based bias field correction of MR images of the brain. IEEE TMI 1999.
        doi:10.1109/42.811268
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
        spacing: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.flip, self.flip_axes = flip, flip_axes
        self.rotation, self.scale, self.translation, self.shear = rotation, scale, translation, shear
        self.elastic, self.elastic_points = elastic, elastic_points
        self.bias_field, self.bias_points = bias_field, bias_points
        self.gamma, self.noise, self.blur, self.probability = gamma, noise, blur, probability
        self.spatial_probability = spatial_probability
        self.spacing = spacing
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
        augmented = torch.empty(image.shape, dtype=torch.float32, device=image.device)
        moved = None if masks is None else torch.empty_like(masks)
        # On a CPU more samples at once than there are threads only save calls, and cost memory.
        step = len(keys) if image.is_cuda else max(torch.get_num_threads(), CHUNK // math.prod(image.shape[1:]))
        with torch.autocast(image.device.type, enabled=False):
            for start in range(0, len(keys), step):
                part = slice(start, start + step)
                warps = [self.draw_warp(key, image.shape[2:]) for key in keys[part]]
                self._augment(image[part].float(), keys[part], warps, augmented[part])
                if masks is not None and moved is not None:
                    moved[part] = self._move(masks[part], warps, "nearest")
        return augmented if moved is None else (augmented, moved)

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
        return Warp(signs[:, np.newaxis] * warp.linear, signs * warp.offset, displacement)

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
            out.copy_(self._move(image, warps, "linear"))
            return
        extremes = [[channel.aminmax() for channel in sample] for sample in image]
        lowest = torch.stack([low for sample in extremes for low, _ in sample])
        above = image - lowest.view(*image.shape[:2], *[1] * (image.ndim - 2))
        foreground_sds = [[_foreground_sd(channel) for channel in sample] for sample in above] if self.noise else None
        above = self._move(above, warps, "linear")
        for sample, key in enumerate(keys):
            intensities = self.draw_intensities(key, image.shape[1], image.ndim - 2)
            for channel, intensity in enumerate(intensities):
                low, high = extremes[sample][channel]
                sd = low if foreground_sds is None else foreground_sds[sample][channel]
                changed = change_intensity(above[sample, channel], intensity, high - low, sd)
                torch.add(changed, low, out=out[sample, channel])

    def _move(self, image: Tensor, warps: Sequence[Warp], mode: Literal["linear", "nearest"]) -> Tensor:
        moved = torch.empty_like(image)
        bent = [index for index, warp in enumerate(warps) if not warp.is_mirror]
        if bent:
            moved[bent] = resample(image[bent], [warps[index] for index in bent], mode)
        for index in set(range(len(warps))).difference(bent):
            axes = np.flatnonzero(np.diag(warps[index].linear) < 0)
            moved[index] = image[index].flip([1 + int(axis) for axis in axes])
        return moved


def affine_matrix(degrees: Array, scale: Array, shear: Array) -> Array:
    """Return scale @ rotation @ shear for two or three axes.

    A rotation in 3D is about_z @ about_x @ about_y, as in ITK and torchio.

    Args:
        degrees: One angle in 2D, three in 3D.
        scale: Factor along each axis.
        shear: Upper off-diagonal terms.

    >>> affine_matrix(np.array([90.0]), np.array([1.0, 2.0]), np.zeros(3)).round()
    array([[ 0., -1.],
           [ 2.,  0.]])
    """
    axes = len(scale)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    if axes == 2:
        rotation = np.array([[cos[0], -sin[0]], [sin[0], cos[0]]])
    else:
        about_x = np.array([[1, 0, 0], [0, cos[0], -sin[0]], [0, sin[0], cos[0]]])
        about_y = np.array([[cos[1], 0, sin[1]], [0, 1, 0], [-sin[1], 0, cos[1]]])
        about_z = np.array([[cos[2], -sin[2], 0], [sin[2], cos[2], 0], [0, 0, 1]])
        rotation = about_z @ about_x @ about_y
    shearing = np.eye(axes)
    shearing[np.triu_indices(axes, 1)] = shear[: axes * (axes - 1) // 2]
    matrix: Array = np.diag(scale) @ rotation @ shearing
    return matrix


def inverse_warp(matrix: Array, translation: Array, spacing: Sequence[float] | None = None) -> Warp:
    """Return where voxels come from when the content is moved by output = matrix @ input + translation.

    Args:
        matrix: In mm, about the centre of the image.
        translation: In voxels.
        spacing: Voxel size in mm where voxels are not cubes.
    """
    size = np.ones(len(matrix)) if spacing is None else np.array(spacing, dtype=np.float64)
    linear = np.asarray(np.linalg.inv(matrix * size / size[:, np.newaxis]), dtype=np.float64)
    return Warp(linear, -linear @ translation)


def resample(image: Tensor, warps: Sequence[Warp], mode: Literal["linear", "nearest"] = "linear") -> Tensor:
    """Sample each image of a batch where its warp says; zero outside.

    Args:
        image: (B, C, D, H, W) or (B, C, H, W); single precision where the mode is linear.
        warps: One per sample.
        mode: `linear` (bilinear or trilinear), or `nearest` for labels.
    """
    if mode == "nearest":
        return _sample_nearest(image, warps)
    return _sample_planes(image, warps) if image.ndim == 4 else _sample_volumes(image, warps)


def _coordinates(image: Tensor, warps: Sequence[Warp], scale: Array | float, shift: Array | float) -> Tensor:
    """Return scale * index + shift of what to sample at each output voxel, (B, axes, *shape), the last axis first.

    One term per axis is added by broadcasting: four times faster than affine_grid's product with a full-size matrix,
    and rounded in the same way whatever the batch is.
    """
    shape = image.shape[2:]
    axes, size = len(shape), np.array(shape)
    scales = np.broadcast_to(scale, axes)
    linear = np.stack([(scales[:, np.newaxis] * warp.linear)[::-1] for warp in warps])
    start = np.stack([(scales * (warp.offset + (size - 1) / 2) + shift)[::-1] for warp in warps])
    at = torch.tensor(start, dtype=torch.float32, device=image.device).view(len(warps), axes, *[1] * axes)
    for axis in range(axes):
        term = linear[:, :, axis, np.newaxis] * (np.arange(size[axis]) - (size[axis] - 1) / 2)
        line = [-1 if other == axis else 1 for other in range(axes)]
        at = at + torch.tensor(term, dtype=torch.float32, device=image.device).view(len(warps), axes, *line)
    for sample, warp in enumerate(warps):
        if warp.displacement is not None:
            control = scales.reshape(-1, *[1] * axes) * warp.displacement
            at[sample].add_(expand_lattice(control[::-1], shape, image.device))
    return at


def _sample_nearest(image: Tensor, warps: Sequence[Warp]) -> Tensor:
    nearest = _coordinates(image, warps, 1.0, 0.0).round_().long()
    flat = torch.zeros_like(nearest[:, 0])
    inside = torch.ones_like(flat, dtype=torch.bool)
    for size, index in zip(image.shape[2:], nearest.flip(1).unbind(1), strict=True):
        inside &= (index >= 0) & (index < size)
        flat = flat * size + index.clamp(0, size - 1)
    chosen = flat.flatten(1).unsqueeze(1).expand(-1, image.shape[1], -1)
    return image.flatten(2).gather(2, chosen).view(image.shape) * inside.unsqueeze(1)


def _sample_planes(image: Tensor, warps: Sequence[Warp]) -> Tensor:
    size = np.array(image.shape[2:])
    grid = _coordinates(image, warps, 2 / size, 1 / size - 1).movedim(1, -1)
    return F.grid_sample(image, grid, padding_mode="zeros", align_corners=False)


def _sample_volumes(image: Tensor, warps: Sequence[Warp]) -> Tensor:
    """Sample volumes as tall planes of slices: on a CPU torch vectorises grid_sample in 2D only, eight times faster.

    Every slice gets a border of zeros, each slice and the next are two channels of the plane, and the third axis is
    interpolated between them. A plane of 30,000 rows costs 0.002 voxels of precision.
    """
    batch, channels, num_x, num_y, num_z = image.shape
    pairs = image.new_zeros(batch, channels, 2, num_x + 1, num_y + 2, num_z)
    pairs[:, :, 0, 1:, 1:-1] = image
    pairs[:, :, 1, :-1, 1:-1] = image
    num_rows = (num_x + 1) * (num_y + 2)
    at = _coordinates(image, warps, np.array([1, 1, 2 / num_z]), np.array([1, 1, 1 / num_z - 1]))
    _, y, x = at.unbind(1)  # x and y count the border
    x.clamp_(0, num_x + 1)
    first = x.floor().clamp_max_(num_x)
    share = x.sub_(first).unsqueeze(1)
    y.clamp_(0, num_y + 1).add_(first.mul_(num_y + 2)).mul_(2 / num_rows).add_(1 / num_rows - 1)
    grid = at[:, :2].reshape(batch, 2, num_x * num_y, num_z).movedim(1, -1)
    plane = pairs.view(batch, 2 * channels, num_rows, num_z)
    pair = F.grid_sample(plane, grid, padding_mode="zeros", align_corners=False)
    near, far = pair.view(batch, channels, 2, num_x, num_y, num_z).unbind(2)
    return far.sub_(near).mul_(share).add_(near)


def expand_lattice(control: Array, shape: Sequence[int], device: torch.device) -> Tensor:
    """Interpolate control values to a full-size field by cubic B-splines, one axis after the other.

    Args:
        control: (K, *points) values.
        shape: Of the field, as many axes as the lattice.
        device: Where the field is made.

    Returns:
        (K, *shape), within the range of the control values.

    >>> expand_lattice(np.ones((1, 4, 5)), (6, 7), torch.device("cpu")).shape
    torch.Size([1, 6, 7])
    """
    points = control.shape[1:]
    rows = len(control)
    for num_points, size in zip(points[:-1], shape[:-1], strict=True):
        control = _spline_basis(num_points, size) @ control.reshape(rows, num_points, -1)
        rows *= size
    field = torch.tensor(control.reshape(rows, points[-1]), dtype=torch.float32, device=device)
    last = torch.tensor(_spline_basis(points[-1], shape[-1]).T, dtype=torch.float32, device=device)
    return (field @ last).view(-1, *shape)


def change_intensity(above: Tensor, intensity: Intensity, span: Tensor, foreground_sd: Tensor) -> Tensor:
    """Blur a channel, multiply it by a bias field, bend it by gamma and add noise.

    Args:
        above: (D, H, W) or (H, W), intensity above the channel's minimum; may be overwritten.
        intensity: What to do.
        span: Maximum of the channel before it was moved, above the minimum.
        foreground_sd: Standard deviation of its foreground.
    """
    if intensity.blur > 0:
        above = _blur(above, intensity.blur)
    if intensity.log_bias is not None:
        above.mul_(expand_lattice(np.exp(intensity.log_bias)[np.newaxis], above.shape, above.device)[0])
    if intensity.gamma != 1:
        # span * (above / span) ** gamma by exp and log, five times faster than pow, but slow at log(0) and denormals.
        span = span.clamp_min(torch.finfo(torch.float32).tiny)
        offset = (1 - intensity.gamma) * span.log()
        above.clamp_min_(span * FAINT**2).log_().mul_(intensity.gamma).add_(offset).exp_()
    if intensity.noise > 0:
        generator = torch.Generator(above.device).manual_seed(intensity.noise_seed)
        noise = torch.randn(above.shape, generator=generator, device=above.device)
        above.add_(noise.mul_(foreground_sd * intensity.noise))
    return above


def _stream(key: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([key, stream], dtype=np.uint64)))


@functools.lru_cache(maxsize=64)
def _spline_basis(num_points: int, size: int) -> Array:
    """Return the weight of each control point at each voxel centre, (size, num_points); every row sums to 1."""
    position = (np.arange(size) + 0.5) / size * (num_points - 3)
    first = np.minimum(position.astype(int), num_points - 4)
    t = position - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    basis = np.zeros((size, num_points))
    np.put_along_axis(basis, first[:, np.newaxis] + np.arange(4), weights, axis=1)
    return basis


def _foreground_sd(channel: Tensor) -> Tensor:
    """Return the standard deviation of the voxels above the mean, without waiting for the device."""
    values = channel.flatten()[::STATISTICS_STRIDE]
    above = (values - values.mean()).clamp_min_(0)
    count = above.count_nonzero().clamp_min(1)
    return (above.dot(above) / count - (above.sum() / count).square()).clamp_min(0).sqrt()


def _blur(channel: Tensor, sigma: float) -> Tensor:
    """Return the channel after a separable Gaussian whose border voxels repeat."""
    radius = int(sigma * math.sqrt(-2 * math.log(FAINT)))
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    middle, *sides = weights.tolist()
    for axis, size in enumerate(channel.shape):
        source, channel = channel, channel * middle
        for distance, weight in enumerate(sides, start=1):
            near = min(distance, size)
            channel.narrow(axis, near, size - near).add_(source.narrow(axis, 0, size - near), alpha=weight)
            channel.narrow(axis, 0, near).add_(source.narrow(axis, 0, 1), alpha=weight)
            channel.narrow(axis, 0, size - near).add_(source.narrow(axis, near, size - near), alpha=weight)
            channel.narrow(axis, size - near, near).add_(source.narrow(axis, size - 1, 1), alpha=weight)
    return channel

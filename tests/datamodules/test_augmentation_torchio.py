"""The deterministic part of each operation against torchio's, on both kernels.

The image of the geometric tests carries its own coordinates: linear interpolation returns them without error, so that
they say where each voxel of the output comes from, also after several resamplings in a row.
"""

import numpy as np
import pytest
import torch
import torchio as tio
from scipy import ndimage, stats
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

from datamodules.augmentation import Augmentation
from datamodules.geometry import Warp, affine_matrix, inverse_warp
from datamodules.intensity import FAINT, Intensity, foreground_sd

SHAPE = (24, 30, 20)
SPACINGS = [(1.0, 1.0, 1.0), (1.5, 1.0, 2.5)]
STILL = Warp(np.eye(3), np.zeros(3))
COORDINATE = 2e-4  # voxels; grid_sample works in single precision on planes of 800 rows
AFFINES = [
    ((1.07, 1.0, 0.93), (0, 0, 0), (0, 0, 0)),
    ((1, 1, 1), (12, 0, 0), (0, 0, 0)),
    ((1, 1, 1), (0, 12, 0), (2.2, 0, 0)),
    ((1, 1, 1), (0, 0, 12), (0, -3.1, 0)),
    ((0.95, 1.1, 1.05), (8, -9, 10), (1.5, 2.0, -1.0)),
]

kernels = pytest.mark.parametrize("kernel", ["torch", "fused"])
spacings = pytest.mark.parametrize("spacing", SPACINGS)


def smooth(shape=SHAPE, seed=0):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 2).astype(np.float32)
    return torch.from_numpy((field - field.min()) / np.ptp(field))[None]


def subject(shape=SHAPE, spacing=(1.0, 1.0, 1.0)):
    """Return an image whose channels are its coordinates, its inside and a smooth texture, and a label."""
    where = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))
    edge = torch.tensor(shape).view(-1, 1, 1, 1) - 1
    inside = ((where > 0) & (where < edge) | (edge == 0)).all(0)
    affine = np.diag([*spacing, 1.0])
    image = tio.ScalarImage(tensor=torch.cat([where, inside[None].float(), smooth(shape)]), affine=affine)
    label = tio.LabelMap(tensor=(smooth(shape, 1) > 0.5).to(torch.uint8), affine=affine)
    return tio.Subject(image=image, label=label)


def augment(kernel, image, warp=STILL, crop=None, masks=None, **intensity):
    augmentation = Augmentation(crop=crop, kernel=kernel)
    augmentation.draw_warp = lambda *_: warp
    augmentation.draw_intensities = lambda key, channels, axes: [Intensity(**intensity)] * channels
    if masks is None:
        return augmentation(image[None], [0])[0]
    moved, moved_masks = augmentation(image[None], [0], masks[None])
    return moved[0], moved_masks[0]


def warp_of(scales, degrees, shift, spacing=(1.0, 1.0, 1.0)):
    """Return the warp of torchio's affine, which scales after it shifts, and shifts in mm."""
    matrix = affine_matrix(np.array(degrees, float), np.array(scales, float), np.zeros(3))
    return inverse_warp(matrix, np.array(scales) * shift / np.array(spacing), spacing)


def assert_same_image(moved, expected, share, tolerance=COORDINATE):
    """Compare where all voxels that torchio interpolates between lie inside; outside, the two fade differently."""
    inside = expected[3] > 0.999
    assert inside.float().mean() > share
    torch.testing.assert_close(moved[:3, inside], expected[:3, inside], atol=tolerance, rtol=0)
    torch.testing.assert_close(moved[4, inside], expected[4, inside], atol=tolerance / 5, rtol=0)


@kernels
@spacings
@pytest.mark.parametrize(("scales", "degrees", "shift"), AFFINES)
def test_affine(kernel, spacing, scales, degrees, shift):
    before = subject(spacing=spacing)
    expected = tio.Affine(scales, degrees, shift)(before)
    warp = warp_of(scales, degrees, shift, spacing)
    moved, label = augment(kernel, before["image"].data, warp, masks=before["label"].data)
    assert_same_image(moved, expected["image"].data, 0.5)
    inside = expected["image"].data[3] > 0.999
    assert label.dtype == torch.uint8
    assert (label == expected["label"].data)[0, inside].float().mean() > 0.999  # halves round either way


def test_affine_of_planes():
    before = subject((26, 33, 1))
    expected = tio.Affine((0.9, 1.1, 1), (0, 0, 14), (1.4, -2.3, 0))(before)["image"].data[..., 0]
    matrix = affine_matrix(np.array([14.0]), np.array([0.9, 1.1]), np.zeros(1))
    moved = augment("torch", before["image"].data[..., 0], inverse_warp(matrix, np.array([0.9 * 1.4, 1.1 * -2.3])))
    assert_same_image(moved, expected, 0.5)


def basis(position, num_points):
    knots = np.arange(-3, num_points + 1)
    return BSpline.design_matrix(position * (num_points - 3), knots, 3).toarray()


def refit(control, matrices):
    for axis, matrix in enumerate(matrices, start=1):
        control = np.moveaxis(np.tensordot(matrix, control, (1, axis)), 0, axis)
    return control


def elastic(points, spacing, seed=0):
    """Return torchio's deformation, the same displacement on our lattice, and by how many voxels the two differ.

    ITK's axes run to left, posterior and superior, and its lattice begins 1/8 voxel outside the image's edge, ours on
    it. The same field therefore has other control points. With four or five per axis there are some for exactly that
    field; with more, the knots between lie up to 1/8 voxel apart.
    """
    largest = np.minimum(0.4 * np.array(SHAPE) / (np.array(points) - 3), 3)
    control = np.random.default_rng(seed).uniform(-1, 1, (*points, 3)) * largest * spacing
    matrices, difference = [], 0.0
    for size, num_points in zip(SHAPE, points, strict=True):
        centre = np.arange(size) + 0.5
        ours, theirs = basis(centre / size, num_points), basis((centre + 1 / 8) / (size + 1 / 4), num_points)
        matrices.append(np.linalg.lstsq(ours, theirs)[0])
        difference += np.abs(ours @ matrices[-1] - theirs).sum(1).max() * largest.max()
    displacement = np.moveaxis(control[::-1, ::-1] * (-1, -1, 1) / spacing, -1, 0)
    return tio.ElasticDeformation(control, (0.1, 0.1, 0.1)), refit(displacement, matrices), difference


@kernels
@spacings
@pytest.mark.parametrize("points", [(4, 4, 4), (5, 4, 5), (7, 6, 5)])
def test_elastic(kernel, spacing, points):
    before = subject(spacing=spacing)
    deformation, displacement, difference = elastic(points, spacing)
    assert difference < (1e-12 if max(points) < 6 else 0.02)
    expected = deformation(before)
    moved, label = augment(
        kernel, before["image"].data, Warp(np.eye(3), np.zeros(3), displacement), masks=before["label"].data
    )
    assert (moved - before["image"].data)[:3].abs().amax((1, 2, 3)).min() > 0.5
    assert_same_image(moved, expected["image"].data, 0.5, COORDINATE + difference)
    inside = expected["image"].data[3] > 0.999
    assert (label == expected["label"].data)[0, inside].float().mean() > 0.995


@kernels
@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)])
def test_flip(kernel, axes):
    before = subject()
    signs = np.where(np.isin(range(3), axes), -1.0, 1.0)
    moved, label = augment(kernel, before["image"].data, Warp(np.diag(signs), np.zeros(3)), masks=before["label"].data)
    expected = tio.Flip(axes)(before)
    assert torch.equal(moved, expected["image"].data)
    assert torch.equal(label, expected["label"].data)


@kernels
@pytest.mark.parametrize("start", [(0, 0, 0), (5, 3, 0), (1, 8, 4), (7, 9, 7)])
def test_crop(kernel, start):
    before, size = subject(), (17, 21, 13)
    end = np.array(SHAPE) - size - start
    expected = tio.Crop(tuple(np.stack([start, end], 1).ravel().tolist()))(before)
    warp = Warp(np.eye(3), start - (np.array(SHAPE) - size) / 2)
    moved, label = augment(kernel, before["image"].data, warp, size, before["label"].data)
    assert torch.equal(moved, expected["image"].data)
    assert torch.equal(label, expected["label"].data)


@kernels
@spacings
def test_one_resampling_is_flip_affine_elastic_and_crop_in_a_row(kernel, spacing):
    before = subject(spacing=spacing)
    size, start = (18, 21, 15), np.array([4, 3, 2])
    deformation, displacement, _ = elastic((4, 4, 4), spacing)
    cropping = np.stack([start, np.array(SHAPE) - size - start], 1).ravel().tolist()
    in_a_row = tio.Compose([tio.Flip((0, 2)), tio.Affine(*AFFINES[-1]), deformation, tio.Crop(tuple(cropping))])
    expected = in_a_row(before)["image"].data
    signs = np.array([-1.0, 1.0, -1.0])[:, np.newaxis]
    warp = warp_of(*AFFINES[-1], spacing)
    linear, window = signs * warp.linear, start - (np.array(SHAPE) - size) / 2
    # Our lattice spans the window: one polynomial either way.
    seen = [basis((np.arange(n) + first + 0.5) / whole, 4) for n, first, whole in zip(size, start, SHAPE, strict=True)]
    ours = [basis((np.arange(n) + 0.5) / n, 4) for n in size]
    displacement = refit(displacement, [np.linalg.lstsq(o, s)[0] for o, s in zip(ours, seen, strict=True)])
    warp = Warp(linear, signs[:, 0] * warp.offset + linear @ window, np.tensordot(linear, displacement, 1))
    moved = augment(kernel, before["image"].data, warp, size)
    inside = expected[3] > 0.999
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(moved[:3, inside], expected[:3, inside], atol=COORDINATE, rtol=0)


@kernels
@spacings
@pytest.mark.parametrize("key", range(4))
def test_what_is_drawn_is_a_flip_an_affine_and_a_crop(kernel, spacing, key):
    size, before = (20, 22, 15), subject(spacing=spacing)
    drawn = dict.fromkeys(("translation", "bias_field", "gamma", "noise", "blur"), 0.0)
    augmentation = Augmentation(
        flip_axes=(0, 1), rotation=15.0, spatial_probability=1.0, spacing=spacing, crop=size, kernel=kernel, **drawn
    )
    warp = augmentation.draw_warp(key, SHAPE)
    still = Augmentation(rotation=0.0, scale=0.0, flip_axes=(0, 1), spatial_probability=1.0, crop=size, **drawn)
    signs = np.diag(still.draw_warp(key, SHAPE).linear)
    size_mm = np.array(spacing)
    matrix = np.linalg.inv(signs[:, np.newaxis] * warp.linear) * size_mm[:, np.newaxis] / size_mm
    scales = np.linalg.norm(matrix, axis=1)
    angles = Rotation.from_matrix(matrix / scales[:, np.newaxis]).as_euler("ZXY", degrees=True)
    start = np.linalg.solve(warp.linear, warp.offset) + (np.array(SHAPE) - size) / 2
    np.testing.assert_allclose(start, start.round(), atol=1e-9)
    start = start.round().astype(int)
    cropping = np.stack([start, np.array(SHAPE) - size - start], 1).ravel().tolist()
    affine = tio.Affine(tuple(scales.tolist()), tuple(angles[[1, 2, 0]].tolist()), (0, 0, 0))
    in_a_row = [tio.Flip(tuple(np.flatnonzero(signs < 0).tolist())), affine, tio.Crop(tuple(cropping))]
    expected = tio.Compose(in_a_row)(before)
    moved = augmentation(before["image"].data[None], [key])[0]
    assert_same_image(moved, expected["image"].data, 0.6)


def log_spline(field, points):
    """Return the logarithms of the control values that fit a field, and the largest difference that is left."""
    bases = [basis((np.arange(size) + 0.5) / size, points) for size in field.shape]
    control = refit(field[np.newaxis].astype(float), [np.linalg.pinv(each) for each in bases])
    return np.log(control[0]), np.abs(refit(control, bases)[0] - field).max()


@kernels
@pytest.mark.parametrize(("points", "largest"), [(4, 0.01), (7, 0.12)])
def test_bias_field(kernel, points, largest):
    # torchio's field is the exponential of a polynomial, ours a spline.
    coefficients = np.random.default_rng(2).uniform(-largest, largest, 20).tolist()
    image = smooth()
    field = tio.BiasField.generate_bias_field(image, 3, coefficients)
    assert field.min() < 1 - 2 * largest < 1 + 2 * largest < field.max()
    log_bias, difference = log_spline(field, points)
    assert difference < 3e-4
    biased = augment(kernel, image, log_bias=log_bias)
    torch.testing.assert_close(biased, tio.BiasField(coefficients, 3)(image), atol=difference + 2e-6, rtol=0)


@kernels
@pytest.mark.parametrize("gamma", [0.6, 0.74, 1.35, 2.0])
@pytest.mark.parametrize(("low", "span"), [(0.0, 1.0), (-700.0, 2500.0), (0.002, 0.01)])
def test_gamma(kernel, gamma, low, span):
    image = smooth()
    bent = augment(kernel, low + span * image, gamma=gamma)
    faintest = FAINT ** (2 * gamma)  # what becomes of 0
    torch.testing.assert_close((bent - low) / span, tio.Gamma(gamma)(image), atol=faintest + 2e-6, rtol=0)


@kernels
@spacings
@pytest.mark.parametrize("sigma", [0.2, 0.3, 0.5, 1.0, 1.7])
def test_blur(kernel, spacing, sigma):
    image = torch.from_numpy(np.random.default_rng(4).random((2, *SHAPE), np.float32))
    standard_deviations = tuple((sigma * np.array(spacing)).tolist())  # mm
    expected = tio.Blur(standard_deviations)(tio.ScalarImage(tensor=image, affine=np.diag([*spacing, 1.0]))).data
    weights = np.exp(-0.5 * (np.arange(-9, 10) / sigma) ** 2)
    left_out = weights[weights < FAINT].sum() / weights.sum()
    border = int(4 * sigma + 0.5)  # torchio mirrors at the border, ours repeats
    middle = (slice(None), *[slice(border, size - border) for size in SHAPE])
    torch.testing.assert_close(
        augment(kernel, image, blur=sigma)[middle], expected[middle], atol=3 * left_out + 1e-5, rtol=0
    )


@kernels
def test_noise(kernel):
    image = smooth((40, 36, 30))
    sd = 0.3 * foreground_sd(image[0]).item()
    added = (augment(kernel, image, noise=0.3, noise_seed=6) - image) / sd
    expected = (tio.Noise(0, sd, 6)(image) - image) / sd
    assert stats.ks_2samp(added.ravel().numpy(), expected.ravel().numpy()).pvalue > 1e-3
    error = 4 / np.sqrt(added.numel())
    assert abs(added.mean()) < error
    assert abs(added.std() - 1) < error


@kernels
def test_all_operations_in_a_row(kernel):
    before = subject()
    size, start, sigma, gamma = (18, 20, 14), np.array([3, 5, 2]), 0.8, 0.8
    cropping = np.stack([start, np.array(SHAPE) - size - start], 1).ravel().tolist()
    coefficients = [0.1, 0.05, -0.1, 0.15, -0.05, 0.0, 0.1] + [0.02] * 13
    image = before["image"].data[4:]
    steps = [tio.Flip((1,)), tio.Affine(*AFFINES[-1]), tio.Crop(tuple(cropping)), tio.Blur((sigma,) * 3)]
    expected = tio.Compose([*steps, tio.BiasField(coefficients, 3), tio.Gamma(gamma)])(before)["image"].data
    field = tio.BiasField.generate_bias_field(torch.ones(1, *size), 3, coefficients)
    signs, warp = np.array([1.0, -1.0, 1.0]), warp_of(*AFFINES[-1])
    linear = signs[:, np.newaxis] * warp.linear
    warp = Warp(linear, signs * warp.offset + linear @ (start - (np.array(SHAPE) - size) / 2))
    changed = augment(kernel, image, warp, size, blur=sigma, log_bias=log_spline(field, 7)[0], gamma=gamma)
    inside = tio.Compose(steps[:3])(before)["image"].data[3] > 0.999
    border = 3  # of the blur
    inside = torch.from_numpy(ndimage.binary_erosion(inside.numpy(), np.ones((3, 3, 3)), border))
    assert inside.float().mean() > 0.15
    torch.testing.assert_close(changed[0, inside], expected[4, inside], atol=5e-4, rtol=0)

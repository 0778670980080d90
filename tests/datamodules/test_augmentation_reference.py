"""Each operation against scipy or a closed form, on both kernels; test_augmentation_torchio.py has those of torchio."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.spatial.transform import Rotation

from datamodules.fused import augment_volume
from datamodules.geometry import Warp, affine_matrix, expand_lattice, inverse_warp, resample
from datamodules.intensity import FAINT, Intensity, change_intensity

SHAPE = (24, 30, 20)

kernels = pytest.mark.parametrize("kernel", ["torch", "fused"])


def smooth(shape=SHAPE, seed=0):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 2).astype(np.float32)
    return torch.from_numpy((field - field.min()) / field.std())[None]


def change(kernel, channel, **setting):
    """Change the intensities of a channel whose minimum is 0."""
    assert channel.min() == 0
    if kernel == "torch":
        return change_intensity(channel.clone(), Intensity(**setting), channel.max(), channel.std())
    out = torch.empty_like(channel)
    augment_volume(channel, Warp(np.eye(3), np.zeros(3)), Intensity(**setting), out)
    return out


def sample(kernel, image, warp):
    """Resample an image (C, ...) whose channels have the minimum 0."""
    assert image.amin(list(range(1, image.ndim))).eq(0).all()
    if kernel == "torch":
        return resample(image[None], [warp])[0]
    out = torch.empty_like(image)
    for channel, part in zip(image, out, strict=True):
        augment_volume(channel, warp, Intensity(), part)
    return out


@pytest.mark.parametrize("axes", [2, 3])
def test_affine_is_scale_after_rotation_after_shear(axes):
    degrees, scale, shear = np.array([20.0, -35.0, 50.0]), np.array([1.2, 0.7, 0.9]), np.array([0.1, -0.3, 0.2])
    turn = Rotation.from_euler("ZXY", degrees[[2, 0, 1]] if axes == 3 else [50, 0, 0], degrees=True).as_matrix()
    sheared = np.array([[1, 0.1, -0.3], [0, 1, 0.2], [0, 0, 1]])
    matrix = affine_matrix(degrees if axes == 3 else degrees[2:], scale[:axes], shear)
    np.testing.assert_allclose(matrix, np.diag(scale[:axes]) @ turn[:axes, :axes] @ sheared[:axes, :axes], atol=1e-12)


@pytest.mark.parametrize(("kernel", "shape"), [("torch", SHAPE), ("fused", SHAPE), ("torch", (18, 25))])
def test_resampling_agrees_with_scipy_up_to_the_border(kernel, shape):
    random = np.random.default_rng(3)
    axes = len(shape)
    matrix = affine_matrix(
        random.uniform(-20, 20, 3 if axes == 3 else 1), random.uniform(0.8, 1.2, axes), np.full(3, 0.1)
    )
    warp = inverse_warp(matrix, random.uniform(-3, 3, axes))
    displacement = random.uniform(-1, 1, (axes, *[6] * axes))
    image = torch.from_numpy(random.random((2, *shape), np.float32))
    image[(slice(None), *[5] * axes)] = 0
    centred = np.stack(np.indices(shape), axis=-1) - (np.array(shape) - 1) / 2
    field = expand_lattice(displacement, shape, torch.device("cpu")).numpy()
    at = np.moveaxis(centred @ warp.linear.T + warp.offset + (np.array(shape) - 1) / 2, -1, 0) + field
    warp = Warp(warp.linear, warp.offset, displacement)
    expected = np.stack([ndimage.map_coordinates(c, at, order=1, mode="grid-constant") for c in image.numpy()])
    np.testing.assert_allclose(sample(kernel, image, warp), expected, atol=5e-4)
    nearest = np.stack([ndimage.map_coordinates(c, at, order=0, mode="grid-constant") for c in image.numpy()])
    assert (resample(image[None], [warp], "nearest")[0].numpy() == nearest).mean() > 0.999


@pytest.mark.parametrize(("kernel", "tolerance"), [("torch", 4e-3), ("fused", 1e-4)])
def test_tall_volumes_keep_their_precision(kernel, tolerance):
    image = smooth((160, 190, 12))[None]
    matrix = torch.tensor([[[0.98, 0.05, 0.02, 0.01], [-0.04, 1.03, 0.01, 0.02], [0.01, -0.03, 0.97, -0.02]]])
    expected = F.grid_sample(image, F.affine_grid(matrix, image.shape, align_corners=False), align_corners=False)
    half = np.array(image.shape[2:]) / 2
    reversed_axes = matrix[0].double().numpy()[::-1]
    warp = Warp(half[:, None] * reversed_axes[:, 2::-1] / half, half * reversed_axes[:, 3])
    edge = image.max().item()  # as many voxels off, beside the border
    torch.testing.assert_close(sample(kernel, image[0], warp), expected[0], atol=tolerance * edge, rtol=0)


def test_lattice_is_a_cubic_spline():
    cpu = torch.device("cpu")
    shape, points = (9, 14, 11), (4, 6, 5)
    steps = np.stack(np.meshgrid(*[np.arange(n) for n in points], indexing="ij")).astype(float)
    field = expand_lattice(steps, shape, cpu).numpy()  # a spline returns a straight line as a straight line
    for axis, (size, n) in enumerate(zip(shape, points, strict=True)):
        line = 1 + (np.arange(size) + 0.5) / size * (n - 3)
        np.testing.assert_allclose(
            field[axis], np.broadcast_to(np.expand_dims(line, [a for a in range(3) if a != axis]), shape), atol=1e-5
        )
    control = np.zeros((1, 4, 4))
    control[0, 1, 2] = 1
    t, u = (np.arange(5) + 0.5) / 5, (np.arange(7) + 0.5) / 7
    expected = np.outer((3 * t**3 - 6 * t**2 + 4) / 6, (-3 * u**3 + 3 * u**2 + 3 * u + 1) / 6)
    np.testing.assert_allclose(expand_lattice(control, (5, 7), cpu)[0], expected, atol=1e-6)


@kernels
@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0, 3.0])
def test_blur_agrees_with_scipy(kernel, sigma):
    image = torch.from_numpy(np.random.default_rng(4).random((9, 12, 3), np.float32))
    image[4, 5, 1] = 0
    expected = ndimage.gaussian_filter(image.numpy(), sigma, mode="nearest")
    weights = np.exp(-0.5 * (np.arange(-15, 16) / sigma) ** 2)
    left_out = weights[weights < FAINT].sum() / weights.sum()
    np.testing.assert_allclose(change(kernel, image, blur=sigma), expected, atol=3 * left_out + 1e-5)


@kernels
@pytest.mark.parametrize("gamma", [0.74, 1.35])
def test_gamma_bends_between_minimum_and_maximum(kernel, gamma):
    image = smooth()[0] * 30
    bent = change(kernel, image, gamma=gamma)
    expected = image.max() * (image / image.max()) ** gamma
    torch.testing.assert_close(bent, expected, atol=image.max().item() * 1.3e-5, rtol=1e-5)  # 0 becomes faint
    assert change(kernel, torch.zeros(4, 4, 4), gamma=gamma).abs().max() < 1e-30


@kernels
def test_bias_field_multiplies(kernel):
    image = smooth()[0]
    torch.testing.assert_close(change(kernel, image, log_bias=np.full((4, 4, 4), 0.2)), image * np.exp(0.2))
    control = np.random.default_rng(5).uniform(-0.3, 0.3, (4, 4, 4))
    field = change(kernel, image, log_bias=control)[image > 0] / image[image > 0]
    assert np.exp(-0.3) < field.min() < 0.97 < 1.03 < field.max() < np.exp(0.3)
    expected = expand_lattice(np.exp(control)[np.newaxis], SHAPE, torch.device("cpu"))[0]
    torch.testing.assert_close(field, expected[image > 0])
    assert expected.diff(dim=1).abs().max() < 0.05


def test_noise_follows_its_seed():
    image = torch.zeros(30, 30, 30)
    one, two = (
        change_intensity(image.clone(), Intensity(noise=0.3, noise_seed=s), torch.tensor(1.0), torch.tensor(5.0))
        for s in (1, 2)
    )
    assert abs(one.std().item() - 1.5) < 0.03
    assert abs(np.corrcoef(one.flatten(), two.flatten())[0, 1]) < 0.03

"""Each operation against another implementation or a closed form."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchio as tio
from scipy import ndimage

from datamodules.augmentation import (
    Intensity,
    Warp,
    affine_matrix,
    change_intensity,
    expand_lattice,
    inverse_warp,
    resample,
)

SHAPE = (24, 30, 20)


def smooth(shape=SHAPE, seed=0):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 2).astype(np.float32)
    return torch.from_numpy((field - field.mean()) / field.std())[None]


def change(channel, **setting):
    return change_intensity(channel.clone(), Intensity(**setting), channel.max(), channel.std())


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 1.0, 2.5)])
@pytest.mark.parametrize(
    ("scales", "degrees", "shift"),
    [
        ((1.07, 1.0, 0.93), (0, 0, 0), (0, 0, 0)),
        ((1, 1, 1), (12, 0, 0), (0, 0, 0)),
        ((1, 1, 1), (0, 12, 0), (2, 0, 0)),
        ((1, 1, 1), (0, 0, 12), (0, -3, 0)),
        ((0.95, 1.1, 1.05), (8, -9, 10), (1.5, 2.0, -1.0)),
    ],
)
def test_affine_agrees_with_torchio(spacing, scales, degrees, shift):
    # torchio scales after it shifts, and gives the shift in mm.
    image = tio.ScalarImage(tensor=smooth(), affine=np.diag([*spacing, 1.0]))
    label = tio.LabelMap(tensor=(smooth(seed=1) > smooth(seed=1).mean()).to(torch.uint8), affine=image.affine)
    expected = tio.Affine(scales, degrees, shift, default_pad_value=0)(tio.Subject(image=image, label=label))
    matrix = affine_matrix(np.array(degrees, float), np.array(scales, float), np.zeros(3))
    warp = inverse_warp(matrix, np.array(scales) * shift / np.array(spacing), spacing)
    moved = resample(image.data[None], [warp])[0]
    nearest = resample(label.data[None], [warp], "nearest")[0]
    inside = resample(torch.ones(1, 1, *SHAPE), [warp])[0] > 0.999  # at the border the two fade differently
    assert inside.float().mean() > 0.6
    torch.testing.assert_close(moved[inside], expected["image"].data[inside], atol=2e-3, rtol=0)
    assert nearest.dtype == torch.uint8
    assert (nearest == expected["label"].data)[inside].float().mean() > 0.999


@pytest.mark.parametrize("shape", [SHAPE, (18, 25)])
def test_resampling_agrees_with_scipy_up_to_the_border(shape):
    random = np.random.default_rng(3)
    axes = len(shape)
    matrix = affine_matrix(
        random.uniform(-20, 20, 3 if axes == 3 else 1), random.uniform(0.8, 1.2, axes), np.full(3, 0.1)
    )
    warp = inverse_warp(matrix, random.uniform(-3, 3, axes))
    displacement = random.uniform(-1, 1, (axes, *[6] * axes))
    image = torch.from_numpy(random.random((2, *shape), np.float32))
    centred = np.stack(np.indices(shape), axis=-1) - (np.array(shape) - 1) / 2
    field = expand_lattice(displacement, shape, torch.device("cpu")).numpy()
    at = np.moveaxis(centred @ warp.linear.T + warp.offset + (np.array(shape) - 1) / 2, -1, 0) + field
    warps = [Warp(warp.linear, warp.offset, displacement)]
    expected = np.stack([ndimage.map_coordinates(c, at, order=1, mode="grid-constant") for c in image.numpy()])
    np.testing.assert_allclose(resample(image[None], warps)[0], expected, atol=2e-3)
    nearest = np.stack([ndimage.map_coordinates(c, at, order=0, mode="grid-constant") for c in image.numpy()])
    assert (resample(image[None], warps, "nearest")[0].numpy() == nearest).mean() > 0.999


def test_tall_volumes_keep_their_precision():
    image = smooth((160, 190, 12))[None]
    matrix = torch.tensor([[[0.98, 0.05, 0.02, 0.01], [-0.04, 1.03, 0.01, 0.02], [0.01, -0.03, 0.97, -0.02]]])
    expected = F.grid_sample(image, F.affine_grid(matrix, image.shape, align_corners=False), align_corners=False)
    half = np.array(image.shape[2:]) / 2
    reversed_axes = matrix[0].double().numpy()[::-1]
    warp = Warp(half[:, None] * reversed_axes[:, 2::-1] / half, half * reversed_axes[:, 3])
    torch.testing.assert_close(resample(image, [warp]), expected, atol=0.02, rtol=0)  # 0.005 voxels of a sharp edge


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


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0, 3.0])
def test_blur_agrees_with_scipy(sigma):
    image = torch.from_numpy(np.random.default_rng(4).random((9, 12, 3), np.float32))
    expected = ndimage.gaussian_filter(image.numpy(), sigma, mode="nearest")
    np.testing.assert_allclose(change(image, blur=sigma), expected, atol=2e-3)


@pytest.mark.parametrize("gamma", [0.74, 1.35])
def test_gamma_bends_between_minimum_and_maximum(gamma):
    image = smooth()[0]
    image = (image - image.min()) * 30
    bent = change(image, gamma=gamma)
    torch.testing.assert_close(
        bent, image.max() * (image / image.max()) ** gamma, atol=image.max().item() * 1e-4, rtol=1e-4
    )
    reference = tio.RandomGamma(log_gamma=(np.log(gamma), np.log(gamma)))(image[None] / image.max())[0]
    torch.testing.assert_close(bent / image.max(), reference, atol=1e-4, rtol=1e-4)
    assert change(torch.zeros(4, 4, 4), gamma=gamma).abs().max() < 1e-30


def test_bias_field_multiplies():
    image = smooth()[0]
    torch.testing.assert_close(change(image, log_bias=np.full((4, 4, 4), 0.2)), image * np.exp(0.2))
    control = np.random.default_rng(5).uniform(-0.3, 0.3, (4, 4, 4))
    field = change(torch.ones(SHAPE), log_bias=control)
    assert np.exp(-0.3) < field.min() < 0.97 < 1.03 < field.max() < np.exp(0.3)
    assert field.diff(dim=1).abs().max() < 0.05


def test_noise_follows_its_seed():
    image = torch.zeros(30, 30, 30)
    one, two = (
        change_intensity(image.clone(), Intensity(noise=0.3, noise_seed=s), torch.tensor(1.0), torch.tensor(5.0))
        for s in (1, 2)
    )
    assert abs(one.std().item() - 1.5) < 0.03
    assert abs(np.corrcoef(one.flatten(), two.flatten())[0, 1]) < 0.03

"""Intensities that change without moving what normalisation has fixed."""

import importlib.util

import pytest
import torch

from datamodules.augmentation import Augmentation, sample_key
from datamodules.intensity import foreground_moments, retain_statistics

KERNELS = [
    "torch",
    pytest.param("fused", marks=pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="no numba")),
]
STRONG = {
    "gamma": 0.8,
    "noise": 0.3,
    "bias_field": 0.5,
    "blur": 0.0,
    "probability": 1.0,
    "flip": 0.0,
    "spatial_probability": 0.0,
}


def images():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((3, 2, 12, 14, 10), generator=generator) ** 2
    image[:, :, :4] = 0.0  # background
    mean, sd = foreground_moments(image)
    return (image - mean) / sd


def keys(number):
    return [sample_key(0, 0, f"image-{index}", 0) for index in range(number)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_foreground_keeps_mean_and_deviation_while_its_shape_changes(kernel):
    image = images()
    changed = Augmentation(**STRONG, retain_statistics=True, kernel=kernel)(image, keys(3))
    inside = (image > image.mean(dim=(2, 3, 4), keepdim=True)).float()
    moved = Augmentation(**STRONG, kernel=kernel)(image, keys(3))
    for channel in range(2):
        mean, sd = foreground_moments(changed[:, channel : channel + 1])
        assert (mean - foreground_moments(image)[0][:, channel : channel + 1]).abs().max() < 1e-4
        assert (sd - 1).abs().max() < 1e-4
    assert (foreground_moments(moved)[0].abs() > 0.02).any(), "the change was too weak to show anything"
    assert ((changed - image) * inside).abs().max() > 0.1


def test_it_is_an_affine_function_of_what_was_made_before():
    image = images()
    moved = Augmentation(**STRONG, kernel="torch")(image, keys(3))
    changed = Augmentation(**STRONG, retain_statistics=True, kernel="torch")(image, keys(3))
    for sample, other in zip(changed.flatten(0, 1), moved.flatten(0, 1), strict=True):
        pair = torch.stack([sample.flatten(), other.flatten()])
        assert torch.corrcoef(pair)[0, 1] > 1 - 1e-6


def test_a_constant_channel_stays_as_it_is():
    constant = torch.full((1, 1, 4, 4, 4), 2.0)
    after = constant.clone()
    retain_statistics(constant, after)
    assert torch.equal(after, constant)

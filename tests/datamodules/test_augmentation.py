import numpy as np
import pytest
import torch
from scipy import stats

from datamodules.augmentation import Augmentation, sample_key

OFF = dict.fromkeys(("flip", "rotation", "scale", "translation", "bias_field", "gamma", "noise", "blur"), 0.0)
OFF |= {"probability": 1.0, "spatial_probability": 1.0}
KEYS = [sample_key(7, epoch, f"IXI{epoch:03}", 0) for epoch in range(5)]
SHAPES = [(5, 2, 12, 15, 9), (5, 3, 14, 11)]


def batch(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half()


def test_key_is_the_same_everywhere_and_feels_every_part():
    assert sample_key(1, 2, "sub-01", 3) == 4779723408333042442
    keys = {
        sample_key(*parts) for parts in [(1, 2, "a", 3), (2, 2, "a", 3), (1, 3, "a", 3), (1, 2, "b", 3), (1, 2, "a", 4)]
    }
    assert len({key for key in keys if 0 <= key < 2**64}) == 5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [1, 2**20])
@pytest.mark.parametrize(
    "setting",
    [{}, {"elastic": 0.05, "shear": 0.1, "flip_axes": (0, 1)}, {"rotation": 0.0, "scale": 0.0, "translation": 0.0}],
)
def test_a_sample_is_the_same_alone_and_in_any_batch(shape, chunk, setting, monkeypatch):
    augmentation, image = Augmentation(**setting), batch(shape)
    masks = (image[:, :1] > 0.5).to(torch.uint8)
    alone = [augmentation(image[i : i + 1], KEYS[i : i + 1], masks[i : i + 1]) for i in range(5)]
    monkeypatch.setattr("datamodules.augmentation.CHUNK", chunk)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0], [3, 3, 1]):
        together, moved = augmentation(image[order], [KEYS[i] for i in order], masks[order])
        for place, i in enumerate(order):
            assert torch.equal(together[place], alone[i][0][0])
            assert torch.equal(moved[place], alone[i][1][0])
    assert not torch.equal(alone[0][0], augmentation(image[:1], KEYS[1:2]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_nothing_changes_when_every_range_is_zero(shape, dtype):
    image = batch(shape).to(dtype)
    masks = image > 0
    augmented, moved = Augmentation(**OFF)(image, KEYS, masks)
    assert augmented.dtype == torch.float32
    assert torch.equal(augmented, image.float())
    assert torch.equal(moved, masks)
    never = Augmentation(**{**OFF, "gamma": 0.5, "noise": 0.5, "probability": 0.0})
    assert torch.equal(never(image, KEYS), image.float())
    with pytest.raises(ValueError, match="4 keys for 5 images"):
        never(image, KEYS[:4])


def test_input_and_random_state_stay_untouched():
    image = batch(SHAPES[0]).float()
    before, state = image.clone(), torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        augmented = Augmentation(elastic=0.05)(image, KEYS)
    assert augmented.dtype == torch.float32
    assert not augmented.requires_grad
    assert torch.equal(augmented, Augmentation(elastic=0.05)(image, KEYS))
    assert torch.equal(image, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_flips_alone_are_exact():
    augmentation, image = Augmentation(**{**OFF, "flip": 0.5}, flip_axes=(0, 2)), batch(SHAPES[0])
    masks = image > 0
    augmented, moved = augmentation(image, KEYS, masks)
    seen = set()
    for sample, key in enumerate(KEYS):
        axes = [int(axis) + 1 for axis in np.flatnonzero(np.diag(augmentation.draw_warp(key, (12, 15, 9)).linear) < 0)]
        seen.add(tuple(axes))
        assert torch.equal(augmented[sample], image[sample].flip(axes).float())
        assert torch.equal(moved[sample], masks[sample].flip(axes))
    assert len(seen) > 1


def test_mirroring_comes_first_and_leaves_the_other_draws_alone():
    image = batch(SHAPES[0])
    mirrored = Augmentation(flip=1.0, elastic=0.05, noise=0.0)(image, KEYS)
    plain = Augmentation(flip=0.0, elastic=0.05, noise=0.0)(image.flip(2), KEYS)
    torch.testing.assert_close(mirrored, plain, atol=1e-3, rtol=1e-3)


def test_geometry_is_drawn_uniformly_within_its_ranges():
    augmentation = Augmentation(flip=0.3, rotation=20.0, scale=0.2, translation=0.1, spatial_probability=1.0)
    shape = np.array([20, 30, 40])
    flips, angles, scales, shifts = [], [], [], []
    for index in range(3000):
        warp = augmentation.draw_warp(sample_key(0, index, "x", 0), shape)
        flipped = np.linalg.det(warp.linear) < 0
        sign = np.array([-1.0 if flipped else 1.0, 1, 1])
        matrix = np.linalg.inv(sign[:, None] * warp.linear)
        scale = np.linalg.norm(matrix, axis=1)
        rotation = matrix / scale[:, None]
        flips.append(flipped)
        scales.append(scale)
        angles.append(np.degrees(np.arcsin(rotation[2, 1])))
        shifts.append(-matrix @ (sign * warp.offset) / shape)
    assert abs(np.mean(flips) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 3000)
    for values, low, high in [(angles, -20, 20), (scales, 0.8, 1.2), (shifts, -0.1, 0.1)]:
        for column in np.array(values).reshape(3000, -1).T:
            assert stats.kstest(column, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(np.array(scales).T)[0, 1]) < 0.08  # axes are independent


def test_intensities_are_drawn_within_their_ranges():
    augmentation = Augmentation(bias_field=0.4, gamma=0.5, noise=0.2, blur=1.5, probability=0.6)
    drawn = [augmentation.draw_intensities(sample_key(0, index, "x", 0), 2, 3) for index in range(1500)]
    channels = [intensity for sample in drawn for intensity in sample]
    used = {
        "blur": [each.blur / 1.5 for each in channels if each.blur > 0],
        "gamma": [(np.log(each.gamma) + 0.5) for each in channels if each.gamma != 1],
        "noise": [each.noise / 0.2 for each in channels if each.noise > 0],
    }
    for name, values in used.items():
        assert abs(len(values) / 3000 - 0.6) < 0.036, name  # four standard errors
        assert stats.kstest(values, stats.uniform(0, 1).cdf).pvalue > 1e-3, name
    control = np.stack([each.log_bias for each in channels if each.log_bias is not None])
    assert abs(len(control) / 3000 - 0.6) < 0.036
    assert stats.kstest(control[::16].ravel(), stats.uniform(-0.4, 0.8).cdf).pvalue > 1e-3
    assert drawn[0][0].noise_seed != drawn[0][1].noise_seed
    assert augmentation.draw_intensities(5, 1, 3)[0].gamma == augmentation.draw_intensities(5, 4, 3)[0].gamma


def test_noise_has_the_drawn_share_of_the_foreground_sd():
    augmentation = Augmentation(**{**OFF, "noise": 0.5})
    image = batch((5, 1, 30, 30, 30)) * 40
    ratios = []
    for sample, key in enumerate(KEYS):
        added = augmentation(image[sample : sample + 1], [key]) - image[sample].float()
        foreground = image[sample].float()[image[sample] > image[sample].float().mean()]
        ratios.append((added.std() / foreground.std() / augmentation.draw_intensities(key, 1, 3)[0].noise).item())
        assert stats.kstest((added / added.std()).flatten()[::5].numpy(), "norm").pvalue > 1e-3
    np.testing.assert_allclose(ratios, 1, atol=0.05)


@pytest.mark.parametrize(
    "wrong",
    [{"noise": -0.1}, {"flip": 1.2}, {"probability": 3}, {"bias_points": 3}, {"flip_axes": (-1,)}, {"elastic": 0.2}],
)
def test_impossible_ranges_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)


def test_samples_that_are_not_moved_keep_their_voxels():
    augmentation = Augmentation(**{**OFF, "rotation": 20.0, "elastic": 0.05, "spatial_probability": 0.4})
    image = batch((1, 1, 12, 15, 9))
    keys = [sample_key(0, epoch, "x", 0) for epoch in range(300)]
    untouched = np.mean([torch.allclose(augmentation(image, [key]), image.float(), atol=1e-5) for key in keys])
    assert abs(untouched - 0.6) < 4 * np.sqrt(0.6 * 0.4 / 300)

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.transform import Rotation

from datamodules.augmentation import Augmentation, sample_key
from datamodules.geometry import affine_matrix, inverse_warp

OFF = dict.fromkeys(("flip", "rotation", "scale", "translation", "bias_field", "gamma", "noise", "blur"), 0.0)
OFF |= {"probability": 1.0, "spatial_probability": 1.0}
KEYS = [sample_key(7, epoch, f"IXI{epoch:03}", 0) for epoch in range(5)]
SHAPES = [(5, 2, 12, 15, 9), (5, 3, 14, 11)]

kernels = pytest.mark.parametrize("kernel", ["torch", "fused"])


def batch(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half()


def test_key_is_the_same_everywhere_and_feels_every_part():
    assert sample_key(1, 2, "sub-01", 3) == 4779723408333042442
    keys = {
        sample_key(*parts) for parts in [(1, 2, "a", 3), (2, 2, "a", 3), (1, 3, "a", 3), (1, 2, "b", 3), (1, 2, "a", 4)]
    }
    assert len({key for key in keys if 0 <= key < 2**64}) == 5


@kernels
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [1, 2**20])
@pytest.mark.parametrize(
    "setting",
    [{}, {"elastic": 0.05, "shear": 0.1, "flip_axes": (0, 1)}, {"rotation": 0.0, "scale": 0.0, "translation": 0.0}],
)
def test_a_sample_is_the_same_alone_and_in_any_batch(kernel, shape, chunk, setting, monkeypatch):
    augmentation, image = Augmentation(**setting, kernel=kernel), batch(shape)
    masks = (image[:, :1] > 0.5).to(torch.uint8)
    alone = [augmentation(image[i : i + 1], KEYS[i : i + 1], masks[i : i + 1]) for i in range(5)]
    monkeypatch.setattr("datamodules.augmentation.CHUNK", chunk)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0], [3, 3, 1]):
        together, moved = augmentation(image[order], [KEYS[i] for i in order], masks[order])
        for place, i in enumerate(order):
            assert torch.equal(together[place], alone[i][0][0])
            assert torch.equal(moved[place], alone[i][1][0])
    assert not torch.equal(alone[0][0], augmentation(image[:1], KEYS[1:2]))


@kernels
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_nothing_changes_when_every_range_is_zero(kernel, shape, dtype):
    image = batch(shape).to(dtype)
    masks = image > 0
    augmented, moved = Augmentation(**OFF, kernel=kernel)(image, KEYS, masks)
    assert augmented.dtype == torch.float32
    assert torch.equal(augmented, image.float())
    assert torch.equal(moved, masks)
    for setting in ({"gamma": 0.5, "noise": 0.5, "probability": 0.0}, {"rotation": 9.0, "spatial_probability": 0.0}):
        never = Augmentation(**{**OFF, **setting}, kernel=kernel)
        assert torch.equal(never(image, KEYS), image.float())
    with pytest.raises(ValueError, match="4 keys for 5 images"):
        never(image, KEYS[:4])


@kernels
def test_input_and_random_state_stay_untouched(kernel):
    image = batch(SHAPES[0]).float()
    before, state = image.clone(), torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        augmented = Augmentation(elastic=0.05, kernel=kernel)(image, KEYS)
    assert augmented.dtype == torch.float32
    assert not augmented.requires_grad
    assert torch.equal(augmented, Augmentation(elastic=0.05, kernel=kernel)(image, KEYS))
    assert torch.equal(image, before)
    assert torch.equal(torch.get_rng_state(), state)


@kernels
def test_flips_alone_are_exact(kernel):
    augmentation, image = Augmentation(**{**OFF, "flip": 0.5}, flip_axes=(0, 2), kernel=kernel), batch(SHAPES[0])
    masks = image > 0
    augmented, moved = augmentation(image, KEYS, masks)
    seen = set()
    for sample, key in enumerate(KEYS):
        axes = [int(axis) + 1 for axis in np.flatnonzero(np.diag(augmentation.draw_warp(key, (12, 15, 9)).linear) < 0)]
        seen.add(tuple(axes))
        assert torch.equal(augmented[sample], image[sample].flip(axes).float())
        assert torch.equal(moved[sample], masks[sample].flip(axes))
    assert len(seen) > 1


@kernels
def test_mirroring_comes_first_and_leaves_the_other_draws_alone(kernel):
    image = batch(SHAPES[0])
    mirrored = Augmentation(flip=1.0, elastic=0.05, noise=0.0, kernel=kernel)(image, KEYS)
    plain = Augmentation(flip=0.0, elastic=0.05, noise=0.0, kernel=kernel)(image.flip(2), KEYS)
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


@kernels
def test_noise_has_the_drawn_share_of_the_foreground_sd(kernel):
    augmentation = Augmentation(**{**OFF, "noise": 0.5}, kernel=kernel)
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


@kernels
def test_samples_that_are_not_moved_keep_their_voxels(kernel):
    setting = {**OFF, "rotation": 20.0, "elastic": 0.05, "spatial_probability": 0.4}
    augmentation, image = Augmentation(**setting, kernel=kernel), batch((1, 1, 12, 15, 9))
    keys = [sample_key(0, epoch, "x", 0) for epoch in range(300)]
    untouched = np.mean([torch.equal(augmentation(image, [key]), image.float()) for key in keys])
    assert abs(untouched - 0.6) < 4 * np.sqrt(0.6 * 0.4 / 300)


# What is random ------------------------------------------------------------------------------------------------------

SPATIAL = {"rotation": 20.0, "scale": 0.2, "translation": 0.1, "shear": 0.15, "elastic": 0.08}
INTENSITY = {"blur": 1.5, "bias_field": 0.4, "gamma": 0.5, "noise": 0.2}
GRID = np.array([20, 30, 40])


def keys_of(number, seed=0, first=0, image="sub-01", occurrence=0):
    return [sample_key(seed, epoch, image, occurrence) for epoch in range(first, first + number)]


def only(*names, **setting):
    """Return an augmentation that does nothing but these operations, always."""
    chosen = {name: value for name, value in (SPATIAL | INTENSITY).items() if name in names}
    return Augmentation(**OFF | chosen | setting)


def rotation_of(key):
    return Rotation.from_matrix(np.linalg.inv(only("rotation").draw_warp(key, GRID).linear)).as_euler("ZXY")[[1, 2, 0]]


def draw_units(keys, channels=2):
    """Return what each operation draws for each key when it is alone, from -1 to 1, (keys, draws)."""
    one_by_one = {name: only(name) for name in SPATIAL | INTENSITY}
    cropped = only(crop=(1, 1, 1))  # of many voxels, so that the places are as good as continuous
    rows = []
    for key in keys:
        warps = {name: one_by_one[name].draw_warp(key, GRID) for name in SPATIAL}
        changes = {name: one_by_one[name].draw_intensities(key, channels, 3) for name in INTENSITY}
        elastic = warps["elastic"].displacement / GRID.reshape(3, 1, 1, 1) / 0.08
        row = [
            np.degrees(rotation_of(key)) / 20,
            (1 / np.diag(warps["scale"].linear) - 1) / 0.2,
            -warps["translation"].offset / GRID / 0.1,
            np.linalg.inv(warps["shear"].linear)[np.triu_indices(3, 1)] / 0.15,
            elastic.ravel()[:16],
            elastic[[1, 2, 2], [3, 0, 6], [1, 0, 6], [5, 0, 6]],
            cropped.draw_warp(key, (20001, 20001, 20001)).offset / 10000,
        ]
        for channel in range(channels):
            bias = changes["bias_field"][channel].log_bias / 0.4
            row += [
                [2 * changes["blur"][channel].blur / 1.5 - 1],
                [bias[0, 0, 0], bias[1, 2, 3], bias[3, 3, 3]],
                [np.log(changes["gamma"][channel].gamma) / 0.5],
                [2 * changes["noise"][channel].noise / 0.2 - 1],
                [2 * changes["noise"][channel].noise_seed / 2**32 - 1],
            ]
        rows.append(np.concatenate(row))
    return np.array(rows)


def assert_uncorrelated(correlation, number):
    assert np.abs(correlation).max() < 4.5 / np.sqrt(number)


@pytest.fixture(scope="module")
def units():
    return draw_units(keys_of(1500))


def test_every_number_is_uniform_and_independent_of_the_others(units):
    for column in units.T:
        assert stats.kstest(column, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    for values in (units, np.abs(units)):
        assert_uncorrelated(np.corrcoef(values.T)[np.triu_indices(units.shape[1], 1)], len(units))


@pytest.mark.parametrize("other", [{"first": 1}, {"seed": 1}, {"image": "sub-02"}, {"occurrence": 1}])
def test_other_epochs_seeds_images_and_occurrences_draw_other_numbers(units, other):
    number = 400
    others = draw_units(keys_of(number, **other))
    correlation = np.corrcoef(units[:number].T, others.T)[: units.shape[1], units.shape[1] :]
    assert_uncorrelated(correlation, number)
    assert np.isin(others[:, 0], units[:number, 0]).sum() == (number - 1 if "first" in other else 0)


def test_an_operation_draws_the_same_whatever_the_others_are_set_to():
    together = only(*SPATIAL, *INTENSITY)
    for key in keys_of(20):
        warp = together.draw_warp(key, GRID)
        scale = 1 / np.diag(only("scale").draw_warp(key, GRID).linear)
        shear = np.linalg.inv(only("shear").draw_warp(key, GRID).linear)[np.triu_indices(3, 1)]
        translation = -only("translation").draw_warp(key, GRID).offset
        expected = inverse_warp(affine_matrix(np.degrees(rotation_of(key)), scale, shear), translation)
        np.testing.assert_allclose(warp.linear, expected.linear, atol=1e-12)
        np.testing.assert_allclose(warp.offset, expected.offset, atol=1e-12)
        np.testing.assert_array_equal(warp.displacement, only("elastic").draw_warp(key, GRID).displacement)
        changes = together.draw_intensities(key, 3, 3)
        for name in ("blur", "gamma", "noise"):
            alone = only(name).draw_intensities(key, 3, 3)
            assert [getattr(each, name) for each in changes] == [getattr(each, name) for each in alone]
        for one, two in zip(changes, only("bias_field").draw_intensities(key, 3, 3), strict=True):
            np.testing.assert_array_equal(one.log_bias, two.log_bias)


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_each_operation_happens_as_often_as_asked_and_independently(share):
    setting = {"flip": share, "flip_axes": (0, 1, 2), "spatial_probability": share, "probability": share}
    augmentation, cropped = only(*SPATIAL, *INTENSITY, **setting), only(crop=(1, 1, 1))
    happened, number = [], 2000
    for key in keys_of(number):
        warp = augmentation.draw_warp(key, GRID)
        row = [*(np.diag(warp.linear) < 0), warp.displacement is not None]
        assert row[3] == (warp.linear[0, 1] != 0)
        for each in augmentation.draw_intensities(key, 2, 3):
            row += [each.blur > 0, each.log_bias is not None, each.gamma != 1, each.noise > 0]
        happened.append([*row, *(cropped.draw_warp(key, GRID).offset > 0)])
    happened = np.array(happened)
    assert np.abs(happened[:, :12].mean(0) - share).max() < 4 * np.sqrt(share * (1 - share) / number)
    assert_uncorrelated(np.corrcoef(happened.T)[np.triu_indices(15, 1)], number)
    patterns = np.bincount(happened[:, :3] @ [1, 2, 4], minlength=8)
    expected = [share ** bin(each).count("1") * (1 - share) ** (3 - bin(each).count("1")) for each in range(8)]
    assert stats.chisquare(patterns, number * np.array(expected)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("name", "probability"), [("flip", 1.0), ("flip", 0.0), ("probability", 1.0), ("probability", 0.0)]
)
def test_certain_and_impossible_operations(name, probability):
    augmentation = only(*SPATIAL, *INTENSITY, **{name: probability})
    for key in keys_of(50):
        assert (augmentation.draw_warp(key, GRID).linear[0, 0] < 0) == (name == "flip" and probability == 1)
        (each,) = augmentation.draw_intensities(key, 1, 3)
        expected = name == "flip" or probability == 1
        assert (each.blur > 0, each.log_bias is not None, each.gamma != 1, each.noise > 0) == (expected,) * 4


@kernels
def test_noise_is_independent_between_channels_samples_and_epochs(kernel):
    image = batch((1, 1, 16, 24, 26)).expand(3, 2, -1, -1, -1)
    augmentation = only("noise", noise=5.0, kernel=kernel)
    keys = [sample_key(0, *each) for each in [(0, "sub-01"), (1, "sub-01"), (0, "sub-02")]]
    added = (augmentation(image, keys) - image.float()).flatten(0, 1).flatten(1).numpy()
    for noise in added:
        assert stats.kstest(noise / noise.std(), "norm").pvalue > 1e-3
    for values in (added, added**2):
        assert_uncorrelated(np.corrcoef(values)[np.triu_indices(6, 1)], added.shape[1])

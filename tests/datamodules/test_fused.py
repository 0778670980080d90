"""The compiled kernel against the definition in torch, and its noise against a normal distribution."""

import importlib.util
import math
import random
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from datamodules.augmentation import Augmentation, sample_key
from datamodules.fused import augment_volume
from datamodules.geometry import Warp, affine_matrix, cut, inverse_warp, move
from datamodules.intensity import FAINT, Intensity, change_intensity, foreground_sd

KEYS = [sample_key(3, epoch, f"sub-{epoch}") for epoch in range(6)]
STILL = Warp(np.eye(3), np.zeros(3))
TURN = inverse_warp(affine_matrix(np.array([9.0, -12.0, 7.0]), np.array([1.1, 0.9, 1.05]), np.zeros(3)), np.ones(3))
TINY = [(1, 1, 1), (1, 5, 3), (2, 1, 9), (5, 3, 2), (3, 2, 1), (1, 40, 1), (33, 2, 5)]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def textured(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def ramps(shape):
    """Return a smooth texture: torch rounds the coordinates of long images more than of short ones."""
    where = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))
    return (where * torch.tensor([0.9, 0.031, 0.023]).view(3, 1, 1, 1)).sin().sum(0)


def compute(channel, warp=STILL, size=None, **intensity):
    out = torch.full(size or tuple(channel.shape), torch.nan)
    augment_volume(channel, warp, Intensity(**intensity), out)
    return out


def define(channel, warp=STILL, size=None, **intensity):
    channel = channel.float()
    low, high = channel.aminmax()
    above = channel - low
    moved = move(above[None, None], [warp], "linear", size)[0, 0]
    return change_intensity(moved, Intensity(**intensity), high - low, foreground_sd(above)) + low


def log_bias(points=4, seed=0):
    return np.random.default_rng(seed).uniform(-0.4, 0.4, [points] * 3)


def assert_same(fused, expected, image, gamma=1.0):
    """Compare within 3e-4 of the range before gamma (the two round coordinates) and rounding of what is largest."""
    span = (image.max() - image.min()).item()
    rounding = 4 * torch.finfo(torch.float32).eps * image.abs().max().item()
    torch.testing.assert_close(fused, expected, atol=3e-4 ** min(gamma, 1) * span + rounding, rtol=0)


@st.composite
def augmentations(draw):
    def up_to(largest):
        return draw(st.sampled_from([0.0, largest]) | st.floats(0.0, largest))

    points, shape = draw(st.integers(4, 8)), draw(st.tuples(*[st.sampled_from([1, 2, 3, 5, 8, 13, 21])] * 3))
    crop = tuple(draw(st.integers(1, length)) for length in shape) if draw(st.booleans()) else None
    setting = {
        "flip_axes": draw(st.sampled_from([(0,), (1, 2), (0, 1, 2)])),
        "rotation": up_to(40.0),
        "scale": up_to(0.3),
        "translation": up_to(0.3),
        "shear": up_to(0.2),
        "elastic": up_to(0.4 / (points - 3)),
        "elastic_points": points,
        "bias_field": up_to(0.5),
        "bias_points": draw(st.integers(4, 6)),
        "gamma": up_to(0.5),
        "noise": 0.0,
        "blur": up_to(2.0),
        "probability": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "spatial_probability": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "spacing": draw(st.sampled_from([None, (1.0, 0.7, 2.0)])),
        "crop": crop,
    }
    return setting, shape


@settings(max_examples=80, deadline=None)
@given(
    augmentations(),
    st.integers(1, 3),
    st.integers(0, 2**64 - 1),
    st.sampled_from([torch.float16, torch.float32]),
    st.sampled_from([(1.0, 0.0), (1e-6, 0.0), (1e4, 0.0), (3000.0, -1024.0)]),
    st.permutations([2, 3, 4]),
)
def test_any_setting_gives_what_torch_gives(drawn, channels, key, dtype, scale, order):
    setting, shape = drawn
    image = textured((2, channels, *shape), key % 2**63) * scale[0] + scale[1]
    stored = image.to(dtype if scale[0] > 1e-5 else torch.float32).permute(0, 1, *order).contiguous()
    stored = stored.permute(0, 1, *np.argsort([0, 1, *order])[2:])  # the same image, other strides
    fused, expected = (
        Augmentation(**setting, kernel=kernel)(stored, [key, key ^ 1], (stored > stored.mean()))
        for kernel in ("fused", "torch")
    )
    assert fused[0].shape == (2, channels, *(setting["crop"] or shape))
    assert fused[0].isfinite().all()
    assert torch.equal(fused[1], expected[1])
    for sample in range(2):
        for channel in range(channels):
            one, two, before = fused[0][sample, channel], expected[0][sample, channel], stored[sample, channel].float()
            assert_same(one, two, before, math.exp(-setting["gamma"]))


WARPS = {"still": STILL, "turned": TURN, "bent": Warp(TURN.linear, TURN.offset, np.full((3, 5, 5, 5), 0.3))}
CHANGES = {
    "nothing": {},
    "blur": {"blur": 0.8},
    "wide blur": {"blur": 12.0},
    "bias": {"log_bias": log_bias()},
    "compression": {"gamma": 0.7},
    "expansion": {"gamma": 1.6},
    "all": {"blur": 0.8, "log_bias": log_bias(5), "gamma": 1.2},
}


@pytest.mark.parametrize("shape", TINY)
@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("change", CHANGES)
def test_tiny_volumes_give_what_torch_gives(shape, warp, change):
    image = textured(shape)
    fused, expected = (kernel(image, WARPS[warp], **CHANGES[change]) for kernel in (compute, define))
    assert_same(fused, expected, image, CHANGES[change].get("gamma", 1))


@pytest.mark.parametrize("shape", [(2, 70, 61), (2, 64, 64), (2, 4097, 1), (2, 3, 5000)])
@pytest.mark.parametrize("warp", WARPS)
def test_planes_of_several_blocks_give_what_torch_gives(shape, warp):
    image = ramps(shape)
    fused, expected = (kernel(image, WARPS[warp], **CHANGES["all"]) for kernel in (compute, define))
    assert_same(fused, expected, image)
    noisy = compute(image, WARPS[warp], noise=0.2, noise_seed=6) - compute(image, WARPS[warp])
    ratio = noisy / (0.2 * foreground_sd(image))
    assert stats.kstest(ratio.ravel().numpy(), "norm").pvalue > 1e-3
    assert np.unique(ratio.numpy().round(6)).size > 0.98 * ratio.numel()


@pytest.mark.parametrize("size", [(7, 8, 9), (1, 1, 1), (24, 31, 17)])
def test_the_output_may_have_any_size(size):
    image, warp = textured((11, 14, 12)), Warp(TURN.linear, TURN.offset, np.full((3, 4, 4, 4), 0.7))
    for change in CHANGES.values():
        fused, expected = (kernel(image, warp, size, **change) for kernel in (compute, define))
        assert_same(fused, expected, image, change.get("gamma", 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("start", [(0, 0, 0), (2, 0, 5)])
@pytest.mark.parametrize("axes", [(), (0,), (1, 2), (0, 1, 2)])
def test_flips_and_windows_keep_every_bit(dtype, start, axes):
    image, size = (textured((9, 12, 14)) * 300 - 7).to(dtype), (6, 12, 9)
    signs = np.where(np.isin(range(3), axes), -1.0, 1.0)
    window = start - (np.array(image.shape) - size) / 2
    expected = cut(image[None], start, axes, size)[0].float()
    assert torch.equal(compute(image, Warp(np.diag(signs), window), size), expected)


def test_what_stays_in_place_keeps_every_bit_beside_what_is_resampled():
    image = textured((6, 2, 9, 12, 14)).half()
    setting = {"spatial_probability": 0.5, "probability": 0.0, "flip_axes": (0, 2), "crop": (8, 9, 13)}
    fused, expected = (Augmentation(**setting, kernel=kernel)(image, KEYS) for kernel in ("fused", "torch"))
    same = [torch.equal(one, two) for one, two in zip(fused, expected, strict=True)]
    turned = [Augmentation(**setting).draw_warp(key, (9, 12, 14)).linear[0, 1] != 0 for key in KEYS]
    assert len(set(turned)) == 2
    assert same == [not each for each in turned]


def test_strides_of_the_input_do_not_matter():
    image = textured((12, 9, 14))
    for view in (image.permute(2, 0, 1), image[::2, :, ::3], image.flip(1), image[:1].expand(9, -1, -1)):
        for dtype in (torch.float16, torch.float32):
            for warp in (STILL, TURN):
                channel = view.to(dtype)
                expected = compute(channel.clone(memory_format=torch.contiguous_format), warp, blur=0.6, gamma=1.3)
                assert torch.equal(compute(channel, warp, blur=0.6, gamma=1.3), expected)


@pytest.mark.parametrize("value", [0.0, 5.3, -23.02132797241211, -1024.0, 1e4, 1e-6])
@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("change", [*CHANGES, "noise"])
def test_a_constant_channel_stays_constant(value, warp, change):
    image = torch.full((8, 9, 7), value)
    intensity = CHANGES.get(change, {"noise": 0.5, "noise_seed": 3})
    torch.testing.assert_close(compute(image, WARPS[warp], **intensity), image, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("span", "low"), [(1e-6, 0.0), (1e4, 0.0), (1e4, -3e3), (1.0, 1e4), (1e-25, 0.0)])
def test_any_range_of_intensities_gives_what_torch_gives(change, span, low):
    image = textured((11, 12, 9)) ** 3 * span + low
    fused, expected = (kernel(image, TURN, **CHANGES[change]) for kernel in (compute, define))
    assert_same(fused, expected, image, CHANGES[change].get("gamma", 1))


@pytest.mark.parametrize("gamma", [0.5, 0.74, 1.35, 2.7])
@pytest.mark.parametrize("span", [1.0, 1e-6, 1e4])
def test_gamma_bends_a_ramp_from_zero(gamma, span):
    ramp = torch.linspace(0, 1, 7 * 8 * 9).view(7, 8, 9)
    ramp.view(-1)[:50] = 0
    bent = compute(ramp * span, gamma=gamma) / span
    torch.testing.assert_close(bent.view(-1)[50:], ramp.view(-1)[50:] ** gamma, rtol=1e-5, atol=0)
    upper = ramp > 0.5
    torch.testing.assert_close(bent[upper], ramp[upper] ** gamma, rtol=1e-6 if span == 1 else 1e-5, atol=0)
    assert 0 <= bent.view(-1)[0] < 1.001 * FAINT ** (2 * gamma)
    assert bent.max() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("shape", [(2, 9, 8), (13, 17, 11)])
def test_the_number_of_threads_changes_nothing(shape, threads):
    image = textured(shape)
    displacement = np.random.default_rng(0).uniform(-1, 1, (3, 5, 5, 5))
    everything = {"blur": 0.9, "log_bias": log_bias(), "gamma": 1.2, "noise": 0.3, "noise_seed": 8}
    results = []
    for number in (1, 2, 3):
        threads(number)
        results.append([
            compute(image, Warp(TURN.linear, TURN.offset, displacement), **everything),
            compute(image, **everything),
            compute(image, TURN),
        ])  # fmt: skip
    for result in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(result, results[0], strict=True))


# Noise ---------------------------------------------------------------------------------------------------------------


def noise(seed, shape=(9, 90, 61)):
    image = textured(shape) * 1e-15  # too small to change a bit of the noise
    return (compute(image, noise=1e15, noise_seed=seed) / (1e15 * foreground_sd(image))).double().numpy()


def assert_uncorrelated(one, two):
    for power in (1, 2):
        assert abs(stats.pearsonr(one.ravel() ** power, two.ravel() ** power).statistic) < 4 / np.sqrt(one.size)


@pytest.mark.parametrize("seed", [0, 1, 77, 2**31, 2**32 - 1])
def test_noise_is_normal(seed):
    drawn = noise(seed).ravel()
    error = 1 / np.sqrt(drawn.size)
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    assert abs(drawn.mean()) < 4 * error
    assert abs(drawn.std() - 1) < 4 * error * np.sqrt(1 / 2)
    assert abs(stats.skew(drawn)) < 4 * error * np.sqrt(6)
    assert abs(stats.kurtosis(drawn)) < 4 * error * np.sqrt(24)
    for limit in (-3, 3):
        share = stats.norm.sf(3)
        assert abs((drawn * np.sign(limit) > 3).mean() - share) < 4 * error * np.sqrt(share)


def test_noise_has_the_tails_of_a_normal_distribution():
    drawn = np.abs(np.concatenate([noise(seed, (60, 60, 60)).ravel() for seed in range(5)]))
    for limit in (3.5, 4, 4.5):
        expected = 2 * stats.norm.sf(limit) * drawn.size
        assert abs((drawn > limit).sum() - expected) < 4 * np.sqrt(expected)
    assert drawn.max() < 5.9


def test_noise_differs_from_voxel_to_voxel():
    drawn = noise(5)
    block = drawn[:, :67].reshape(9, -1)  # lines that are drawn at once
    half = (block.shape[1] + 1) // 2
    assert_uncorrelated(block[:, : half - 1], block[:, half:])  # cosine and sine of the same two numbers
    assert_uncorrelated(drawn[..., :-1], drawn[..., 1:])
    assert_uncorrelated(drawn[:, :-1], drawn[:, 1:])
    assert_uncorrelated(drawn[:-1], drawn[1:])
    assert np.unique(drawn).size > 0.99 * drawn.size
    for power in (1, 2):
        centred = drawn**power - (drawn**power).mean()
        correlation = np.fft.ifftn(np.abs(np.fft.fftn(centred)) ** 2).real.ravel()
        assert np.abs(correlation[1:]).max() < 6 / np.sqrt(drawn.size) * correlation[0]


@pytest.mark.parametrize("other", [6, 4, 5 + 2**16, 5 + 2**31])
def test_noise_differs_from_seed_to_seed(other):
    one, two = noise(5), noise(other)
    assert_uncorrelated(one, two)
    assert np.isin(one, two).mean() < 0.01
    lagged = np.fft.ifft(np.fft.fft(one.ravel()) * np.fft.fft(two.ravel()).conj()).real
    assert np.abs(lagged).max() < 6 * np.sqrt(one.size)


def test_no_pair_of_normal_numbers_comes_twice():
    # Each pair is made of two hashed numbers. Were only one of them seeded, some 60 pairs would meet.
    pairs = [noise(seed, (250, 64, 64)).reshape(250, 2, 2048) for seed in (5, 6)]
    first, second = (pair[:, 0].ravel() + 1j * pair[:, 1].ravel() for pair in pairs)
    assert np.unique(first).size == first.size
    assert np.intersect1d(first, second).size == 0


def test_noise_is_the_same_for_the_same_seed_and_any_image():
    np.testing.assert_array_equal(noise(9), noise(9))
    one, two = textured((8, 9, 7)), textured((8, 9, 7), seed=1) * 50 + 3
    added = [compute(image, noise=0.4, noise_seed=9) - image for image in (one, two)]
    relative = [part / (0.4 * foreground_sd(image)) for part, image in zip(added, (one, two), strict=True)]
    torch.testing.assert_close(*relative, atol=1e-5, rtol=0)


def test_noise_comes_last():
    image = textured((20, 21, 22))
    quiet = compute(image, TURN, blur=0.7, log_bias=log_bias(), gamma=1.3)
    noisy = compute(image, TURN, blur=0.7, log_bias=log_bias(), gamma=1.3, noise=0.2, noise_seed=4)
    expected = compute(image, noise=0.2, noise_seed=4) - image
    torch.testing.assert_close(noisy - quiet, expected, atol=1e-6, rtol=0)


# What surrounds it ---------------------------------------------------------------------------------------------------


def test_random_states_stay_untouched():
    def state():
        name, numbers, *rest = np.random.get_state()  # noqa: NPY002
        return [torch.get_rng_state().tolist(), random.getstate(), name, numbers.tolist(), rest]

    before = state()
    compute(textured((8, 9, 7)), TURN, noise=0.3, noise_seed=2)
    Augmentation(kernel="fused")(textured((2, 1, 8, 9, 7)), KEYS[:2])
    assert state() == before


def test_the_input_stays_untouched():
    for image in (textured((8, 9, 7)), textured((8, 9, 7)).half()):
        before = image.clone()
        for warp in WARPS.values():
            compute(image, warp, noise=0.3, noise_seed=2, **CHANGES["all"])
            assert torch.equal(image, before)


def test_masks_move_with_the_image():
    image = (textured((6, 1, 13, 12, 11)) > 0.5).float()
    setting = {"elastic": 0.05, "flip_axes": (0, 1), "crop": (10, 12, 9), "probability": 0.0}
    masks = torch.cat([image, 1 - image], dim=1).to(torch.uint8)
    moved_image, moved = Augmentation(**setting, kernel="fused")(image, KEYS, masks)
    _, expected = Augmentation(**setting, kernel="torch")(image, KEYS, masks)
    assert moved.dtype == torch.uint8
    assert torch.equal(moved, expected)
    assert (moved[:, :1] == moved_image.round()).float().mean() > 0.9


def test_without_numba_auto_is_torch_and_fused_is_refused(monkeypatch):
    image = textured((2, 1, 8, 9, 7))
    found = importlib.util.find_spec
    assert Augmentation().kernel_on(torch.device("cpu")) == "fused"
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "numba" else found(name, *rest)
    )
    with pytest.raises(
        ValueError, match=r"kernel is fused, which needs numba\. Install fontanel\[fast\], or use torch\."
    ):
        Augmentation(kernel="fused")
    monkeypatch.setitem(sys.modules, "datamodules.fused", None)  # importing it fails
    augmentation = Augmentation()
    assert augmentation.kernel_on(torch.device("cpu")) == "torch"
    assert torch.equal(augmentation(image, KEYS[:2]), Augmentation(kernel="torch")(image, KEYS[:2]))


def test_planes_and_other_devices_take_torch(monkeypatch):
    planes, volumes = textured((2, 1, 9, 8)), textured((2, 1, 9, 8, 7))
    expected = Augmentation(kernel="torch")(planes, KEYS[:2])
    assert Augmentation(kernel="fused").kernel_on(torch.device("cuda")) == "torch"
    monkeypatch.setitem(sys.modules, "datamodules.fused", None)
    for kernel in ("auto", "fused"):
        assert torch.equal(Augmentation(kernel=kernel)(planes, KEYS[:2]), expected)
        with pytest.raises(ImportError, match="fused"):
            Augmentation(kernel=kernel)(volumes, KEYS[:2])
    Augmentation(kernel="torch")(volumes, KEYS[:2])

"""The window that training takes anywhere in an image, and evaluation in the middle."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.interpolate import BSpline

from datamodules.augmentation import Augmentation, sample_key
from datamodules.geometry import Warp, cut

OFF = dict.fromkeys(("flip", "rotation", "scale", "translation", "bias_field", "gamma", "noise", "blur"), 0.0)
OFF |= {"spatial_probability": 1.0}
GEOMETRY = {"rotation": 12.0, "scale": 0.15, "translation": 0.05, "shear": 0.1, "flip": 0.5, "flip_axes": (0, 1)}
PLACES = [((6, 7, 5), (4, 7, 3)), ((9, 6), (5, 4))]
SIZES = [((14, 15, 12), (9, 10, 11)), ((17, 14), (12, 9))]

kernels = pytest.mark.parametrize("kernel", ["torch", "fused"])
shapes = pytest.mark.parametrize(("shape", "crop"), SIZES, ids=["3D", "2D"])


def keys(number, seed=0):
    return [sample_key(seed, epoch, "sub-01") for epoch in range(number)]


def numbered(shape, batch=1):
    """Return images whose voxels are all different, and their index."""
    return torch.arange(math.prod(shape), dtype=torch.float32).view(1, 1, *shape).expand(batch, -1, *shape)


def starts(shape, crop, drawn):
    windows = Augmentation(**OFF, crop=crop)(numbered(shape, len(drawn)), drawn)
    first = windows.flatten(1)[:, 0].long().numpy()
    return np.stack(np.unravel_index(first, shape), axis=1)


@kernels
@shapes
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_output_is_a_window_of_the_input(kernel, shape, crop, dtype):
    image = torch.rand((12, 2, *shape), generator=torch.Generator().manual_seed(0)).to(dtype)
    masks = (image[:, :1] > 0.5).to(torch.uint8)
    windows = starts(shape, crop, keys(12))
    for setting in (OFF, {**OFF, "rotation": 9.0, "gamma": 0.3, "spatial_probability": 0.0, "probability": 0.0}):
        cropped, cropped_masks = Augmentation(**setting, crop=crop, kernel=kernel)(image, keys(12), masks)
        assert cropped.dtype == torch.float32
        for sample, start in enumerate(windows.tolist()):
            assert torch.equal(cropped[sample], cut(image[sample], start, (), crop).float())
            assert torch.equal(cropped_masks[sample], cut(masks[sample], start, (), crop))
    assert len({tuple(start) for start in windows.tolist()}) > 6


@pytest.mark.parametrize(("shape", "crop"), PLACES, ids=["3D", "2D"])
def test_the_window_lies_anywhere_equally_often(shape, crop):
    drawn = starts(shape, crop, keys(3000))
    places = [whole - part + 1 for whole, part in zip(shape, crop, strict=True)]
    counts = np.bincount(np.ravel_multi_index(drawn.T, places), minlength=math.prod(places))
    assert len(counts) == math.prod(places)
    assert stats.chisquare(counts).pvalue > 1e-3
    epochs = np.stack([drawn[:-1, 0], drawn[1:, 0]])
    assert abs(np.corrcoef(epochs)[0, 1]) < 4 / np.sqrt(3000)


def test_the_window_is_keyed_and_leaves_the_other_draws_alone():
    shape, crop = SIZES[0]
    drawn = keys(40)
    np.testing.assert_array_equal(starts(shape, crop, drawn), starts(shape, crop, drawn[::-1])[::-1])
    assert (starts(shape, crop, drawn) != starts(shape, crop, keys(40, seed=1))).any(axis=1).mean() > 0.9
    middles = []
    for setting in (OFF, GEOMETRY, {**GEOMETRY, "elastic": 0.05}, {"gamma": 0.2, "noise": 0.0}):
        whole, part = Augmentation(**setting), Augmentation(**setting, crop=crop)
        warps = [(whole.draw_warp(key, shape), part.draw_warp(key, shape)) for key in drawn]
        middles.append([np.linalg.solve(one.linear, two.offset - one.offset) for one, two in warps])
        assert all(np.array_equal(one.linear, two.linear) for one, two in warps)
        if "elastic" in setting:
            assert all(
                np.array_equal(one.displacement, two.displacement) for one, two in warps if one.displacement is not None
            )
        assert all(
            whole.draw_intensities(key, 2, 3)[1].gamma == part.draw_intensities(key, 2, 3)[1].gamma for key in drawn
        )
    for other in middles[1:]:
        np.testing.assert_allclose(other, middles[0], atol=1e-12)
    expected = starts(shape, crop, drawn) - (np.array(shape) - crop) / 2
    np.testing.assert_allclose(middles[0], expected, atol=1e-12)


@kernels
@shapes
def test_image_and_mask_are_mirrored_then_cut(kernel, shape, crop):
    drawn, setting = keys(16), {**OFF, "flip": 0.5, "flip_axes": tuple(range(len(shape)))}
    image = numbered(shape, 16)
    mirrored = Augmentation(**setting, kernel=kernel)(image, drawn)
    cropped, masks = Augmentation(**setting, crop=crop, kernel=kernel)(image, drawn, image.int())
    assert torch.equal(cropped, masks.float())
    for sample, start in enumerate(starts(shape, crop, drawn).tolist()):
        assert torch.equal(cropped[sample], cut(mirrored[sample], start, (), crop))
    assert sum(torch.equal(one, two) for one, two in zip(mirrored, image, strict=True)) < 16


@kernels
@shapes
def test_a_window_of_a_moved_image_is_cut_from_the_whole_moved_image(kernel, shape, crop):
    drawn = keys(8)
    image = torch.rand((8, 2, *shape), generator=torch.Generator().manual_seed(2))
    masks = (image > 0.5).to(torch.uint8)
    setting = {**OFF, **GEOMETRY, "gamma": 0.3, "kernel": kernel}
    whole, whole_masks = Augmentation(**setting)(image, drawn, masks)
    cropped, cropped_masks = Augmentation(**setting, crop=crop)(image, drawn, masks)
    for sample, start in enumerate(starts(shape, crop, drawn).tolist()):
        expected = cut(whole[sample], start, (), crop)
        torch.testing.assert_close(cropped[sample], expected, atol=5e-4, rtol=0)
        assert (cropped_masks[sample] == cut(whole_masks[sample], start, (), crop)).float().mean() > 0.99
    assert not torch.allclose(whole, image, atol=0.1)


@kernels
def test_lattices_span_the_window(kernel):
    shape, crop, points = (22, 24, 20), (15, 17, 12), 5
    where = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))
    setting = {**OFF, "elastic": 0.05, "elastic_points": points, "crop": crop}
    augmentation = Augmentation(**setting, kernel=kernel)
    basis = [BSpline.design_matrix((np.arange(n) + 0.5) / n * 2, np.arange(-3, points + 1), 3).toarray() for n in crop]
    for key in keys(4):
        field = np.einsum("dabc,xa,yb,zc->dxyz", augmentation.draw_warp(key, shape).displacement, *basis)
        start = np.reshape(starts(shape, crop, [key])[0], (3, 1, 1, 1))
        expected = torch.from_numpy(np.indices(crop) + start + field).float()
        edge = torch.tensor(shape).view(3, 1, 1, 1) - 1
        inside = ((expected >= 0) & (expected <= edge)).all(0)
        assert inside.float().mean() > 0.8
        moved = augmentation(where[None], [key])[0]
        torch.testing.assert_close(moved[:, inside], expected[:, inside], atol=2e-4, rtol=0)
    biased = Augmentation(
        **{**OFF, "bias_field": 0.4, "bias_points": points}, probability=1.0, crop=crop, kernel=kernel
    )
    image = torch.ones(1, 1, *shape)
    image[..., 0, :, :] = 0  # intensities count from the minimum
    drawn = [key for key in keys(40) if starts(shape, crop, [key])[0, 0] > 0]
    control = np.exp(biased.draw_intensities(drawn[0], 1, 3)[0].log_bias)
    expected = torch.from_numpy(np.einsum("abc,xa,yb,zc->xyz", control, *basis)).float()
    torch.testing.assert_close(biased(image, drawn[:1])[0, 0], expected, atol=1e-5, rtol=0)


@kernels
@shapes
@pytest.mark.parametrize("setting", [OFF, {}, {**GEOMETRY, "elastic": 0.05, "shear": 0.1}])
def test_a_crop_of_the_whole_image_changes_nothing(kernel, shape, crop, setting):
    image = torch.rand((4, 2, *shape), generator=torch.Generator().manual_seed(3)).half()
    plain = Augmentation(**setting, kernel=kernel)(image, keys(4), image > 0.5)
    whole = Augmentation(**setting, kernel=kernel, crop=shape)(image, keys(4), image > 0.5)
    assert torch.equal(whole[0], plain[0])
    assert torch.equal(whole[1], plain[1])
    assert torch.equal(Augmentation(**setting, crop=shape).centre(image), image)


@pytest.mark.parametrize(
    ("shape", "crop", "first"),
    [((9, 8, 7), (4, 8, 6), [2, 0, 0]), ((9, 8, 7), None, [0, 0, 0]), ((10, 7), (5, 4), [2, 1])],
)
def test_an_evaluation_sees_the_middle(shape, crop, first):
    image = numbered(shape, 3).half()
    augmentation = Augmentation(crop=crop)
    assert augmentation.window_start(shape) == first
    assert augmentation.output_size(shape) == (crop or shape)
    middle = augmentation.centre(image)
    assert middle.dtype == torch.float16
    assert torch.equal(middle, torch.stack([cut(each, first, (), crop or shape) for each in image]))
    index = tuple(slice(start, start + size) for start, size in zip(first, crop or shape, strict=True))
    assert torch.equal(middle, image[(..., *index)])


@pytest.mark.parametrize(
    ("crop", "shape"),
    [
        ((9, 9, 10), (9, 9, 9)),
        ((4, 4), (9, 9, 9)),
        ((4, 4, 4), (9, 9)),
        ((4, 10), (9, 9)),
        ((0, 9, 9), (9, 9, 9)),
        ((4, -1), (9, 9)),
    ],
)
def test_a_crop_that_does_not_fit_is_refused(crop, shape):
    augmentation, image = Augmentation(crop=crop), numbered(shape)
    for refuses in (
        lambda: augmentation(image, keys(1)),
        lambda: augmentation.centre(image),
        lambda: augmentation.output_size(shape),
        lambda: augmentation.window_start(shape),
        lambda: augmentation.draw_warp(5, shape),
    ):
        with pytest.raises(ValueError, match=r"crop \(.*\) does not fit into images of \(.*\) voxels\."):
            refuses()


@kernels
@shapes
def test_a_cropped_sample_is_the_same_alone_and_in_any_batch(kernel, shape, crop):
    image = torch.rand((5, 2, *shape), generator=torch.Generator().manual_seed(4)).half()
    augmentation = Augmentation(crop=crop, elastic=0.05, kernel=kernel)
    together = augmentation(image, keys(5))
    for sample in (4, 0, 2):
        alone = augmentation(image[sample : sample + 1], keys(5)[sample : sample + 1])
        assert torch.equal(alone[0], together[sample])
    assert together.shape == (5, 2, *crop)


def test_a_warp_knows_when_it_is_a_window():
    shape, size = (9, 8, 7), (4, 8, 6)
    middle = (np.array(shape) - size) / 2
    signs = np.diag([1.0, -1.0, 1.0])
    assert Warp(np.eye(3), [3, 0, 1] - middle).window(shape, size) == ([3, 0, 1], [])
    assert Warp(signs, [3, 0, 1] - middle).window(shape, size) == ([3, 0, 1], [1])
    assert Warp(np.eye(3), [2.5, 0, 1] - middle).window(shape, size) is None
    assert Warp(1.01 * signs, [3, 0, 1] - middle).window(shape, size) is None
    assert Warp(np.eye(3)[[1, 0, 2]], [3, 0, 1] - middle).window(shape, size) is None
    assert Warp(np.eye(3), [3, 0, 1] - middle, np.zeros((3, 4, 4, 4))).window(shape, size) is None

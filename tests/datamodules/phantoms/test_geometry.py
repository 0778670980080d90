import numpy as np
import pytest

from datamodules.phantoms.geometry import centred_affine, deformed_grid, logistic, smooth_field


def test_the_middle_of_a_grid_is_at_zero():
    affine = centred_affine((7, 8, 9), (3.0, 2.0, 1.5))
    np.testing.assert_allclose(affine @ [3, 3.5, 4, 1], [0, 0, 0, 1], atol=1e-12)
    np.testing.assert_allclose((affine @ [4, 3.5, 4, 1])[:3], [3, 0, 0], atol=1e-12)


def test_a_smooth_field_has_unit_variance_everywhere():
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_field(rng.standard_normal((9, 9, 9)), (7, 8, 9), (9.0, 8.0, 7.0)) for _ in range(800)])
    np.testing.assert_allclose(fields.std(axis=0), 1, atol=0.15)


def test_a_smooth_field_does_not_depend_on_the_grid():
    lattice = np.random.default_rng(0).standard_normal((10, 10, 10))
    coarse = smooth_field(lattice, (7, 8, 9), (8.0, 8.0, 8.0))
    fine = smooth_field(lattice, (13, 15, 17), (4.0, 4.0, 4.0))
    np.testing.assert_allclose(fine[::2, ::2, ::2], coarse, atol=1e-5)


def test_a_smooth_field_keeps_the_order_of_the_axes():
    lattice = np.zeros((9, 9, 9))
    lattice[2, 4, 7] = 1  # left, middle, above
    field = smooth_field(lattice, (30, 31, 32), (9.0, 9.0, 9.0))
    peak = np.array(np.unravel_index(field.argmax(), field.shape)) - [14.5, 15, 15.5]
    np.testing.assert_allclose(peak * 9, [-75, 0, 112.5], atol=10)


def test_a_larger_head_reaches_further_in_the_image():
    small = deformed_grid((7, 8, 9), (9.0, 8.0, 7.0), 0.8, np.random.default_rng(1), bend_mm=0)
    large = deformed_grid((7, 8, 9), (9.0, 8.0, 7.0), 1.0, np.random.default_rng(1), bend_mm=0)
    np.testing.assert_allclose(small, large / 0.8, rtol=1e-4)


def test_a_deformation_is_small_and_does_not_depend_on_the_voxels():
    grid = [deformed_grid(shape, spacing, 1.0, np.random.default_rng(3)).reshape(3, *shape) for shape, spacing in
            (((7, 9, 11), (10.0, 10.0, 10.0)), ((13, 17, 21), (5.0, 5.0, 5.0)))]  # fmt: skip
    np.testing.assert_allclose(grid[1][:, ::2, ::2, ::2], grid[0], atol=1e-3)
    undeformed = np.stack(np.meshgrid(*(10.0 * (np.arange(n) - (n - 1) / 2) for n in (7, 9, 11)), indexing="ij"))
    assert 0.5 < np.abs(grid[0] - undeformed).mean() < 10


def test_logistic_is_the_profile_of_a_wall():
    np.testing.assert_allclose(logistic(np.array([-100, 0, np.log(3), 100], np.float32)), [0, 0.5, 0.75, 1], atol=1e-6)
    with np.errstate(all="raise"):
        assert logistic(np.float32([1e6])) == pytest.approx(1)

"""Target scaling in closed form, and soft bins against scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm

from lightning_modules.networks import ModelError
from lightning_modules.networks.heads import SoftBins, TargetScaling

NAN = float("nan")


def fitted(values: list[float], transform: str, shift: float = 0.75) -> TargetScaling:
    scaling = TargetScaling(shift)
    scaling.fit(torch.tensor(values), transform)
    return scaling


def test_identity_statistics_leave_out_missing_values():
    scaling = fitted([10.0, NAN, 20.0, 60.0], "identity")
    assert scaling.mean.item() == pytest.approx(30)
    assert scaling.sd.item() == pytest.approx(math.sqrt((400 + 100 + 900) / 2))
    assert scaling.training_mean.item() == pytest.approx(30)
    assert scaling.to_scaled(torch.tensor([60.0, NAN])).tolist() == pytest.approx(
        [30 / math.sqrt(700), NAN], nan_ok=True
    )


def test_log_scales_the_logarithm_but_keeps_the_plain_training_mean():
    scaling = fitted([0.25, math.e - 0.75], "log")  # log(y + 0.75) = 0 and 1
    assert scaling.mean.item() == pytest.approx(0.5)
    assert scaling.sd.item() == pytest.approx(math.sqrt(0.5))
    assert scaling.training_mean.item() == pytest.approx((0.25 + math.e - 0.75) / 2)
    assert scaling.to_unit(torch.tensor([0.0])).item() == pytest.approx(math.exp(0.5) - 0.75)


@pytest.mark.parametrize("transform", ["identity", "log"])
def test_round_trip_and_finite_gradient(transform):
    ages = torch.tensor([0.0, 0.5, 3.0, 42.0, 97.0])
    scaling = fitted(ages.tolist(), transform)
    torch.testing.assert_close(scaling.to_unit(scaling.to_scaled(ages)), ages, rtol=1e-4, atol=1e-4)
    scaled = torch.tensor([3.0], requires_grad=True)  # about 140 years: its exponential overflows float32
    scaling.to_unit(scaled).sum().backward()
    assert scaled.grad is not None
    assert scaled.grad.isfinite().all()
    assert scaled.grad.abs().sum() > 0


def test_state_dict_alone_restores_the_scaling():
    scaling = fitted([5.0, 9.0, 40.0], "log", shift=1.5)
    other = TargetScaling()
    assert not other.is_fitted
    other.load_state_dict(scaling.state_dict())
    assert other.is_fitted
    ages = torch.tensor([0.0, 20.0])
    assert other.to_scaled(ages).tolist() == scaling.to_scaled(ages).tolist()


@pytest.mark.parametrize(
    ("values", "transform", "message"),
    [
        ([NAN, 3.0], "identity", "1 of 2 training rows have a target"),
        ([3.0, 3.0], "identity", "all 2 training targets are 3"),
        ([-0.75, 3.0], "log", "smallest training target is -0.75, and log.* needs y above -0.75"),
    ],
)
def test_targets_that_cannot_be_scaled_are_refused(values, transform, message):
    with pytest.raises(ModelError, match=message):
        fitted(values, transform)


@pytest.mark.parametrize("age", [0.0, 0.3, 17.5, 63.21, 99.9, 100.0])
def test_distribution_is_the_truncated_normal(age):
    bins = SoftBins(low=0, high=100, width=2, sigma=1.5)
    edges = np.arange(0, 101, 2)
    expected = np.diff(truncnorm.cdf(edges, (0 - age) / 1.5, (100 - age) / 1.5, loc=age, scale=1.5))
    distribution = bins.distribution(torch.tensor([age]))[0].numpy()
    np.testing.assert_allclose(distribution, expected, rtol=1e-5, atol=1e-6)
    assert bins.centres.tolist() == list(range(1, 100, 2))


def test_expected_value_inverts_the_distribution_away_from_the_ends():
    bins = SoftBins(low=40, high=80, width=1, sigma=1)
    ages = torch.tensor([45.0, 52.3, 60.01, 74.9])
    torch.testing.assert_close(bins.expected_value(bins.distribution(ages).log()), ages, rtol=0, atol=2e-3)


def test_targets_outside_the_bins():
    bins = SoftBins(low=0, high=10)
    torch.testing.assert_close(bins.distribution(torch.tensor([-5.0])), bins.distribution(torch.tensor([0.0])))
    bins.require_inside(torch.tensor([0.0, 10.0, NAN]))
    with pytest.raises(
        ModelError, match=r"1 training targets lie outside the bins from 0 to 10 \(targets span 3 to 11\)"
    ):
        bins.require_inside(torch.tensor([3.0, NAN, 11.0]))


@pytest.mark.parametrize("arguments", [(0, 10, 3, 1), (0, 10, 1, 0), (10, 0, 1, 1), (0, 1, 1, 1), (0, 10, -1, 1)])
def test_bins_that_do_not_fit_their_range_are_refused(arguments):
    with pytest.raises(ModelError, match="soft bins from"):
        SoftBins(*arguments)


def test_bins_leave_no_trace_in_the_state_dict():
    assert SoftBins(0, 10).state_dict() == {}

"""Losses against torch's and scipy's, and what missing labels do to them."""

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy

from lightning_modules.losses import MaskedBCELoss, MaskedRegressionLoss, SoftBinsLoss
from lightning_modules.networks.heads import SoftBins

NAN = float("nan")
BINS = SoftBins(low=0, high=10, width=1, sigma=0.8)


@pytest.mark.parametrize(("kind", "reference"), [("l1", F.l1_loss), ("huber", F.huber_loss), ("mse", F.mse_loss)])
def test_missing_targets_change_nothing(kind, reference):
    torch.manual_seed(0)
    prediction = (3 * torch.randn(6)).requires_grad_()
    target = torch.randn(6)
    is_known = torch.tensor([True, False, True, True, False, True])
    loss = MaskedRegressionLoss(kind)(prediction, torch.where(is_known, target, NAN))
    expected = reference(prediction[is_known], target[is_known])
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, prediction)
    (expected_gradient,) = torch.autograd.grad(expected, prediction)
    torch.testing.assert_close(gradient, expected_gradient)
    assert gradient[~is_known].abs().sum() == 0


def test_soft_bins_loss_is_the_divergence_from_the_distribution():
    torch.manual_seed(0)
    logits = torch.randn(3, 10, requires_grad=True)
    target = torch.tensor([0.0, NAN, 7.3])
    loss = SoftBinsLoss(BINS)(logits, target)
    wanted, given = BINS.distribution(target[[0, 2]]).numpy(), logits.softmax(dim=1)[[0, 2]].detach().numpy()
    assert loss.item() == pytest.approx(entropy(wanted, given, axis=1).mean(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient[2], (logits.softmax(1)[2] - BINS.distribution(target)[2]).detach() / 2)
    assert gradient[1].abs().sum() == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_that_of_torch_over_the_known_labels(smoothing):
    torch.manual_seed(0)
    logits = (3 * torch.randn(5, 2)).requires_grad_()
    target = torch.tensor([[1.0, 0.0], [NAN, 1.0], [0.0, NAN], [NAN, NAN], [1.0, 1.0]])
    weight = torch.tensor([3.0, 0.5])
    known = [~column.isnan() for column in target.T]
    parts = [
        torch.nn.BCEWithLogitsLoss(pos_weight=weight[output], reduction="sum")(
            logits[known[output], output], target[known[output], output].clamp(smoothing / 2, 1 - smoothing / 2)
        )
        for output in (0, 1)
    ]
    expected = (parts[0] + parts[1]) / 6  # labels, not images
    loss = MaskedBCELoss(smoothing)(logits, target, weight)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, expected_gradient)
    assert gradient[target.isnan()].abs().sum() == 0


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (MaskedRegressionLoss("l1"), (4,)),
        (MaskedRegressionLoss("mse"), (4,)),
        (MaskedBCELoss(0.1), (4,)),
        (SoftBinsLoss(BINS), (4, 10)),
    ],
)
def test_batch_without_labels_is_zero_on_the_graph(loss, shape):
    outputs = torch.randn(shape, requires_grad=True)
    value = loss(outputs, torch.full((4,), NAN))
    assert value.item() == 0
    value.backward()
    assert outputs.grad is not None
    assert outputs.grad.abs().sum() == 0

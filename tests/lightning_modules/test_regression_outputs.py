"""What leaves the heads of a RegressionModule: precision, and the description that an exported model carries."""

import json

import pytest
import torch

from lightning_modules.networks.heads import SoftBinsConfig

AGES = [5.0, 12.0, 18.0, 25.0, 33.0, 40.0, 48.0, 60.0]


@pytest.mark.parametrize("head", ["regression", "soft_bins"])
def test_losses_and_ages_stay_in_single_precision_under_autocast(make_module, fake_data, head):
    module = make_module(head=head)
    with torch.autocast("cpu", torch.bfloat16):
        output = module.step(next(iter(fake_data(AGES).loader())), "val")
    assert output.loss.dtype == output.rows["age"]["prediction"].dtype == torch.float32


@pytest.mark.parametrize("transform", ["identity", "log"])
def test_described_outputs_reproduce_the_prediction(make_module, transform):
    image = torch.randn(2, 1, 7, 8, 9)
    scaled, binned = make_module(log_shift=1.0), make_module(head="soft_bins", bins=SoftBinsConfig(0, 80, 4, 4))
    scaled.scaling.fit(torch.tensor(AGES), transform)
    scaling, centres = scaled.describe_outputs()["age"]["scaling"], binned.describe_outputs()["age"]["centres"]
    with torch.no_grad():
        raw = scaled.network(image).squeeze(1) * scaling["sd"] + scaling["mean"]
        expected = raw.exp() - scaling["shift"] if scaling["transform"] == "log(y + shift)" else raw
        torch.testing.assert_close(scaled(image), expected)
        torch.testing.assert_close(binned(image), binned.network(image).softmax(dim=1) @ torch.tensor(centres))
    assert json.loads(json.dumps(scaled.describe_outputs())) == scaled.describe_outputs()

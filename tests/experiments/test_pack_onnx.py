"""ONNX beside the weights: the same numbers as torch, or no pack."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from experiments import pack_onnx
from experiments.pack_onnx import ALLOWED, OnnxError, export
from lightning_modules import RegressionModule
from lightning_modules.networks import Monai3D


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = RegressionModule(Monai3D("resnet10"), optimizer=torch.optim.SGD)
    model.scaling.fit(torch.tensor([20.0, 40.0, 70.0]), "log")
    for value in model.buffers():  # running statistics as of a trained network
        if value.dtype == torch.float32 and value.ndim == 1:
            value.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def image():
    return torch.randn(1, 1, 16, 18, 20, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported(model, image):
    return export(model, image)


def test_a_resnet_gives_the_numbers_of_torch_for_any_number_of_images(model, image, exported):
    content, agreement = exported
    assert max(agreement["random"], agreement["image"]) <= ALLOWED == 1e-4
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for number in (1, 3):
        batch = image.expand(number, -1, -1, -1, -1).contiguous()
        (found,) = session.run(["prediction"], {"image": batch.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(found, model(batch).numpy(), atol=1e-4)


def test_the_exported_model_says_nothing_of_the_files_that_made_it(exported):
    assert b".py" not in exported[0]
    assert str(Path(__file__).parents[2]).encode() not in exported[0]
    assert b"stack_trace" not in exported[0]


def test_a_model_that_computes_something_else_is_refused(model, image, exported, monkeypatch):
    other = model.scaling.mean.clone()
    monkeypatch.setattr(pack_onnx, "_convert", lambda *_: exported[0])
    model.scaling.mean += 1e-3
    try:
        with pytest.raises(OnnxError, match="differs from torch"):
            export(model, image)
    finally:
        model.scaling.mean.copy_(other)

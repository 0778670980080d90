"""A network, a cohort and a trainer that are small enough for a test."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_modules.networks import Encoder
from lightning_modules.regression import RegressionModule


class TinyEncoder(Encoder):
    """One linear convolution, for volumes of any size from 3x3x3 on."""

    def __init__(self, in_channels: int = 1, num_features: int = 8) -> None:
        super().__init__(in_channels, num_features, minimum_size=(3, 3, 3))
        self.stem = nn.Conv3d(in_channels, num_features, kernel_size=3)

    def forward_features(self, image: Tensor) -> Tensor:
        features: Tensor = self.stem(image)
        return features


class FakeData(LightningDataModule):
    """Volumes (7, 8, 9) whose brightness is the target; participant `p0` has two images in one session."""

    target_transform = "identity"

    def __init__(self, targets: list[float], is_labelled: bool = True, batch_size: int = 3) -> None:
        super().__init__()
        self.targets = torch.tensor(targets)
        self.is_labelled = is_labelled
        self.batch_size = batch_size

    def target_values(self, name: str) -> Tensor:
        assert name == "age"
        return self.targets

    def samples(self) -> list[dict[str, Any]]:
        noise = torch.randn(len(self.targets), 1, 7, 8, 9, generator=torch.Generator().manual_seed(0))
        samples = []
        for index, target in enumerate(self.targets):
            participant = f"p{max(index - 1, 0)}"
            sample = {
                "image": target.nan_to_num(30.0) / 30 + 0.05 * noise[index],
                "participant_id": participant,
                "session_id": "",
                "image_id": f"{participant}_{index}",
                "dataset": "fake",
                "site": f"site{index % 2}",
            }
            samples.append(sample | ({"target": {"age": target}} if self.is_labelled else {"target": {}}))
        return samples

    def loader(self) -> DataLoader:
        return DataLoader(self.samples(), batch_size=self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


@pytest.fixture
def tiny_encoder() -> type[TinyEncoder]:
    return TinyEncoder


@pytest.fixture
def fake_data() -> type[FakeData]:
    return FakeData


@pytest.fixture
def make_trainer() -> Callable[..., Trainer]:
    def make(**options: Any) -> Trainer:
        return Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )

    return make


@pytest.fixture
def adam() -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, lr=0.03)


@pytest.fixture
def make_module(tiny_encoder, adam) -> Callable[..., RegressionModule]:
    def make(**options: Any) -> RegressionModule:
        torch.manual_seed(0)
        return RegressionModule(tiny_encoder(), options.pop("optimizer", adam), **options)

    return make

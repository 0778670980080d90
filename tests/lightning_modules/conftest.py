"""A network, a cohort and a trainer that are small enough for a test."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_modules.classification import ClassificationModule
from lightning_modules.networks import Encoder
from lightning_modules.regression import RegressionModule
from lightning_modules.transfer import Transfer


class TinyEncoder(Encoder):
    """One linear convolution, for volumes of any size from 3x3x3 on."""

    def __init__(self, in_channels: int = 1, num_features: int = 8) -> None:
        super().__init__(in_channels, num_features, minimum_size=(3, 3, 3))
        self.stem = nn.Conv3d(in_channels, num_features, kernel_size=3)

    def forward_features(self, image: Tensor) -> Tensor:
        features: Tensor = self.stem(image)
        return features


class StagedEncoder(Encoder):
    """Two blocks with batch normalisation and dropout, for volumes from 5x5x5 on."""

    def __init__(self, in_channels: int = 1, width: int = 3) -> None:
        super().__init__(in_channels, 2 * width, minimum_size=(5, 5, 5))
        self.first = nn.Sequential(nn.Conv3d(in_channels, width, 3), nn.BatchNorm3d(width), nn.ReLU(), nn.Dropout(0.2))
        self.second = nn.Sequential(nn.Conv3d(width, 2 * width, 3), nn.BatchNorm3d(2 * width), nn.ReLU())

    def forward_features(self, image: Tensor) -> Tensor:
        features: Tensor = self.second(self.first(image))
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
def staged_encoder() -> type[StagedEncoder]:
    return StagedEncoder


@pytest.fixture
def source(tmp_path) -> str:
    """A file with the weights of another `StagedEncoder`."""
    torch.manual_seed(1)
    torch.save(StagedEncoder().state_dict(), tmp_path / "source.pt")
    return str(tmp_path / "source.pt")


@pytest.fixture
def make_transfer(source) -> Callable[..., RegressionModule]:
    def make(strategy: str = "full", load: bool = True, **options: Any) -> RegressionModule:
        torch.manual_seed(0)
        sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
        module = RegressionModule(StagedEncoder(), sgd, transfer=Transfer(source, strategy, **options))
        module.seed = 0
        if load:
            module.load_pretrained(source)
        return module

    return make


class Diary(Callback):
    """At every batch: the blocks that are trained, those in training mode, and the weights before it."""

    def __init__(self) -> None:
        self.trained: list[list[str]] = []
        self.training: list[list[str]] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        blocks = {name: list(pl_module.network.get_submodule(name).modules()) for name in ("first", "second")}
        self.trained.append([name for name, parts in blocks.items() if parts[1].weight.requires_grad])
        self.training.append([name for name, parts in blocks.items() if all(part.training for part in parts)])
        self.weights.append({name: value.clone() for name, value in pl_module.network.state_dict().items()})


@pytest.fixture
def diary() -> type[Diary]:
    return Diary


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


@pytest.fixture
def make_classifier(tiny_encoder, adam) -> Callable[..., ClassificationModule]:
    def make(**options: Any) -> ClassificationModule:
        torch.manual_seed(0)
        return ClassificationModule(tiny_encoder(), options.pop("optimizer", adam), **options)

    return make

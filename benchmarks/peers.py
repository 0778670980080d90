"""The same road on other libraries, for the benchmarks that compare: one list of operations, each with its own words.

Deterministic part: read, RAS+, 1 mm, crop or pad, z-score within voxels above the mean.
Random part, every operation on every sample: flip, affine (10 degrees, 10 %, 5 voxels), elastic (7 points, 4 % of the
size; only in the full list), bias field of third order, gamma, noise.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchio as tio
from monai import transforms as mt
from monai.data import PersistentDataset
from torch import Tensor

from datamodules.augmentation import Augmentation
from datamodules.preprocessing import Preprocessing

Shape = tuple[int, int, int]
DEGREES, SCALE, VOXELS, DISPLACEMENT, POINTS, GAMMA, NOISE, BIAS = 10.0, 0.1, 5, 0.04, 7, 0.3, 0.1, 0.3
LISTS = {
    "full": "flip, affine, elastic, bias field, gamma, noise",
    "light": "flip, affine, bias field, gamma, noise",
}


def ours(shape: Shape, kind: str, kernel: str = "auto") -> Augmentation:
    return Augmentation(
        rotation=DEGREES,
        scale=SCALE,
        translation=VOXELS / max(shape),
        elastic=DISPLACEMENT if kind == "full" else 0.0,
        elastic_points=POINTS,
        bias_field=BIAS,
        gamma=GAMMA,
        noise=NOISE,
        blur=0.0,
        probability=1.0,
        spatial_probability=1.0,
        kernel=kernel,
    )


def preprocessing(shape: Shape) -> Preprocessing:
    return Preprocessing(spacing=(1.0, 1.0, 1.0), shape=shape, centre="image")


def torchio_fixed(shape: Shape) -> tio.Transform:
    return tio.Compose(
        [
            tio.ToCanonical(),
            tio.Resample(1.0),
            tio.CropOrPad(shape),
            tio.ZNormalization(masking_method=tio.ZNormalization.mean),
        ]
    )


def torchio_random(shape: Shape, kind: str) -> tio.Transform:
    elastic = tio.RandomElasticDeformation(num_control_points=POINTS, max_displacement=DISPLACEMENT * min(shape))
    return tio.Compose(
        [
            tio.RandomFlip(axes=(0,)),
            tio.RandomAffine(scales=SCALE, degrees=DEGREES, translation=VOXELS),
            *([elastic] if kind == "full" else []),
            tio.RandomBiasField(coefficients=BIAS, order=3),
            tio.RandomGamma(log_gamma=(-GAMMA, GAMMA)),
            tio.RandomNoise(std=(0, NOISE)),
        ]
    )


def torchio_subjects(
    images: Sequence[Path], transform: tio.Transform, ages: Sequence[float] | None = None
) -> tio.SubjectsDataset:
    ages = [float("nan")] * len(images) if ages is None else ages
    pairs = zip(images, ages, strict=True)
    return tio.SubjectsDataset([tio.Subject(image=tio.ScalarImage(path), age=age) for path, age in pairs], transform)


class CachedTorchio:
    """What one writes around torchio: the deterministic part saved once, loaded and augmented ever after."""

    def __init__(self, images: Sequence[Path], shape: Shape, kind: str, folder: Path) -> None:
        self.source = torchio_subjects(images, torchio_fixed(shape))
        self.random, self.folder = torchio_random(shape, kind), folder
        folder.mkdir()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        path = self.folder / f"{index}.npy"
        if not path.exists():
            np.save(path, self.source[index]["image"].numpy().astype(np.float16))
        tensor = torch.from_numpy(np.load(path)).float()
        return self.random(tio.Subject(image=tio.ScalarImage(tensor=tensor)))


def monai_persistent(images: Sequence[Path], shape: Shape, kind: str, folder: Path) -> PersistentDataset:
    radians = float(np.radians(DEGREES))
    moves = {
        "rotate_range": (radians,) * 3,
        "scale_range": (SCALE,) * 3,
        "translate_range": (VOXELS,) * 3,
        "prob": 1.0,
        "mode": "bilinear",
    }
    spatial = (
        mt.Rand3DElastic(sigma_range=(8, 8), magnitude_range=(DISPLACEMENT * min(shape),) * 2, **moves)
        if kind == "full"
        else mt.RandAffine(**moves)
    )
    steps = [
        mt.LoadImage(image_only=True, ensure_channel_first=True),
        mt.Orientation("RAS", labels=None),
        mt.Spacing(1.0, mode="bilinear"),
        mt.ResizeWithPadOrCrop(shape),
        mt.NormalizeIntensity(nonzero=True),
        mt.RandFlip(prob=0.5, spatial_axis=0),
        spatial,
        mt.RandBiasField(degree=3, coeff_range=(0.0, BIAS), prob=1.0),
        mt.RandAdjustContrast(prob=1.0, gamma=(float(np.exp(-GAMMA)), float(np.exp(GAMMA)))),
        mt.RandGaussianNoise(prob=1.0, std=NOISE),
    ]
    return PersistentDataset(list(images), mt.Compose(steps), cache_dir=folder)


def reader(dataset: Any, tensor_of: Callable[[Any], Tensor]) -> Callable[[int], Tensor]:
    """Return what reads a sample of a peer's dataset as one reads it in a training."""
    return lambda index: tensor_of(dataset[index])

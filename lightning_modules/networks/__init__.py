"""Networks: pure torch, one contract (`Encoder`), and the registry of those that the contract test covers."""

from collections.abc import Callable
from functools import partial

from lightning_modules.networks.backbones import Monai3D, Timm2D, TimmSlices
from lightning_modules.networks.encoder import Encoder, ModelError
from lightning_modules.networks.sfcn import SFCN

ENCODERS: dict[str, Callable[..., Encoder]] = {
    "sfcn": SFCN,
    "monai_densenet121": partial(Monai3D, "densenet121"),
    "monai_resnet10": partial(Monai3D, "resnet10"),
    "monai_resnet18": partial(Monai3D, "resnet18"),
    "monai_resnet50": partial(Monai3D, "resnet50"),
    "timm2d_densenet121": partial(Timm2D, "densenet121"),
    "timm2d_tf_efficientnet_lite0": partial(Timm2D, "tf_efficientnet_lite0"),
    "timm2d_tf_efficientnetv2_m": partial(Timm2D, "tf_efficientnetv2_m"),
    "slices_resnet18": partial(TimmSlices, "resnet18"),
}
"""Every encoder by name; each takes `in_channels` and `num_outputs`, the rest are its own defaults."""

__all__ = ["ENCODERS", "SFCN", "Encoder", "ModelError", "Monai3D", "Timm2D", "TimmSlices"]

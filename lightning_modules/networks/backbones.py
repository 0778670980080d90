"""Encoders around MONAI's 3D networks and timm's 2D networks; both libraries are imported when one is built.

Example:
    A volume read by a 2D network as a stack of sagittal slices (axis 0 is left to right):

    .. code-block:: yaml

        network:
          class_path: lightning_modules.networks.TimmSlices
          init_args: {name: resnet18, axis: 0, weights: resnet18.safetensors}
"""

import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_modules.networks.encoder import Encoder, ModelError, split_into_stages


class Monai3D(Encoder):
    """A 3D DenseNet-121 or ResNet of MONAI.

    Args:
        name: Which network.
        in_channels: Number of image channels.
        num_outputs: Number of outputs of the head; the task's module sets it.
        dropout: Probability of dropping a feature before the head.
        stem_stride: Stride of a ResNet's first convolution. MONAI's own default is 1, which is eight times slower
            than the 2 of He et al. and MedicalNet; weights fit either. DenseNet-121 always has 2.
        shortcut: How a ResNet's shortcut gets more channels: `B` by a convolution, `A` by zeros, as in MedicalNet's
            resnet18.

    References:
        Huang et al., CVPR 2017, doi:10.1109/CVPR.2017.243. He et al., CVPR 2016, doi:10.1109/CVPR.2016.90.
    """

    def __init__(
        self,
        name: Literal["densenet121", "resnet10", "resnet18", "resnet50"],
        in_channels: int = 1,
        num_outputs: int = 1,
        dropout: float = 0.0,
        stem_stride: Literal[1, 2] = 2,
        shortcut: Literal["A", "B"] = "B",
    ) -> None:
        from monai.networks.nets import densenet, resnet

        if name == "densenet121":
            backbone: Any = densenet.DenseNet121(spatial_dims=3, in_channels=in_channels, out_channels=1)
            num_features = int(backbone.class_layers.out.in_features)
            del backbone.class_layers
        else:
            backbone = getattr(resnet, name)(
                spatial_dims=3,
                n_input_channels=in_channels,
                conv1_t_stride=stem_stride,
                shortcut_type=shortcut,
                feed_forward=False,
            )
            num_features = int(backbone.in_planes)
        # DenseNet's poolings floor, so 32 voxels end in one; a ResNet's strides pad, so any size leaves a voxel.
        minimum_size = (32, 32, 32) if name == "densenet121" else (1, 1, 1)
        super().__init__(in_channels, num_features, num_outputs, dropout, minimum_size)
        self.backbone = backbone

    def forward_features(self, image: Tensor) -> Tensor:
        """Map (B, C, D, H, W) to the last feature map (B, F, ...), 32 times coarser (16 times with `stem_stride` 1)."""
        net: Any = self.backbone
        if hasattr(net, "features"):
            features: Tensor = net.features(image)
            return features.relu()
        features = net.maxpool(net.act(net.bn1(net.conv1(image))))
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            features = layer(features)
        return features

    def stages(self) -> list[nn.Module]:
        """Return the stem and the four dense or residual blocks, each with the transition behind it."""
        return split_into_stages(self.backbone, _monai_stage)


class Timm2D(Encoder):
    """Any 2D image network of timm, by name.

    Args:
        name: Name of the network in timm, for example `densenet121` or `tf_efficientnetv2_m`.
        in_channels: Number of image channels; pretrained weights of a colour image are adapted to it.
        num_outputs: Number of outputs of the head; the task's module sets it.
        pretrained: Download timm's weights of this name; needs a connection.
        weights: Local file with this network's weights under timm's names (`.safetensors`, or a `.pth` without
            pickled code), instead of a download.
        dropout: Probability of dropping a feature before the head.
        options: Further arguments of `timm.create_model`; a transformer needs `img_size` here.

    References:
        Wightman, PyTorch Image Models, doi:10.5281/zenodo.4414861.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 1,
        num_outputs: int = 1,
        pretrained: bool = False,
        weights: str | None = None,
        dropout: float = 0.0,
        options: dict[str, Any] | None = None,
    ) -> None:
        backbone = _timm_network(name, in_channels, pretrained, weights, options or {})
        num_features, stride = _geometry(backbone)
        super().__init__(in_channels, num_features, num_outputs, dropout, (stride, stride))
        self.backbone = backbone

    def forward_features(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to the last feature map (B, F, h, w), for convolutional networks and transformers alike."""
        return _timm_features(self.backbone, image)

    def stages(self) -> list[nn.Module]:
        """Return the stem and the blocks of the network, as timm groups them."""
        return _timm_stages(self.backbone)


class TimmSlices(Encoder):
    """A 2D network of timm on every slice of a volume, pooled by attention over the slices (2.5D).

    Args:
        name: Name of the network in timm, for example `resnet18`.
        axis: Axis along which the volume is sliced, in RAS+ order: 0 sagittal, 1 coronal, 2 axial slices.
        in_channels: Number of image channels.
        num_outputs: Number of outputs of the head; the task's module sets it.
        pretrained: Download timm's weights of this name; needs a connection.
        weights: Local file with this network's weights, as in `Timm2D`.
        dropout: Probability of dropping a feature before the head.
        attention_size: Width of the hidden layer that scores the slices.
        options: Further arguments of `timm.create_model`.
    """

    def __init__(
        self,
        name: str,
        axis: Literal[0, 1, 2] = 2,
        in_channels: int = 1,
        num_outputs: int = 1,
        pretrained: bool = False,
        weights: str | None = None,
        dropout: float = 0.0,
        attention_size: int = 128,
        options: dict[str, Any] | None = None,
    ) -> None:
        backbone = _timm_network(name, in_channels, pretrained, weights, options or {})
        num_features, stride = _geometry(backbone)
        minimum_size = [stride] * 3
        minimum_size[axis] = 1
        super().__init__(in_channels, num_features, num_outputs, dropout, minimum_size)
        self.axis = axis
        self.backbone = backbone
        self.attention = GatedAttention(self.num_features, attention_size)

    def forward_features(self, image: Tensor) -> Tensor:
        """Map (B, C, D, H, W) to (B, F, ...): one position per slice along `axis`, the slices' maps on the others."""
        slices = image.movedim(2 + self.axis, 1)  # (B, S, C, h, w)
        maps = _timm_features(self.backbone, slices.flatten(0, 1))
        return maps.reshape(*slices.shape[:2], *maps.shape[1:]).movedim(1, 2 + self.axis)

    def pool(self, features: Tensor) -> Tensor:
        """Average inside each slice, then weigh the slices by attention: (B, F, ...) to (B, F)."""
        slices = features.movedim(2 + self.axis, 1).flatten(3).mean(dim=3)  # (B, S, F)
        pooled: Tensor = self.attention(slices)
        return pooled

    def stages(self) -> list[nn.Module]:
        """Return the stem and the blocks of the network, as timm groups them, and the attention."""
        return [*_timm_stages(self.backbone), self.attention]


class GatedAttention(nn.Module):
    """Gated attention pooling over a bag of feature vectors.

    The weight of vector h_s is softmax_s(w . (tanh(V h_s) * sigmoid(U h_s))).

    Args:
        num_features: Length of each feature vector.
        size: Width of the hidden layer.

    References:
        Ilse et al., ICML 2018, arXiv:1802.04712.
    """

    def __init__(self, num_features: int, size: int = 128) -> None:
        super().__init__()
        self.content = nn.Linear(num_features, size)
        self.gate = nn.Linear(num_features, size)
        self.score = nn.Linear(size, 1)

    def weights(self, vectors: Tensor) -> Tensor:
        """Return the weight of each vector of (B, S, F), as (B, S) with rows that sum to 1."""
        scores: Tensor = self.score(torch.tanh(self.content(vectors)) * torch.sigmoid(self.gate(vectors)))
        return scores.squeeze(2).softmax(dim=1)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the weighted mean of (B, S, F) over S, as (B, F)."""
        return torch.einsum("bs,bsf->bf", self.weights(vectors), vectors)


def _timm_network(
    name: str, in_channels: int, pretrained: bool, weights: str | None, options: dict[str, Any]
) -> nn.Module:
    import timm

    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name}*")[:5]) or "none"
        raise ModelError(
            f"timm has no network called {name!r} (names that contain it: {close}); see timm.list_models()."
        )
    state = None if weights is None else _read_weights(Path(weights))
    overlay = {} if state is None else {"pretrained_cfg_overlay": {"state_dict": state}}
    try:
        backbone: Any = timm.create_model(
            name, pretrained=pretrained or bool(overlay), in_chans=in_channels, num_classes=0, **overlay, **options
        )
    except Exception as error:  # timm's hub, its loader and each network raise types of their own
        cause = f"weights {weights!r}" if weights else ("downloaded weights" if pretrained else "the given options")
        raise ModelError(
            f"timm could not build {name!r} with {cause}: {error}. Offline, give a local file as `weights`; a file "
            "must hold this very network."
        ) from error
    if state is not None:
        _require_all_weights(backbone, state, name, weights)
        backbone.pretrained_cfg.pop("state_dict")  # timm would keep a second copy of the weights alive
    network: nn.Module = backbone
    return network


def _read_weights(path: Path) -> dict[str, Tensor]:
    from timm.models import load_state_dict

    if not path.is_file():
        raise ModelError(
            f"no weights file at {path}; give the path of a local .safetensors or .pth file, not an address."
        )
    try:
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # truncated, another format, or pickled code, which is never run
        raise ModelError(f"{path} cannot be read as weights: {error}") from error
    return state


def _require_all_weights(backbone: nn.Module, state: dict[str, Tensor], name: str, weights: str | None) -> None:
    # timm drops the classifier and then loads what fits without a word: a file of other names would load nothing.
    wanted = {key for key in backbone.state_dict() if not key.endswith("num_batches_tracked")}
    missing = sorted(wanted - state.keys())
    if missing:
        raise ModelError(
            f"{weights} lacks {len(missing)} of the {len(wanted)} tensors of timm's {name!r} (first: {missing[0]}); "
            "save the weights under timm's names."
        )


def _geometry(backbone: nn.Module) -> tuple[int, int]:
    """Return the channels of the last feature map, and how many pixels of the image make one of its positions."""
    net: Any = backbone
    return int(net.num_features), max(int(stage["reduction"]) for stage in net.feature_info)


def _timm_features(backbone: nn.Module, image: Tensor) -> Tensor:
    net: Any = backbone
    features: Tensor = net.forward_features(image)
    if features.ndim == 3:  # tokens of a transformer: drop the class token, restore the grid
        tokens = features[:, net.num_prefix_tokens :].transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], *net.patch_embed.dynamic_feat_size(tuple(image.shape[-2:])))
    if getattr(net, "output_fmt", "NCHW") == "NHWC":
        return features.movedim(3, 1)
    return features


def _monai_stage(name: str) -> int:
    """Return the number of the block that a parameter of MONAI's DenseNet or ResNet belongs to, 0 for the stem."""
    if block := re.match(r"(?:features\.(?:denseblock|transition)|layer)(\d)", name):
        return int(block[1])
    return 4 if name.startswith("features.norm5") else 0


def _timm_stages(backbone: nn.Module) -> list[nn.Module]:
    from timm.models import group_parameters

    net: Any = backbone
    numbers: dict[str, int] = group_parameters(net, net.group_matcher(coarse=True), reverse=True)
    last = max(numbers.values())
    shapes = [parameter.ndim for name, parameter in net.named_parameters() if numbers[name] == last]
    if max(shapes) <= 1 and last > 0:  # a last normalisation is no block of its own
        numbers = {name: min(number, last - 1) for name, number in numbers.items()}
    return split_into_stages(backbone, numbers.__getitem__)

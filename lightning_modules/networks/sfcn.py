"""The simple fully convolutional network of Peng et al., made for brain age.

Example:
    .. code-block:: yaml

        network:
          class_path: lightning_modules.networks.SFCN
          init_args: {in_channels: 1, width: 32}
"""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from lightning_modules.networks.encoder import Encoder, ModelError

GROUP_SIZE = 8  # channels that `norm: group` normalises together, at most


class SFCN(Encoder):
    """Simple fully convolutional network: five pooled blocks, one 1x1x1 block, average pooling, a linear head.

    Blocks are conv 3x3x3 - BatchNorm - max-pool 2 - ReLU with `width` * (1, 2, 4, 8, 8) channels, then conv 1x1x1 -
    BatchNorm - ReLU with 2 * `width` channels. The published head, a 1x1x1 convolution of the averaged map, is the
    linear layer that it equals. Five poolings need 32 voxels on every axis; 32x40x32 ends in a single voxel.

    Args:
        in_channels: Number of image channels.
        width: Channels of the first block; 32 is the published network (32-64-128-256-256-64).
        num_outputs: Number of outputs of the head; the task's module sets it.
        dropout: Probability of dropping a feature before the head.
        norm: What normalises each block; `batch` is the published network. Where it ends in one voxel, batch statistics
            are those of as many values as a batch has images; `group` (GroupNorm over 8 channels, fewer in narrow
            blocks) needs no other image. `instance` needs two voxels or more at the end.

    References:
        Peng et al., Medical Image Analysis 2021, doi:10.1016/j.media.2020.101871. Wu and He, ECCV 2018,
        doi:10.1007/978-3-030-01261-8_1.
    """

    def __init__(
        self,
        in_channels: int = 1,
        width: int = 32,
        num_outputs: int = 1,
        dropout: float = 0.5,
        norm: Literal["batch", "instance", "group"] = "batch",
    ) -> None:
        if width < 1:
            raise ModelError(
                f"SFCN got width={width}; give the channels of its first block, 1 or more (published: 32)."
            )
        super().__init__(in_channels, 2 * width, num_outputs, dropout, minimum_size=(32, 32, 32))
        channels = [in_channels, width, 2 * width, 4 * width, 8 * width, 8 * width]
        blocks = [_pooled_block(before, after, norm) for before, after in pairwise(channels)]
        blocks.append(
            nn.Sequential(
                nn.Conv3d(channels[-1], self.num_features, kernel_size=1), _norm(norm, self.num_features), nn.ReLU()
            )
        )
        self.blocks = nn.Sequential(*blocks)

    def forward_features(self, image: Tensor) -> Tensor:
        """Map (B, C, D, H, W) to (B, F, D // 32, H // 32, W // 32)."""
        features: Tensor = self.blocks(image)
        return features

    def stages(self) -> list[nn.Module]:
        """Return the six blocks."""
        return list(self.blocks)


def _pooled_block(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1),
        _norm(norm, out_channels),
        nn.MaxPool3d(kernel_size=2),
        nn.ReLU(),
    )


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    size = max(size for size in range(1, GROUP_SIZE + 1) if channels % size == 0)
    return nn.GroupNorm(channels // size, channels)

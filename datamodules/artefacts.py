"""Random transforms of torchio on single samples, drawn from the sample's key like everything else that is random."""

from collections.abc import Sequence

import torch
import torchio as tio
from torch import Tensor

from datamodules.augmentation import sample_key
from datamodules.dataset import Sample, SampleKey
from datamodules.preprocessing import Affine
from datamodules.problems import CohortError


class TorchioTransforms:
    """Apply transforms to an image as it is read.

    Args:
        transforms: In the order in which they are applied; each decides by its own `p` whether it is.
        seed: Of the run.
    """

    def __init__(self, transforms: Sequence[tio.Transform], seed: int) -> None:
        self.transform = tio.Compose(transforms)
        self.seed = seed

    def __call__(self, image: Tensor, affine: Affine, sample: Sample, key: SampleKey) -> Tensor:
        """Return a changed copy.

        Args:
            image: (C, D, H, W), half precision.
            affine: Of the image; ranges of torchio are in mm.
            sample: Whose image it is.
            key: Its place in the training.

        Raises:
            CohortError: If the result does not fit where the image was.
        """
        with torch.random.fork_rng(devices=[]):
            drawn = sample_key(self.seed, key.epoch, sample.image_id, key.occurrence)
            torch.default_generator.manual_seed(drawn >> 1)  # torch takes 63 bits
            changed: Tensor = self.transform(tio.ScalarImage(tensor=image.float(), affine=affine)).data
        if changed.shape != image.shape or not (half := changed.half()).isfinite().all():
            raise CohortError(
                f"torchio_transforms: {sample.image_id} became {tuple(changed.shape)} voxels or larger than half "
                "precision holds. Leave out transforms that crop, pad or resample, and lower their ranges."
            )
        return half

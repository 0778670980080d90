"""Brain age from T1: a cohort of healthy people with their chronological age.

One column with T1 images (`t1w`), one with the age in years (`age`), optionally one with brain masks. Public cohorts in
this form:

- **IXI** (CC BY-SA 3.0, brain-development.org): the spreadsheet's IXI_ID and AGE become `participant_id` and `age`, the
  second part of the file name (HH, Guys, IOP) the `site`; `t1w` is `IXI012-HH-1211-T1.nii.gz`.
- **OpenBHB** (doi 10.1016/j.neuroimage.2022.119637): `participants.tsv` has `participant_id`, `site`, `age` and `sex`;
  `t1w` is the path of the `*_preproc-quasiraw_T1w` volume after conversion to NIfTI; `study` makes a useful `dataset`
  column.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from datamodules.base import BaseDataModule
from datamodules.dataset import Sample


class BrainAgeDataModule(BaseDataModule):
    """T1 volumes and the age in years.

    Example:
        A fit file's `data` section::

            data:
              class_path: datamodules.BrainAgeDataModule
              init_args:
                table: cohorts/brain-age/cohort.tsv
                held_out_sites: [site-c]

    Args:
        image: Column with the T1 image.
        target: Column with the age in years.
        sampling: `age-balanced` draws every age range equally often, `natural` sees each participant once an epoch.
        num_age_bins: Number of equal ranges of age between which `age-balanced` evens out.
        **kwargs: Everything `BaseDataModule` takes but `images`, `targets` and `stratify_by`.
    """

    def __init__(
        self,
        image: str = "t1w",
        target: str = "age",
        sampling: Literal["natural", "age-balanced"] = "natural",
        num_age_bins: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(images=[image], targets=[target], stratify_by=target, **kwargs)
        self.target = target
        self.sampling = sampling
        self.num_age_bins = num_age_bins

    def sampling_weights(self, samples: Sequence[Sample]) -> list[float] | None:
        """Weigh each sample by the inverse of how many share its age range; without an age, like the average sample."""
        if self.sampling == "natural":
            return None
        ages = np.array([sample.targets[self.target] for sample in samples])
        edges = np.linspace(np.nanmin(ages), np.nanmax(ages), self.num_age_bins + 1)
        bins = np.clip(np.digitize(ages, edges[1:-1]), 0, self.num_age_bins - 1)
        weights = 1.0 / np.bincount(bins, minlength=self.num_age_bins)[bins]
        weights[np.isnan(ages)] = weights[~np.isnan(ages)].mean()
        return [float(weight) for weight in weights]

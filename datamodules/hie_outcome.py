"""Outcome after neonatal brain injury from diffusion MRI: adverse or not, at about two years of age.

Newborns with hypoxic ischemic encephalopathy, scanned in the first two weeks: maps of the apparent diffusion
coefficient (`adc`, in 1e-3 mm2/s) and of its z-score against healthy newborns (`zadc`), and the outcome (1 adverse, 0
normal). Cohorts in this form:

- **BONBID-HIE** (doi 10.1038/s41597-024-03986-7, files 10.5281/zenodo.10602767, whose page has the licence): name the
  folder that holds `1ADC_ss`, `2Z_ADC` and `3LABEL` as the table (`datamodules.layouts.bonbid`). Its files hold
  ADC in 1e-6 mm2/s and are brought to 1e-3 when they are read. The outcome is not among the public files: put it into
  `clinical.csv` in the same folder, with `participant_id`, `outcome` and whatever else is known.
- Any cohort table with such columns; images that the study names otherwise are chosen with `images`.
"""

from typing import Any

from datamodules.base import BaseDataModule
from datamodules.cohort import Cohort, CohortError
from datamodules.preprocessing import Preprocessing


class HIEOutcomeDataModule(BaseDataModule):
    """ADC and z-scored ADC, and a binary outcome that is balanced over the splits.

    Where the outcome is missing an image teaches nothing and is not scored.

    Example:
        A fit file's `data` section::

            data:
              class_path: datamodules.HIEOutcomeDataModule
              init_args:
                table: BONBID2023_Train
                covariates: [birth_weight, gestational_age]
                preprocessing:
                  normalisation: [zscore, none]

    Args:
        images: Columns with the maps, in the order of the channels.
        target: Column with the outcome, 0 or 1.
        preprocessing: What is done once to every image; the brain is what is not zero in a map without skull.
        **kwargs: Everything `BaseDataModule` takes but `targets`.
    """

    phantom = "hie-outcome"

    def __init__(
        self,
        images: list[str] = ["adc", "zadc"],  # noqa: B006 - copied
        target: str = "outcome",
        preprocessing: Preprocessing = Preprocessing(shape=(64, 72, 64), foreground="nonzero"),  # noqa: B008 - frozen
        **kwargs: Any,
    ) -> None:
        super().__init__(images=list(images), targets=[target], preprocessing=preprocessing, **kwargs)
        self.target = target

    def _require_columns(self, cohort: Cohort) -> None:
        super()._require_columns(cohort)
        if self.target not in cohort.frame:  # a prediction does without
            return
        outcome = cohort.frame[self.target]
        strange = cohort.frame[outcome.notna() & ~outcome.isin([0, 1])]
        if len(strange):
            rows = [f"row {row} ({value:g})" for row, value in zip(strange["row"], strange[self.target], strict=True)]
            more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
            raise CohortError(
                f"The outcome {self.target} of {cohort.table.name} is neither 0 nor 1 in {', '.join(rows[:5])}{more}. "
                "Write 1 where it is adverse, 0 where it is not, and nothing where it is not known."
            )

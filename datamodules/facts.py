"""What a run says of its cohort: hashes, and counts per split and site, never an identifier."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from datamodules.cohort import Cohort, participant_key
from datamodules.dataset import Sample


def describe_cohorts(cohorts: Sequence[Cohort]) -> dict[str, Any]:
    """Return where the rows come from, and whether they are a phantom's."""
    tables = [
        {
            "name": cohort.table.name,
            "dataset": " and ".join(sorted(cohort.frame["dataset"].unique())),
            "sha256": cohort.sha256,
        }
        for cohort in cohorts
    ]
    return {"tables": tables, "phantom": any(cohort.schema.of_role("truth") for cohort in cohorts)}


def count_samples(samples: Sequence[Sample], targets: Sequence[str]) -> list[dict[str, Any]]:
    """Return participants, images and the spread of each target, per split and site."""
    keys = [participant_key(sample.dataset, sample.participant_id) for sample in samples]
    rows = pd.DataFrame(
        [
            {"split": sample.split, "site": sample.site, "key": key, **sample.targets}
            for sample, key in zip(samples, keys, strict=True)
        ]
    )
    return [
        {
            "split": str(split),
            "site": str(site),
            "participants": int(part["key"].nunique()),
            "images": len(part),
            "targets": {name: _spread(part[name]) for name in targets},
        }
        for (split, site), part in rows.groupby(["split", "site"], sort=True)
    ]


def _spread(values: pd.Series) -> dict[str, Any]:
    numbers = {"mean": values.mean(), "sd": values.std(), "min": values.min(), "max": values.max()}
    known = {name: float(number) if np.isfinite(number) else None for name, number in numbers.items()}
    return {"known": int(values.notna().sum()), **known}

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from evaluation.predictions import normalise_predictions
from evaluation.report_context import ReportContext
from evaluation.report_tables import parts_of


@pytest.fixture
def table():
    """A run's predictions: two training sites, one held-out site, 12 participants a site and split."""
    generator = np.random.default_rng(31)
    rows = [
        {
            "split": split,
            "site": site,
            "participant_id": f"{site}{split}{number}",
            "image_id": f"{site}{split}{number}_T1w",
        }
        for split, sites in {"test": "AB", "val": "AB", "external": "C"}.items()
        for site in sites
        for number in range(12)
    ]
    frame = pd.DataFrame(rows)
    age = generator.uniform(1, 88, len(frame))
    return frame.assign(
        protocol="holdout",
        arm="scratch",
        train_sites="A+B",
        dataset="phantom",
        output="age",
        target=age,
        prediction=40 + 0.8 * (age - 40) + generator.normal(0, 4, len(frame)),
        baseline=41.5,
    )


@pytest.fixture
def parts_from():
    """Assess the parts of a table with few replicates."""

    def assess_parts(frame, unit=None):
        return parts_of(normalise_predictions(frame), unit=unit, num_replicates=200, seed=0)

    return assess_parts


@pytest.fixture
def cohort():
    """The facts of the cohort that the table was predicted from."""
    ages = {"age": {"known": 12, "mean": 40.0, "sd": 9.0, "min": 2.0, "max": 80.0}}
    places = (("train", "A"), ("train", "B"), ("test", "A"), ("test", "B"), ("external", "C"))
    return {
        "tables": [{"name": "cohort.tsv", "dataset": "phantom", "sha256": "f" * 64}],
        "verified": True,
        "counts": [
            {"split": split, "site": site, "participants": 12, "images": 13, "targets": ages} for split, site in places
        ],
    }


@pytest.fixture
def context_with(cohort):
    """Make the context of a report, changed where a test wants it."""
    values = {
        "title": "age2hie/phantom: a run",
        "question": "Does it work?",
        "run_id": "abc123",
        "protocol": "holdout",
        "cohort": cohort,
        "split": {"protocol": "holdout", "seed": 3, "hash": "e" * 64},
        "config_yaml": "model: {width: 16}",
        "environment": {"python": "3.11.9", "packages": {"torch": "2.15.0"}},
        "history": pd.DataFrame({"key": "val/loss", "step": [1, 2], "value": [2.0, 1.0]}),
        "published": [{"metric": "mae", "value": 2.14, "unit": "years", "source": "Peng et al. 2021"}],
        "num_replicates": 200,
        "created": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    }
    return lambda **changes: ReportContext(**(values | changes))

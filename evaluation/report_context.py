"""What a report says beside the numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from evaluation.estimate import NUM_REPLICATES


@dataclass(frozen=True)
class ReportContext:
    """What a report says beside the numbers.

    Args:
        title: Title of the page.
        question: What was to be found out, in one sentence.
        study: Name of the study.
        run_name: Name of the run.
        run_id: MLflow's id of the run.
        protocol: How participants were assigned to parts.
        cohort: Facts of the cohort (`cohort.json`): `tables`, `verified`, `counts` per split and site.
        split: The split (`folds.json`): `protocol`, `seed`, `hash`.
        config_yaml: The resolved configuration.
        environment: Versions and machine (`environment.json`).
        history: Columns `key`, `step`, `value`: the course of the training.
        published: Figures of the literature: `metric`, `value`, and `unit`, `cohort`, `source`, `doi` where known.
        phantom: Whether the cohort is made by software.
        unit: Unit of the target; years for the output `age` by default.
        num_replicates: Bootstrap replicates.
        seed: Seed of the bootstrap.
        created: When the report was written; now by default.
    """

    title: str
    question: str | None = None
    study: str | None = None
    run_name: str | None = None
    run_id: str | None = None
    protocol: str | None = None
    cohort: Mapping[str, Any] | None = None
    split: Mapping[str, Any] | None = None
    config_yaml: str | None = None
    environment: Mapping[str, Any] | None = None
    history: pd.DataFrame | None = None
    published: Sequence[Mapping[str, Any]] = ()
    phantom: bool = False
    unit: str | None = None
    num_replicates: int = NUM_REPLICATES
    seed: int = 0
    created: datetime = field(default_factory=lambda: datetime.now(UTC))

"""One run of the store while it is evaluated: its folder, its predictions and its report."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from evaluation.assessment import Assessment, assess
from evaluation.estimate import NUM_REPLICATES
from evaluation.predictions import normalise_predictions, read_predictions, write_predictions
from evaluation.tasks import task_of
from experiments.reporting import write_run_report
from tracking.contract import CheckpointContract
from tracking.journal import read_cursor, read_start, undelivered
from tracking.shipping import settle
from tracking.store import Point, Store

PREDICTIONS = "predictions.parquet"
REPORT = "report.html"
PLACE = ["split", "dataset"]


@dataclass
class Session:
    """A run that is being evaluated; its status stays as it is.

    Args:
        store: The store it is in.
        contract: What the checkpoint says of the run it is from.
        run_id: MLflow's id of the run.
        num_replicates: Bootstrap replicates of its metrics; 0 gives no intervals.
    """

    store: Store
    contract: CheckpointContract
    run_id: str
    num_replicates: int = NUM_REPLICATES

    @classmethod
    def reopen(cls, contract: CheckpointContract, store: Store, num_replicates: int = NUM_REPLICATES) -> "Session":
        """Open the run that a checkpoint came from, to add to it; what of it has not reached the store goes first."""
        folder = store.folder(contract.run_id)
        if read_start(folder) is not None and undelivered(folder):
            settle(store, folder)
        return cls(store, contract, read_cursor(folder).run_id or contract.run_id, num_replicates)

    @property
    def folder(self) -> Path:
        """The run's folder: checkpoints, predictions, report."""
        return self.store.folder(self.run_id)

    @property
    def predictions(self) -> pd.DataFrame:
        """Every prediction that the run has kept so far."""
        return read_predictions(self.folder / PREDICTIONS)

    def keep_predictions(self, rows: pd.DataFrame, step: int) -> None:
        """Merge rows into the run's predictions and log the metrics of each split.

        Rows of the same split and dataset are replaced; a second external cohort stands beside the first.

        Args:
            rows: What the module returned.
            step: Optimiser step of the weights.
        """
        fresh = labelled(rows, self.contract)
        path = self.folder / PREDICTIONS
        if path.is_file():
            kept = read_predictions(path)
            replaced = pd.MultiIndex.from_frame(kept[PLACE]).isin(pd.MultiIndex.from_frame(fresh[PLACE]))
            fresh = pd.concat([kept[~replaced], fresh], ignore_index=True)
        write_predictions(fresh, path)
        self.store.log_artifact(self.run_id, path)
        now = time.time()
        values = [item for split in rows["split"].unique() for item in summary(split, self.assessment(split)).items()]
        self.store.log_points(self.run_id, [Point(name, step, value, now) for name, value in values])

    def assessment(self, split: str) -> Assessment:
        """Return the metrics of one split, computed from the predictions table."""
        frame = self.predictions
        part = frame[frame["split"] == split]
        return assess(part, task_of(part), num_replicates=self.num_replicates)

    def write_report(self) -> Path:
        """Render the run's report, keep it as an artifact, and return the local file.

        It shows no images of participants where these must not be sent; `fontanel report` writes one that does.
        """
        with_images = self.store.sends_images(self.run_id)
        path = write_run_report(self.store, self.run_id, self.folder / REPORT, with_images=with_images)
        self.store.log_artifact(self.run_id, path)
        return path


def labelled(rows: pd.DataFrame, contract: CheckpointContract) -> pd.DataFrame:
    """Return a module's prediction rows as a predictions table of the run that the contract names."""
    return normalise_predictions(rows.assign(**contract.key, run_id=contract.run_id))


def summary(split: str, assessment: Assessment) -> dict[str, float]:
    """Return the metrics of a split by name, with the ends of their intervals; undefined ones are left out."""
    values = {
        f"{split}/{metric}{end}": value
        for metric, estimate in assessment.metrics.items()
        for end, value in (("", estimate.estimate), ("_low", estimate.low), ("_high", estimate.high))
    }
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}

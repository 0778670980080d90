"""One run of the store while a verb works on it: its folder, its artifacts, its predictions and its report."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint

from evaluation.assessment import Assessment, assess
from evaluation.predictions import normalise_predictions, read_predictions, write_predictions
from experiments.reporting import write_run_report
from experiments.runtime import BEST_CHECKPOINT, FontanelCLI
from lightning_modules.base import BaseModule
from tracking.checkpoints import CheckpointContract, RunRecorder, export_model, load_checkpoint
from tracking.environment import environment_facts
from tracking.logger import RunLogger
from tracking.store import Store

PROTOCOL = "holdout"
PREDICTIONS = "predictions.parquet"
REPORT = "report.html"
PLACE = ["split", "dataset"]
NUM_REPLICATES = 2000


@dataclass
class Session:
    """A run, open for writing.

    Args:
        store: The store it is in.
        logger: Logger of the run.
        contract: What a checkpoint of this run says of itself.
    """

    store: Store
    logger: RunLogger
    contract: CheckpointContract

    @classmethod
    def start(cls, cli: FontanelCLI, *, study: str, arm: str, store: Store) -> "Session":
        """Create the run and record configuration, cohort, split and environment in it; the cohort has been read."""
        facts, split, config = cli.datamodule.cohort_facts(), cli.datamodule.split.as_dict(), cli.resolved()
        name = f"{arm}-{PROTOCOL}-0-r0-s{cli.seed}"
        key = {
            "protocol": PROTOCOL,
            "repeat": "0",
            "fold": "0",
            "seed": str(cli.seed),
            "arm": arm,
            "train_sites": training_sites(facts),
        }
        tags = {**key, "test_site": "+".join(cli.datamodule.held_out_sites), "verified": str(facts["verified"]).lower()}
        logger = RunLogger(store, study, name, tags)
        data = cli.datamodule
        seen = sorted({hashed for sample in data.part("train", "val") for hashed in data.image_hashes(sample)})
        contract = CheckpointContract(config, logger.run_id, study, name, split, seen, key)
        logger.log_config(config)
        logger.log_json("cohort.json", facts)
        logger.log_json("folds.json", split)
        logger.log_json("environment.json", environment_facts())
        return cls(store, logger, contract)

    @classmethod
    def reopen(cls, contract: CheckpointContract, store: Store) -> "Session":
        """Open the run that a checkpoint came from, to add to it."""
        return cls(store, RunLogger(store, contract.study, contract.run_name, {}, run_id=contract.run_id), contract)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self.contract.run_id

    @property
    def folder(self) -> Path:
        """The run's folder: checkpoints, predictions, report."""
        return self.store.folder(self.run_id)

    @property
    def predictions(self) -> pd.DataFrame:
        """Every prediction that the run has kept so far."""
        return read_predictions(self.folder / PREDICTIONS)

    def training_callbacks(self, model: BaseModule) -> list[Callback]:
        """Return what keeps the best and the newest checkpoint and makes each say where it came from."""
        keeper = ModelCheckpoint(
            dirpath=self.folder / "checkpoints",
            filename="best",
            monitor=model.monitor,
            mode=model.monitor_mode,
            save_last=True,
            enable_version_counter=False,
        )
        return [RunRecorder(self.contract), keeper]

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Close the run as finished, as killed after Ctrl-C, or as failed when something is raised.

        Raises:
            KeyboardInterrupt: After Ctrl-C, which Lightning turns into an exit of its own.
        """
        try:
            yield
        except BaseException as error:
            interruption = next((e for e in (error, error.__context__) if isinstance(e, KeyboardInterrupt)), None)
            self.logger.finalize("killed" if interruption else "failed")
            if interruption:
                raise interruption from None
            raise
        self.logger.finalize("success")

    def export(self, cli: FontanelCLI) -> None:
        """Write the best weights and what a reader of them must know; keep both, and the checkpoint, in the store."""
        best = self.folder / BEST_CHECKPOINT
        description = {
            "study": self.contract.study,
            "run_id": self.run_id,
            "model": cli.config["model"]["class_path"],
            "input": cli.datamodule.data_contract(),
            "outputs": {
                name: {"unit": cli.datamodule.target_unit(name), **facts}
                for name, facts in cli.model.describe_outputs().items()
            },
        }
        folder = self.folder / "model"
        export_model(
            load_checkpoint(best)["state_dict"], folder / "weights.safetensors", folder / "model.json", description
        )
        self.logger.log_artifact(folder, "model")
        for path in (best, best.with_name(f"{best.name}.sha256")):
            self.logger.log_artifact(path, "checkpoints")

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
        self.logger.log_artifact(path)
        for split in rows["split"].unique():
            self.logger.log_metrics(summary(split, self.assessment(split)), step=step)

    def assessment(self, split: str) -> Assessment:
        """Return the metrics of one split, computed from the predictions table."""
        frame = self.predictions
        return assess(frame[frame["split"] == split], num_replicates=NUM_REPLICATES)

    def write_report(self) -> Path:
        """Render the run's report, keep it as an artifact, and return the local file."""
        path = write_run_report(self.store, self.run_id, self.folder / REPORT)
        self.logger.log_artifact(path)
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


def training_sites(facts: Mapping[str, Any]) -> str:
    """Return the sites of the training part, joined by +, from the cohort's facts."""
    return "+".join(sorted({count["site"] for count in facts["counts"] if count["split"] == "train"}))

"""One training run: started or resumed, kept safe while it lasts, and closed with its true status."""

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning import Callback
from pytorch_lightning.utilities import rank_zero_only

from experiments.leakage import TESTED_PARTS, Pretraining, read_pretraining, require_disjoint
from experiments.runtime import BEST_CHECKPOINT, ConfigurationError, FontanelCLI, locate_weights, rebuild
from tracking.checkpoints import export_model, load_checkpoint
from tracking.contract import CHECKPOINTS, CheckpointContract, newest_whole
from tracking.environment import environment_facts
from tracking.errors import RunWarning
from tracking.heartbeat import HEARTBEAT, Heartbeat
from tracking.journal import last_status
from tracking.keeper import CheckpointKeeper
from tracking.logger import RunLogger
from tracking.resources import Resources
from tracking.shipping import find_folder
from tracking.store import Store

HOLDOUT = "holdout"


@dataclass(frozen=True)
class RunKey:
    """What tells a run from the others of its study: its part of the key of the predictions table, and its name.

    Args:
        arm: Which arm of the study it is.
        protocol: Who trains for whom.
        repeat: Which draw of the protocol.
        fold: Name of the test set.
        seed: Which of the trainings that share everything but their random numbers.
        name: Name of the run, in the place of the one made of the others.
    """

    arm: str = "scratch"
    protocol: str = HOLDOUT
    repeat: int = 0
    fold: str = "0"
    seed: int = 0
    name: str = ""

    @property
    def run_name(self) -> str:
        """Name of the run."""
        return self.name or f"{self.arm}-{self.protocol}-{self.fold}-r{self.repeat}-s{self.seed}"

    def columns(self, train_sites: str) -> dict[str, str]:
        """Return the run's part of the key of the predictions table."""
        key = {name: str(value) for name, value in asdict(self).items() if name != "name"}
        return {**key, "train_sites": train_sites}


@dataclass
class Training:
    """A run that is being trained.

    Args:
        cli: Its configuration, model and datamodule.
        logger: Logger of the run.
        contract: What a checkpoint of this run says of itself.
        point: Where the run is resumed, None for a new one.
        weights: Pretrained weights that a new run starts from.
        pretraining: Whom they were trained on, as far as that is known.
        documents: Further JSON documents of the run, by name.
    """

    cli: FontanelCLI
    logger: RunLogger
    contract: CheckpointContract
    point: "ResumePoint | None" = None
    weights: Path | None = None
    pretraining: Pretraining | None = None
    documents: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        cli: FontanelCLI,
        *,
        study: str,
        key: RunKey,
        store: Store,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
    ) -> "Training":
        """Create the run; the cohort has been read.

        Args:
            cli: Its configuration, model and datamodule.
            study: MLflow experiment.
            key: What tells it from the other runs of the study.
            store: Where it is kept.
            tags: Further tags.
            run_id: A run that came to no checkpoint, to begin again instead of creating one.

        Raises:
            LeakageError: The pretrained weights have seen participants who would be tested.
        """
        data = cli.datamodule
        weights, pretraining = None, None
        if (source := transfer_source(cli)) is not None:
            weights = locate_weights(source, store)
            pretraining = read_pretraining(weights, name=source, locate=partial(locate_weights, store=store))
            require_disjoint(pretraining, data, TESTED_PARTS)
        facts = data.cohort_facts()
        columns = key.columns(sites_of(facts, "train"))
        tested = "+".join(data.held_out_sites) if key.protocol == HOLDOUT else sites_of(facts, "test", "external")
        more = {"test_site": tested, "verified": str(facts["verified"]).lower(), **(tags or {})}
        offset = None if run_id is None else 0
        logger = RunLogger(store, study, key.run_name, {**columns, **more}, run_id=run_id, offset=offset)
        seen = seen_images(cli)
        split = data.split.as_dict()
        contract = CheckpointContract(cli.resolved(), logger.run_id, study, key.run_name, split, seen, columns)
        return cls(cli, logger, contract, weights=weights, pretraining=pretraining)

    @classmethod
    def resume(cls, cli: FontanelCLI, point: "ResumePoint", store: Store) -> "Training":
        """Open a run again where it stopped."""
        contract = point.contract
        run_id, offset = contract.run_id, contract.journal
        logger = RunLogger(store, contract.study, contract.run_name, {}, run_id=run_id, offset=offset)
        return cls(cli, logger, replace(contract, config=cli.resolved()), point)

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self.contract.run_id

    @property
    def speaks(self) -> bool:
        """Whether this process is the one of several that leaves results; the others train along."""
        return bool(self.run_id) and rank_zero_only.rank == 0  # type: ignore[attr-defined]  # set by Lightning

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.logger.folder

    def shared_folder(self) -> Path:
        """Return the run's folder on every process; after a training, only the first knows it by itself."""
        if self.point is not None:
            return self.point.folder
        if not torch.distributed.is_initialized():
            return self.folder
        told = [str(self.folder) if self.run_id else ""]
        torch.distributed.broadcast_object_list(told, src=0)
        return Path(told[0])

    def run(self, callbacks: Sequence[Callback] = ()) -> None:
        """Record what the run is made of, train, export the best weights, and close the run.

        Args:
            callbacks: Further ones of the trainer.
        """
        self.cli.model.seed = self.cli.seed
        with self.logger.closing():
            self._record()
            self._transfer()
            trainer = self.cli.make_trainer(self.logger, [*self._callbacks(), *callbacks])
            if self.point is not None:
                self.point.warn_of_other_processes(trainer.world_size)
            if self.point is None or not self.point.is_over:
                checkpoint = self.cli.config["ckpt_path"] if self.point is None else str(self.point.checkpoint)
                data = self.cli.datamodule
                trainer.fit(self.cli.model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if trainer.is_global_zero:
                self._export()

    def record(self, name: str, facts: Mapping[str, Any]) -> None:
        """Record what the run is made of, and a document more, without a training."""
        with self.logger.closing():
            self._record()
            self.logger.log_json(name, facts)

    def _record(self) -> None:
        """Write configuration, cohort, split and environment; delivered at once, for no checkpoint brings them back."""
        self.logger.log_config(self.contract.config)
        self.logger.log_json("cohort.json", self.cli.datamodule.cohort_facts())
        self.logger.log_json("folds.json", self.contract.split)
        self.logger.log_json("environment.json", environment_facts())
        for name, content in self.documents.items():
            self.logger.log_json(name, content)
        self.logger.release()

    def _transfer(self) -> None:
        """Load the pretrained weights of a new run, and record what became of each, and what is not known of them."""
        if self.weights is None or self.pretraining is None:
            return
        ledger = self.cli.model.load_pretrained(self.weights).as_dict()
        self.logger.log_json("transfer.json", {**ledger, "unknown_participants": self.pretraining.gap})

    def _callbacks(self) -> list[Callback]:
        model = self.cli.model
        folder = self.folder / CHECKPOINTS
        keeper = CheckpointKeeper(folder, self.contract, self.logger, model.monitor, model.monitor_mode)
        watched = [Heartbeat()] if HEARTBEAT in os.environ else []
        return [keeper, Resources(self.logger), *watched]

    def _export(self) -> None:
        """Write the best weights and what a reader of them must know; keep both, and the checkpoint, in the store."""
        best = self.folder / BEST_CHECKPOINT
        weights = load_checkpoint(best)["state_dict"]
        self.cli.model.load_state_dict(weights)  # it holds the last weights, or none where only this was left to do
        data = self.cli.datamodule
        description = {
            "study": self.contract.study,
            "run_id": self.run_id,
            "model": self.cli.config["model"]["class_path"],
            "network": yaml.safe_load(self.contract.config)["model"]["init_args"]["network"],
            "datasets": sorted({sample.dataset for sample in data.part("train", "val")}),
            "ledger": None if self.cli.model.ledger is None else self.cli.model.ledger.sha256,
            "input": data.data_contract(),
            "outputs": {
                name: {"unit": data.target_unit(name), **facts}
                for name, facts in self.cli.model.describe_outputs().items()
            },
        }
        folder = self.folder / "model"
        export_model(weights, folder / "weights.safetensors", folder / "model.json", description)
        self.logger.log_artifact(folder, "model")
        for path in (best, best.with_name(f"{best.name}.sha256")):
            self.logger.log_artifact(path, CHECKPOINTS)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run is resumed.

    Args:
        folder: The run's folder.
        checkpoint: Its newest whole checkpoint.
        contract: What the checkpoint says of itself.
        words: Arguments that are to change, such as `["--trainer.max_epochs", "200"]`.
    """

    folder: Path
    checkpoint: Path
    contract: CheckpointContract
    words: Sequence[str]

    @classmethod
    def of(cls, reference: str, words: Sequence[str], store: Store) -> "ResumePoint":
        """Find the newest whole checkpoint of a run; damaged ones are named and left out.

        Args:
            reference: Run id, run name, or run folder.
            words: Arguments that are to change.
            store: The store the run is in; it need not answer.
        """
        folder = find_folder(store, reference)
        checkpoint, contract, problems = newest_whole(folder)
        for problem in problems:
            sys.stderr.write(f"Left out: {problem}\n")
        return cls(folder, checkpoint, contract, words)

    def rebuild(self) -> FontanelCLI:
        """Rebuild model and datamodule as they were, but for what is to change.

        Raises:
            ConfigurationError: If the training could not be the same one.
        """
        cli = rebuild(self.contract, self.words)
        self._restore_threads(cli.config["num_threads"])
        data = cli.datamodule
        data.assign_splits()
        if data.split.as_dict() != self.contract.split or seen_images(cli) != self.contract.training_images:
            raise ConfigurationError(
                f"Run {self.contract.run_id} cannot be resumed: its cohort, or the split of it, is not what it was "
                "trained on. Bring the table and its images back as they were, or start a new run."
            )
        return cli

    @property
    def is_over(self) -> bool:
        """Whether the training has come to its end, and nothing changes that."""
        return self.contract.finished and not self.words

    @property
    def is_done(self) -> bool:
        """Whether nothing at all is left to do."""
        return self.is_over and last_status(self.folder) == "FINISHED"

    def warn_of_other_processes(self, num_processes: int) -> None:
        """Say that the training will not be the same one where the number of processes is another."""
        before = self.contract.world_size
        if num_processes != before:
            text = f"Run {self.contract.run_id} was trained in {before} processes and goes on in {num_processes}"
            warnings.warn(f"{text}: in the same order, but not to the same bits.", RunWarning, stacklevel=2)

    def _restore_threads(self, wanted: int | None) -> None:
        """Compute with as many threads as before: another number rounds otherwise."""
        before = self.contract.num_threads
        if wanted is not None and wanted != before:
            raise ConfigurationError(
                f"Run {self.contract.run_id} was trained with {before} threads, and {wanted} round otherwise. "
                "Leave num_threads as it was, or start a new run."
            )
        torch.set_num_threads(before)


def seen_images(cli: FontanelCLI) -> list[str]:
    """Return the content hashes of the images that the weights, or their choice, will have seen."""
    data = cli.datamodule
    return sorted({hashed for sample in data.part("train", "val") for hashed in data.image_hashes(sample)})


def transfer_source(cli: FontanelCLI) -> str | None:
    """Return where the pretrained weights of a configuration come from, None where it trains from scratch."""
    return None if cli.model.transfer is None else cli.model.transfer.source


def sites_of(facts: Mapping[str, Any], *parts: str) -> str:
    """Return the sites of parts of the split, joined by +, from the cohort's facts."""
    return "+".join(sorted({count["site"] for count in facts["counts"] if count["split"] in parts}))

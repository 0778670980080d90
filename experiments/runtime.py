"""What fit, validate, test and predict share: the configuration, the trainer, and the run in the store."""

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from filelock import FileLock, Timeout
from mlflow.exceptions import MlflowException
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from datamodules.base import BaseDataModule
from experiments.cli import WRONG_USAGE, format_warning
from experiments.epochs import LiveProgressBar, PlainProgressBar
from experiments.leakage import read_pretraining, seen_participants
from experiments.own_code import find_own_code
from experiments.pack_contents import unpack
from experiments.usage import explain
from lightning_modules.base import BaseModule
from tracking.checkpoints import AtomicCheckpointIO
from tracking.contract import BEST, CHECKPOINTS, CheckpointContract, read_contract
from tracking.errors import StoreError
from tracking.packs import is_pack
from tracking.paths import without_hidden
from tracking.shipping import find_folder
from tracking.store import Store

# Lightning advertises and repeats the obvious on every start. Its warnings stay, but for those about torch's internals,
# the checkpoint keeper that an evaluation does not need, loader processes, which we do without, few steps an epoch, and
# `srun`, which our launcher uses where it is wanted.
warnings.formatwarning = format_warning  # Lightning has put its own in its place when it was imported
for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated", module=r"pytorch_lightning\..*")
warnings.filterwarnings("ignore", message=r".*does not have many workers", module=r"pytorch_lightning\..*")
warnings.filterwarnings("ignore", message=r"The number of training batches", module=r"pytorch_lightning\..*")
warnings.filterwarnings("ignore", message=r"The `srun` command is available on your system but is not used")
warnings.filterwarnings("ignore", message=r"Be aware that when using `ckpt_path`", module=r"pytorch_lightning\..*")

TRAINER_DEFAULTS = {"num_sanity_val_steps": 0, "use_distributed_sampler": False, "log_every_n_steps": 1}
BEST_CHECKPOINT = f"{CHECKPOINTS}/{BEST}"


class ConfigurationError(ValueError):
    """A configuration, or the reference to a run, that cannot be used; says what to write instead."""


@contextmanager
def work_alone(folder: Path, advice: str = "Wait for its end, or stop it first.") -> Iterator[None]:
    """Refuse to work on a folder that another process of this machine works on.

    Args:
        folder: The folder.
        advice: What to do instead.

    Raises:
        ConfigurationError: Another process does.
    """
    lock = FileLock(folder / "work.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigurationError(f"Another process works on {folder}. {advice}") from error
    try:
        yield
    finally:
        lock.release()


class UsageError(ConfigurationError):
    """Words that a configuration does not take."""

    exit_code = WRONG_USAGE


class FontanelCLI(LightningCLI):
    """A fit file and the words after it, as a model, a datamodule and (once the run exists) a trainer.

    Args:
        words: Arguments as typed, such as `["--config", "pretrain.yaml", "--trainer.max_epochs", "3"]`.
    """

    def __init__(self, words: Sequence[str]) -> None:
        find_own_code()
        super().__init__(
            BaseModule,
            BaseDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=list(words),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={
                "prog": "fontanel fit",
                "description": "Every argument of a fit file.",
                "exit_on_error": False,
            },
        )

    quiet = False

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what a fit file holds besides Lightning's own sections."""
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="Checkpoint to start from.")
        parser.add_argument(
            "--num_threads",
            type=int | None,
            default=None,
            help="Threads of each process on the CPU (default: torch's choice); a resumed run keeps them.",
        )
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401 - Lightning's signature
        """Parse the given words; the words of the process are the front door's.

        Raises:
            UsageError: The configuration does not take them.
        """
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            names = {action.dest.partition(".")[0] for action in parser._actions}
            raise UsageError(explain(str(error), names)) from None

    def before_instantiate_classes(self) -> None:
        """Set the number of threads."""
        if self.config["num_threads"] is not None:
            torch.set_num_threads(self.config["num_threads"])

    def instantiate_classes(self) -> None:
        """Make model and datamodule; the trainer waits for the run it logs to."""
        self.config_init = self.parser.instantiate(self.config)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")

    def make_trainer(self, logger: Any, callbacks: Iterable[Callback] = ()) -> Trainer:  # noqa: ANN401
        """Return the configured trainer with our logger, checkpoint format and progress."""
        config = self._get(self.config_init, "trainer")
        chosen = config.get("callbacks") or []
        shown = [] if self.quiet else [LiveProgressBar() if sys.stderr.isatty() else PlainProgressBar()]
        data = self.datamodule
        nothing = {"limit_val_batches": 0} if data.split is not None and not data.part("val") else {}
        trainer: Trainer = self.instantiate_trainer(
            **nothing,
            logger=logger,
            callbacks=[*chosen, *callbacks, *shown],
            enable_progress_bar=not self.quiet,
            plugins=[*(config.get("plugins") or []), AtomicCheckpointIO()],
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in chosen),
            enable_model_summary=False,
        )
        return trainer

    def be_quiet(self) -> None:
        """Show no progress: this is one of many, and whoever started it shows how far all have come."""
        self.quiet = True
        self.datamodule.shows_progress = False

    @property
    def seed(self) -> int:
        """The seed that `seed_everything` ended up with."""
        return int(self.config["seed_everything"])

    def resolved(self) -> str:
        """Return the configuration as YAML, every default written out, ready to be read again."""
        text: str = self.parser.dump(self.config, skip_unset=False, skip_link_targets=True, format="yaml")
        values = yaml.safe_load(text)
        values.pop("config", None)
        return yaml.safe_dump(values, sort_keys=False)


def locate_checkpoint(reference: str, store: Store) -> Path:
    """Return the checkpoint that a run (id, name, folder) or a file name stands for."""
    if Path(reference).is_file():
        return Path(reference)
    try:
        local = find_folder(store, reference) / BEST_CHECKPOINT
    except StoreError:
        return store.download(store.find_run(reference).run_id, BEST_CHECKPOINT)
    return local if local.is_file() else store.download(store.find_run(reference).run_id, BEST_CHECKPOINT)


def locate_weights(reference: str, store: Store) -> Path:
    """Return the file of pretrained weights that a reference stands for.

    Args:
        reference: A file, a run (id, name, folder), or a registered model (`models:/NAME@ALIAS`, or `/VERSION`).
        store: Where runs and models are looked up.
    """
    if not reference.startswith("models:/"):
        return locate_checkpoint(reference, store)
    name, at, alias = reference.removeprefix("models:/").partition("@")
    name, _, number = (name, "", "") if at else name.partition("/")
    try:
        if at:
            version = store.client.get_model_version_by_alias(name, alias)
        else:
            version = store.client.get_model_version(name, number)
    except MlflowException as error:
        raise StoreError(f"There is no registered model {reference} in {store.shown_uri}: {error.message}") from error
    if not version.run_id:
        raise StoreError(f"The registered model {reference} names no run; name its weights as a file instead.")
    return locate_checkpoint(version.run_id, store)


class Restored(NamedTuple):
    """A trained model, ready to be evaluated.

    Args:
        cli: Configuration, model and datamodule.
        contract: What the checkpoint says of itself.
        checkpoint: The weights.
    """

    cli: FontanelCLI
    contract: CheckpointContract
    checkpoint: Path


def restore(
    reference: str, words: Sequence[str], store: Store | None, scratch: Path, trust_code: bool = False
) -> Restored:
    """Rebuild model and datamodule from what a checkpoint says of itself, with later words on top.

    The checkpoint decides who was trained on; a participant its split does not name is new, unless the training has
    seen the image under another name. One process evaluates, unless the words say otherwise.

    Args:
        reference: Run id, run name, run folder, checkpoint file, or pack.
        words: Further arguments, such as `["--data.table", "new.tsv"]`.
        store: Where runs are looked up; a pack needs none.
        scratch: Folder for the split, and for what is in a pack, on their way.
        trust_code: Let a pack name classes of packages that are not Fontanel's or those it rests on.
    """
    locate: Callable[[str], Path] = Path
    if store is None or is_pack(reference):
        checkpoint = unpack(reference, scratch, trust_code)
    else:
        checkpoint = locate_checkpoint(reference, store)
        locate = partial(locate_weights, store=store)
    contract = read_contract(checkpoint)
    if store is not None:  # a copy that was downloaded does not lie beside the paths of its run
        contract = contract.with_paths(store.folder(contract.run_id))
    folds = scratch / "folds.json"
    folds.write_text(contract.split_json, encoding="utf-8")
    alone = ["--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto"]
    cli = rebuild(contract, ["--data.split_file", str(folds), *alone, *words])
    lineage = read_pretraining(checkpoint, locate=locate).contracts
    cli.datamodule.seen_images = frozenset(name for past in lineage for name in past.training_images)
    cli.datamodule.seen_participants = frozenset(key for past in lineage[1:] for key in seen_participants(past))
    return Restored(cli, contract, checkpoint)


def rebuild(contract: CheckpointContract, words: Sequence[str]) -> FontanelCLI:
    """Return the configuration that a checkpoint carries, with later words on top."""
    with scratch_folder() as scratch:
        config = scratch / "config.yaml"
        config.write_text(without_hidden(contract.config), encoding="utf-8")
        return FontanelCLI(["--config", str(config), *words])


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder that disappears after use."""
    with tempfile.TemporaryDirectory(prefix="fontanel-") as name:
        yield Path(name)


def study_name(config_files: Sequence[str]) -> str:
    """Name the MLflow experiment after the configuration: `experiments/age2hie/pretrain.yaml` is `age2hie/pretrain`."""
    if not config_files:
        return "unnamed"
    path = Path(config_files[-1]).resolve()
    return f"{path.parent.name}/{path.stem}"

"""What a checkpoint says of itself, and which checkpoint of a run to take."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tracking.checkpoints import FORMAT, CheckpointError, load_checkpoint, local_path
from tracking.paths import hide_paths_yaml, restore_paths
from tracking.redaction import redact_yaml

CONTRACT = "fontanel"  # key of the contract in a checkpoint
CHECKPOINTS = "checkpoints"  # folder in a run's folder
BEST = "best.ckpt"
_NAME = "step-{:08d}.ckpt"  # sorts by time


@dataclass(frozen=True)
class CheckpointContract:
    """What a checkpoint says of itself: enough to rebuild model and data, and to know who was trained on.

    Args:
        config: The resolved configuration as YAML.
        run_id: Run that wrote it.
        study: Study of that run.
        run_name: Name of that run.
        split: Content of `folds.json`: the participants of every part.
        training_images: Content hashes of the images that the weights, or their choice, have seen.
        key: The run's part of the predictions table's key: protocol, repeat, fold, seed, arm, train_sites.
        num_threads: Threads that each process computed with; another number rounds otherwise.
        world_size: Number of processes.
        journal: Where the run's journal stood when the checkpoint was saved.
        finished: Whether the training was over.
        format: Version of this record.
    """

    config: str
    run_id: str
    study: str
    run_name: str
    split: dict[str, Any]
    training_images: list[str] = field(default_factory=list)
    key: dict[str, str] = field(default_factory=dict)
    num_threads: int = 1
    world_size: int = 1
    journal: int = 0
    finished: bool = False
    format: int = FORMAT

    @property
    def split_json(self) -> str:
        """The split as the text of a `folds.json`."""
        return json.dumps(self.split, indent=2) + "\n"

    def with_paths(self, folder: Path) -> "CheckpointContract":
        """Return the same with the paths of its configuration, where the folder of its run knows them."""
        return replace(self, config=restore_paths(self.config, folder))

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types without secrets and folders of this machine, as they are stored."""
        return {
            **asdict(self),
            "config": hide_paths_yaml(redact_yaml(self.config)),
            "split": json.loads(self.split_json),
        }


def read_contract(path: str | Path) -> CheckpointContract:
    """Read what a checkpoint says of itself.

    Args:
        path: A checkpoint, or the folder of a run, where the best one is taken.

    Raises:
        CheckpointError: If there is none, it cannot be trusted, or another program made it.
    """
    target = find_checkpoint(path)
    record = load_checkpoint(target).get(CONTRACT)
    if not isinstance(record, dict):
        raise CheckpointError(
            f"{target} does not say how it was made: it is not from a Fontanel run. Its weights can still be the "
            "source of a transfer (model.transfer.source)."
        )
    if record.get("format") != FORMAT:
        raise CheckpointError(
            f"{target} has format {record.get('format')}; this version reads format {FORMAT}. Update Fontanel."
        )
    try:
        return CheckpointContract(**record).with_paths(target.parent.parent)
    except TypeError as error:
        raise CheckpointError(f"{target} has an incomplete record of how it was made: {error}.") from error


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint itself, or the best (else the newest) one of a run's folder."""
    target = local_path(path)
    if not target.is_dir():
        return target
    for folder in (target / CHECKPOINTS, target):
        for found in (folder / BEST, *newest_first(folder)):
            if found.is_file():
                return found
    raise CheckpointError(f"The folder {target} has no checkpoint: neither {BEST} nor one of a step.")


def checkpoint_name(step: int) -> str:
    """Return the file name of the checkpoint of an optimiser step."""
    return _NAME.format(step)


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints of steps in a folder, the newest first."""
    return sorted(folder.glob("step-*.ckpt"), reverse=True)


def newest_whole(folder: Path) -> tuple[Path, CheckpointContract, list[str]]:
    """Return the newest checkpoint that can be trusted, its contract, and what is wrong with newer ones.

    Args:
        folder: Folder of a run.

    Raises:
        CheckpointError: If there is none.
    """
    problems: list[str] = []
    for path in newest_first(folder / CHECKPOINTS):
        try:
            return path, read_contract(path), problems
        except CheckpointError as error:
            problems.append(str(error))
    raise CheckpointError("\n".join([f"{folder} has no checkpoint to resume from.", *problems]))

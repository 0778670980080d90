"""The Lightning logger of a run: points are kept as tensors and go to the store in batches."""

import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger
from torch import Tensor
from typing_extensions import override

from tracking.files import make_private_folder
from tracking.params import flatten_params, valid_name
from tracking.store import Point, RunStatus, Store, StoreError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from pytorch_lightning.callbacks import ModelCheckpoint

BUFFERED_POINTS = 5000  # points after which the buffer is flushed within an epoch, to keep memory flat
_STATUS: dict[str, RunStatus] = {
    "success": "FINISHED",
    "finished": "FINISHED",
    "failed": "FAILED",
    "killed": "KILLED",
    "interrupted": "KILLED",
}


class RunLogger(Logger):
    """Write one run: metrics, parameters, artifacts and its status.

    The run is started (or resumed) on rank 0 when it is first needed; other ranks write nothing. Metrics are buffered
    and leave for the store at the end of an epoch, when a checkpoint has been saved and at the end, each
    (key, step) once. A store that does not answer stops nothing: the points wait for the next flush.

    Args:
        store: The store the run is in.
        study: Name of the MLflow experiment.
        name: Name of the run, `<arm>-<protocol>-<fold>-r<repeat>-s<seed>`.
        tags: Tags of the run: protocol, repeat, fold, train_sites, test_site, arm, seed.
        run_id: Run to resume instead of starting one.
    """

    def __init__(self, store: Store, study: str, name: str, tags: Mapping[str, str], run_id: str | None = None) -> None:
        super().__init__()
        self.store = store
        self.study = study
        self.run_name = name
        self.tags = dict(tags)
        self._resumed = run_id
        self._run_id: str | None = None
        self._buffer = PointBuffer()
        self._failure: StoreError | None = None  # of the last flush

    @property
    def run_id(self) -> str:
        """Id of the run, "" on every rank but 0."""
        if getattr(rank_zero_only, "rank", 0) != 0:
            return ""
        if self._run_id is None:
            if self._resumed is None:
                self._run_id = self.store.start_run(self.study, self.run_name, self.tags)
            else:
                self._run_id = self.store.resume_run(self._resumed).run_id
        return self._run_id

    @property
    def experiment(self) -> "MlflowClient":
        """The MLflow client, for what this logger does not offer."""
        return self.store.client

    @property
    @override
    def name(self) -> str:
        """Empty, as is `version`: checkpoints without a folder of their own go to `<run folder>/checkpoints`."""
        return ""

    @property
    @override
    def version(self) -> str:
        """Empty, see `name`."""
        return ""

    @property
    @override
    def save_dir(self) -> str | None:
        """Folder of the run, None on every rank but 0."""
        return str(make_private_folder(self.store.folder(self.run_id))) if self.run_id else None

    @property
    @override
    def log_dir(self) -> str | None:
        """Folder of the run, None on every rank but 0."""
        return self.save_dir

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Keep metrics for the next flush; tensors are not read before that.

        Args:
            metrics: Scalars by name, `split/metric`.
            step: Optimiser step, 0 by default.
        """
        self._buffer.add(metrics, step or 0)
        if len(self._buffer) >= BUFFERED_POINTS and self._failure is None:
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Send what was kept; what the store does not take is kept on, with one warning."""
        points = self._buffer.points()
        try:
            self.store.log_points(self.run_id, points)
        except StoreError as error:
            if self._failure is None:
                warnings.warn(f"{error} Training goes on; its points are kept and tried again.", stacklevel=2)
            self._failure = error
        else:
            self._buffer.sent(points)
            self._failure = None

    @override
    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Write a nested configuration as parameters; what changed since the run was started becomes tags."""
        self.store.log_params(self.run_id, flatten_params(params))

    def log_config(self, config: str) -> None:
        """Write a configuration as the artifact `config.yaml` and as parameters.

        Args:
            config: The resolved configuration as YAML.
        """
        self.log_text("config.yaml", config)
        self.log_hyperparams(yaml.safe_load(config) or {})

    @rank_zero_only
    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file or folder to the artifacts, below `folder` where one is given."""
        self.store.log_artifact(self.run_id, path, folder)

    @rank_zero_only
    def log_text(self, name: str, text: str) -> None:
        """Write a text artifact; YAML is written without secrets."""
        self.store.log_text(self.run_id, name, text)

    @rank_zero_only
    def log_json(self, name: str, payload: Mapping[str, Any]) -> None:
        """Write a JSON artifact without secrets."""
        self.store.log_json(self.run_id, name, payload)

    @override
    def after_save_checkpoint(self, checkpoint_callback: "ModelCheckpoint") -> None:
        """Flush, so that the store is never behind a checkpoint."""
        self.flush()

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush and set the status of the run: FINISHED, FAILED, or KILLED after Ctrl-C.

        Args:
            status: What Lightning says ("success", "finished", "failed"), or "killed".

        Raises:
            StoreError: If a successful run's points could not be delivered.
        """
        if self._run_id is None and not len(self._buffer):
            return  # nothing was ever written, as when the setup of the trainer failed
        final: RunStatus = "KILLED" if status == "failed" and _interrupted() else _STATUS.get(status, "FAILED")
        self.flush()
        try:
            if self._failure is not None:
                raise self._failure
            self.store.set_status(self.run_id, final)
        except StoreError as error:
            if final == "FINISHED":
                raise
            warnings.warn(str(error), stacklevel=2)  # what made the run fail must not be hidden by this


def _interrupted() -> bool:
    """Tell whether Ctrl-C is what is being handled, or what led to it: Lightning turns it into SystemExit."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


class PointBuffer:
    """Points that wait to be sent, each (key, step) once however often it is added.

    The first value of a (key, step) counts, before and after it was sent.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int], tuple[float | Tensor, float]] = {}
        self._sent: dict[str, dict[int, int]] = {}  # per key, blocks of 1024 steps as bits: exact, and a few bytes

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, metrics: Mapping[str, float | Tensor], step: int) -> None:
        """Add the metrics of one step."""
        now = time.time()
        for name, value in metrics.items():
            key = valid_name(name)  # one name that MLflow refuses would keep back all points
            if (key, step) in self._waiting or self._sent.get(key, {}).get(step >> 10, 0) >> (step & 1023) & 1:
                continue
            self._waiting[key, step] = (value.detach().clone() if isinstance(value, Tensor) else float(value), now)

    def points(self) -> list[Point]:
        """Return what waits, in the order of adding; tensors are read here, all at once per device."""
        tensors: dict[torch.device, dict[tuple[str, int], Tensor]] = {}
        for place, (value, _) in self._waiting.items():
            if isinstance(value, Tensor):
                tensors.setdefault(value.device, {})[place] = value.reshape(()).to(torch.float64)
        read: dict[tuple[str, int], float] = {}
        for scalars in tensors.values():
            read.update(zip(scalars, torch.stack(list(scalars.values())).tolist(), strict=True))
        return [
            Point(key, step, value if isinstance(value, float) else read[key, step], when)
            for (key, step), (value, when) in self._waiting.items()
        ]

    def sent(self, points: list[Point]) -> None:
        """Forget points that have arrived, but not that they have."""
        for point in points:
            del self._waiting[point.key, point.step]
            blocks = self._sent.setdefault(point.key, {})
            blocks[point.step >> 10] = blocks.get(point.step >> 10, 0) | 1 << (point.step & 1023)

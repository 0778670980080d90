"""The Lightning logger of a run: everything goes to the journal first, and to the store by another thread."""

import json
import os
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
import yaml
from filelock import FileLock
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger
from torch import Tensor
from typing_extensions import override

from tracking.errors import RunWarning, StoreError
from tracking.files import make_private_folder, write_file
from tracking.interruption import Interrupted
from tracking.journal import (
    Cursor,
    Journal,
    Record,
    RunStart,
    hold,
    read_cursor,
    read_records,
    write_cursor,
    write_start,
)
from tracking.params import flatten_params, valid_name
from tracking.paths import hide_paths, hide_paths_yaml, keep_paths
from tracking.redaction import redact, redact_yaml
from tracking.shipping import JOURNAL_TAG, Delivery, Shipper
from tracking.store import Point, RunStatus, Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_FILE = "FONTANEL_RUN_FILE"  # environment variable: where a watching process wants to read the run's folder
BUFFERED_POINTS = 5000  # points after which the buffer goes to the journal within an epoch, to keep memory flat
PATIENCE = 10.0  # seconds to wait for a store that makes no progress, or for a process that may be ending


class RunLogger(Logger):
    """Write one run: metrics, parameters, artifacts and its status.

    The run is started (or resumed) on rank 0 when it is first needed; other ranks write nothing. Metrics are buffered
    as tensors, written to the journal in the run's folder when an epoch ends or a checkpoint is saved, each
    (key, step) once, and delivered to the store by another thread. A store that is slow, dies or never was there stops
    nothing: one warning, and `fontanel sync` delivers the rest.

    Args:
        store: The store the run is in.
        study: Name of the MLflow experiment.
        name: Name of the run, `<arm>-<protocol>-<fold>-r<repeat>-s<seed>`.
        tags: Tags of the run: protocol, repeat, fold, train_sites, test_site, arm, seed.
        run_id: Run to resume instead of starting one.
        offset: Where the journal stood when the checkpoint was saved that the run is resumed from; what it holds
            beyond is dropped, unless the store has it already. All is kept by default.
    """

    def __init__(
        self,
        store: Store,
        study: str,
        name: str,
        tags: Mapping[str, str],
        run_id: str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__()
        self.store = store
        self.study = study
        self.run_name = name
        self.tags = dict(tags)
        self._resumed = run_id
        self._offset = offset
        self._run_id: str | None = None
        self._buffer = PointBuffer()
        self._journal: Journal
        self._shipper: Shipper
        self._lock: FileLock
        self._warned: set[str] = set()

    @property
    def run_id(self) -> str:
        """Id of the run and name of its folder, "" on every rank but 0; MLflow's id where the store was there."""
        if getattr(rank_zero_only, "rank", 0) != 0:
            return ""
        if self._run_id is None:
            self._open(self._resumed or self._start())
        return str(self._run_id)

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.store.folder(self.run_id)

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
        return str(make_private_folder(self.folder)) if self.run_id else None

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
        if len(self._buffer) >= BUFFERED_POINTS:
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Write what was kept to the journal; what a full disk refuses is kept on."""
        if self._run_id is None and not len(self._buffer):
            return
        self.run_id  # noqa: B018 - opens the journal, which may hold some of the points already
        points = self._buffer.points()
        if self._write(points):
            self._buffer.written(points)
        self._tell()

    @override
    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Write a nested configuration as parameters; what changed since the run was started becomes tags."""
        self._write([{"params": flatten_params(params)}])

    def log_config(self, config: str) -> None:
        """Write a configuration as the artifact `config.yaml` and as parameters; its paths stay in the run's folder.

        Args:
            config: The resolved configuration as YAML.
        """
        self._keep_paths(config)
        self.log_text("config.yaml", config)
        self.log_hyperparams(yaml.safe_load(config) or {})

    @rank_zero_only
    def _keep_paths(self, config: str) -> None:
        keep_paths(make_private_folder(self.folder), config)

    @rank_zero_only
    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file or folder of the run's folder to its artifacts.

        Args:
            path: Must stay as it is until it was delivered.
            folder: Folder among the artifacts; the top by default.
        """
        self._write([{"artifact": str(path.relative_to(self.folder)), "folder": folder}])

    @rank_zero_only
    def log_text(self, name: str, text: str) -> None:
        """Write a text artifact; YAML and JSON are written without secrets and folders of this machine."""
        path = self.folder / name
        if path.suffix in {".yaml", ".yml"}:
            text = hide_paths_yaml(redact_yaml(text))
        elif path.suffix == ".json":
            text = _json_text(json.loads(text))
        write_file(path, text.encode())
        self.log_artifact(path)

    @rank_zero_only
    def log_json(self, name: str, payload: Mapping[str, Any]) -> None:
        """Write a JSON artifact without secrets and folders of this machine."""
        self.log_text(name, _json_text(payload))

    def checkpoint(self) -> int:
        """Write what was kept to the disk, and return where the journal stands: a checkpoint remembers it."""
        return self._checkpoint() if self.run_id else 0

    def _checkpoint(self) -> int:
        self.flush()
        try:
            self._journal.sync()
        except OSError as error:
            self._warn_once(f"The journal of run {self.run_id} could not be written to the disk: {error}.")
        return self._journal.size

    @rank_zero_only
    def release(self, offset: int | None = None) -> None:
        """Allow delivery up to an offset: what a saved checkpoint covers is not measured again.

        Args:
            offset: What `checkpoint` returned; everything written so far by default.
        """
        self._shipper.release(self._checkpoint() if offset is None else offset)

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush; Lightning ends several times what is one run to us, see `close`."""
        self.flush()

    @rank_zero_only
    def close(self, status: RunStatus) -> bool:
        """Set the status of the run, deliver everything, and tell whether all of it arrived.

        A store that does not answer is left behind after some seconds, with a warning.
        """
        self.flush()
        self._write([{"status": status}])
        self.release()
        arrived = self._shipper.finish(PATIENCE)
        self._tell()
        if not arrived:
            self._warn_once(
                f"The store {self.store.shown_uri} does not have all of run {self.run_id} yet. It is kept in "
                f"{self.folder}; deliver it with: fontanel sync {self.run_id}"
            )
        self._journal.close()
        self._lock.release()
        return arrived

    @contextmanager
    def closing(self, is_whole: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Close the run as finished, as killed when it was asked to stop, or as failed when something is raised.

        Args:
            is_whole: Asked at the end whether the run has done what it was to do; if not, it has failed.
        """
        status: RunStatus = "FAILED"
        try:
            yield
            status = "FINISHED" if is_whole() else "FAILED"
        except (Interrupted, KeyboardInterrupt):
            status = "KILLED"
            raise
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns one into the other
                status = "KILLED"
                raise error.__context__ from None
            raise
        finally:
            self.close(status)

    def _start(self) -> str:
        """Start the run in the store, or without it where its server is away, and return the id of the run."""
        token = uuid4().hex
        start = RunStart(self.study, self.run_name, {**self.tags, JOURNAL_TAG: token})
        run_id = self._start_in_store(start)
        folder = make_private_folder(self.store.folder(run_id or token))
        write_start(folder, start)
        write_cursor(folder, Cursor(run_id))
        return run_id or token

    def _start_in_store(self, start: RunStart) -> str | None:
        if not self.store.answers():
            text = f"The store {self.store.shown_uri} does not answer. The run starts without it."
            self._warn_once(text, key="failure")
            return None
        try:
            return self.store.start_run(start.study, start.name, start.tags)
        except StoreError as error:
            if error.permanent or not self.store.is_server:
                raise
            self._warn_once(f"{error} The run starts without it.", key="failure")
            return None

    def _open(self, run_id: str) -> None:
        """Take the run's lock, open its journal and start delivering it."""
        folder = self.store.folder(run_id)
        lock = hold(folder, PATIENCE)
        if lock is None:
            raise StoreError(f"Another process works on run {run_id}. Wait for its end, or stop it first.")
        self._lock = lock
        self._journal = Journal(folder)
        if self._offset is not None:
            self._journal.cut(max(self._offset, read_cursor(folder).sending))
        for record, _ in read_records(folder):
            if isinstance(record, Point):
                self._buffer.skip(record.key, record.step)
        self._shipper = Shipper(Delivery(self.store, folder))
        self._shipper.start()
        self._run_id = run_id
        if path := os.environ.get(RUN_FILE):
            write_file(Path(path), str(folder).encode())
        if self._resumed is not None:
            self._write([{"status": "RUNNING"}])
            self.release()

    def _write(self, records: Sequence[Record]) -> bool:
        self.run_id  # noqa: B018 - opens the journal
        try:
            self._journal.append(records)
        except OSError as error:
            self._warn_once(
                f"The journal of run {self.run_id} cannot be written: {error}. Training goes on; free space."
            )
            return False
        return True

    def _tell(self) -> None:
        """Say in this thread, once, what the store said to the other."""
        if self._run_id is None:
            return
        if (failure := self._shipper.failure) is not None:
            text = "Training goes on; what is missing there is kept here and tried again."
            self._warn_once(f"{failure} {text}", key="failure")
        for refusal in self._shipper.delivery.refused:
            self._warn_once(f"{refusal} It stays in {self.folder}.")

    def _warn_once(self, text: str, key: str | None = None) -> None:
        if (key or text) not in self._warned:
            self._warned.add(key or text)
            warnings.warn(text, RunWarning, stacklevel=3)


def _json_text(payload: Mapping[str, Any]) -> str:
    return json.dumps(hide_paths(redact(payload)), indent=2, allow_nan=False) + "\n"


class PointBuffer:
    """Points that wait to be written, each (key, step) once however often it is added.

    The first value of a (key, step) counts, before and after it was written.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int], tuple[float | Tensor, float]] = {}
        self._written: dict[str, dict[int, int]] = {}  # per key, blocks of 1024 steps as bits: exact, and a few bytes
        self._names: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, metrics: Mapping[str, float | Tensor], step: int) -> None:
        """Add the metrics of one step."""
        now = time.time()
        for name, value in metrics.items():
            key = self._names.get(name) or self._names.setdefault(name, valid_name(name))  # MLflow refuses some
            if (key, step) in self._waiting or self._written.get(key, {}).get(step >> 10, 0) >> (step & 1023) & 1:
                continue
            if isinstance(value, Tensor):
                self._waiting[key, step] = (value.detach().to(torch.float64, copy=True), now)
            else:
                self._waiting[key, step] = (float(value), now)

    def points(self) -> list[Point]:
        """Return what waits, in the order of adding; tensors are read here, all at once per device."""
        tensors: dict[torch.device, dict[tuple[str, int], Tensor]] = {}
        for place, (value, _) in self._waiting.items():
            if isinstance(value, Tensor):
                tensors.setdefault(value.device, {})[place] = value.reshape(()) if value.ndim else value
        read: dict[tuple[str, int], float] = {}
        for scalars in tensors.values():
            read.update(zip(scalars, torch.stack(list(scalars.values())).tolist(), strict=True))
        return [
            Point(key, step, value if isinstance(value, float) else read[key, step], when)
            for (key, step), (value, when) in self._waiting.items()
        ]

    def written(self, points: list[Point]) -> None:
        """Forget points that were written, but not that they were."""
        for point in points:
            self.skip(point.key, point.step)

    def skip(self, key: str, step: int) -> None:
        """Take a point as written already."""
        self._waiting.pop((key, step), None)
        blocks = self._written.setdefault(key, {})
        blocks[step >> 10] = blocks.get(step >> 10, 0) | 1 << (step & 1023)

"""The MLflow store: where it is, how it is opened safely, and how its runs are started, resumed and found."""

import http.client
import logging
import os
import re
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from tracking.addresses import SERVERS, check_filesystem, sqlite_path, stays_here, tracking_uri
from tracking.errors import StoreError
from tracking.files import make_private_folder
from tracking.images import asked_to_share, holds_voxels, withhold
from tracking.redaction import redact, redact_text, redact_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

LOCK_TIMEOUT = 120.0  # seconds; creating a fresh store takes about two
MINIMUM_PREFIX = 6  # characters of a run id that may stand for the whole of it
MAXIMUM_TAG = 8000  # characters that MLflow keeps of a tag
MAXIMUM_KEY = 250  # characters of the name of a tag, parameter or metric
PARENT_TAG = "mlflow.parentRunId"  # by which MLflow nests runs
CHANGED_PARAM = "changed_param."  # tag of a parameter that a resumed run has with another value
PROBE_TIMEOUT = 3.0  # seconds in which a server must answer to be trusted with the start of a run
# Error codes of MLflow by which a request is refused for what it is; every other failure may pass.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_STUDY = re.compile(r"\w[\w. -]*(?:/\w[\w. -]*)*")
# MLflow's own defaults phone home and wait for a dead server for eight minutes.
_MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True)
class Point:
    """One value of one metric.

    Args:
        key: Name of the metric, `split/metric`.
        step: Optimiser step.
        value: The value.
        time: When it was measured, seconds since 1970.
    """

    key: str
    step: int
    value: float
    time: float


@dataclass(frozen=True)
class RunInfo:
    """A run of the store.

    Args:
        run_id: 32 hexadecimal digits.
        name: Name of the run, such as `scratch-cross-site-2-r0-s0`.
        study: Name of its MLflow experiment.
        status: `RUNNING`, `FINISHED`, `FAILED` or `KILLED`.
        started: When it was first started.
        tags: All its tags.
    """

    run_id: str
    name: str
    study: str
    status: str
    started: datetime
    tags: dict[str, str]

    def __str__(self) -> str:
        return (
            f"{self.run_id}  {self.name}  (study {self.study}, started {self.started.astimezone():%Y-%m-%d %H:%M:%S})"
        )


class Store:
    """An open MLflow store and the output folder beside it.

    A fresh sqlite store is made once under a file lock, whoever comes first, and put in WAL mode. What is written
    below the output folder is readable by its owner only.

    Args:
        uri: What `tracking_uri` returned.
        folder: What `output_folder` returned.
        share_images: Whether images of participants may be sent to a server of another machine; as the environment
            says by default.

    Raises:
        StoreError: If the store cannot be opened.
    """

    def __init__(self, uri: str, folder: Path, share_images: bool | None = None) -> None:
        self.uri = tracking_uri(uri, folder)
        self.share_images = asked_to_share() if share_images is None else share_images
        self.output_folder = folder.absolute()
        for name, value in _MLFLOW_SETTINGS.items():
            os.environ.setdefault(name, value)
        with _explained(f"open the store {self.shown_uri}"):
            self.client = self._open()

    def start_run(self, study: str, name: str, tags: Mapping[str, str], params: Mapping[str, str] | None = None) -> str:
        """Start a run and return its id.

        Args:
            study: Name of the MLflow experiment, such as `age2hie/finetune`; made if it is new.
            name: Name of the run; never generated.
            tags: Tags of the run; `study` is added.
            params: Parameters by dotted name, see `log_params`.
        """
        if not name.strip():
            raise StoreError(f"A run of study '{study}' needs a name, such as 'scratch-holdout-0-r0-s0'.")
        with _explained(f"start run '{name}' in {self.shown_uri}"):
            experiment = self._experiment_id(study)
            clean = {key: str(value)[:MAXIMUM_TAG] for key, value in redact({"study": study, **tags}).items()}
            run_id = str(self.client.create_run(experiment, tags=clean, run_name=name).info.run_id)
        self.log_params(run_id, params or {})
        return run_id

    @property
    def shown_uri(self) -> str:
        """The URI without user and password."""
        return redact_uri(self.uri)

    @property
    def is_server(self) -> bool:
        """Whether the store is reached through a server, which may be away."""
        return self.uri.startswith(SERVERS)

    def answers(self) -> bool:
        """Tell whether the store can be reached now; a database file always can."""
        if not self.is_server:
            return True
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=PROBE_TIMEOUT) as response:
                return bool(response.status == http.HTTPStatus.OK)
        except urllib.error.HTTPError:
            return True  # it answers, if only to ask for a password
        except (OSError, http.client.HTTPException):
            return False

    def find_tagged(self, study: str, tag: str, value: str) -> str | None:
        """Return the id of the run of a study that has a tag with a value, None without one."""
        with _explained(f"look for the run with {tag} {value}"):
            experiment = self.client.get_experiment_by_name(study)
            if experiment is None:
                return None
            runs = self.client.search_runs([experiment.experiment_id], f"tags.`{tag}` = '{value}'", max_results=1)
            return str(runs[0].info.run_id) if runs else None

    def children(self, run_id: str, tag: str, value: str) -> list[RunInfo]:
        """Return the runs below a run that have a tag with a value, the newest first."""
        with _explained(f"look for the runs below {run_id}"):
            study = self.client.get_run(run_id).info.experiment_id
            studies = {str(study): str(self.client.get_experiment(study).name)}
            clause = f"tags.`{PARENT_TAG}` = '{run_id}' and tags.`{tag}` = '{value}'"
            return [_run_info(run, studies) for run in self._search(clause, studies)]

    def running_runs(self) -> list[RunInfo]:
        """Return every run that has not ended."""
        with _explained("look for running runs"):
            studies = {str(e.experiment_id): str(e.name) for e in self.client.search_experiments(max_results=50_000)}
            return [_run_info(run, studies) for run in self._search("attributes.status = 'RUNNING'", studies)]

    def register_model(self, run_id: str, name: str, alias: str, artifact: str) -> str:
        """Register what a run has trained as a new version of a model, and return the number of the version.

        Args:
            run_id: The run.
            name: Name of the model, made where there is none.
            alias: What the version is to be called; another version that is called so loses it.
            artifact: Name of its weights among the artifacts of the run.
        """
        from mlflow.exceptions import MlflowException

        with _explained(f"register run {run_id} as {name}"):
            try:
                self.client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            known = [one for one in self.client.search_model_versions(f"name = '{name}'") if one.run_id == run_id]
            version = (
                known[0] if known else self.client.create_model_version(name, f"runs:/{run_id}/{artifact}", run_id)
            )
            self.client.set_registered_model_alias(name, alias, version.version)
            return str(version.version)

    def set_tag(self, run_id: str, name: str, value: str) -> None:
        """Set a tag of a run."""
        with _explained(f"set the tag {name} of run {run_id}"):
            self.client.set_tag(run_id, name, value)

    def set_status(self, run_id: str, status: RunStatus) -> None:
        """Set the status of a run; every status but RUNNING also sets its end time."""
        with _explained(f"set run {run_id} to {status}"):
            if status == "RUNNING":
                self.client.update_run(run_id, status=status)
            else:
                self.client.set_terminated(run_id, status=status)

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Write parameters; those a resumed run already has with another value become tags `changed_param.<name>`.

        Args:
            run_id: The run.
            params: Values by name, as `tracking.params.flatten_params` makes them.
        """
        from mlflow.entities import Param, RunTag

        with _explained(f"write the parameters of run {run_id}"):
            data = self.client.get_run(run_id).data
            tags = []
            for name in params.keys() & data.params.keys():
                tag = f"{CHANGED_PARAM}{name}"[:MAXIMUM_KEY]
                if params[name] != data.tags.get(tag, data.params[name]):
                    tags.append(RunTag(tag, params[name]))
            new = [Param(name, params[name]) for name in params if name not in data.params]
            self.client.log_batch(
                run_id, params=new
            )  # apart from the tags: together they can pass the limit of a request
            self.client.log_batch(run_id, tags=tags)

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        """Write points of metrics; the caller sends each (key, step) once."""
        from mlflow.entities import Metric

        with _explained(f"write {len(points)} metric points of run {run_id}"):
            metrics = [Metric(point.key, point.value, round(point.time * 1000), point.step) for point in points]
            self.client.log_batch(run_id, metrics=metrics)  # the client sends a thousand at a time

    def folder(self, run_id: str) -> Path:
        """Return the run's own folder (checkpoints, journal), whether it is there or not."""
        return self.output_folder / "runs" / run_id

    def known_here(self, run_id: str | None) -> str | None:
        """Return the id of a run that has a folder on this machine, None for every other and for none."""
        return run_id if run_id is not None and self.folder(run_id).is_dir() else None

    def find_run(self, reference: str | Path) -> RunInfo:
        """Return the one run that a reference stands for.

        Args:
            reference: Run id, prefix of one of at least six characters, name of a run, or folder of a run.

        Raises:
            StoreError: If no run, or more than one, fits.
        """
        text = _id_of_folder(str(reference))
        with _explained(f"look for run '{text}'"):
            studies = {str(e.experiment_id): str(e.name) for e in self.client.search_experiments(max_results=50_000)}
            found = {run.info.run_id: run for clause in _clauses(text) for run in self._search(clause, studies)}
            runs = [_run_info(run, studies) for run in found.values()]
            if len(runs) == 1:
                return runs[0]
            newest = runs or [_run_info(run, studies) for run in self._search("", studies)]
        listed = "\n".join(f"  {run}" for run in sorted(newest, key=lambda run: run.started, reverse=True)[:10])
        if runs:
            raise StoreError(f"'{text}' stands for {len(runs)} runs; give the id of one of them:\n{listed}")
        hint = f" Its newest runs are:\n{listed}" if listed else " It holds no runs yet."
        raise StoreError(f"There is no run '{text}' in {self.shown_uri}.{hint}")

    def sends_images(self, run_id: str) -> bool:
        """Tell whether images of participants go to the artifacts of a run: they stay here, or it was asked for."""
        if self.share_images or not stays_here(self.uri, ""):  # a server elsewhere need not be asked
            return self.share_images
        with _explained(f"find the artifacts of run {run_id}"):
            return stays_here(self.uri, self.client.get_run(run_id).info.artifact_uri)

    def log_artifact(self, run_id: str, path: Path, folder: str | None = None, *, depicts: bool = False) -> bool:
        """Copy a file, or a folder with all it holds, to the artifacts of a run, and tell whether that was done.

        An image of a participant goes to another machine only when that was asked for; it is kept in the run's folder.

        Args:
            run_id: The run.
            path: File or folder on this machine.
            folder: Folder among the artifacts, such as `checkpoints`; the top by default.
            depicts: Whether it shows the image of a participant; volumes always do.
        """
        if (depicts or holds_voxels(path)) and not self.sends_images(run_id):
            withhold(self.folder(run_id), path, folder)
            return False
        with _explained(f"write artifact {path.name} of run {run_id}"):
            if path.is_dir():
                self.client.log_artifacts(run_id, str(path), folder)
            else:
                self.client.log_artifact(run_id, str(path), folder)
            self._protect_artifacts(run_id)
        return True

    def download(self, run_id: str, artifact: str) -> Path:
        """Return an artifact of a run as a file (or folder) on this machine; only to be read.

        Args:
            run_id: The run.
            artifact: Name among the artifacts, such as `predictions.parquet` or `checkpoints`.
        """
        local = self._artifact_folder(run_id)
        if local is None:
            scratch = make_private_folder(self.folder(run_id) / "downloads")
            with _explained(f"download {artifact} of run {run_id}"):
                fetched = Path(self.client.download_artifacts(run_id, artifact, str(scratch)))
                _protect(fetched)
                return fetched
        path = (local / artifact).resolve()
        if path.is_relative_to(local.resolve()) and path.exists():
            return path
        names = sorted(str(p.relative_to(local)) for p in local.rglob("*") if p.is_file())
        raise StoreError(f"Run {run_id} has no artifact '{artifact}'. It has: {', '.join(names) or 'none'}.")

    def _open(self) -> "MlflowClient":
        from mlflow import MlflowClient

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # no news about tables being made
        path = sqlite_path(self.uri)
        if path is None:
            return MlflowClient(self.uri)
        check_filesystem(path)
        make_private_folder(path.parent)
        try:
            with FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT, mode=0o600):
                _check_database_file(path)
                self._make_tables()
                with closing(sqlite3.connect(path)) as connection:
                    connection.execute("PRAGMA journal_mode=WAL")  # kept in the file: readers never wait for a writer
                return MlflowClient(self.uri)
        except Timeout:
            raise StoreError(
                f"Another process has held {path}.lock for {LOCK_TIMEOUT:.0f} s while making the store. "
                "If none is running any more, delete that file and try again."
            ) from None

    def _make_tables(self) -> None:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        # Made here and not by the client, whose "Default" experiment would point to ./mlruns of this process.
        SqlAlchemyStore(self.uri, (self.output_folder / "artifacts").as_uri())

    def _experiment_id(self, study: str) -> str:
        from mlflow.exceptions import MlflowException

        if not _STUDY.fullmatch(study):
            raise StoreError(f"'{study}' cannot name a study. Write it like 'age2hie/finetune'.")
        if (existing := self.client.get_experiment_by_name(study)) is None:
            location = (
                None if self.uri.startswith(SERVERS) else make_private_folder(self.output_folder / "artifacts" / study)
            )
            try:
                kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on runs, not on traces
                return str(self.client.create_experiment(study, location and location.as_uri(), kind))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                existing = self.client.get_experiment_by_name(study)  # another process was faster
        if existing.lifecycle_stage != "active":
            restore = f"mlflow experiments restore -x {existing.experiment_id}"
            raise StoreError(f"Study '{study}' was deleted. Bring it back with: {restore}")
        return str(existing.experiment_id)

    def _search(self, clause: str, studies: Mapping[str, str]) -> "list[Run]":
        order = ["attributes.start_time DESC"]
        return list(self.client.search_runs(list(studies), clause, max_results=1000, order_by=order)) if studies else []

    def _artifact_folder(self, run_id: str) -> Path | None:
        with _explained(f"find the artifacts of run {run_id}"):
            parts = urlsplit(self.client.get_run(run_id).info.artifact_uri)
        return Path(unquote(parts.path)) if parts.scheme in {"", "file"} else None

    def _protect_artifacts(self, run_id: str) -> None:
        if top := self._artifact_folder(run_id):
            _protect(top.parent)


def _check_database_file(path: Path) -> None:
    """Make an empty database file of the owner's, or refuse what MLflow would retry for minutes."""
    path.touch(mode=0o600, exist_ok=True)
    with path.open("rb") as file:
        start = file.read(16)
    if start not in {b"", b"SQLite format 3\0"}:
        raise StoreError(f"{path} is not a sqlite database. Move it away, or name another store with --tracking-uri.")
    if not os.access(path, os.W_OK):
        raise StoreError(f"The store {path} cannot be written. Name another one with --output-dir or --tracking-uri.")


def _protect(top: Path) -> None:
    for path in (top, *top.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def _id_of_folder(reference: str) -> str:
    try:
        folder = Path(reference).resolve()
        return folder.name if folder.is_dir() and _RUN_ID.fullmatch(folder.name) else reference
    except OSError:  # too long for the name of a file
        return reference


def _clauses(reference: str) -> list[str]:
    if _RUN_ID.fullmatch(reference):
        return [f"attributes.run_id = '{reference}'"]
    if "'" in reference or not reference:
        return []  # no run of ours is called so, and the search language cannot quote it
    clauses = [f"attributes.run_name = '{reference}'"]
    if len(reference) >= MINIMUM_PREFIX and re.fullmatch(r"[0-9a-f]+", reference):
        clauses.append(f"attributes.run_id LIKE '{reference}%'")
    return clauses


def _run_info(run: "Run", studies: Mapping[str, str]) -> RunInfo:
    info = run.info
    started = datetime.fromtimestamp(info.start_time / 1000, tz=UTC)
    return RunInfo(info.run_id, info.run_name, studies[info.experiment_id], info.status, started, dict(run.data.tags))


@contextmanager
def _explained(action: str) -> Iterator[None]:
    """Turn what MLflow, its database or the network raise into a StoreError without secrets."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        reason = redact_text(str(error)).strip().rstrip(".").splitlines()
        advice = " Update it with: mlflow db upgrade URI" if "out-of-date database schema" in str(error) else ""
        permanent = getattr(error, "error_code", None) in _REFUSALS
        text = f"Could not {action}: {reason[0] if reason else type(error).__name__}.{advice}"
        raise StoreError(text, permanent=permanent) from error

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tracking.logger import RunLogger
from tracking.store import Store, tracking_uri


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a store nobody has used: making its tables takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("fresh")
    Store(f"sqlite:///{folder / 'mlflow.db'}", folder)
    return folder / "mlflow.db"


@pytest.fixture
def store(fresh_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store in `tmp_path/out`, seen from an empty working directory."""
    folder = tmp_path / "out"
    folder.mkdir()
    with closing(sqlite3.connect(fresh_database)) as source, closing(sqlite3.connect(folder / "mlflow.db")) as copy:
        source.backup(copy)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Store(tracking_uri(None, folder), folder)


@pytest.fixture
def logger(store: Store) -> RunLogger:
    return RunLogger(store, study="study", name="scratch-holdout-0-r0-s0", tags={"arm": "scratch"})

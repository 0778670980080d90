import multiprocessing
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tracking.addresses import tracking_uri
from tracking.errors import StoreError
from tracking.store import Point, Store


def test_find_by_id_prefix_name_and_folder(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = store.start_run("a", "scratch-holdout-0-r0-s0", {"arm": "scratch"})
    other = store.start_run("b", "pretrained-holdout-0-r0-s0", {})
    length = next(n for n in range(6, 33) if not other.startswith(run_id[:n]))
    store.folder(run_id).mkdir(parents=True)
    monkeypatch.chdir(store.folder(run_id).parent)
    for reference in (run_id, run_id[:length], "scratch-holdout-0-r0-s0", store.folder(run_id), run_id + "/"):
        found = store.find_run(reference)
        assert (found.run_id, found.study, found.status) == (run_id, "a", "RUNNING")
        assert found.tags["arm"] == "scratch"
    assert f"{found.started:%Z}" == "UTC"


def test_an_ambiguous_name_lists_the_candidates(store: Store) -> None:
    ids = [store.start_run(study, "scratch", {}) for study in ("a", "a", "b")]
    with pytest.raises(StoreError, match="stands for 3 runs") as caught:
        store.find_run("scratch")
    for run_id in ids:
        assert run_id in str(caught.value)
    assert "(study b, started 20" in str(caught.value)


@pytest.mark.parametrize(
    "reference", ["absent", "abc12", "f" * 32, "deadbeef", "it's", "%", "no/such/folder", "x" * 5000]
)
def test_no_such_run_names_the_newest(reference: str, store: Store) -> None:
    with pytest.raises(StoreError, match="no runs yet"):
        store.find_run(reference)
    store.start_run("a", "only-one", {})
    with pytest.raises(StoreError, match="There is no run") as caught:
        store.find_run(reference)
    assert "only-one" in str(caught.value)


def test_a_deleted_run_is_not_found(store: Store) -> None:
    run_id = store.start_run("a", "run", {})
    store.client.delete_run(run_id)
    with pytest.raises(StoreError, match="There is no run"):
        store.find_run(run_id)


def start_one(folder: Path, barrier: "multiprocessing.synchronize.Barrier", index: int) -> None:
    barrier.wait(60)
    store = Store(tracking_uri(None, folder), folder)
    run_id = store.start_run("study", f"run-{index}", {}, {"index": str(index)})
    store.log_points(run_id, [Point("val/mae", step, index + step / 7, 1e9 + step) for step in range(3)])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("repeat", range(5))
def test_eight_processes_on_a_fresh_store(repeat: int, tmp_path: Path) -> None:
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - once, before the race, so that it is one

    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)
    processes = [context.Process(target=start_one, args=(tmp_path, barrier, index)) for index in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 8
    store = Store(tracking_uri(None, tmp_path), tmp_path)
    assert store.client.get_experiment("0").artifact_location == (tmp_path / "artifacts" / "0").as_uri()
    for index in range(8):
        run = store.find_run(f"run-{index}")
        assert (run.study, run.status) == ("study", "RUNNING")
        assert store.client.get_run(run.run_id).data.params == {"index": str(index)}
        history = store.client.get_metric_history(run.run_id, "val/mae")
        assert [(point.step, point.value) for point in history] == [(step, index + step / 7) for step in range(3)]
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (8,)
        assert connection.execute("SELECT count(*) FROM metrics").fetchone() == (24,)


def test_opening_a_store_imports_no_flavour(store: Store) -> None:
    program = (
        "import sys; from pathlib import Path; import tracking.store as s;"
        "light = {'mlflow', 'torch', 'pandas'} & set(sys.modules);"
        f"s.Store({store.uri!r}, Path({str(store.output_folder)!r}));"
        "heavy = {'torch', 'pytorch_lightning', 'sklearn', 'matplotlib', 'mlflow.pytorch'} & set(sys.modules);"
        "print(light, heavy)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.split() == ["set()", "set()"]
    assert done.stderr == ""

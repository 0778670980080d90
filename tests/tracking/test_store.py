import os
from pathlib import Path

import pytest

from tracking.addresses import output_folder, tracking_uri
from tracking.errors import StoreError
from tracking.store import Point, Store


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_output_folder_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert output_folder() == tmp_path / "outputs"
    monkeypatch.setenv("FONTANEL_OUTPUT", str(tmp_path / "b"))
    assert output_folder() == tmp_path / "b"
    assert output_folder(Path("c")) == tmp_path / "c"


def test_uri_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(None, Path("out")) == f"sqlite:///{tmp_path}/out/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000/")
    assert tracking_uri(None, tmp_path) == "http://127.0.0.1:5000"
    assert tracking_uri("sqlite:///here.db", tmp_path) == f"sqlite:///{tmp_path}/here.db"
    assert tracking_uri("postgresql+psycopg://h/db", tmp_path) == "postgresql+psycopg://h/db"


@pytest.mark.parametrize(
    "uri", ["mlruns", "/data/mlruns", "file:///data/mlruns", "ftp://host/x", "sqlite:///:memory:", "postgresql"]
)
def test_what_is_no_store_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="sqlite:///FILE"):
        tracking_uri(uri, tmp_path)


def test_passwords_in_uris_are_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        tracking_uri("https://ann:hunter2@host", tmp_path)
    assert "hunter2" not in str(caught.value)
    assert "ann" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("participant_id\tage\n")
    with pytest.raises(StoreError, match="is not a sqlite database"):
        Store(tracking_uri(None, tmp_path), tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Could not open the store"):
        Store(tracking_uri(None, tmp_path / "file" / "out"), tmp_path / "file" / "out")


def test_a_run_from_start_to_end(store: Store, tmp_path: Path) -> None:
    run_id = store.start_run(
        "age2hie/pretrain", "scratch-holdout-0-r0-s0", {"arm": "scratch", "hf_token": "abc"}, {"lr": "0.1"}
    )
    store.log_points(run_id, [Point("val/mae", step, step / 7, 1e9 + step) for step in range(2500)])
    store.set_status(run_id, "FINISHED")
    run = store.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1"}
    assert run.data.tags.items() >= {"study": "age2hie/pretrain", "arm": "scratch", "hf_token": "<redacted>"}.items()
    history = store.client.get_metric_history(run_id, "val/mae")
    assert [(point.step, point.value) for point in history] == [(step, step / 7) for step in range(2500)]
    assert store.client.get_experiment(run.info.experiment_id).name == "age2hie/pretrain"
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_run_set_running_again_tags_what_changed(store: Store) -> None:
    run_id = store.start_run("study", "run", {}, {"lr": "0.1", "epochs": "3"})
    store.set_status(run_id, "FAILED")
    store.set_status(run_id, "RUNNING")
    store.log_params(run_id, {"lr": "0.2", "epochs": "3", "new": "1"})
    run = store.client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"lr": "0.1", "epochs": "3", "new": "1"}
    assert {name: value for name, value in run.data.tags.items() if name.startswith("changed")} == {
        "changed_param.lr": "0.2"
    }
    store.log_params(run_id, {"lr": "0.1"})
    assert store.client.get_run(run_id).data.tags["changed_param.lr"] == "0.1"


def test_more_params_than_one_batch(store: Store) -> None:
    run_id = store.start_run("study", "run", {}, {f"p{index}": "x" * 6000 for index in range(250)})
    assert len(store.client.get_run(run_id).data.params) == 250


@pytest.mark.parametrize("study", ["../up", "/abs", "a//b", "", "a/../b", "tab\t"])
def test_study_names_stay_in_the_folder(study: str, store: Store) -> None:
    with pytest.raises(StoreError, match="cannot name a study"):
        store.start_run(study, "run", {})


def test_runs_need_names_and_deleted_studies_are_named(store: Store) -> None:
    with pytest.raises(StoreError, match="needs a name"):
        store.start_run("study", " ", {})
    store.start_run("study", "run", {})
    store.client.delete_experiment(store.client.get_experiment_by_name("study").experiment_id)
    with pytest.raises(StoreError, match="mlflow experiments restore -x"):
        store.start_run("study", "run", {})


def write_open(path: Path, text: str) -> Path:
    """Write a file that everybody may read."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)
    return path


def test_artifacts_are_private_and_come_back(store: Store, tmp_path: Path) -> None:
    run_id = store.start_run("a/b", "run", {})
    store.log_artifact(run_id, write_open(tmp_path / "config.yaml", "lr: 0.1\n"))
    store.log_artifact(run_id, write_open(tmp_path / "model.json", "{}"), "model/deep")
    store.log_artifact(run_id, write_open(tmp_path / "more" / "image.txt", "x").parent, "images")
    assert store.download(run_id, "config.yaml").read_text() == "lr: 0.1\n"
    assert store.download(run_id, "model/deep/model.json").read_text() == "{}"
    assert store.download(run_id, "images/image.txt").read_text() == "x"
    below = list((tmp_path / "out" / "artifacts").rglob("*"))
    assert len(below) == 10
    for path in (tmp_path / "out" / "artifacts", *below):
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path
    assert {mode(path) for path in (tmp_path / "out").glob("mlflow.db*")} <= {0o600, 0o644}
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.mark.parametrize("name", ["absent.json", "../../../mlflow.db", "/etc/passwd"])
def test_artifacts_that_are_not_there(name: str, store: Store, tmp_path: Path) -> None:
    run_id = store.start_run("study", "run", {})
    store.log_artifact(run_id, write_open(tmp_path / "report.html", "<p>"))
    with pytest.raises(StoreError, match=r"It has: report\.html"):
        store.download(run_id, name)
    assert store.download(run_id, "report.html").read_text() == "<p>"


def test_a_store_that_cannot_be_written(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, how: False)
    with pytest.raises(StoreError, match="cannot be written"):
        Store(store.uri, tmp_path / "out")

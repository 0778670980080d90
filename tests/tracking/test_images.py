"""Images of participants go to another machine only when that was asked for; until then the run keeps them."""

from pathlib import Path

import pytest

from tracking.addresses import is_loopback, stays_here
from tracking.images import SHARE_IMAGES, Withheld, holds_voxels, read_withheld
from tracking.logger import RunLogger
from tracking.shipping import Delivery, send_withheld
from tracking.store import Store


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes every store for one on another machine; that it is one is told apart in a test of its own."""
    monkeypatch.setattr("tracking.store.stays_here", lambda uri, artifacts: False)


def artifacts(store: Store, run_id: str, folder: str | None = None) -> list[str]:
    return [item.path for item in store.client.list_artifacts(run_id, folder)]


@pytest.mark.parametrize(
    ("uri", "artifact_uri", "here"),
    [
        ("sqlite:////out/mlflow.db", "file:///out/artifacts/1/a", True),
        ("sqlite:////out/mlflow.db", "/out/artifacts/1/a", True),
        ("sqlite:////out/mlflow.db", "s3://bucket/1/a", False),
        ("http://127.0.0.1:5000", "mlflow-artifacts:/1/a", True),
        ("http://[::1]:5000", "mlflow-artifacts:/1/a", True),
        ("http://localhost:5000", "gs://bucket/1/a", False),
        ("http://127.0.0.1.attacker.example", "mlflow-artifacts:/1/a", False),
        ("https://mlflow.hospital.example", "mlflow-artifacts:/1/a", False),
        ("http://192.168.0.7:5000", "file:///out/artifacts/1/a", False),
    ],
)
def test_only_loopback_servers_and_files_are_on_this_machine(uri: str, artifact_uri: str, here: bool) -> None:
    assert stays_here(uri, artifact_uri) is here


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "127.0.0.1.attacker.example"])
def test_names_that_look_like_this_machine(host: str) -> None:
    assert not is_loopback(host)


def test_the_place_of_the_artifacts_decides_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.client.create_experiment("bucket", artifact_location="s3://bucket/1")
    away, here = (store.start_run(study, "run", {}) for study in ("bucket", "study"))
    assert store.sends_images(here)
    assert not store.sends_images(away)
    assert Store(store.uri, store.output_folder, share_images=True).sends_images(away)
    monkeypatch.setenv(SHARE_IMAGES, "1")
    assert Store(store.uri, store.output_folder).sends_images(away)
    monkeypatch.setenv(SHARE_IMAGES, "0")
    assert not Store(store.uri, store.output_folder).sends_images(away)


@pytest.mark.usefixtures("elsewhere")
def test_images_wait_in_the_folder_of_the_run_until_they_are_asked_for(store: Store, tmp_path: Path) -> None:
    run_id = store.start_run("study", "run", {})
    for name in ("head.png", "curve.png", "maps/a.txt", "maps/T1W.NII.GZ"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert not store.log_artifact(run_id, tmp_path / "head.png", "saliency", depicts=True)
    assert store.log_artifact(run_id, tmp_path / "curve.png")
    assert not store.log_artifact(run_id, tmp_path / "maps", "all")
    assert artifacts(store, run_id) == ["curve.png"]
    own = store.folder(run_id)
    assert read_withheld(own) == [Withheld("all/maps", "all"), Withheld("saliency/head.png", "saliency")]
    (tmp_path / "head.png").unlink()
    assert send_withheld(Store(store.uri, store.output_folder, share_images=True), own) == 2
    assert set(artifacts(store, run_id)) == {"all", "curve.png", "saliency"}
    assert artifacts(store, run_id, "saliency") == ["saliency/head.png"]
    assert artifacts(store, run_id, "all") == ["all/T1W.NII.GZ", "all/a.txt"]
    assert read_withheld(own) == []


@pytest.mark.usefixtures("elsewhere")
def test_a_volume_that_a_training_logs_is_kept_back_and_said(logger: RunLogger, store: Store) -> None:
    for name in ("scan.mgz", "table.csv"):
        (logger.folder / name).write_text("x")
        logger.log_artifact(logger.folder / name)
    logger.checkpoint()
    delivery = Delivery(store, logger.folder)
    while delivery.chunk(10**9):
        pass
    assert artifacts(store, logger.run_id) == ["table.csv"]
    assert delivery.refused == [
        f"scan.mgz not sent to {store.shown_uri}: images of participants leave this machine only when that is asked "
        f"for. Send with: fontanel sync {logger.run_id} --share-images"
    ]


@pytest.mark.parametrize(("name", "found"), [("a.dcm", True), ("a.nii.gz", True), ("a.npz", True), ("a.json", False)])
def test_volumes_are_known_by_their_names(name: str, found: bool, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert holds_voxels(tmp_path / name) is found
    assert holds_voxels(tmp_path) is found

import argparse
import functools
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from experiments import serving, ui
from tracking.errors import StoreError
from tracking.store import Point, Store

ROOT = Path(__file__).parents[2]


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    ui.add_arguments(parser)
    return parser.parse_args(words)


def test_without_a_store_it_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no store at .*/none/mlflow\.db yet.*fontanel quickstart.*fontanel fit"):
        ui.run(arguments("--output-dir", str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


def test_a_store_that_is_served_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ui.run(arguments("--tracking-uri", "http://127.0.0.1:7000", "--output-dir", str(tmp_path))) == 0
    assert "open http://127.0.0.1:7000" in capsys.readouterr().out


def test_plain_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="sqlite:///FILE"):
        ui.run(arguments("--tracking-uri", str(tmp_path)))


def test_signals_are_ours_only_meanwhile() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), serving._stopped_by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@dataclass
class Served:
    process: subprocess.Popen[str]
    address: str
    sweeps: str
    store: Store

    @property
    def port(self) -> int:
        return int(self.address.partition(":")[2])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A real server of a store with one run, started by the verb."""
    folder = tmp_path_factory.mktemp("out")
    store = Store(f"sqlite:///{folder}/mlflow.db", folder)
    run_id = store.start_run("age2hie/pretrain", "scratch-holdout-0-r0-s0", {"arm": "scratch"}, {"lr": "0.1"})
    store.log_points(run_id, [Point("val/mae", step, 10 / (step + 1), 1.7e9 + step) for step in range(20)])
    (folder / "config.yaml").write_text("lr: 0.1\n")
    store.log_artifact(run_id, folder / "config.yaml")
    (folder / "cwd").mkdir()
    command = [sys.executable, "-m", "experiments.cli", "ui", "--port", "0", "--output-dir", str(folder)]
    command += ["--sweep", "--sweep-port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"cwd": folder / "cwd", "env": environment, "text": True, "stdout": subprocess.PIPE}
    # Tests that a shell runs in the background have been told to ignore Ctrl-C; the server shall not inherit it.
    listens = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, preexec_fn=listens, **options) as process:
        assert process.stdout is not None
        try:
            match = re.fullmatch(r"MLflow UI: http://(127\.0\.0\.1:\d+)\n", process.stdout.readline())
            assert match, "the verb prints the address first"
            sweeps = re.fullmatch(r"Sweeps: http://(127\.0\.0\.1:\d+)/dashboard\n", process.stdout.readline())
            assert sweeps
            assert process.stdout.readline() == "Stop it with Ctrl-C.\n"
            yield Served(process, match[1], sweeps[1], store)
        finally:
            process.terminate()


def ask(address: str, path: str, host: str | None = None) -> tuple[int, str]:
    with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request("GET", path, headers={"Host": host or address})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")


@pytest.mark.services
def test_the_page_and_artifacts_answer(served: Served) -> None:
    assert ask(served.address, "/health") == (200, "OK")
    assert "<title>MLflow</title>" in ask(served.address, "/")[1]
    run = served.store.find_run("scratch-holdout-0-r0-s0")
    artifact = f"/get-artifact?path=config.yaml&run_uuid={run.run_id}"
    assert ask(served.address, artifact) == (200, "lr: 0.1\n")


@pytest.mark.services
def test_the_trials_of_sweeps_answer_beside_it(served: Served) -> None:
    assert json.loads(ask(served.sweeps, "/api/studies")[1]) == {"study_summaries": []}


@pytest.mark.services
@pytest.mark.parametrize(
    "host", ["attacker.example", "10.attacker.example", "127.0.0.1", "127.0.0.1:1", "0.0.0.0:{port}"]
)
def test_a_forged_host_is_forbidden(host: str, served: Served) -> None:
    for path in ("/", "/api/2.0/mlflow/experiments/get?experiment_id=0"):
        assert ask(served.address, path, host.format(port=served.port))[0] == 403
        assert ask(served.address, path)[0] == 200


@pytest.mark.services
def test_a_store_over_http(served: Served, tmp_path: Path) -> None:
    store = Store(f"http://{served.address}", tmp_path)
    run_id = store.start_run("over/http", "run", {"arm": "scratch"}, {"lr": "0.1"})
    store.log_points(run_id, [Point("val/mae", step, float(step), 1.7e9) for step in range(1200)])
    (tmp_path / "model.json").write_text('{"spacing": [2.0, 2.0, 2.0]}')
    store.log_artifact(run_id, tmp_path / "model.json", "model")
    assert json.loads(store.download(run_id, "model/model.json").read_text()) == {"spacing": [2.0, 2.0, 2.0]}
    assert store.find_run(run_id[:8]).study == "over/http"
    store.set_status(run_id, "FAILED")
    store.set_status(run_id, "RUNNING")
    run = served.store.client.get_run(run_id)  # the same run, seen in the database
    assert (run.info.status, run.data.params, run.data.metrics["val/mae"]) == ("RUNNING", {"lr": "0.1"}, 1199.0)
    stored = [path for path in (served.store.output_folder / "artifacts").rglob("*") if path.name == "model.json"]
    assert [path.stat().st_mode & 0o777 for path in stored] == [0o600]
    with pytest.raises(StoreError, match="download absent"):
        store.download(run_id, "absent")


def look(served: Served, page: str, folder: Path, name: str) -> str:
    """Open a page in a browser, keep a picture of it, and return what it shows as HTML."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    url = f"http://{served.address}/#/{page}"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    command += ["--window-size=1400,1900", "--virtual-time-budget=20000"]
    picture = Path(os.environ.get("FONTANEL_TEST_ARTIFACTS") or folder).absolute() / f"{name}.png"
    picture.parent.mkdir(exist_ok=True)
    subprocess.run([*command, f"--screenshot={picture}", url], capture_output=True, timeout=120, check=True)
    assert picture.stat().st_size > 20_000
    options = {"capture_output": True, "encoding": "utf-8", "timeout": 120, "check": True}
    return subprocess.run([*command, "--dump-dom", url], **options).stdout


@pytest.mark.services
def test_the_runs_page_in_a_browser(served: Served, tmp_path: Path) -> None:
    assert "scratch-holdout-0-r0-s0" in look(served, "experiments/1/runs", tmp_path, "runs")


@pytest.mark.services
def test_the_pages_of_a_cross_validation_in_a_browser(served: Served, tmp_path: Path) -> None:
    store = served.store
    tags = {"kind": "crossval", "mlflow.note.content": "| arm | AUROC |\n| --- | ---: |\n| scratch | 0.7123 |"}
    parent = store.start_run("age2hie/crossval", "crossval-cross-site-1f2e3d4c", tags, {})
    store.log_points(parent, [Point("gain/pretrained/auroc", 0, 0.0417, 1.7e9)])
    children = []
    for arm, rate, value in (("scratch", "0.001", 0.7123), ("pretrained", "0.0001", 0.7540)):
        own = {"arm": arm, "mlflow.parentRunId": parent}
        children.append(store.start_run("age2hie/crossval", f"{arm}-cross-site", own, {"model.optimizer.lr": rate}))
        store.log_points(children[-1], [Point("external/auroc", 0, value, 1.7e9)])
    study = store.client.get_run(parent).info.experiment_id
    page = look(served, f"experiments/{study}/runs/{parent}", tmp_path, "parent")
    for shown in ("gain/pretrained/auroc", "0.0417", "scratch-cross-site", "<td>scratch</td>"):
        assert shown in page
    runs = ",".join(f"%22{child}%22" for child in children)
    page = look(served, f"compare-runs?runs=[{runs}]&experiments=[%22{study}%22]", tmp_path, "compare")
    assert "Comparing 2 Runs" in page
    assert 'class="parcoords' in page, "the chart is not there"


@pytest.mark.services
def test_nothing_runs_after_ctrl_c(served: Served) -> None:  # the last of them: it stops the server
    family = psutil.Process(served.process.pid).children(recursive=True)
    assert len(family) >= 2
    sockets = [socket for child in family for socket in child.net_connections()]
    assert {socket.laddr for socket in sockets if socket.status == psutil.CONN_LISTEN} == {("127.0.0.1", served.port)}
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(30) == 0
    assert psutil.wait_procs(family, timeout=5)[1] == []
    assert list((served.store.output_folder / "cwd").iterdir()) == []
    assert not {"mlruns", "mlartifacts"} & {path.name for path in served.store.output_folder.iterdir()}

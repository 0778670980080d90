"""A server for a team asks for a password, and so may listen to others; the dashboard of sweeps changes nothing."""

import argparse
import base64
import http.client
import json
import os
import re
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
import pytest

from experiments import serve
from experiments.dashboard import Dashboard
from experiments.sweep_queue import TrialQueue
from experiments.sweep_storage import open_storage
from tracking.errors import StoreError
from tracking.server import TrackingServer
from tracking.store import Store

ROOT = Path(__file__).parents[2]
PASSWORD = "a long one of the tests"


def ask(address, path, method="GET", **headers):
    with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request(method, path, headers={"Host": address, **headers})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")


def signed(user, password):
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


@contextmanager
def served(folder, *words, **environment):
    """The address of a server that the verb has started."""
    command = [sys.executable, "-m", "experiments.cli", *words, "--port", "0", "--output-dir", str(folder)]
    options = {"env": os.environ | {"PYTHONPATH": str(ROOT)} | environment, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, **options) as process:
        try:
            yield re.fullmatch(r"MLflow UI: http://(\S+)\n", process.stdout.readline())[1]
        finally:
            process.terminate()


@pytest.mark.services
def test_a_server_for_a_team_asks_everybody_for_a_password(tmp_path, monkeypatch):
    Store(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    words = ["serve", "--auth", "--host", "0.0.0.0", "--allowed-host", "mlflow.example.org", "--num-workers", "1"]
    with served(tmp_path, *words, MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD) as address:
        address = address.replace("0.0.0.0", "127.0.0.1")
        path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
        assert ask(address, path)[0] == 401
        assert ask(address, path, **signed("admin", "another one, and long"))[0] == 401
        assert ask(address, path, **signed("admin", PASSWORD))[0] == 200
        assert ask(address, path, Host="mlflow.example.org", **signed("admin", PASSWORD))[0] == 200
        assert ask(address, path, Host="attacker.example", **signed("admin", PASSWORD))[0] == 403
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        store = Store(f"http://{address}", tmp_path / "client")
        run_id = store.start_run("over/http", "run", {"arm": "scratch"}, {})
        assert store.find_run(run_id[:8]).study == "over/http"
    for name in ("server.key", "server-auth.ini"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert PASSWORD not in (tmp_path / "server.log").read_text(encoding="utf-8")


def arguments(*words):
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return parser.parse_args(words)


def test_what_is_not_served(tmp_path, monkeypatch):
    for name in ("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_BACKEND_STORE_URI"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StoreError, match=r"open to the network on '0\.0\.0\.0'.*fontanel serve --auth"):
        serve.run(arguments("--host", "0.0.0.0", "--output-dir", str(tmp_path)))
    with pytest.raises(StoreError, match="set MLFLOW_AUTH_ADMIN_PASSWORD"):
        serve.run(arguments("--auth", "--output-dir", str(tmp_path)))
    with pytest.raises(StoreError, match="is a server already"):
        serve.run(arguments("--backend-store-uri", "http://127.0.0.1:5000", "--output-dir", str(tmp_path)))
    monkeypatch.setattr("tracking.server.find_spec", lambda name: None)
    with pytest.raises(StoreError, match=r"pip install 'fontanel\[serve\]'"):
        TrackingServer(f"sqlite:///{tmp_path}/mlflow.db", tmp_path, password=PASSWORD)


@pytest.fixture
def dashboard(tmp_path):
    uri = f"sqlite:///{tmp_path}/optuna.db"
    study = optuna.create_study(storage=open_storage(uri).backend, study_name="age2hie/sweep")
    study.add_trial(optuna.trial.create_trial(value=0.5))
    with Dashboard(uri, 0) as dashboard:
        yield dashboard, TrialQueue("age2hie/sweep", open_storage(uri))


def test_the_dashboard_shows_sweeps_and_changes_none(dashboard):
    shown, queue = dashboard
    address = f"127.0.0.1:{shown.port}"
    status, page = ask(address, "/dashboard")
    assert status == 200
    assert "Optuna Dashboard" in page
    (study,) = json.loads(ask(address, "/api/studies")[1])["study_summaries"]
    assert study["study_name"] == "age2hie/sweep"
    for method, path in (("DELETE", f"/api/studies/{study['study_id']}"), ("POST", "/api/studies")):
        assert ask(address, path, method)[0] == 403
    assert ask(address, "/dashboard", Host="attacker.example")[0] == 403
    assert len(queue.trials()) == 1

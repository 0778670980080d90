"""The verb, its store and its runs; the checks of the machine are in test_machine_checks.py."""

import json
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from types import SimpleNamespace

import pytest

from experiments import checks, doctor, machine_checks
from experiments.checks import Check
from experiments.cli import main
from lightning_modules import numerics
from tracking import shipping
from tracking.errors import StoreError
from tracking.shipping import Leftover
from tracking.store import RunInfo, Store

NAMES = ["store", "runs", "cache", "disk", "shared memory", "memory", "devices", "numerics", "packages"]


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """The machine is looked at elsewhere; here it is fine."""
    monkeypatch.setattr(numerics, "conv3d_errors", lambda *_, **__: {numerics.ConvShape((4, 4, 4)): 0.003})
    for name in ("check_shared_memory", "check_memory", "check_disk"):
        module = checks if name == "check_disk" else machine_checks
        label = name.removeprefix("check_").replace("_", " ")
        monkeypatch.setattr(module, name, lambda *_, label=label: Check(label, "ok", "plenty"))


@pytest.fixture
def reconciled(monkeypatch):
    """Stand in for what settles runs, and remember how it was called."""
    stand_in = SimpleNamespace(calls=[], leftovers=[])

    def reconcile(store, repair=True):
        stand_in.calls.append((store.uri, repair))
        return stand_in.leftovers

    monkeypatch.setattr(shipping, "reconcile", reconcile)
    return stand_in


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    store = Store(f"sqlite:///{folder}/mlflow.db", folder)
    store.set_status(store.start_run("study", "one", {}), "FINISHED")
    store.start_run("study", "two", {})
    return folder


@pytest.fixture
def output(made, tmp_path):
    with closing(sqlite3.connect(made / "mlflow.db")) as old, closing(sqlite3.connect(tmp_path / "mlflow.db")) as new:
        old.backup(new)
    return tmp_path


def examine(capsys, *words):
    """Run the verb and return its exit code, its answer and its checks by name."""
    code = main(["doctor", "--json", *map(str, words)])
    answer = json.loads(capsys.readouterr().out)
    return code, answer, {check["name"]: check for check in answer["checks"]}


def info(name="run"):
    return RunInfo("a" * 32, name, "study", "RUNNING", datetime.now(UTC), {})


def test_a_healthy_installation(output, reconciled, capsys):
    code, answer, found = examine(capsys, "--output-dir", output)
    assert (code, answer["ok"], answer["runs"]) == (0, True, [])
    assert list(found) == NAMES
    assert {check["status"] for check in found.values()} == {"ok"}
    assert "2 runs, whole and writable" in found["store"]["message"]


def test_a_store_that_is_not_there_is_not_made(tmp_path, reconciled, capsys):
    code, _, found = examine(capsys, "--output-dir", tmp_path / "new")
    assert code == 0
    assert found["store"] == {
        "name": "store",
        "status": "not checked",
        "message": f"no store yet at {tmp_path}/new/mlflow.db",
    }
    assert found["runs"]["status"] == "not checked"
    assert not (tmp_path / "new").exists()
    assert reconciled.calls == []


def test_an_empty_file_is_no_store_either(tmp_path, reconciled, capsys):
    (tmp_path / "mlflow.db").touch()
    assert examine(capsys, "--output-dir", tmp_path)[2]["store"]["status"] == "not checked"
    assert (tmp_path / "mlflow.db").stat().st_size == 0


@pytest.mark.parametrize("damage", ["page", "no database"])
def test_a_damaged_store_is_an_error_and_no_run_is_touched(damage, output, reconciled, capsys):
    path = output / "mlflow.db"
    content = bytearray(path.read_bytes())
    if damage == "page":
        content[8 * 4096 : 60 * 4096] = b"\xa5" * (52 * 4096)
    else:
        content[:16] = b"PK\3\4" * 4
    path.write_bytes(content)
    code, answer, found = examine(capsys, "--output-dir", output)
    assert (code, answer["ok"]) == (1, False)
    assert found["store"]["status"] == "error"
    assert "mlflow.db is damaged (" in found["store"]["message"]
    assert found["runs"]["status"] == "not checked"
    assert reconciled.calls == []


def test_a_store_that_somebody_blocks(output, monkeypatch, reconciled, capsys):
    monkeypatch.setattr(checks, "LOCK_TIMEOUT", 0.05)
    monkeypatch.setattr(checks, "open_store", lambda arguments: None)
    with closing(sqlite3.connect(output / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        found = examine(capsys, "--output-dir", output)[2]
    assert found["store"]["status"] == "error"
    assert "cannot be written: database is locked" in found["store"]["message"]


def test_a_store_that_does_not_take_wal(output, monkeypatch, reconciled, capsys):
    with closing(sqlite3.connect(output / "mlflow.db")) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    monkeypatch.setattr(checks, "open_store", lambda arguments: None)
    code, _, found = examine(capsys, "--output-dir", output)
    assert (code, found["store"]["status"]) == (0, "warning")
    assert "'delete' and not WAL" in found["store"]["message"]


@pytest.mark.parametrize("answer", [200, 503, None])
def test_a_server(answer, tmp_path, reconciled, capsys):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answer if self.path == "/health" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, daemon=True)
        if answer:
            thread.start()
        else:
            server.server_close()
        try:
            found = examine(capsys, "--tracking-uri", address, "--output-dir", tmp_path)[2]
        finally:
            if answer:
                server.shutdown()
                thread.join()
    assert found["store"]["status"] == ("ok" if answer == 200 else "error")
    assert f"{address} {'answers' if answer == 200 else 'does not answer'}" in found["store"]["message"]
    assert reconciled.calls == ([(address, True)] if answer == 200 else [])


def test_a_server_that_is_silent_costs_seconds_only(tmp_path, monkeypatch, reconciled, capsys):
    monkeypatch.setattr(checks, "SERVER_TIMEOUT", 0.1)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # it listens, and nobody serves
        words = ("--tracking-uri", f"http://127.0.0.1:{server.server_port}", "--output-dir", tmp_path)
        assert "timed out" in examine(capsys, *words)[2]["store"]["message"]


def test_a_database_server_that_cannot_be_reached_does_not_show_its_password(tmp_path, reconciled, capsys):
    words = ("--tracking-uri", "postgresql://ann:hunter2@127.0.0.1:1/x", "--output-dir", tmp_path)
    code, answer, found = examine(capsys, *words)
    assert (code, found["store"]["status"]) == (1, "error")
    assert "hunter2" not in json.dumps(answer)


def test_other_databases(output, monkeypatch, tmp_path):
    """What holds for PostgreSQL, shown with a sqlite that nobody takes for one."""
    monkeypatch.setattr(checks, "sqlite_path", lambda uri: None)
    arguments = SimpleNamespace(output_dir=output, tracking_uri=f"sqlite:///{output}/mlflow.db")
    assert checks.check_store(arguments).status == "ok"
    arguments.tracking_uri = f"sqlite:///{output}/other.db"
    monkeypatch.setattr(checks, "open_store", lambda arguments: pytest.fail("a store was made"))
    assert checks.check_store(arguments).status == "not checked"


def test_a_run_that_cannot_be_settled_is_named_with_its_reason(output, reconciled, capsys):
    reconciled.leftovers = [Leftover(info("dead-one"), output / "runs" / "x", "dead", 120, "the disk is full.")]
    _, _, found = examine(capsys, "--output-dir", output)
    assert found["runs"]["status"] == "warning"
    assert "dead-one could not be settled: the disk is full." in found["runs"]["message"]


@pytest.mark.parametrize("check_only", [False, True])
def test_runs_left_behind(check_only, output, reconciled, capsys):
    reconciled.leftovers = [
        Leftover(info("dead-one"), output / "runs" / "x", "dead", 120),
        Leftover(None, output / "runs" / "offline", "dead", 30),
        Leftover(info(), output / "runs" / "y", "alive", 5),
        Leftover(info(), None, "elsewhere", 0),
    ]
    words = ["--check-only"] if check_only else []
    code, answer, found = examine(capsys, "--output-dir", output, *words)
    assert code == 0
    assert reconciled.calls == [(f"sqlite:///{output}/mlflow.db", not check_only)]
    text = found["runs"]["message"]
    assert "1 run at work" in text
    assert "2 runs left behind by processes that are gone (dead-one, offline)" in text
    assert "1 run without a folder here" in text
    assert ("settled, 150 bytes delivered" in text) is not check_only
    assert found["runs"]["status"] == ("warning" if check_only else "ok")
    assert [run["state"] for run in answer["runs"]] == ["dead", "dead", "alive", "elsewhere"]
    assert answer["runs"][0] == {
        "run_id": "a" * 32,
        "name": "dead-one",
        "study": "study",
        "folder": f"{output}/runs/x",
        "state": "dead",
        "undelivered": 120,
    }
    assert (answer["runs"][1]["run_id"], answer["runs"][3]["folder"]) == (None, None)


def test_runs_that_cannot_be_settled_are_an_error(output, reconciled, monkeypatch, capsys):
    def refuse(store, repair=True):
        raise StoreError("Could not set run x to FAILED: the server is gone.")

    monkeypatch.setattr(shipping, "reconcile", refuse)
    code, _, found = examine(capsys, "--output-dir", output)
    assert (code, found["runs"]["status"]) == (1, "error")
    assert "the server is gone" in found["runs"]["message"]
    assert found["packages"]["status"] == "ok"  # the others are looked at all the same


def test_the_real_module_settles_a_run(output, capsys):
    pytest.importorskip("tracking.shipping")
    code, answer, found = examine(capsys, "--output-dir", output)
    assert (code, found["runs"]["status"]) == (0, "ok")
    assert [(run["name"], run["state"]) for run in answer["runs"]] == [("two", "elsewhere")]


@pytest.mark.parametrize("error", [OSError("disk"), RuntimeError("driver"), StoreError("store")])
def test_an_expected_error_is_a_row(error):
    def fail():
        raise error

    assert checks.attempt("x", fail) == Check("x", "error", str(error))


def test_an_unexpected_error_is_not_hidden():
    with pytest.raises(KeyError):
        checks.attempt("x", lambda: {}["absent"])


def test_lines_for_pipes(output, reconciled, capsys):
    assert main(["doctor", "--output-dir", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0].split(maxsplit=1) for line in lines] == [["ok", name] for name in NAMES]


def test_a_table_for_terminals(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    doctor.show([Check("cache", "warning", "12 [bold] left"), Check("disk", "ok", "plenty")])
    text = capsys.readouterr().out
    assert "12 [bold] left" in text
    assert "┃" in text

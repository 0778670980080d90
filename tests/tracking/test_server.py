import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tracking.errors import StoreError
from tracking.server import TrackingServer
from tracking.store import Store

# Stands for the MLflow server where the real one would take 15 s: a process with a child that ignores SIGTERM.
IMPOSTOR = """
import http.server, os, signal, sys, time
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
print("listening", flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def group(pid: int) -> list[int]:
    """Return the live processes of a group."""
    found = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, encoding="utf-8", check=True).stdout
    rows = [line.split() for line in found.splitlines()]
    return [int(row[0]) for row in rows if int(row[1]) == pid and not row[2].startswith("Z")]


@pytest.fixture
def server(store: Store, monkeypatch: pytest.MonkeyPatch) -> TrackingServer:
    server = TrackingServer(store.uri, store.output_folder, port=0)
    monkeypatch.setattr(server, "_command", lambda: [sys.executable, "-c", IMPOSTOR, str(server.port)])
    monkeypatch.setattr("tracking.server.STOP_TIMEOUT", 0.5)
    return server


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", "127.0.0.1.attacker.example", ""])
def test_only_loopback(host: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"open to the network.*ssh -L"):
        TrackingServer("sqlite:////x.db", tmp_path, host=host)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost"), ("::1", "[::1]")])
def test_the_command_says_everything_out_loud(
    host: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "true")
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "*")
    monkeypatch.setenv("UVICORN_UDS", "/tmp/socket")
    server = TrackingServer("postgresql://ann:hunter2@h/db", tmp_path, port=5005, host=host)
    command = " ".join(server._command())
    allowed = ",".join(dict.fromkeys([f"{shown}:5005", "localhost:5005"]))
    assert f"--host {host} --port 5005 --allowed-hosts {allowed} --workers 1" in command
    assert f"--artifacts-destination file://{tmp_path}/artifacts" in command
    assert "hunter2" not in command
    environment = server._environment()
    assert {name: value for name, value in environment.items() if "MLFLOW" in name or "UVICORN" in name} == {
        "MLFLOW_BACKEND_STORE_URI": "postgresql://ann:hunter2@h/db",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    assert environment["PATH"] == os.environ["PATH"]


def test_all_processes_go_also_the_stubborn_ones(server: TrackingServer) -> None:
    with server:
        pid = server.pid
        assert server.address == f"http://127.0.0.1:{server.port}"
        assert len(group(pid)) == 2
        assert stat.S_IMODE(server.log.stat().st_mode) == 0o600
    assert group(pid) == []
    assert server.pid == 0
    server.stop()


def test_what_the_server_said_last(server: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; sys.exit('no database at postgresql://ann:hunter2@h')"
    monkeypatch.setattr(server, "_command", lambda: [sys.executable, "-c", script])
    with pytest.raises(StoreError, match=r"did not start.*\n.*no database") as caught:
        server.start()
    assert "hunter2" not in str(caught.value)
    monkeypatch.setattr(server, "_command", lambda: [sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(StoreError, match="not ready in time"):
        server.start(timeout=0.5)
    assert server.pid == 0


def test_a_server_that_ends_by_itself(server: TrackingServer) -> None:
    with server:
        os.kill(server.pid, 9)
        with pytest.raises(StoreError, match=r"stopped by itself \(exit code -9\)"):
            server.wait()
        pid = server.pid
        assert len(group(pid)) == 1
    assert group(pid) == []


def test_a_taken_port(server: TrackingServer) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server.port = other.getsockname()[1]
        with pytest.raises(
            StoreError, match=f"Port {server.port} on 127.0.0.1 cannot be used.*--port {server.port + 1}"
        ):
            server.start()
    server.port = 99999
    with pytest.raises(StoreError, match=r"cannot be used.*--port 5001"):
        server.start()


@pytest.mark.parametrize("last_words", ["sys.exit()", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_it_goes_when_we_go(last_words: str, store: Store) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from tracking.server import TrackingServer\n"
        f"server = TrackingServer({store.uri!r}, Path({str(store.output_folder)!r}), port=0)\n"
        f"server._command = lambda: [sys.executable, '-c', {IMPOSTOR!r}, str(server.port)]\n"
        f"server.start(); print(server.pid, flush=True); {last_words}\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, encoding="utf-8")
    pid = int(done.stdout)
    if "SIGKILL" in last_words:  # nobody is left to see the whole group off, but the server itself stops
        deadline = time.monotonic() + 10
        while pid in group(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert pid not in group(pid)
        for other in group(pid):
            os.kill(other, 9)
    else:
        assert group(pid) == []

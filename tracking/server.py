"""The MLflow server as a child process: on loopback only, ready when it says so, and gone without a trace."""

import atexit
import contextlib
import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from tracking.addresses import check_filesystem, is_loopback, sqlite_path
from tracking.errors import StoreError
from tracking.files import make_private_folder, write_file
from tracking.processes import dies_with_parent
from tracking.redaction import redact_text, redact_uri
from tracking.store import Store

HOST = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")
READY_TIMEOUT = 120.0  # seconds; about 15 on two idle cores
KILL_TIMEOUT = 2.0  # seconds that a killed process may need to be gone
STOP_TIMEOUT = 10.0  # seconds until what does not stop by itself is killed
LOG_TAIL = 15  # lines shown of a server that did not start


class TrackingServer:
    """A running MLflow server, to be used as a context; start it from the main thread.

    It listens on loopback, answers only requests whose Host header names it (so that no web page can reach it under
    another name), runs no jobs and sends no telemetry. Server and workers form one process group that is stopped as a
    whole, also when this process exits or dies.

    Args:
        uri: URI of the store, a database.
        folder: Output folder, whose `artifacts` it serves; its log is `server.log` there.
        port: Port to listen on; 0 takes a free one.
        host: Address to listen on.
        password: Of the user `admin`, who makes the others: everybody is asked for one. None asks nobody.
        names: Further names under which it answers, such as that of a proxy.
        num_workers: Processes that answer.

    Raises:
        StoreError: If the host is not loopback and nobody is asked for a password, or what asks is not installed.
    """

    name = "MLflow UI"

    def __init__(
        self,
        uri: str,
        folder: Path,
        port: int = 5000,
        host: str = HOST,
        *,
        password: str | None = None,
        names: Sequence[str] = (),
        num_workers: int = 1,
    ) -> None:
        if password is None and not is_loopback(host):
            raise StoreError(
                f"The server would be open to the network on '{host}', without a password. It listens on {HOST} only "
                "unless it asks for one: fontanel serve --auth. From another machine, you reach it through: ssh -L "
                "5000:127.0.0.1:5000 THIS-MACHINE"
            )
        if password is not None and find_spec("flask_wtf") is None:
            raise StoreError("To ask for a password, MLflow needs Flask-WTF: pip install 'fontanel[serve]'")
        self.uri = uri
        self.folder = folder
        self.host = host
        self.port = port
        self.password = password
        self.names = tuple(names)
        self.num_workers = num_workers
        self.log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def what(self) -> str:
        """What it serves, and how long its start takes."""
        return f"the MLflow server on {sqlite_path(self.uri) or redact_uri(self.uri)}; this takes about 15 s"

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{self._authority}"

    @property
    def pid(self) -> int:
        """Id of its process group, 0 when it does not run."""
        return self._process.pid if self._process else 0

    def start(self, timeout: float = READY_TIMEOUT) -> None:
        """Start the server and return when it is ready.

        Args:
            timeout: Seconds to wait for it.

        Raises:
            StoreError: If the port is taken, or the server does not start; its last words are included.
        """
        self.port = free_port(self.host, self.port)
        make_private_folder(self.folder)
        if path := sqlite_path(self.uri):
            check_filesystem(path)
            if not path.exists():
                Store(self.uri, self.folder)
        self.log.touch(mode=0o600)
        atexit.register(self.stop)
        try:
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(
                    self._command(),
                    env=self._environment(),
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    umask=0o077,
                    start_new_session=True,  # Ctrl-C in the terminal reaches us alone, and we stop the whole group
                    preexec_fn=dies_with_parent(signal.SIGTERM),
                )
            self._wait_until_ready(time.monotonic() + timeout)
        except BaseException:
            self.stop()
            raise

    def wait(self) -> None:
        """Return, or rather raise, when the server ends by itself; Ctrl-C is how people end it."""
        if self._process is not None:
            code = self._process.wait()
            raise StoreError(f"The MLflow server stopped by itself (exit code {code}).{self._last_words()}")

    def stop(self) -> None:
        """Stop the server with all its processes; returns when none is left."""
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process is None:
            return
        try:
            _signal_group(process.pid, signal.SIGTERM)
            _wait_for_group(process, STOP_TIMEOUT)
        finally:  # also after a second Ctrl-C
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()
            _wait_for_group(process, KILL_TIMEOUT)  # the system takes a moment to end what it was told to kill

    @property
    def _authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def _command(self) -> list[str]:
        here = [f"{HOST}:{self.port}"] if self.host in EVERYWHERE else []
        own = [self._authority, *here, f"localhost:{self.port}"]
        behind = [one for name in self.names for one in (name, f"{name}:{self.port}")]
        command = [sys.executable, "-m", "mlflow", "server", "--host", self.host, "--port", str(self.port)]
        command += ["--allowed-hosts", ",".join(dict.fromkeys([*own, *behind])), "--workers", str(self.num_workers)]
        command += ["--app-name", "basic-auth"] if self.password is not None else []
        return [*command, "--artifacts-destination", (self.folder / "artifacts").as_uri()]

    def _environment(self) -> dict[str, str]:
        """Return our environment with our settings of MLflow; the user's could open the server to others."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.lstrip("_").startswith(("MLFLOW_", "UVICORN_"))
        }
        return kept | {
            **self._authentication(),
            "MLFLOW_BACKEND_STORE_URI": self.uri,  # not on the command line, where everybody could read a password
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        }

    def _authentication(self) -> dict[str, str]:
        """Return what makes the server ask for a password; users are kept in the database of the runs."""
        if self.password is None:
            return {}
        key, settings = self.folder / "server.key", self.folder / "server-auth.ini"
        if not key.is_file():
            write_file(key, secrets.token_hex(32).encode())
        check = "mlflow.server.auth:authenticate_request_basic_auth"
        lines = ["[mlflow]", "default_permission = READ", "admin_username = admin", f"authorization_function = {check}"]
        uri = self.uri.replace("%", "%%")
        write_file(settings, "\n".join([*lines, f"database_uri = {uri}", ""]).encode())
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": key.read_text(encoding="utf-8"),
        }

    def _wait_until_ready(self, deadline: float) -> None:
        assert self._process is not None
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise StoreError(f"The MLflow server did not start.{self._last_words()}")
            if _answers(HOST if self.host in EVERYWHERE else self.host, self.port):
                return
            time.sleep(0.1)
        raise StoreError(f"The MLflow server was not ready in time.{self._last_words()}")

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL:] if self.log.exists() else []
        return "\n".join([f" The end of {self.log}:", *(f"  {redact_text(line)}" for line in lines)])


def free_port(host: str, port: int) -> int:
    """Return a port that can be listened on: the given one, or any for 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that just stopped is no obstacle
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise StoreError(
                f"Port {port} on {host} cannot be used ({error}); another server may be running there. "
                f"Choose another one with --port, such as --port {port + 1 if 0 < port < 65535 else 5001}."
            ) from None
        return int(probe.getsockname()[1])


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=1.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # all of it is gone
        os.killpg(group, number)


def _wait_for_group(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until no process of the group is left, or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and _group_is_alive(process):
        time.sleep(0.05)


def _group_is_alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # a child that ended counts until it is reaped
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True

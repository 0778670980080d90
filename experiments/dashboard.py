"""optuna-dashboard on the trials of sweeps: on loopback, to look at, in a thread of this process.

It answers requests that name it (so that no web page can reach it under another name) and that change nothing: sweeps
are changed by commands.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from typing_extensions import override

from experiments.runtime import ConfigurationError
from experiments.sweep_storage import open_storage
from tracking.server import HOST, free_port

try:
    from optuna_dashboard import wsgi
except ImportError as error:
    raise ConfigurationError(
        "Sweeps are shown by optuna-dashboard. Install it: pip install 'fontanel[dashboard]'"
    ) from error

READING = ("GET", "HEAD")
LOG = logging.getLogger(__name__)


class Dashboard:
    """A running dashboard, to be used as a context.

    Args:
        uri: Address of the storage.
        port: Port to listen on; 0 takes a free one.
    """

    name = "Sweeps"
    what = "optuna-dashboard on the trials of sweeps"

    def __init__(self, uri: str, port: int) -> None:
        self.port = free_port(HOST, port)
        self._server = make_server(
            HOST, self.port, self._guarded(wsgi(open_storage(uri).backend)), _ThreadedServer, _QuietHandler
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.port}/dashboard"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self) -> None:
        """Return when the server ends by itself; Ctrl-C is how people end it."""
        self._thread.join()

    def _guarded(self, application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        allowed = {f"{HOST}:{self.port}", f"localhost:{self.port}"}

        def answer(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            if environment.get("HTTP_HOST") not in allowed:
                return _refuse(start, "403 Forbidden", "This server answers under its own name only.")
            if environment["REQUEST_METHOD"] not in READING:
                return _refuse(start, "403 Forbidden", "Sweeps are changed by commands: fontanel sweep --help")
            return application(environment, start)

        return answer


class _ThreadedServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    @override
    def log_message(self, format: str, *args: Any) -> None:
        LOG.debug(format, *args)


def _refuse(start: Callable[..., Any], status: str, why: str) -> list[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [why.encode()]

"""What verbs that serve pages have in common: a server that runs until Ctrl-C, and leaves nothing running."""

import signal
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import Protocol, Self


class Server(Protocol):
    """A server that is a context, and runs within it."""

    @property
    def name(self) -> str:
        """What stands before its address."""

    @property
    def what(self) -> str:
        """What it serves, and how long its start takes."""

    @property
    def address(self) -> str:
        """Where a browser finds it."""

    def __enter__(self) -> Self:
        """Start it, and return when it is ready."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop it."""

    def wait(self) -> None:
        """Return when it ends by itself."""


def hold(*servers: Server, opens: bool = False) -> None:
    """Run servers until Ctrl-C (or SIGTERM, or the terminal closes).

    Args:
        servers: Not yet started; the first is the one that is waited for.
        opens: Whether to open its page in a browser.
    """
    try:
        with _stopped_by_signals(), ExitStack() as stack:
            for server in servers:
                sys.stderr.write(f"Starting {server.what}.\n")
                stack.enter_context(server)
                print(f"{server.name}: {server.address}")
            print("Stop it with Ctrl-C.", flush=True)
            if opens:
                webbrowser.open(servers[0].address)
            servers[0].wait()
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Make `kill` and a closed terminal the same as Ctrl-C; what `nohup` ignores stays ignored."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

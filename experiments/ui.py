"""Open the MLflow UI on the store.

The server listens on this machine only (127.0.0.1) and runs until it is stopped with Ctrl-C.
"""

import argparse
import signal
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from experiments.options import add_store_arguments

DONE = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fontanel ui`."""
    parser.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1, 5000 by default; 0 takes a free one")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve the store until Ctrl-C (or SIGTERM, or the terminal closes), and leave nothing running."""
    from tracking.redaction import redact_uri
    from tracking.server import TrackingServer
    from tracking.store import StoreError, output_folder, sqlite_path, tracking_uri

    folder = output_folder(arguments.output_dir)
    uri = tracking_uri(arguments.tracking_uri, folder)
    if uri.startswith(("http://", "https://")):
        print(f"This store is served already: open {uri} in a browser.")
        return DONE
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise StoreError(
            f"There is no store at {path} yet. Make one with 'fontanel quickstart' or 'fontanel fit --config FILE', or "
            "name the folder of another one with --output-dir."
        )
    try:
        with _stopped_by_signals():
            sys.stderr.write(f"Starting the MLflow server on {path or redact_uri(uri)}; this takes about 15 s.\n")
            with TrackingServer(uri, folder, arguments.port) as server:
                print(f"MLflow UI: {server.address}\nStop it with Ctrl-C.", flush=True)
                if arguments.open:
                    webbrowser.open(server.address)
                server.wait()
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
    return DONE


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

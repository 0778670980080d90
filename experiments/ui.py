"""Open the MLflow UI on the store, and with --sweep optuna-dashboard on the trials of its sweeps.

The servers listen on this machine only (127.0.0.1) and run until they are stopped with Ctrl-C.
"""

import argparse
from typing import TYPE_CHECKING

from experiments.options import add_storage_argument, add_store_arguments

if TYPE_CHECKING:
    from experiments.dashboard import Dashboard

DONE = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fontanel ui`."""
    parser.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1, 5000 by default; 0 takes a free one")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--sweep", action="store_true", help="serve optuna-dashboard on the trials of sweeps, too")
    parser.add_argument("--sweep-port", type=int, default=8080, help="its port on 127.0.0.1, 8080 by default")
    add_storage_argument(parser)
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve the store until Ctrl-C (or SIGTERM, or the terminal closes), and leave nothing running."""
    from experiments.serving import Server, hold
    from tracking.addresses import SERVERS, output_folder, sqlite_path, tracking_uri
    from tracking.errors import StoreError
    from tracking.server import TrackingServer

    folder = output_folder(arguments.output_dir)
    uri = tracking_uri(arguments.tracking_uri, folder)
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise StoreError(
            f"There is no store at {path} yet. Make one with 'fontanel quickstart' or 'fontanel fit --config FILE', or "
            "name the folder of another one with --output-dir."
        )
    served = uri.startswith(SERVERS)
    if served:
        print(f"This store is served already: open {uri} in a browser.")
    servers: list[Server] = [] if served else [TrackingServer(uri, folder, arguments.port)]
    if arguments.sweep:
        servers.append(_dashboard(arguments))
    if servers:
        hold(*servers, opens=arguments.open)
    return DONE


def _dashboard(arguments: argparse.Namespace) -> "Dashboard":
    from experiments.dashboard import Dashboard
    from experiments.sweep_storage import storage_uri
    from tracking.addresses import output_folder

    return Dashboard(storage_uri(arguments.storage, output_folder(arguments.output_dir)), arguments.sweep_port)

"""Serve MLflow to a team: runs in a database, artifacts in a folder, and a password.

Examples:
  export MLFLOW_AUTH_ADMIN_PASSWORD=...                    twelve characters at least; of the user `admin`
  fontanel serve --backend-store-uri postgresql+psycopg2://USER@HOST/mlflow --auth
  fontanel serve --auth --host 0.0.0.0 --allowed-host mlflow.example.org

An address with a password belongs in MLFLOW_BACKEND_STORE_URI, where nobody else reads it. The server listens on
127.0.0.1 unless --auth asks everybody for a password. It speaks HTTP: put a proxy with TLS before it, or reach it
through ssh -L. Users set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, and --tracking-uri http://HOST:PORT.
"""

import argparse
import os
from pathlib import Path

PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"
DONE = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel serve`."""
    from tracking.server import HOST

    parser.add_argument(
        "--backend-store-uri",
        metavar="URI",
        help="database of the runs (MLFLOW_BACKEND_STORE_URI, else sqlite in the output folder)",
    )
    parser.add_argument("--auth", action="store_true", help=f"ask for a password; that of the admin is {PASSWORD}")
    parser.add_argument("--host", default=HOST, help=f"address to listen on ({HOST}); others only with --auth")
    parser.add_argument("--port", type=int, default=5000, help="port, 5000 by default; 0 takes a free one")
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name under which clients reach it, as in the address bar; may be repeated",
    )
    parser.add_argument("--num-workers", type=int, default=2, metavar="N", help="processes that answer (default: 2)")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="folder of the artifacts (FONTANEL_OUTPUT, else ./outputs)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve the store until Ctrl-C (or SIGTERM), and leave nothing running."""
    from experiments.serving import hold
    from tracking.addresses import SERVERS, output_folder, tracking_uri
    from tracking.errors import StoreError
    from tracking.server import TrackingServer

    folder = output_folder(arguments.output_dir)
    uri = tracking_uri(arguments.backend_store_uri or os.environ.get("MLFLOW_BACKEND_STORE_URI"), folder)
    if uri.startswith(SERVERS):
        raise StoreError(f"{uri} is a server already. Name the database that is to be served.")
    password = None
    if arguments.auth:
        password = os.environ.get(PASSWORD)
        if not password:
            raise StoreError(f"Choose the password of the user admin: set {PASSWORD} in the environment.")
    server = TrackingServer(
        uri,
        folder,
        arguments.port,
        arguments.host,
        password=password,
        names=arguments.allowed_host,
        num_workers=arguments.num_workers,
    )
    hold(server)
    return DONE

"""Where runs go: the output folder, and the address of the store."""

import ipaddress
import os
from pathlib import Path
from urllib.parse import urlsplit

from tracking.errors import StoreError
from tracking.filesystems import network_filesystem
from tracking.redaction import redact_uri

SERVERS = ("http://", "https://")
_DATABASES = ("postgresql", "mysql", "mssql")


def output_folder(explicit: Path | None = None) -> Path:
    """Return the absolute output folder: the given one, else `FONTANEL_OUTPUT`, else `./outputs`."""
    return Path(explicit or os.environ.get("FONTANEL_OUTPUT") or "outputs").expanduser().absolute()


def tracking_uri(explicit: str | None, folder: Path) -> str:
    """Return the URI of the store: the given one, else `MLFLOW_TRACKING_URI`, else sqlite in the output folder.

    Args:
        explicit: Value of `--tracking-uri`.
        folder: Output folder.

    Raises:
        StoreError: If the URI is a plain path or names a kind of store that MLflow cannot serve.
    """
    uri = explicit or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"
    if path := sqlite_path(uri):
        return f"sqlite:///{path}"
    if uri.startswith(SERVERS):
        if urlsplit(uri).username is not None:
            raise StoreError(
                f"The tracking URI {redact_uri(uri)} holds a user or password, which MLflow would print. Leave them "
                "out of it and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            )
        return uri.rstrip("/")
    if uri.split("://")[0].split("+")[0] in _DATABASES and "://" in uri:
        return uri
    raise StoreError(
        f"The tracking URI '{redact_uri(uri)}' is not a store: MLflow no longer writes to plain folders. Give "
        "sqlite:///FILE.db, http://HOST:PORT or postgresql://..., or leave --tracking-uri and MLFLOW_TRACKING_URI out."
    )


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, by its name or number.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "10.0.0.1", "10.attacker.example")]
    [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def stays_here(uri: str, artifacts: str) -> bool:
    """Tell whether the artifacts of a run stay on this machine.

    A tunnel and a server that hands artifacts on look like this machine.

    Args:
        uri: Of the store.
        artifacts: Where MLflow keeps the artifacts of the run.

    >>> stays_here("http://127.0.0.1:5000", "mlflow-artifacts:/1/abc"), stays_here("http://10.0.0.1", "file:///data")
    (True, False)
    >>> stays_here("http://127.0.0.1:5000", "s3://bucket/1/abc"), stays_here("postgresql://db/mlflow", "file:///data")
    (False, True)
    """
    if uri.startswith(SERVERS) and not is_loopback(urlsplit(uri).hostname or ""):
        return False
    return urlsplit(artifacts).scheme in {"", "file", "mlflow-artifacts"}


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute database file of a sqlite URI, None for every other kind of store."""
    prefix = "sqlite:///"
    if not uri.startswith(prefix):
        return None
    name = uri.removeprefix(prefix)
    if not name or name.startswith(":memory:"):
        raise StoreError(f"The tracking URI '{uri}' keeps nothing. Give a file: sqlite:///FILE.db.")
    return Path(name).expanduser().absolute()


def check_filesystem(path: Path) -> None:
    """Refuse a database where several machines write to it through locks that do not hold."""
    if kind := network_filesystem(path):
        raise StoreError(
            f"The store {path} would lie on a network filesystem: {path.parent} is on {kind}. The locks of sqlite are "
            "not reliable there, and databases get corrupted. Only the database must be elsewhere; the output folder "
            "may stay. Name a file on a local disk with --tracking-uri sqlite:////local/disk/mlflow.db, or move "
            "everything with --output-dir. Or use a server: 'fontanel ui' on one machine and --tracking-uri "
            "http://HOST:PORT on the others, or --tracking-uri postgresql://..."
        )

"""A PostgreSQL server on loopback for tests, in a folder of its own, gone afterwards."""

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

PASSWORD = "loopback-only"
OPTIONS = "-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"


def find_programs():
    """Return the folder of PostgreSQL's programs, None where it is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "initdb").is_file()), None)


@contextmanager
def postgresql(programs):
    """Start a server and yield a function from the name of a database, which it makes, to its address."""
    folder = Path(tempfile.mkdtemp(prefix="fontanel-postgresql-", dir="/tmp"))
    owner = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # it refuses to run as root
    if owner:
        shutil.chown(folder, "postgres", "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, secret = folder / "data", folder / "secret"
    environment = {**os.environ, "PGPASSWORD": PASSWORD}

    def call(program, *words):
        subprocess.run([*owner, programs / program, *words], check=True, capture_output=True, cwd="/", env=environment)

    def make(name):
        call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "pg", name)
        return f"postgresql+psycopg2://pg:{PASSWORD}@127.0.0.1:{port}/{name}"

    secret.write_text(PASSWORD, encoding="utf-8")
    if owner:
        shutil.chown(secret, "postgres", "postgres")
    try:
        call(
            "initdb",
            "-D",
            data,
            "-A",
            "scram-sha-256",
            "-U",
            "pg",
            f"--pwfile={secret}",
            "--no-sync",
            "--locale=C.UTF-8",
        )
        options = OPTIONS.format(port=port, folder=folder)
        call("pg_ctl", "-D", data, "-w", "-t", "60", "-l", folder / "log", "-o", options, "start")
        try:
            yield make
        finally:
            call("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)

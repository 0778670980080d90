"""A process that has imported everything and forks `fontanel` commands, ten times as fast as starting them.

It never computes anything itself, so that its children have no threads to lose. A request is one line of JSON,
`{"words": [...], "env": {...}, "log": FILE}`, answered by the child's id; `{"wait": ID}` is answered by its exit code,
negative for a signal, and `{"poll": ID}` by null while it runs.
"""

import json
import os
import signal
import sys


def become(request: dict) -> None:
    """Turn a fresh fork into one command."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(request["env"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    from lightning_utilities.core.rank_zero import rank_zero_only

    rank_zero_only.rank = int(os.environ.get("LOCAL_RANK", "0"))  # Lightning reads it when it is imported
    from experiments.cli import main

    code = 70
    try:
        code = main(request["words"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Import, say so, and answer requests until the end of the input."""
    for name in ("cli", "fit", "training", "scoring", "ranks", "runtime"):
        __import__(f"experiments.{name}")
    __import__("mlflow.store.tracking.sqlalchemy_store")
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "words" in request:
            answer = os.fork() or become(request)
        else:
            answer = ended(request.get("wait") or request["poll"], os.WNOHANG if "poll" in request else 0)
        print(json.dumps(answer), flush=True)


def ended(child: int, options: int, codes: dict[int, int] = {}) -> int | None:  # noqa: B006 - remembers
    """Return the exit code of a child, None while it runs."""
    if child not in codes:
        pid, status = os.waitpid(child, options)
        if pid == 0:
            return None
        codes[child] = os.waitstatus_to_exitcode(status)
    return codes[child]


if __name__ == "__main__":
    serve()

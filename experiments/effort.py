"""How much an arm was tuned: of two arms, the one that was tuned for longer may win by that alone."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

EFFORT = "effort"  # tag of a run
UNTUNED, BASELINE = "not tuned", "nothing to tune"


def effort_of(rows: "pd.DataFrame", arguments: argparse.Namespace) -> str | None:
    """Return how much the runs behind a predictions table were tuned, None where that is not known.

    Args:
        rows: A predictions table.
        arguments: The parsed words, which name the store.
    """
    from mlflow.exceptions import MlflowException

    from experiments.options import open_store
    from tracking.addresses import output_folder, sqlite_path, tracking_uri
    from tracking.errors import StoreError

    run_ids = sorted(set(rows["run_id"]) - {""}) if "run_id" in rows else []
    if not run_ids:
        return None
    try:
        database = sqlite_path(tracking_uri(arguments.tracking_uri, output_folder(arguments.output_dir)))
        if database is not None and not database.is_file():
            return None  # looking makes no store
        client = open_store(arguments).client
        found = {client.get_run(run_id).data.tags.get(EFFORT) for run_id in run_ids}
    except (MlflowException, StoreError):  # the runs are in another store, or this one is away
        return None
    return None if None in found else " or ".join(sorted(map(str, found)))


def unequal(first: str | None, second: str | None) -> str | None:
    """Return what a reader must know where two efforts differ, None where they do not, or where one is not known."""
    if first is None or second is None or first == second or BASELINE in (first, second):
        return None
    how = f"A was {_told(first)}, B was {_told(second)}"
    return f"Unequal effort: {how}. Some of the difference may be that of the tuning."


def _told(effort: str) -> str:
    return effort if effort == UNTUNED else f"tuned by {effort}"

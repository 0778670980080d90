"""The form of a report that may be sent away: its secret key, and the list of codes that stays at home."""

import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from evaluation.disclosure import Sharing
from evaluation.report.context import CrossvalContext, ReportContext
from tracking.errors import StoreError
from tracking.files import make_private_folder, write_file
from tracking.paths import hide_paths, hide_paths_yaml

KEY, CODES = "key", "codes.csv"
KEY_BYTES = 32
Context = TypeVar("Context", ReportContext, CrossvalContext)


def read_or_make_key(folder: Path) -> Sharing:
    """Return how participants are named with the key in a folder; both are made, for their owner only, if missing.

    Args:
        folder: Beside the run or the table; it is no artifact, and no part of what is shared.
    """
    path = make_private_folder(folder) / KEY
    if not path.is_file():
        write_file(path, secrets.token_bytes(KEY_BYTES))  # readable by its owner only
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise StoreError(f"{path} is no key: it has {len(key)} bytes, not {KEY_BYTES}. Move it away to make another.")
    return Sharing(key)


def write_codes(folder: Path, sharing: Sharing, predictions: pd.DataFrame) -> Path:
    """Write the list of participants with their codes, by which who wrote the report knows them again."""
    path = folder / CODES
    write_file(path, sharing.codes(predictions).to_csv(index=False).encode())
    return path


def shared_context(context: Context, sharing: Sharing) -> Context:
    """Return what a report says beside the numbers, without pictures of participants and folders of this machine."""
    hidden: dict[str, Any] = {"sharing": sharing, "saliency": ()}
    if context.config_yaml is not None:
        hidden["config_yaml"] = hide_paths_yaml(context.config_yaml)
    for name in ("cohort", "lock", "arms", "ledgers", "settings"):
        if getattr(context, name, None) is not None:
            hidden[name] = hide_paths(getattr(context, name))
    return replace(context, **hidden)

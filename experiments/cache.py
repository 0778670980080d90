"""Show, check, limit or clear the cache of preprocessed volumes.

Examples:
  fontanel cache                              what it holds, and what of it is of no more use
  fontanel cache --verify                     compares every entry with its hash
  fontanel cache --clear --unused-for 30      removes what was not used for 30 days
  fontanel cache --limit 200GB                keeps it below that, by removing what was not used for longest

Whatever is removed is computed again when it is needed. The limit is kept in the cache's folder and holds for every
process that uses it; an entry that was used within the last hour is never removed to keep it. Exit code 1 of --verify
means that something was damaged.
"""

import argparse
import json
import math
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.upkeep import Recipe, Summary

UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}
DAY = 86400.0  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fontanel cache`."""
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--info", action="store_true", help="show what it holds (the default)")
    action.add_argument("--verify", action="store_true", help="remove what is damaged, and what killed writers left")
    action.add_argument("--clear", action="store_true", help="remove all entries, or only those chosen below")
    action.add_argument(
        "--limit", type=_limit, metavar="SIZE", help="keep it below a size such as 500MB, 200GB or 1.5TB; or none"
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--unused-for", type=_days, metavar="DAYS", help="with --clear: only what was not used for so many days"
    )
    choice.add_argument(
        "--outdated", action="store_true", help="with --clear: only what other versions of the libraries made"
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="the cache (default: FONTANEL_CACHE, else yours)")
    parser.add_argument("--json", action="store_true", help="print the answer as one JSON object")
    parser.set_defaults(refuse=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for and say what came of it."""
    from datamodules.folders import cache_folder
    from datamodules.upkeep import CacheError

    if not arguments.clear and (arguments.outdated or arguments.unused_for is not None):
        arguments.refuse("--unused-for and --outdated choose what --clear removes: add --clear.")
    folder = (arguments.folder or cache_folder()).absolute()
    if folder.exists() and not folder.is_dir():
        raise CacheError(f"{folder} is no folder. Name that of a cache with --folder or FONTANEL_CACHE.")
    if arguments.verify:
        return verify(folder, as_json=arguments.json)
    if arguments.clear:
        clear(folder, arguments.unused_for, outdated=arguments.outdated, as_json=arguments.json)
    elif arguments.limit is not None:
        limit(folder, None if arguments.limit == math.inf else int(arguments.limit), as_json=arguments.json)
    else:
        info(folder, as_json=arguments.json)
    return 0


def info(folder: Path, *, as_json: bool) -> None:
    """Print what a cache holds."""
    from datamodules.upkeep import read_limit, summarise
    from experiments.checks import existing_parent

    summary, size = summarise(folder), read_limit(folder)
    free = shutil.disk_usage(existing_parent(folder)).free
    if as_json:
        print(json.dumps({"folder": str(folder), "limit": size, "free": free, **asdict(summary)}))
    else:
        _show(summary, folder, size, free)


def verify(folder: Path, *, as_json: bool) -> int:
    """Compare every entry with its hash, print what was removed, and return 1 where something was damaged."""
    from datamodules import upkeep
    from experiments.checks import MAXIMUM_NAMES, count_text, size_text

    found = upkeep.verify(folder)
    names = [str(path.relative_to(folder)) for path in found.damaged]
    if as_json:
        print(json.dumps(asdict(found) | {"damaged": names}))
        return 1 if names else 0
    print(f"{folder}: {_entries(found.entries)} read, {len(names) or 'none'} damaged.")
    if names:
        more = f" and {len(names) - MAXIMUM_NAMES} more" if len(names) > MAXIMUM_NAMES else ""
        print(f"Removed, to be computed again when needed: {', '.join(names[:MAXIMUM_NAMES])}{more}", end=" ")
        print(f"({size_text(found.damaged_size)}).")
    if found.leftovers.number:
        left = f"{count_text(found.leftovers.number, 'file')} ({size_text(found.leftovers.size)})"
        print(f"Removed, left behind by killed writers: {left}.")
    return 1 if names else 0


def clear(folder: Path, days: float | None, *, outdated: bool, as_json: bool) -> None:
    """Remove entries, and print how much that freed."""
    from datamodules import upkeep
    from experiments.checks import size_text

    removed = upkeep.clear(folder, unused_for=None if days is None else days * DAY, outdated=outdated)
    if as_json:
        print(json.dumps({"removed": asdict(removed)}))
    else:
        print(f"{folder}: {_entries(removed.number)} removed, {size_text(removed.size)} freed.")


def limit(folder: Path, size: int | None, *, as_json: bool) -> None:
    """Set or remove the limit, make room, and print what that took."""
    from datamodules.upkeep import Amount, Eviction, evict, write_limit
    from experiments.checks import size_text

    write_limit(folder, size)
    evicted = Eviction(Amount(0, 0), 0) if size is None else evict(folder, size)
    if as_json:
        print(json.dumps({"limit": size, "removed": asdict(evicted.removed)}))
        return
    if size is None:
        print(f"{folder}: no limit.")
        return
    removed = f"{_entries(evicted.removed.number)} removed, {size_text(evicted.removed.size)} freed"
    print(f"{folder}: limit {size_text(size)}; {removed}.")
    if evicted.size > size:
        print(f"{size_text(evicted.size)} are left, all used within the last hour. They make room when they are not.")


def _show(summary: "Summary", folder: Path, size: int | None, free: int) -> None:
    from experiments.checks import count_text, size_text

    kept = "no limit" if size is None else f"limit {size_text(size)}"
    held = f"{_entries(summary.entries.number)}, {size_text(summary.entries.size)}"
    print(f"{folder}: {held}; {kept}; {size_text(free)} free on the disk.")
    if summary.oldest_use is not None and summary.newest_use is not None:
        oldest, newest = map(datetime.fromtimestamp, (summary.oldest_use, summary.newest_use))
        print(f"Last used between {oldest:%Y-%m-%d %H:%M} and {newest:%Y-%m-%d %H:%M}.")
    _show_recipes(summary.recipes)
    if summary.outdated.number:
        outdated = f"{_entries(summary.outdated.number)}, {size_text(summary.outdated.size)}"
        print(f"Outdated, made by other versions of the libraries: {outdated}. --clear --outdated removes them.")
    if summary.unfinished.number:
        unfinished = f"{count_text(summary.unfinished.number, 'file')}, {size_text(summary.unfinished.size)}"
        print(f"Unfinished, of writers at work or killed: {unfinished}. --verify removes what killed ones left.")


def _show_recipes(recipes: Sequence["Recipe"]) -> None:
    """Print a table on a terminal, and a line for each recipe elsewhere."""
    from experiments.checks import size_text

    rows = [
        (
            _recipe_text(recipe.preprocessing),
            recipe.entries,
            f"{datetime.fromtimestamp(recipe.last_used):%Y-%m-%d}",
        )
        for recipe in recipes
    ]
    if not sys.stdout.isatty():
        for text, amount, used in rows:
            print(f"{text}: {_entries(amount.number)}, {size_text(amount.size)}, last used {used}")
    elif rows:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("recipe")
        for name in ("entries", "size", "last used"):
            table.add_column(name, justify="right", no_wrap=True)
        for text, amount, used in rows:
            table.add_row(Text(text), f"{amount.number:,}", size_text(amount.size), used)
        Console().print(table)


def _recipe_text(preprocessing: dict[str, Any] | None) -> str:
    return ", ".join(f"{name} {_value_text(value)}" for name, value in (preprocessing or {}).items()) or "unknown"


def _value_text(value: list[float] | str | None) -> str:
    if isinstance(value, list):
        return ("x" if len(value) == 3 else " to ").join(f"{number:g}" for number in value)
    return value or "none"


def _entries(number: int) -> str:
    return "1 entry" if number == 1 else f"{number:,} entries"


def _limit(text: str) -> float:
    """Return the bytes of a size, infinitely many for none."""
    if text.lower() == "none":
        return math.inf
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([MGT]B)", text.strip(), re.IGNORECASE)
    size = round(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no size. Write one such as 500MB, 200GB or 1.5TB, or none.")
    return size


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of days. Write one such as 30.")
    return days

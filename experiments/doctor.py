"""Check store, cache, memory, devices and numerics; settle runs that a crash left behind.

A run whose process is gone is set to FAILED, and what it wrote is delivered to the store; --check-only leaves it alone.
Nothing else is changed. Exit code 1 means that something will not work.
"""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from experiments.options import add_store_arguments

if TYPE_CHECKING:
    from experiments.checks import Check
    from tracking.shipping import Leftover

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red", "not checked": "dim"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fontanel doctor`."""
    parser.add_argument("--json", action="store_true", help="print the checks and the runs left over as JSON")
    parser.add_argument("--check-only", action="store_true", help="repair nothing")
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run every check and return 0 when none of them found an error."""
    from experiments import checks, machine_checks

    first = checks.attempt("store", lambda: checks.check_store(arguments))
    second, leftovers = settle_runs(arguments, first)
    found = [
        first,
        second,
        checks.attempt("cache", checks.check_cache),
        checks.attempt("disk", lambda: checks.check_disk(arguments)),
        checks.attempt("shared memory", machine_checks.check_shared_memory),
        checks.attempt("memory", machine_checks.check_memory),
        checks.attempt("devices", machine_checks.check_devices),
        checks.attempt("numerics", machine_checks.check_numerics),
        checks.attempt("packages", machine_checks.check_packages),
    ]
    is_fit = all(check.status != "error" for check in found)
    if arguments.json:
        rows = [{"name": check.name, "status": check.status, "message": check.message} for check in found]
        runs = [run_as_json(leftover) for leftover in leftovers]
        print(json.dumps({"ok": is_fit, "checks": rows, "runs": runs}))
    else:
        show(found)
    return 0 if is_fit else 1


def settle_runs(arguments: argparse.Namespace, store: "Check") -> "tuple[Check, list[Leftover]]":
    """Settle the runs that were left behind, unless the store cannot take them or the user does not want it.

    Args:
        arguments: Those of the verb.
        store: What the check of the store found.

    Returns:
        What was found, and the runs.
    """
    from experiments.checks import Check, attempt, check_runs
    from experiments.options import open_store
    from tracking import shipping

    leftovers: list[Leftover] = []

    def check() -> Check:
        leftovers.extend(shipping.reconcile(open_store(arguments), repair=not arguments.check_only))
        return check_runs(leftovers, repaired=not arguments.check_only)

    if store.status in {"error", "not checked"}:
        return Check("runs", "not checked", "without a store, nobody knows them"), leftovers
    return attempt("runs", check), leftovers


def run_as_json(leftover: "Leftover") -> dict[str, Any]:
    """Return a run that was left over as JSON types; what no store has yet has no id, name and study."""
    info = leftover.run
    return {
        "run_id": info and info.run_id,
        "name": info and info.name,
        "study": info and info.study,
        "folder": leftover.folder and str(leftover.folder),
        "state": leftover.state,
        "undelivered": leftover.undelivered,
    }


def show(found: "list[Check]") -> None:
    """Print a table on a terminal, and a line for each check elsewhere."""
    if not sys.stdout.isatty():
        for check in found:
            print(f"{check.status:<11}  {check.name}: {check.message}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "", "found")
    for check in found:
        table.add_row(check.name, Text(check.status, style=STYLES[check.status]), Text(check.message))
    Console().print(table)

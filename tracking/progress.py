"""Progress for long work: a bar on a terminal, one plain line a minute in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PLAIN_INTERVAL = 60.0  # seconds between lines where nobody watches


class Lines:
    """A line at the beginning, one a minute, and one at the end, for work whose state is told again and again.

    Args:
        name: What every line begins with.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._last = float("-inf")

    def show(self, state: object, *, is_over: bool) -> None:
        """Write a line, if it is time for one."""
        now = time.monotonic()
        if now - self._last >= PLAIN_INTERVAL or is_over:
            self._last = now
            sys.stderr.write(f"{self._name}: {state}\n")
            sys.stderr.flush()


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far a piece of work has come, on standard error.

    Args:
        description: What is being done, in the present participle ("Verifying images").
        total: Number of items.

    Yields:
        A function that takes the number of items finished since the last call.
    """
    if sys.stderr.isatty():
        yield from _bar(description, total)
    else:
        yield from _lines(description, total)


@contextmanager
def silent(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show nothing, in the place of `progress`."""
    yield lambda _count: None


def _bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(description, total=total)
        yield lambda count: bars.advance(task, count)


def _lines(description: str, total: int) -> Iterator[Callable[[int], None]]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= PLAIN_INTERVAL:
            last = now
            left = (now - start) / done * (total - done) if done else float("nan")
            sys.stderr.write(f"{description}: {done}/{total}, about {left / 60:.1f} min left\n")
            sys.stderr.flush()

    sys.stderr.write(f"{description}: {total} items\n")
    sys.stderr.flush()
    yield advance
    sys.stderr.write(f"{description}: done in {time.monotonic() - start:.1f} s\n")
    sys.stderr.flush()

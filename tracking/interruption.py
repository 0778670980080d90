"""Signals that ask a training to stop: they set a flag, and the training stops where it can be resumed."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C; the scheduler's last, and early, warning
STOPPING = "\nStopping at the next batch, after a checkpoint; Ctrl-C again quits at once.\n"


class Interrupted(Exception):  # noqa: N818 - not an error
    """A training stopped because it was asked to, after it saved a checkpoint."""

    exit_code = 130


class StopRequest:
    """Whether a signal has asked to stop.

    The first Ctrl-C asks, the second ends the process at once, whatever it is waiting for.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Take the signals over; only the main thread of a process can, and only it is asked."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        self.requested = False
        self._before = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}

    def restore(self) -> None:
        """Give the signals back to whom they belonged."""
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the system's own handler needs no interpreter to act
            if "LOCAL_RANK" not in os.environ:
                sys.stderr.write(STOPPING)

"""Child processes that do not outlive their parent."""

import ctypes
import signal
from collections.abc import Callable

_LIBC = ctypes.CDLL(None)  # loaded before any fork
_PR_SET_PDEATHSIG = 1


def dies_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return a `preexec_fn` by which the system sends a child this signal when its parent is gone."""
    return lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, number)

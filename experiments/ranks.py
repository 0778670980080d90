"""Train or evaluate in several processes on this machine, and watch over them: all end together, and the run knows how.

Lightning's own launcher is the first of its processes and cannot outlive it, and torchrun gives processes a fixed time
between a signal and their death. Here one process does nothing but watch. Where something else has started the
processes (torchrun, SLURM), it is left to that.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from experiments.cli import INTERRUPTED
from tracking.errors import StoreError
from tracking.heartbeat import HEARTBEAT, Pulse
from tracking.interruption import STOP_SIGNALS, STOPPING
from tracking.logger import RUN_FILE
from tracking.processes import dies_with_parent
from tracking.server import HOST, free_port
from tracking.shipping import settle
from tracking.store import Store

if TYPE_CHECKING:
    from experiments.runtime import FontanelCLI

GRACE = 10.0  # seconds that the others have to end by themselves when one has failed
INTERVAL = 0.2  # seconds between two looks
_OUTSIDE = ("LOCAL_RANK", "TORCHELASTIC_RUN_ID", "SLURM_PROCID")  # set where the processes were started already


def spread(verb: str, words: Sequence[str], cli: "FontanelCLI", store: Store | None, step_timeout: float) -> int | None:
    """Run a command in as many processes as its configuration wants, and return their exit code.

    Args:
        verb: Verb of the command.
        words: What stood after it.
        cli: Its configuration; images are preprocessed here, where no other process waits for it.
        store: Store of the run, where there is one; a run whose processes die is set to FAILED there.
        step_timeout: Seconds without a training batch after which a process counts as hanging.

    Returns:
        None where this process is enough, or one of those already.
    """
    num = num_processes(cli)
    if num == 1:
        return None
    cli.datamodule.prepare_data()
    return run_ranks([verb, *words], num, store, step_timeout)


def num_processes(cli: "FontanelCLI") -> int:
    """Return how many processes we have to start for a configuration, 1 where this one is enough."""
    from pytorch_lightning import Trainer
    from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

    config = cli.config["trainer"]
    if config["devices"] in {1, "1"} or any(name in os.environ for name in _OUTSIDE):
        return 1
    chosen = {name: config[name] for name in ("accelerator", "strategy", "devices", "num_nodes")}
    trainer = Trainer(**chosen, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    starts_some = isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher)
    return trainer.num_devices if starts_some and trainer.num_nodes == 1 else 1


def run_ranks(words: Sequence[str], num: int, store: Store | None, step_timeout: float) -> int:
    """Run a command in several processes and return the exit code of all of them together.

    Args:
        words: What stood after `fontanel`.
        num: Number of processes.
        store: Store of the run, where there is one; a run whose processes die is set to FAILED there.
        step_timeout: Seconds without a batch after which a process counts as hanging.
    """
    with tempfile.TemporaryDirectory(prefix="fontanel-") as name:
        group = RankGroup(words, num, Path(name), step_timeout)
        code = group.watch()
        if code != 0 and store is not None and (folder := group.run_folder) is not None:
            try:
                settle(store, folder)
            except StoreError as error:
                sys.stderr.write(f"{error} Deliver the rest of the run with: fontanel sync {folder.name}\n")
    return code


class RankGroup:
    """The processes of one command.

    Args:
        words: What stood after `fontanel`.
        num: Number of processes.
        scratch: Folder for what they share with this process.
        step_timeout: Seconds without a batch after which a process counts as hanging.
    """

    def __init__(self, words: Sequence[str], num: int, scratch: Path, step_timeout: float) -> None:
        self.step_timeout = step_timeout
        self._run_file = scratch / "run"
        self._pulse = Pulse.make(scratch / "heartbeat", num)
        self._last = [(0, time.monotonic())] * num
        self._signals = 0
        command = [sys.executable, "-m", "experiments.cli", *words]
        shared = {
            "MASTER_ADDR": HOST,
            "MASTER_PORT": str(free_port(HOST, 0)),
            "NODE_RANK": "0",
            "WORLD_SIZE": str(num),
            HEARTBEAT: str(scratch / "heartbeat"),
            RUN_FILE: str(self._run_file),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(_share_of_processors(num))),
        }
        self.processes = [
            start_process(command, os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(num)
        ]

    @property
    def run_folder(self) -> Path | None:
        """Folder of the run, None if it came to none."""
        return Path(self._run_file.read_text(encoding="utf-8")) if self._run_file.exists() else None

    def watch(self) -> int:
        """Return when all processes have ended: 0, 130 when they were asked to stop, 1 when one has failed."""
        before = {number: signal.signal(number, self._pass_on) for number in STOP_SIGNALS}
        try:
            while any(code is None for code in self._codes()):
                time.sleep(INTERVAL)
                if (reason := self._trouble()) is not None:
                    sys.stderr.write(f"fontanel: {reason}; the other processes are stopped.\n")
                    self._end()
        finally:
            self._kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        codes = self._codes()
        if not any(codes):
            return 0
        asked = {0, INTERRUPTED, -signal.SIGKILL, *(-number for number in STOP_SIGNALS)}  # before a training, they kill
        return INTERRUPTED if self._signals and asked.issuperset(codes) else 1

    def _codes(self) -> list[int | None]:
        return [process.poll() for process in self.processes]

    def _trouble(self) -> str | None:
        """Say which process has failed or hangs, if one does."""
        codes = self._codes()
        for rank, code in enumerate(codes):
            if code not in {None, 0, INTERRUPTED} and None in codes:
                cause = f"was killed by signal {-code}" if code < 0 else f"failed (exit code {code})"
                return f"process {rank} of {len(codes)} {cause}"
        now = time.monotonic()
        for rank, count in enumerate(self._pulse.read()):
            seen, since = self._last[rank]
            if count != seen or count == 0:
                self._last[rank] = (count, now)
            elif now - since > self.step_timeout and codes[rank] is None:
                return f"no batch was finished for {self.step_timeout:.0f} s (--step-timeout): a process hangs"
        return None

    def _end(self) -> None:
        """End all processes: those that can hear ask for it first."""
        for process in self.processes:
            process.terminate()
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline and None in self._codes():
            time.sleep(INTERVAL)
        self._kill()

    def _kill(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its loader processes with it
            process.wait()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Hand a signal to all processes once; a second Ctrl-C ends them at once."""
        self._signals += 1
        if number == signal.SIGINT and self._signals > 1:
            for process in self.processes:
                process.kill()
            return
        sys.stderr.write(STOPPING)
        for process in self.processes:
            process.send_signal(number)


def start_process(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start one process of several; it ends with this one, and Ctrl-C in the terminal reaches this one alone."""
    return subprocess.Popen(
        command, env=environment, start_new_session=True, preexec_fn=dies_with_parent(signal.SIGKILL)
    )


def _share_of_processors(num: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // num)

"""Between a trial's process and the worker that has started it: values go one way, the word to stop the other.

Both are lines of files in the trial's folder, so that it works across any launcher. The first process of a trial writes
a value and waits for its answer; what it hears, all processes of the trial hear.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

REPORTS, ANSWERS = "reports.jsonl", "answers.jsonl"
PATIENCE = 60.0  # seconds that a trial waits for an answer; a worker that is gone takes its trials with it
INTERVAL = 0.02


class Link:
    """The trial's end.

    Args:
        folder: Folder of the trial.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def report(self, step: int, value: float) -> bool:
        """Tell a value, and return whether to stop. An undefined value is not told."""
        if not math.isfinite(value):
            return False
        with (self.folder / REPORTS).open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps([step, value])}\n")
        number, deadline = len(_lines(self.folder / REPORTS)), time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            answers = _lines(self.folder / ANSWERS)
            if len(answers) >= number:
                return bool(json.loads(answers[number - 1]))
            time.sleep(INTERVAL)
        return False


class Listener:
    """The worker's end.

    Args:
        folder: Folder of the trial.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.heard = 0

    def news(self) -> list[tuple[int, float]]:
        """Return the values, with their steps, that were told since the last look."""
        lines = _lines(self.folder / REPORTS)[self.heard :]
        self.heard += len(lines)
        return [(int(step), float(value)) for step, value in map(json.loads, lines)]

    def answer(self, stop: bool) -> None:
        """Answer one value."""
        with (self.folder / ANSWERS).open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(stop)}\n")


class Reporting(Callback):
    """Report a metric after each validation, and stop all processes of a training where the worker says so.

    Args:
        link: Where the first process reports.
        metric: Its name, as it is logged.
    """

    def __init__(self, link: Link, metric: str) -> None:
        self.link = link
        self.metric = metric
        self.stopped = False

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and hear the answer."""
        stop = False
        if trainer.is_global_zero and not trainer.sanity_checking:
            value = float(trainer.callback_metrics.get(self.metric, float("nan")))
            stop = self.link.report(trainer.current_epoch, value)
        if trainer.strategy.broadcast(stop, src=0):
            self.stopped = trainer.should_stop = True


def _lines(path: Path) -> list[Any]:
    """Return the whole lines of a file that somebody may be writing to."""
    if not path.is_file():
        return []
    return path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()

"""A cross-validation from its plan to its tables: one parent run, one child for each job, one table at the end."""

import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluation.leakage import Finding
from evaluation.wording import count_text
from experiments.audit import NUM_PERMUTATIONS, examine
from experiments.cli import DONE, FAILED
from experiments.conclusion import REPORT, TABLE, Conclusion, print_conclusion
from experiments.jobs import FOLDS, Job
from experiments.launcher import LAUNCHERS, Launcher, Progress, Watcher, run_jobs
from experiments.leakage import LeakageError
from experiments.lock import LOCK
from experiments.runtime import ConfigurationError, work_alone
from experiments.study import Study, closest
from experiments.workplan import BASE, SOURCE_HASH, Workplan, make_workplan
from lightning_modules.operating_point import SMALL
from tracking.environment import environment_facts
from tracking.files import read_json, write_file, write_json
from tracking.interruption import Interrupted
from tracking.logger import RunLogger
from tracking.progress import Lines
from tracking.store import PARENT_TAG, Store

if TYPE_CHECKING:
    from rich.table import Table

AUDIT = "audit.json"
PARENT = "parent"


class StudyWarning(UserWarning):
    """A study that can be run, and whose result will be worth less than it could be."""


@dataclass
class Campaign:
    """A cross-validation that is being done.

    Args:
        workplan: Folds, lock and jobs.
        store: Where its runs are kept.
    """

    workplan: Workplan
    store: Store

    @classmethod
    def plan(cls, study: Study, words: Sequence[str], store: Store, num_threads: int) -> "Campaign":
        """Draw the folds, and check everything that can be checked before a training."""
        campaign = cls(make_workplan(study, words, store, store.output_folder, num_threads), store)
        warn_of_few_validation_participants(campaign.workplan)
        return campaign

    def run(self, launcher: str, num_workers: int | None) -> int:
        """Lock the analysis, do what is left to do, then compare the arms.

        Returns:
            0 done, 1 when jobs failed.

        Raises:
            Interrupted: A signal asked to stop.
        """
        if launcher not in LAUNCHERS:
            raise ConfigurationError(f"There is no launcher '{launcher}'.{closest(launcher, LAUNCHERS)}")
        self.workplan.freeze()
        with work_alone(self.workplan.folder), self._parent() as parent:
            tags = {PARENT_TAG: parent.run_id, "crossval": self.workplan.name}
            jobs = self.workplan.prepare_jobs(tags)
            self.workplan.cli.datamodule.prepare_data()
            findings = self._audit(parent)
            progress = self._work(jobs, launcher, num_workers)
            if progress.failed:
                return self._report_failures(progress)
            conclusion = Conclusion(self.workplan, self.store, jobs, findings)
            conclusion.conclude(parent)
        print_conclusion(conclusion)
        print(f"Run {parent.run_id} of {self.workplan.study.name}. Report: {self.workplan.folder / REPORT}")
        return DONE

    def _audit(self, parent: RunLogger) -> list[Finding]:
        """Look for leakage before anything is trained, once for each set of pretrained weights.

        Raises:
            LeakageError: There is some.
        """
        plan, path = self.workplan, self.workplan.folder / AUDIT
        about = {arm: source[SOURCE_HASH] for arm, source in plan.sources.items()}
        known = read_json(path) if path.is_file() else {}
        if known.get("sources") != about:
            findings = examine(plan.cli.datamodule, plan.study, plan.pretrainings, NUM_PERMUTATIONS)
            known = {"sources": about, "findings": [finding.as_dict() for finding in findings]}
            write_json(path, known)
            parent.log_json(AUDIT, known)
        findings = [Finding.from_dict(one) for one in known["findings"]]
        if leaks := [f"{one.found} {one.advice}" for one in findings if one.status == "leak"]:
            raise LeakageError(" ".join(leaks))
        warned = sum(one.status == "warning" for one in findings)
        sys.stderr.write(f"Leakage audit: no leak, {count_text(warned, 'warning')}; the report lists what was found.\n")
        return findings

    def _work(self, jobs: Sequence[Job], launcher: Launcher, num_workers: int | None) -> Progress:
        again = "interrupted; repeat the same command to go on: what is finished is kept."
        try:
            with watching(self.workplan.name) as watch:
                return run_jobs(jobs, self.store, launcher, num_workers, watch, self.workplan.study.slurm)
        except Interrupted:
            raise Interrupted(again) from None

    @contextmanager
    def _parent(self) -> Iterator[RunLogger]:
        """Open the parent run, new or again, and close it with its true status."""
        study, lock = self.workplan.study, self.workplan.lock
        tags = {"study": study.name, "protocol": study.protocol, "kind": "crossval", "lock": lock.identity}
        tags["primary_metric"] = lock.primary_metric
        path = self.workplan.folder / PARENT
        known = self.store.known_here(path.read_text(encoding="utf-8").strip() if path.is_file() else None)
        parent = RunLogger(self.store, study.name, self.workplan.name, tags, run_id=known)
        write_file(path, f"{parent.run_id}\n".encode())
        with parent.closing((self.workplan.folder / TABLE).is_file):
            if known is None:
                self._describe(parent)
            yield parent

    def _describe(self, parent: RunLogger) -> None:
        """Record what the cross-validation is made of."""
        parent.log_config((self.workplan.folder / BASE).read_text(encoding="utf-8"))
        for name in (LOCK, FOLDS):
            parent.log_text(name, (self.workplan.folder / name).read_text(encoding="utf-8"))
        parent.log_json("environment.json", environment_facts())
        parent.release()

    def _report_failures(self, progress: Progress) -> int:
        number = len(progress.failed)
        sys.stderr.write(f"{number} of {progress.total} jobs failed; there is no comparison before all are done.\n")
        for reason, count in Counter(progress.failed.values()).most_common(5):
            names = [name for name, why in progress.failed.items() if why == reason]
            sys.stderr.write(f"  {names[0]}{f' and {count - 1} more' if count > 1 else ''}: {reason}\n")
        sys.stderr.write("Mend the cause and repeat the same command: only these jobs are done again.\n")
        return FAILED


def warn_of_few_validation_participants(plan: Workplan) -> None:
    """Say so where a few validation participants would choose threshold and temperature."""
    number = min(len(cell.split.keys("val")) for cell in plan.cells)
    if plan.task == "binary" and not plan.study.num_inner_folds and 0 < number < SMALL:
        warnings.warn(
            f"{number} validation participants choose threshold and temperature, which is mostly noise below "
            f"{SMALL}: let inner folds choose them (--num-inner-folds 5).",
            StudyWarning,
            stacklevel=3,
        )


@contextmanager
def watching(name: str) -> Iterator[Watcher]:
    """Show how far the jobs have come: a live table on a terminal, a line a minute in a log."""
    if not sys.stderr.isatty():
        lines = Lines(name)
        yield lambda progress: lines.show(progress, is_over=progress.is_over)
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False) as live:
        yield lambda progress: live.update(_table(name, progress), refresh=True)


def _table(name: str, progress: Progress) -> "Table":
    from rich.table import Table

    table = Table(title=f"{name}: {progress.summary}", title_justify="left")
    table.add_column("job")
    table.add_column("for", justify="right")
    table.add_column()
    now = time.monotonic()
    for shown, (job, since) in progress.running.items():
        table.add_row(shown, f"{now - since:.0f} s", job.stage)
    for shown, reason in list(progress.failed.items())[-5:]:
        table.add_row(shown, "", f"failed: {reason[:80]}")
    return table

"""SLURM: jobs of a cross-validation, and workers of a sweep, as jobs of a cluster (through submitit).

A study or sweep file says what they need, by the names of `sbatch`, in its entry `slurm`:

    slurm: {partition: gpu, time: 240, mem: 32G, gpus_per_node: 1, cpus_per_task: 8}

Before its time is over, or when it has to make room, a job gets a signal: it saves a checkpoint, goes back into the
queue, and goes on from there in the same run. The output folder must lie on a filesystem that all machines share.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.job_folder import JobFolder
from experiments.launcher import Progress, Watcher, failure_of
from experiments.runtime import ConfigurationError
from tracking.files import read_json, write_json
from tracking.interruption import STOP_SIGNALS, Interrupted
from tracking.store import Store

os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")  # our commands know it, too: both may hear it
try:
    import submitit
    from submitit.helpers import DelayedSubmission
except ImportError as error:
    raise ConfigurationError("SLURM needs submitit. Install it: pip install 'fontanel[slurm]'") from error

SUBMITTED = "slurm.json"  # in the folder of a job: its number in the cluster
LOGS = "slurm"  # folder of what a job of the cluster says, beside the jobs
INTERVAL = 1.0  # seconds between two looks
ABSENT_LOOKS = 5  # at the queue, after which a job that left no result is lost


class ClusterCommand:
    """A command of ours on a machine of the cluster, which can be stopped and begun again.

    Args:
        words: What stands after `fontanel`.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the command and return its exit code."""
        # What SLURM has set would make the command take itself for one of several processes.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SUBMITIT_"))
        }
        self.process = subprocess.Popen([sys.executable, "-m", "experiments.cli", *self.words], env=environment)
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return self.process.wait()

    def checkpoint(self) -> DelayedSubmission:
        """Stop the command after a checkpoint, and return what is to run when its turn comes again."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGUSR1)
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(ClusterCommand(self.words))

    def __getstate__(self) -> dict[str, Any]:
        return {"words": self.words, "process": None}


@dataclass
class Cluster:
    """A cluster that jobs are given to.

    Args:
        folder: Where the cluster's own files go; all its machines see it.
        resources: What each job needs, by the names of `sbatch`.
        store: Where runs are kept; all machines reach it.

    Raises:
        ConfigurationError: There is no SLURM here, or it has no such resource.
    """

    folder: Path
    resources: Mapping[str, Any]
    store: Store

    def __post_init__(self) -> None:
        if shutil.which("sbatch") is None:
            raise ConfigurationError(
                "There is no SLURM here (no sbatch). Take --launcher processes, or log in to the cluster."
            )
        self.executor = submitit.SlurmExecutor(folder=self.folder / LOGS, max_num_timeout=1000, python=sys.executable)
        try:
            self.executor.update_parameters(**{"stderr_to_stdout": True, **self.resources})
        except (NameError, ValueError, TypeError) as error:
            raise ConfigurationError(f"`slurm` of the study: {str(error).splitlines()[0]}") from error

    def submit(self, words: Sequence[str], name: str) -> submitit.Job[int]:
        """Give the cluster a command of ours."""
        os.environ["MLFLOW_TRACKING_URI"] = self.store.uri  # not among the words: it may hold a password
        self.executor.update_parameters(job_name=name)
        return self.executor.submit(ClusterCommand([*words, "--output-dir", str(self.store.output_folder)]))

    def run(self, waiting: Sequence[JobFolder], num_at_once: int | None, progress: Progress, watch: Watcher) -> None:
        """Do jobs on the cluster, and return when all have ended; those that are there from an earlier call stay.

        Args:
            waiting: What is to be done.
            num_at_once: How many the cluster is given at once, all by default.
            progress: What is told to `watch`.
            watch: Called at every look.
        """
        queue, running = list(waiting), dict[str, tuple[JobFolder, submitit.Job[int]]]()
        missing: dict[str, int] = {}
        with _asked_to_stop() as stopped:
            while (queue or running) and not stopped:
                queued = queued_jobs()
                while queue and len(running) < (num_at_once or len(waiting)):
                    job = queue.pop(0)
                    running[job.name] = (job, self._place(job, queued))
                    progress.begin(job)
                time.sleep(INTERVAL)
                queued = queued_jobs()
                for name, (job, submitted) in list(running.items()):
                    missing[name] = 0 if submitted.job_id in queued else missing.get(name, 0) + 1
                    if job.is_done or submitted.paths.result_pickle.exists() or missing[name] > ABSENT_LOOKS:
                        del running[name]
                        progress.finish(job, failure_of(job, 0 if job.is_done else 1))
                watch(progress)
            if stopped:
                cancel([submitted.job_id for _, submitted in running.values()])
                raise Interrupted("interrupted")

    def hire(self, words: Sequence[str], number: int) -> "Crew":
        """Give the cluster the same command several times; those that are there from an earlier call count."""
        path = self.folder / SUBMITTED
        queued = queued_jobs()
        known = [one for one in (read_json(path)["job_ids"] if path.is_file() else []) if one in queued]
        crew = [submitit.SlurmJob(self.executor.folder, one) for one in known]
        for place in range(len(known), number):
            crew.append(self.submit(words, f"worker-{place}"))
            write_json(path, {"job_ids": [one.job_id for one in crew]})
        return Crew(crew)

    def _place(self, job: JobFolder, queued: set[str]) -> "submitit.Job[int]":
        """Give the cluster a job, unless it has it."""
        path = job.folder / SUBMITTED
        known = str(read_json(path)["job_id"]) if path.is_file() else None
        if known in queued:
            return submitit.SlurmJob(self.executor.folder, known)
        submitted = self.submit(["job", str(job.folder)], job.name)
        write_json(path, {"job_id": submitted.job_id})
        return submitted


@dataclass
class Crew:
    """Workers of a sweep that are jobs of a cluster.

    Args:
        jobs: The jobs.
    """

    jobs: "Sequence[submitit.Job[int]]"
    _absent: int = 0

    def require(self) -> None:
        """Refuse to wait for trials that nobody is left to do.

        Raises:
            ConfigurationError: No job waits or runs any more.
        """
        present = queued_jobs() & {job.job_id for job in self.jobs}
        self._absent = 0 if present else self._absent + 1
        if self._absent > ABSENT_LOOKS:
            raise ConfigurationError(
                "No worker of the cluster is left, and trials wait. Repeat the command to hire others. What the last "
                f"one said: {self.jobs[-1].paths.stdout}"
            )

    def dismiss(self) -> None:
        """Ask all to stop after a checkpoint."""
        cancel([job.job_id for job in self.jobs])


def queued_jobs() -> set[str]:
    """Return the ids of the jobs that wait or run."""
    listed = subprocess.run(
        ["squeue", "--noheader", "--format=%i"], capture_output=True, encoding="utf-8", check=True
    ).stdout
    return set(listed.split())


def cancel(job_ids: Sequence[str]) -> None:
    """Ask jobs to stop after a checkpoint; they do not come back."""
    if job_ids:
        subprocess.run(["scancel", "--signal=TERM", "--full", *job_ids], check=False, capture_output=True)


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Collect the signals that ask to stop."""
    heard: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in STOP_SIGNALS}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

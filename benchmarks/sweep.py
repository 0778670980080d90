"""What a sweep costs beside its trainings: trials a second by storage and number of workers, and the rest of a trial.

In the first part, workers (processes) take trials from the queue, choose two arguments, give a sign of life, and tell a
value, without any training. In the second, a worker of a sweep gives trials that have nothing to do a process each:
what is left is the process, its imports, and the store.

    python benchmarks/sweep.py [--trials 60] [--rounds 3] [--postgresql URI] [--empty 10]
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from optuna.trial import Trial, TrialState

from experiments.sweep_file import Sweep
from experiments.sweep_queue import CHOSEN, TrialQueue
from experiments.sweep_runner import Running, Worker
from experiments.sweep_space import Space
from experiments.sweep_storage import JOURNAL, open_storage
from experiments.sweep_trial import TrialJob
from tracking.store import Store

SPACE = {"x": {"low": 0.0, "high": 1.0}, "n": {"low": 1, "high": 8}}
WORKERS = (1, 2, 4)


def main() -> None:
    """Measure and print."""
    arguments = parse()
    rates: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for storage, uri in storages(Path(folder) / str(number), arguments.postgresql):
                for workers in WORKERS:
                    name = f"benchmark-{number}-{workers}"
                    rates.setdefault((storage, workers), []).append(rate(uri, name, arguments.trials, workers))
        print(f"{'storage':<12}" + "".join(f"{f'{workers} workers':>12}" for workers in WORKERS) + "   efficiency at 4")
        for storage in dict.fromkeys(storage for storage, _ in rates):
            shown = [statistics.median(rates[storage, workers]) for workers in WORKERS]
            line = "".join(f"{value:>10.1f}/s" for value in shown)
            print(f"{storage:<12}{line}   {shown[-1] / shown[0]:.2f} of the rate of one")
        seconds, parts = empty_trials(Path(folder), arguments.empty)
        print(f"A trial of nothing, with its process: {1000 * seconds:.0f} ms, of which")
        for part, own in parts.items():
            print(f"  {1000 * own:6.0f} ms  {part}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60, help="trials of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each storage and number of workers")
    parser.add_argument("--postgresql", metavar="URI", help="an empty database")
    parser.add_argument("--empty", type=int, default=10, help="trials of nothing")
    return parser.parse_args()


def storages(folder: Path, postgresql: str | None) -> Iterator[tuple[str, str]]:
    folder.mkdir(parents=True)
    yield "journal", f"{JOURNAL}{folder / 'log'}"
    yield "sqlite", f"sqlite:///{folder / 'optuna.db'}"
    if postgresql is not None:
        yield "postgresql", postgresql


def sweep_of(name: str, num_trials: int) -> Sweep:
    return Sweep(name, Path("fit.yaml"), SPACE, ("val/loss",), num_trials=num_trials)


def rate(uri: str, name: str, num_trials: int, num_workers: int) -> float:
    """Return how many trials a second some workers finish; their imports do not count."""
    queue = TrialQueue.create(sweep_of(name, num_trials), open_storage(uri), {}, seed=0)
    queue.fill(num_trials)
    context = multiprocessing.get_context("spawn")
    gate, ready = context.Event(), context.Semaphore(0)
    workers = [context.Process(target=work, args=(uri, name, gate, ready)) for _ in range(num_workers)]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    start = time.perf_counter()
    gate.set()
    for worker in workers:
        worker.join()
    assert all(trial.state == TrialState.COMPLETE for trial in queue.trials())
    return num_trials / (time.perf_counter() - start)


def work(uri: str, name: str, gate: object, ready: object) -> None:
    queue, _ = TrialQueue.join(name, open_storage(uri))
    sweep, space = sweep_of(name, 1), Space.read(SPACE)
    ready.release()  # type: ignore[attr-defined]
    gate.wait()  # type: ignore[attr-defined]
    while (trial := queue.take(sweep)) is not None:
        chosen = space.suggest(trial)
        trial.set_user_attr(CHOSEN, trial.params)
        queue.beat(trial)
        queue.finish(trial.number, [chosen["x"]], TrialState.COMPLETE)


class TimedWorker(Worker):
    """A worker that knows where its time goes."""

    seconds: ClassVar[dict[str, list[float]]] = {}

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds.setdefault(part, []).append(time.perf_counter() - start)

    def _start(self, trial: Trial) -> None:
        with self.timed("choose, write and fork"):
            super()._start(trial)
        self._running[trial.number].began = time.perf_counter()  # type: ignore[attr-defined]

    def _tell(self, one: Running, code: int) -> None:
        alive = time.perf_counter() - one.began  # type: ignore[attr-defined]
        self.seconds.setdefault("process: read the job, end (seen every 50 ms)", []).append(alive)
        with self.timed("tell Optuna and MLflow"):
            super()._tell(one, code)


def empty_trials(folder: Path, number: int) -> tuple[float, dict[str, float]]:
    """Return the seconds of a trial whose process finds that nothing is left to do, and of what it consists.

    The first two trials start the server that forks the others, and do not count.
    """
    store = Store(f"sqlite:///{folder / 'mlflow.db'}", folder)
    prepare = TrialJob.prepare

    def finish_at_once(job: TrialJob, before: Path | None) -> None:
        prepare(job, before)
        job.finish([0.5], stopped=False, seconds=0.0)

    TrialJob.prepare = finish_at_once  # type: ignore[method-assign]
    taken = []
    for name, trials in (("warm", 2), ("empty", number)):
        TimedWorker.seconds.clear()
        sweep = sweep_of(name, trials)
        queue = TrialQueue.create(sweep, open_storage(f"sqlite:///{folder / 'optuna.db'}"), {}, seed=0)
        queue.set_budget(trials, None)
        worker = TimedWorker(sweep, name, queue, (), (), folder, store, 1, {}, lambda counts, is_over: None)
        start = time.perf_counter()
        worker.run()
        taken.append((time.perf_counter() - start) / trials)
    return taken[-1], {part: statistics.median(values) for part, values in TimedWorker.seconds.items()}


if __name__ == "__main__":
    main()

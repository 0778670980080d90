"""PostgreSQL behind MLflow and Optuna: workers that know nothing of each other do exactly what was asked."""

import multiprocessing
from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState

from experiments.sweep_file import Sweep
from experiments.sweep_queue import TrialQueue, slot_of
from experiments.sweep_space import Space
from experiments.sweep_storage import open_storage, storage_uri
from tracking.logger import RunLogger
from tracking.store import Store

CONF = Path(__file__).parent.parent / "conf"
SPACE = {"x": {"low": 0.0, "high": 1.0}}
SWEEP = Sweep("tests/postgresql", Path("fit.yaml"), SPACE, ("val/loss",), num_trials=100)
NUM_WORKERS = 4


@pytest.fixture(scope="module")
def databases(harness):
    """A function that makes a database on a server of its own."""
    module = harness("postgresql")
    if (programs := module.find_programs()) is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    with module.postgresql(programs) as make:
        yield make


def work(uri, tracking, folder):
    """Take trials until none is left; each logs one point to MLflow."""
    queue, _ = TrialQueue.join(SWEEP.name, open_storage(uri))
    store = Store(tracking, folder)
    while (trial := queue.take(SWEEP)) is not None:
        value = Space.read(SPACE).suggest(trial)["x"]
        logger = RunLogger(store, SWEEP.name, f"trial-{slot_of(trial)}", {"trial": str(slot_of(trial))})
        logger.log_metrics({"val/loss": value}, step=0)
        logger.close("FINISHED")
        assert queue.finish(trial.number, [value], TrialState.COMPLETE)


@pytest.mark.services
def test_four_workers_finish_a_hundred_trials_and_lose_no_metric(databases, tmp_path):
    uri, tracking = storage_uri(databases("optuna"), tmp_path), databases("mlflow")
    store = Store(tracking, tmp_path)
    queue = TrialQueue.create(SWEEP, open_storage(uri), {}, seed=0)
    queue.fill(SWEEP.num_trials)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.sweep_queue", "tracking.logger", "tracking.store"])  # imported once
    workers = [context.Process(target=work, args=(uri, tracking, tmp_path / str(n))) for n in range(NUM_WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * NUM_WORKERS
    trials = queue.trials()
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert sorted(map(slot_of, trials)) == list(range(SWEEP.num_trials))
    (study,) = [one for one in store.client.search_experiments() if one.name != "Default"]
    runs = store.client.search_runs([study.experiment_id], max_results=1000)
    logged = {int(run.data.tags["trial"]): run.data.metrics["val/loss"] for run in runs}
    assert len(runs) == SWEEP.num_trials
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert logged == {slot_of(trial): pytest.approx(trial.value) for trial in trials}
    assert len({trial.user_attrs["owner"]["pid"] for trial in trials}) == NUM_WORKERS


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(1800)
def test_four_workers_finish_a_hundred_trainings(databases, tiny_cohort, tmp_path, commands):
    there = {"FONTANEL_STORAGE": databases("real_optuna"), "MLFLOW_TRACKING_URI": databases("real_mlflow")}
    sweep = {"base": str(CONF / "outcome_classification.yaml"), "metric": "val/loss"}
    sweep["space"] = {"model.optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    start = ["sweep", "--config", str(tmp_path / "sweep.yaml"), "--data.table", str(tiny_cohort)]
    start += ["--trainer.max_epochs", "1", "--study", "tests/real", "--num-trials", "100"]
    own = ["--num-workers", "1", "--output-dir", str(tmp_path)]
    logs = [tmp_path / f"log-{number}" for number in range(NUM_WORKERS)]
    pids = [commands.start([*start, *own], logs[0], there)]
    commands.wait_for("sweeps/*/trials/*/job.json", tmp_path, pids[0])
    pids += [commands.start(["sweep", "--join", "tests/real", *own], log, there) for log in logs[1:]]
    codes = [commands.wait(pid) for pid in pids]
    assert codes == [0] * NUM_WORKERS, "\n".join(log.read_text(encoding="utf-8") for log in logs)
    queue, _ = TrialQueue.join("tests/real", open_storage(there["FONTANEL_STORAGE"]))
    trials = queue.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 100
    assert sorted(map(slot_of, trials)) == list(range(100))
    assert len({trial.user_attrs["owner"]["pid"] for trial in trials}) == NUM_WORKERS
    store = Store(there["MLFLOW_TRACKING_URI"], tmp_path)
    study = store.client.get_experiment_by_name("tests/real")
    runs = store.client.search_runs([study.experiment_id], "tags.trial_state = 'complete'", max_results=1000)
    assert len(runs) == 100
    logged = {int(run.data.tags["trial"]): run.data.metrics["val/loss"] for run in runs}
    assert logged == {slot_of(trial): pytest.approx(trial.value) for trial in trials}


@pytest.mark.services
def test_a_password_in_the_address_is_not_shown(databases, tmp_path):
    uri = databases("secrets")
    queue = TrialQueue.create(SWEEP, open_storage(uri), {"config": "x"}, seed=0)
    assert "loopback-only" not in repr(queue.study().user_attrs)
    broken = uri.replace("/secrets", "/nowhere")
    with pytest.raises(ValueError, match="cannot be opened") as caught:
        open_storage(broken)
    assert "loopback-only" not in str(caught.value)

"""A real SLURM of one node: jobs finish through it, and one that has to make room goes on in the same run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from experiments.cli import main
from tracking.contract import read_contract
from tracking.store import Store

ROOT = Path(__file__).parents[2]
CONF = ROOT / "tests" / "conf"
STUDY = {
    "base": str(CONF / "outcome_classification.yaml"),
    "protocol": "external",
    "external_sites": ["west"],
    "arms": {"scratch": {}},
    "slurm": {"time": 10, "cpus_per_task": 1},
}


@pytest.fixture(scope="module")
def cluster(harness):
    """A cluster of this machine."""
    module = harness("slurm")
    if not module.is_installed():
        pytest.skip("SLURM is not installed, or this is not root (Debian: slurmctld slurmd slurm-client munge)")
    with module.slurm() as folder:
        yield folder


def words(output, table, *more):
    (output / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False), encoding="utf-8")
    start = ["crossval", "--config", str(output / "study.yaml"), "--data.table", str(table)]
    return [*start, "--output-dir", str(output), "--trainer.max_epochs", "20", *more]


def table_of(output):
    (table,) = output.glob("crossval/*/predictions.parquet")
    return pd.read_parquet(table).drop(columns="run_id")


@pytest.mark.services
@pytest.mark.timeout(600)
def test_a_job_that_has_to_make_room_goes_on_in_the_same_run_to_the_same_result(
    cluster, tiny_cohort, tmp_path, make_database, commands
):
    plain, output = tmp_path / "plain", tmp_path / "cluster"
    for folder in (plain, output):
        make_database(folder)
    assert main(words(plain, tiny_cohort, "--launcher", "inline")) == 0
    there = {"SLURM_CONF": str(cluster / "slurm.conf")}
    pid = commands.start(words(output, tiny_cohort, "--launcher", "slurm"), tmp_path / "log", there)
    commands.wait_for("runs/*/checkpoints/step-*.ckpt", output, pid)
    (job,) = output.glob("crossval/*/jobs/scratch-*")
    run = json.loads((job / "run.json").read_text(encoding="utf-8"))["run_id"]
    number = json.loads((job / "slurm.json").read_text(encoding="utf-8"))["job_id"]
    assert not (job / "done.json").exists(), "the signal comes too late to prove anything"
    subprocess.run(["scancel", "--signal=USR1", number], check=True)
    assert commands.wait(pid) == 0, (tmp_path / "log").read_text(encoding="utf-8")
    assert json.loads((job / "run.json").read_text(encoding="utf-8"))["run_id"] == run
    said = "".join(path.read_text(encoding="utf-8") for path in output.glob(f"crossval/*/jobs/slurm/{number}_*.out"))
    assert "Requeued job" in said or "requeue" in said.lower()
    assert read_contract(output / "runs" / run).run_id == run
    pd.testing.assert_frame_equal(table_of(output), table_of(plain), check_exact=True)


@pytest.mark.services
@pytest.mark.timeout(600)
def test_workers_of_the_cluster_join_a_sweep(cluster, tiny_cohort, tmp_path, make_database, commands):
    make_database(tmp_path)
    space = {"model.optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    sweep = {"base": STUDY["base"], "metric": "val/loss", "space": space, "slurm": STUDY["slurm"], "num_trials": 3}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    command = ["sweep", "--config", str(tmp_path / "sweep.yaml"), "--data.table", str(tiny_cohort)]
    command += ["--output-dir", str(tmp_path), "--launcher", "slurm", "--num-workers", "2"]
    pid = commands.start(command, tmp_path / "log", {"SLURM_CONF": str(cluster / "slurm.conf")})
    assert commands.wait(pid) == 0, (tmp_path / "log").read_text(encoding="utf-8")
    (table,) = tmp_path.glob("runs/*/trials.csv")
    assert pd.read_csv(table)["state"].tolist() == ["complete"] * 3
    said = [path.read_text(encoding="utf-8") for path in tmp_path.glob("sweeps/*/slurm/*_log.out")]
    assert sum("trials done" in text for text in said) == 2, "both workers have worked on it"


@pytest.mark.slow
@pytest.mark.services
def test_two_tasks_of_srun_train_one_run(cluster, tiny_cohort, tmp_path, make_database):
    make_database(tmp_path)
    words = ["fit", "--config", str(CONF / "brain_age_regression.yaml"), "--data.table", str(tiny_cohort)]
    words += ["--output-dir", str(tmp_path), "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    words += ["--trainer.max_epochs", "1"]
    command = ["srun", "--ntasks=2", "--ntasks-per-node=2", sys.executable, "-m", "experiments.cli", *words]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Next:") == 1
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    (run,) = store.client.search_runs([study.experiment_id for study in store.client.search_experiments()])
    assert run.info.status == "FINISHED"
    contract = read_contract(tmp_path / "runs" / run.info.run_id)
    assert contract.world_size == 2

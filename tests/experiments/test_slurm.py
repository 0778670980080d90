"""A real SLURM of one node: jobs finish through it, and one that has to make room goes on in the same run."""

import importlib.util
import json
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tracking.contract import read_contract

CONF = Path(__file__).parent.parent / "conf"
HARNESS = Path(__file__).parent.parent / "harness" / "slurm.py"
STUDY = {
    "base": str(CONF / "outcome_classification.yaml"),
    "protocol": "external",
    "external_sites": ["west"],
    "arms": {"scratch": {}, "age-only": {"baseline": ["age"]}},
    "slurm": {"time": 10, "cpus_per_task": 1},
}


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this machine."""
    spec = importlib.util.spec_from_file_location("slurm_harness", HARNESS)
    harness = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(harness)
    if not harness.is_installed():
        pytest.skip("SLURM is not installed, or this is not root (Debian: slurmctld slurmd slurm-client munge)")
    with harness.slurm() as folder:
        yield folder


def words(output, table, *more):
    (output / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False), encoding="utf-8")
    start = ["crossval", "--config", str(output / "study.yaml"), "--data.table", str(table)]
    return [*start, "--output-dir", str(output), "--trainer.max_epochs", "20", *more]


def table_of(output):
    (table,) = output.glob("crossval/*/predictions.parquet")
    return pd.read_parquet(table).drop(columns="run_id")


def wait_for(pattern, output, pid, commands, patience=180.0):
    deadline = time.monotonic() + patience
    while not (found := list(output.glob(pattern))):
        assert commands.poll(pid) is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found[0]


@pytest.mark.services
@pytest.mark.timeout(600)
def test_a_job_that_has_to_make_room_goes_on_in_the_same_run_to_the_same_result(
    cluster, tiny_cohort, tmp_path, make_database, commands
):
    plain, output = tmp_path / "plain", tmp_path / "cluster"
    for folder in (plain, output):
        make_database(folder)
    assert commands.run_all(words(plain, tiny_cohort), 1, tmp_path / "plain.log") == [0]
    there = {"SLURM_CONF": str(cluster / "slurm.conf")}
    pid = commands.start(words(output, tiny_cohort, "--launcher", "slurm"), tmp_path / "log", there)
    wait_for("runs/*/checkpoints/step-*.ckpt", output, pid, commands)
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

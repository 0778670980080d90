"""Two processes train one run and predict every participant once, as one process does."""

import json

import numpy as np
import pandas as pd
import pytest

from datamodules.verify import verify_cohort, write_manifest
from evaluation.predictions import read_predictions
from tracking.store import Store

CONFIG = "tests/conf/brain_age_resumable.yaml"
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
NUM_PARTICIPANTS = 33


@pytest.fixture(scope="module")
def trained(commands, make_tiny_cohort, tmp_path_factory):
    """A cohort whose parts do not divide by two, and the run that two processes trained on it."""
    folder = tmp_path_factory.mktemp("distributed")
    table = make_tiny_cohort(folder / "cohort", NUM_PARTICIPANTS)
    write_manifest(verify_cohort(table))
    words = ["fit", "--config", CONFIG, "--data.table", str(table), "--output-dir", str(folder / "out"), *TWO]
    assert commands.run_all(words, 2, folder / "log") == [0, 0], (folder / "log").read_text(encoding="utf-8")
    return folder, table


def store_of(folder):
    return Store(f"sqlite:///{folder / 'out' / 'mlflow.db'}", folder / "out")


def test_there_is_one_run_and_its_parts_are_uneven(trained):
    folder, _ = trained
    store = store_of(folder)
    (run,) = store.client.search_runs([e.experiment_id for e in store.client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert len(store.client.get_metric_history(run.info.run_id, "val/mae")) == 3
    assert run.data.metrics["system/world_size"] == 2
    cohort = json.loads(store.download(run.info.run_id, "cohort.json").read_text(encoding="utf-8"))
    sizes = {part: sum(c["participants"] for c in cohort["counts"] if c["split"] == part) for part in ("val", "test")}
    assert sizes["val"] % 4 in {1, 2}  # the second process has a batch less
    assert sum(c["participants"] for c in cohort["counts"]) == NUM_PARTICIPANTS


def test_each_participant_is_predicted_once_and_as_by_one_process(trained, commands):
    folder, table = trained
    frames = []
    for name, devices in (("one", []), ("two", TWO)):
        words = ["predict", "scratch-holdout-0-r0-s3", "--data.table", str(table), "--output", str(folder / name)]
        words += ["--output-dir", str(folder / "out"), *devices]
        codes = commands.run_all(words, 2 if devices else 1, folder / f"log-{name}")
        assert set(codes) == {0}, (folder / f"log-{name}").read_text(encoding="utf-8")
        frames.append(read_predictions(folder / name / "predictions.parquet").set_index("participant_id").sort_index())
    one, two = frames
    assert len(one) == NUM_PARTICIPANTS
    assert list(one.index) == list(two.index)
    np.testing.assert_allclose(two["prediction"], one["prediction"], rtol=1e-5, atol=1e-5)
    assert one["prediction"].nunique() > 1


def test_a_test_in_two_processes_is_kept_once(trained, commands):
    folder, _ = trained
    words = ["test", "scratch-holdout-0-r0-s3", "--output-dir", str(folder / "out"), *TWO]
    assert commands.run_all(words, 2, folder / "log-test") == [0, 0], (folder / "log-test").read_text(encoding="utf-8")
    assert (folder / "log-test").read_text(encoding="utf-8").count("Report: ") == 1
    store = store_of(folder)
    run_id = store.find_run("scratch-holdout-0-r0-s3").run_id
    rows = pd.read_parquet(store.download(run_id, "predictions.parquet"))
    assert len(rows) == rows["participant_id"].nunique() > 0
    assert len(store.client.get_metric_history(run_id, "test/mae")) == 1
    assert store.client.get_run(run_id).info.status == "FINISHED"


def test_another_number_of_processes_goes_on_with_a_warning(trained, commands):
    folder, _ = trained
    words = ["fit", "--resume", "scratch-holdout-0-r0-s3", "--output-dir", str(folder / "out")]
    words += ["--trainer.max_epochs", "4", "--trainer.devices", "1", "--trainer.strategy", "auto"]
    assert commands.run_all(words, 1, folder / "log-alone") == [0], (folder / "log-alone").read_text(encoding="utf-8")
    log = (folder / "log-alone").read_text(encoding="utf-8")
    assert "fontanel: warning: Run" in log
    assert "was trained in 2 processes and goes on in 1" in log
    store = store_of(folder)
    run_id = store.find_run("scratch-holdout-0-r0-s3").run_id
    assert len(store.client.get_metric_history(run_id, "val/mae")) == 4

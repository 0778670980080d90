"""Two machines that torchrun has started train one run of a lab's own network, and predict every participant once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.predictions import read_predictions
from tracking.server import HOST, free_port
from tracking.store import Store

FONTANEL = Path(sys.executable).with_name("fontanel")
NODES = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ddp"]


def on_two_nodes(words, place, folder, name):
    """Run a command in a place as torchrun starts it on two machines, one process each, and return what both said."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    start += ["--master-addr", HOST, "--master-port", str(free_port(HOST, 0))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    logs = [folder / f"{name}-{node}.log" for node in range(2)]
    processes = []
    try:
        for node, log in enumerate(logs):
            command = [*start, "--node-rank", str(node), "--no-python", FONTANEL, *words]
            with log.open("w") as file:
                processes.append(
                    subprocess.Popen(command, cwd=place, env=environment, stdout=file, stderr=subprocess.STDOUT)
                )
        codes = [process.wait(240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = [log.read_text(encoding="utf-8") for log in logs]
    assert codes == [0, 0], "\n".join(said)
    return said


@pytest.mark.timeout(600)
def test_two_nodes_make_one_run_and_predict_each_participant_once(lab_folder, tiny_cohort, tmp_path, make_database):
    make_database(tmp_path)
    words = ["fit", "--config", "lab.yaml", *NODES]
    words += ["--data.table", str(tiny_cohort), "--output-dir", str(tmp_path)]
    said = on_two_nodes(words, lab_folder, tmp_path, "fit")
    assert sum(text.count("Next:") for text in said) == 1
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    (run,) = store.client.search_runs([study.experiment_id for study in store.client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["system/world_size"] == 2
    for node in range(2):
        assert run.data.metrics[f"system/node_{node}/system_memory_usage_megabytes"] > 0
    words = ["predict", run.info.run_id, "--data.table", str(tiny_cohort), "--output", str(tmp_path / "predicted")]
    said = on_two_nodes([*words, "--output-dir", str(tmp_path), *NODES], lab_folder, tmp_path, "predict")
    rows = read_predictions(tmp_path / "predicted" / "predictions.parquet")
    assert len(rows) == rows["participant_id"].nunique() == 30

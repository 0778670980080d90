"""Ctrl-C during a training."""

import signal
import subprocess
import sys
import time

from tracking.checkpoints import load_checkpoint
from tracking.contract import newest_whole
from tracking.store import Store

CONFIG = "tests/conf/brain_age_regression.yaml"


def test_ctrl_c_is_130_and_keeps_the_checkpoint_and_the_run(tiny_cohort, tmp_path):
    words = ["fit", "--config", CONFIG, "--data.table", str(tiny_cohort), "--output-dir", str(tmp_path)]
    command = [sys.executable, "-m", "experiments.cli", *words, "--trainer.max_epochs", "10000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8")
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("runs/*/checkpoints/step-*.ckpt"))) < 2 and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        _, stderr = process.communicate()
    assert "fontanel: error: interrupted; continue with: fontanel fit --resume" in stderr
    assert "Traceback" not in stderr
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    run_id = store.find_run("scratch-holdout-0-r0-s3").run_id
    assert store.client.get_run(run_id).info.status == "KILLED"
    checkpoint, contract, problems = newest_whole(store.folder(run_id))
    assert load_checkpoint(checkpoint)["global_step"] > 0
    assert contract.run_id == run_id
    assert problems == []

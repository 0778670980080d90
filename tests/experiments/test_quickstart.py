"""The newcomer's first command, as printed in the README."""

import subprocess
import sys

import pytest

from evaluation.assessment import assess
from evaluation.predictions import read_predictions, select
from tracking.store import Store


@pytest.mark.timeout(900)
def test_quickstart_beats_predict_the_mean_and_names_the_next_commands(tmp_path):
    command = [sys.executable, "-m", "experiments.cli", "quickstart", "--output-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fontanel ui" in done.stdout
    assert "held-out site" in done.stdout
    assert not [line for line in done.stderr.splitlines() if "Warning" in line], done.stderr

    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    run = store.client.get_run(store.find_run("scratch-holdout-0-r0-s0").run_id)
    frame = read_predictions(store.download(run.info.run_id, "predictions.parquet"))
    assert set(frame["split"]) == {"test", "external"}
    assert set(frame.loc[frame["split"] == "external", "site"]) == {"site-c"}
    gain = assess(select(frame, split="test")).metrics["mae_gain"]
    assert gain.low is not None
    assert gain.low > 0
    assert run.data.metrics["test/mae_gain_low"] == pytest.approx(gain.low)
    report = (store.folder(run.info.run_id) / "report.html").read_text(encoding="utf-8")
    assert "phantom data: a software check, not evidence" in report
    assert str(store.folder(run.info.run_id) / "report.html") in done.stdout

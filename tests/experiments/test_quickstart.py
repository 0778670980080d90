"""The newcomer's first command: the whole story, smaller here than the README's, which is one of the long proofs."""

import subprocess
import sys

import pytest

from evaluation.assessment import assess
from evaluation.predictions import read_predictions, select
from tracking.store import Store

SMALL = ["--num-adults", "90", "--num-newborns", "40", "--max-epochs", "6"]


def quickstart(folder, *words):
    command = [sys.executable, "-m", "experiments.cli", "quickstart", "--output-dir", str(folder), *words]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False)


def brain_age_gain(folder):
    store = Store(f"sqlite:///{folder / 'mlflow.db'}", folder)
    run = store.client.get_run(store.find_run("pretraining-holdout-0-r0-s0").run_id)
    frame = read_predictions(store.download(run.info.run_id, "predictions.parquet"))
    assert set(frame["split"]) == {"val", "test", "external"}
    assert set(frame.loc[frame["split"] == "external", "site"]) == {"site-c"}
    return assess(select(frame, split="test")).metrics["mae_gain"]


@pytest.mark.timeout(900)
def test_the_whole_story_in_small(tmp_path):
    done = quickstart(tmp_path, *SMALL)
    gain = brain_age_gain(tmp_path)
    assert gain.low is not None
    assert done.returncode == (0 if gain.low > 0 else 1), done.stdout + done.stderr
    assert "fontanel ui" in done.stdout
    assert "held-out site" in done.stdout
    assert "Gain by test site" in done.stdout
    (result,) = (tmp_path / "crossval").iterdir()
    table = read_predictions(result / "predictions.parquet")
    assert set(table["arm"]) == {"scratch", "pretrained"}
    report = (result / "report.html").read_text(encoding="utf-8")
    assert "phantom" in report
    assert str(result / "report.html") in done.stdout
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    assert len(finished) == 1 + 2 * 2
    again = quickstart(tmp_path, *SMALL)
    assert again.returncode == done.returncode, again.stderr
    assert finished == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_as_printed_in_the_readme_it_beats_predict_the_mean(tmp_path):
    done = quickstart(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert brain_age_gain(tmp_path).low_above(0.0)

"""The main road: fit, validate, test and predict on the command line, on a tiny cohort."""

import json
from pathlib import Path

import pytest
import yaml

from evaluation.predictions import read_predictions
from experiments.cli import main
from tracking.store import Store

CONFIGS = sorted((Path(__file__).parent.parent / "conf").glob("*.yaml"))
CONFIG = next(path for path in CONFIGS if path.stem == "brain_age_regression")


def fit(config, table, output, *words):
    return main(["fit", "--config", str(config), "--data.table", str(table), "--output-dir", str(output), *words])


def open_store(output):
    return Store(f"sqlite:///{output / 'mlflow.db'}", output)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_trains_and_predicts_finite_numbers(config, tiny_cohort, tmp_path, capsys):
    assert fit(config, tiny_cohort, tmp_path, "--arm", "trial") == 0
    run_id = (
        open_store(tmp_path)
        .find_run(f"trial-holdout-0-r0-s{yaml.safe_load(config.read_text(encoding='utf-8'))['seed_everything']}")
        .run_id
    )
    assert f"fontanel test {run_id}" in capsys.readouterr().out
    assert main(["report", run_id, "--output-dir", str(tmp_path)]) == 1
    assert f"fontanel test {run_id}" in capsys.readouterr().err
    assert main(["validate", run_id, "--output-dir", str(tmp_path)]) == 0
    frame = read_predictions(open_store(tmp_path).folder(run_id) / "predictions.parquet")
    assert frame["prediction"].notna().all()
    assert set(frame["split"]) == {"val"}


def test_a_run_holds_what_is_needed_to_understand_it(fitted):
    output, run_id = fitted
    store = open_store(output)
    run = store.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    expected = {"study": "conf/brain_age_regression", "protocol": "holdout", "arm": "scratch", "seed": "3", "fold": "0"}
    assert expected.items() <= run.data.tags.items()
    assert (run.data.tags["train_sites"], run.data.tags["test_site"]) == ("north+south", "west")
    assert run.data.params["model.network.width"] == "2"
    assert run.data.params["data.table"].endswith("tiny.tsv")
    assert {"train/loss", "val/loss", "val/mae"} <= set(run.data.metrics)
    cohort = json.loads(store.download(run_id, "cohort.json").read_text(encoding="utf-8"))
    assert cohort["verified"] is True
    for artifact in (
        "config.yaml",
        "folds.json",
        "environment.json",
        "model/weights.safetensors",
        "checkpoints/best.ckpt",
    ):
        assert store.download(run_id, artifact).stat().st_size > 0
    model = json.loads(store.download(run_id, "model/model.json").read_text(encoding="utf-8"))
    assert model["input"]["channels"] == ["t1w"]
    assert model["outputs"]["age"]["unit"] == "years"


def test_a_test_adds_predictions_metrics_and_a_report_to_the_run(fitted, capsys):
    output, run_id = fitted
    assert main(["test", run_id[:8], "--output-dir", str(output)]) == 0
    assert "mae" in capsys.readouterr().out
    store = open_store(output)
    frame = read_predictions(store.download(run_id, "predictions.parquet"))
    assert frame.groupby("split")["site"].unique().map(set).to_dict() == {
        "test": {"north", "south"},
        "external": {"west"},
    }
    assert frame["participant_id"].is_unique
    metrics = store.client.get_run(run_id).data.metrics
    error = (frame["prediction"] - frame["target"]).abs()
    for split in ("test", "external"):
        assert metrics[f"{split}/mae"] == pytest.approx(error[frame["split"] == split].mean(), rel=1e-6)
        assert metrics[f"{split}/mae_low"] <= metrics[f"{split}/mae"] <= metrics[f"{split}/mae_high"]
    assert "<html" in store.download(run_id, "report.html").read_text(encoding="utf-8")


def test_test_and_training_share_no_participant(fitted, tiny_cohort):
    output, run_id = fitted
    folds = json.loads(open_store(output).download(run_id, "folds.json").read_text(encoding="utf-8"))
    parts = {name: {key for keys in sites.values() for key in keys} for name, sites in folds["parts"].items()}
    assert not parts["train"] & (parts["test"] | parts["external"] | parts["val"])


def test_another_table_is_external_but_for_those_trained_on(fitted, tiny_cohort):
    output, run_id = fitted
    assert main(["test", run_id, "--output-dir", str(output), "--data.table", str(tiny_cohort)]) == 0
    frame = read_predictions(open_store(output).download(run_id, "predictions.parquet"))
    folds = json.loads(open_store(output).download(run_id, "folds.json").read_text(encoding="utf-8"))
    trained = {key for keys in folds["parts"]["train"].values() for key in keys}
    assert not trained & {f"tiny/{participant}" for participant in frame["participant_id"]}


def test_a_missing_cohort_names_make_cohort(tmp_path, capsys):
    assert fit(CONFIG, tmp_path / "cohort.tsv", tmp_path / "outputs") == 1
    assert "fontanel make-cohort" in capsys.readouterr().err
    assert not (tmp_path / "outputs" / "runs").exists()


def test_a_misspelt_argument_is_wrong_usage(tiny_cohort, tmp_path, capsys):
    assert fit(CONFIG, tiny_cohort, tmp_path, "--data.batchsize", "2") == 2
    assert "batchsize" in capsys.readouterr().err


def test_a_run_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["test", "0123456789ab", "--output-dir", str(tmp_path)]) == 1
    assert "0123456789ab" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_weights(tiny_cohort, tmp_path):
    from safetensors.numpy import load_file

    weights = []
    for name in ("a", "b"):
        assert fit(CONFIG, tiny_cohort, tmp_path / name, "--trainer.max_epochs", "1") == 0
        store = open_store(tmp_path / name)
        weights.append(
            load_file(store.download(store.find_run("scratch-holdout-0-r0-s3").run_id, "model/weights.safetensors"))
        )
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])


def test_a_pretraining_is_filtered_by_a_condition_and_says_so(tiny_cohort, tmp_path):
    words = ["--pretraining-filter", "age <= 60", "--trainer.max_epochs", "1", "--arm", "young"]
    assert fit(CONFIG, tiny_cohort, tmp_path, *words) == 0
    store = open_store(tmp_path)
    run_id = store.find_run("young-holdout-0-r0-s3").run_id
    cohort = json.loads(store.download(run_id, "cohort.json").read_text(encoding="utf-8"))
    assert cohort["rows"]["expression"] == "age <= 60"
    assert 0 < cohort["rows"]["kept"] < cohort["rows"]["of"] == 30
    assert max(count["targets"]["age"]["max"] for count in cohort["counts"]) <= 60

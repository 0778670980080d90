"""Single jobs of a cross-validation: in several processes, with inner folds, from pretrained weights."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from experiments.cli import main
from tracking.store import Store

CONF = Path(__file__).parent.parent / "conf"
EXTERNAL = {"protocol": "external", "external_sites": ["west"]}


def write_study(folder, **changes):
    study = {"base": str(CONF / "outcome_classification.yaml"), "arms": {"scratch": {}}, **EXTERNAL, **changes}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


def words(study, table, output, *more):
    return ["crossval", "--config", str(study), "--data.table", str(table), "--output-dir", str(output), *more]


def held_out(path):
    rows = pd.read_parquet(path)
    return rows[rows["split"] == "external"].sort_values("participant_id", ignore_index=True)


def only_job(output):
    (folder,) = output.glob("crossval/*/jobs/*")
    return folder


def test_two_processes_evaluate_as_one_does(tiny_cohort, tmp_path, make_database, commands):
    make_database(tmp_path)
    more = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = words(write_study(tmp_path), tiny_cohort, tmp_path, *more)
    log = tmp_path / "log"
    assert commands.wait(commands.start(command, log)) == 0, log.read_text(encoding="utf-8")
    together = held_out(only_job(tmp_path) / "predictions.parquet")
    run_id = json.loads((only_job(tmp_path) / "done.json").read_text(encoding="utf-8"))["run_id"]
    assert main(["test", run_id, "--output-dir", str(tmp_path)]) == 0
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    alone = held_out(store.folder(run_id) / "predictions.parquet")
    assert list(alone["participant_id"]) == list(together["participant_id"])
    np.testing.assert_allclose(alone["prediction"], together["prediction"], atol=1e-5)


def test_inner_folds_choose_threshold_and_epochs_without_the_test_participants(
    tiny_cohort, tmp_path, make_database, monkeypatch
):
    make_database(tmp_path)
    study = write_study(tmp_path, num_inner_folds=2)
    assert main(words(study, tiny_cohort, tmp_path)) == 0
    job = only_job(tmp_path)
    choice = json.loads((job / "inner" / "choice.json").read_text(encoding="utf-8"))
    split = json.loads((job / "folds.json").read_text(encoding="utf-8"))["parts"]
    training = {key for part in ("train", "val") for keys in split[part].values() for key in keys}
    out_of_fold = pd.concat([pd.read_parquet(job / "inner" / f"{number}-rows.parquet") for number in range(2)])
    keys = list(out_of_fold["dataset"] + "/" + out_of_fold["participant_id"])
    assert sorted(keys) == sorted(training)
    rows = held_out(job / "predictions.parquet")
    (point,) = choice["operating_points"].values()
    assert rows["threshold"].to_numpy() == pytest.approx(point["threshold"])
    assert point["num_rows"] == len(training)
    run_id = json.loads((job / "done.json").read_text(encoding="utf-8"))["run_id"]
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    final = yaml.safe_load(store.download(run_id, "config.yaml").read_text(encoding="utf-8"))
    assert final["trainer"]["max_epochs"] == choice["words"]["trainer.max_epochs"]
    counts = json.loads(store.download(run_id, "cohort.json").read_text(encoding="utf-8"))["counts"]
    assert sum(count["participants"] for count in counts if count["split"] == "train") == len(training)
    assert not [count for count in counts if count["split"] == "val"]


def test_a_pretrained_arm_starts_from_its_source_and_a_planted_participant_is_refused(
    tiny_cohort, fitted, tmp_path, make_database, make_tiny_cohort, capsys
):
    output, run_id = fitted
    weights = output / "runs" / run_id / "checkpoints" / "best.ckpt"
    make_database(tmp_path)
    study = write_study(tmp_path, arms={"scratch": {}, "pretrained": {"model.transfer.strategy": "frozen"}})
    assert main(words(study, tiny_cohort, tmp_path, "--pretrained", f"pretrained={weights}")) == 1
    assert "has seen" in capsys.readouterr().err
    assert not list(tmp_path.glob("crossval/*"))
    others = make_tiny_cohort(tmp_path / "others", seed=1).rename(tmp_path / "others" / "others.tsv")
    assert main(["verify", str(others)]) == 0
    assert main(words(study, others, tmp_path, "--pretrained", f"pretrained={weights}")) == 0
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    child = store.find_run("pretrained-external-external-r0-s0").run_id
    ledger = json.loads(store.download(child, "transfer.json").read_text(encoding="utf-8"))
    assert ledger["share"] == 1.0
    assert "gain/pretrained/auroc" in store.client.get_run(store.find_run(only_parent(tmp_path)).run_id).data.metrics
    table = pd.concat([pd.read_parquet(path) for path in tmp_path.glob("crossval/*/predictions.parquet")])
    assert set(table["arm"]) == {"scratch", "pretrained"}


def only_parent(output):
    (folder,) = output.glob("crossval/*")
    return (folder / "parent").read_text(encoding="utf-8").strip()

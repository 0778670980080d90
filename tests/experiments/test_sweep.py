"""A sweep on the command line: what it leaves, how it goes on, and what becomes of those who are killed."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from experiments.cli import main
from experiments.runtime import FontanelCLI
from experiments.sweep_file import read_sweep
from experiments.sweep_plan import plan_nested
from tracking.store import Store

CONF = Path(__file__).parent.parent / "conf"
SPACE = {
    "model.optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "model.network.dropout": {"low": 0.0, "high": 0.5},
}


def write_sweep(folder, **changes):
    content = {"base": str(CONF / "outcome_classification.yaml"), "metric": "val/loss", "space": SPACE, **changes}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def words(sweep, table, output, *more):
    start = ["sweep", "--config", str(sweep), "--data.table", str(table), "--output-dir", str(output)]
    return [*start, "--study", "tests/sweep", "--num-workers", "2", *more]


def runs_of(output):
    store = Store(f"sqlite:///{output / 'mlflow.db'}", output)
    (study,) = [one for one in store.client.search_experiments() if one.name != "Default"]
    runs = store.client.search_runs([study.experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("kind") == "sweep"]
    return store, parent, {run.info.run_name: run for run in runs if run is not parent}


def table_of(store, parent):
    return pd.read_csv(store.download(parent.info.run_id, "trials.csv"), keep_default_na=False, na_values=[""])


@pytest.fixture(scope="module")
def finished(tiny_cohort, tmp_path_factory, make_database):
    """A sweep of three trainings."""
    output = tmp_path_factory.mktemp("sweep")
    make_database(output)
    assert main(words(write_sweep(output), tiny_cohort, output, "--num-trials", "3")) == 0
    return output


def test_parent_and_children_say_what_was_tried(finished):
    store, parent, children = runs_of(finished)
    assert set(children) == {"trial-0", "trial-1", "trial-2"}
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
    for run in children.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["trial_state"] == "complete"
        assert 1e-4 <= float(run.data.params["model.optimizer.lr"]) <= 1e-2
        assert "predictions.parquet" not in {item.path for item in store.client.list_artifacts(run.info.run_id)}
    table = table_of(store, parent)
    assert table["val/loss"].min() == pytest.approx(parent.data.metrics["best/val/loss"])
    assert parent.data.metrics["trials/complete"] == 3
    for name in ("history.png", "parallel.png", "best.yaml", "sweep.json"):
        assert store.download(parent.info.run_id, name).is_file()


def test_best_prints_a_configuration_that_fit_takes(finished, capsys, tmp_path):
    assert main(["best", "tests/sweep", "--output-dir", str(finished)]) == 0
    said = capsys.readouterr()
    (tmp_path / "best.yaml").write_text(said.out, encoding="utf-8")
    store, parent, _ = runs_of(finished)
    best = table_of(store, parent).sort_values("val/loss").iloc[0]
    optimizer = FontanelCLI(["--config", str(tmp_path / "best.yaml")]).config["model"].init_args.optimizer
    assert optimizer.init_args.lr == pytest.approx(best["model.optimizer.lr"])
    assert f"trial {best['trial']} of 3 completed: val/loss" in said.err
    assert main(["best", "tests/swep", "--output-dir", str(finished)]) == 1
    assert "There are: tests/sweep" in capsys.readouterr().err


def test_more_trials_go_on_and_another_space_is_refused(finished, tiny_cohort, capsys):
    assert main(words(write_sweep(finished), tiny_cohort, finished, "--num-trials", "4")) == 0
    store, parent, children = runs_of(finished)
    assert len(children) == 4
    assert table_of(store, parent)["trial"].tolist() == [0, 1, 2, 3]
    assert main(["sweep", "--join", "tests/sweep", "--output-dir", str(finished)]) == 0
    assert "Nothing waits any more: 4 trials done" in capsys.readouterr().out
    other = write_sweep(finished, space={"model.network.dropout": {"low": 0.0, "high": 0.25}})
    assert main(words(other, tiny_cohort, finished)) == 1
    assert "is there already, and is another one: sweep was" in capsys.readouterr().err


def test_a_dry_run_checks_times_and_leaves_nothing(tiny_cohort, tmp_path, capsys):
    output = tmp_path / "outputs"
    more = ["--dry-run", "--time", "--max-hours", "2", "--value", "0.7", "--gain", "0.2"]
    assert main(words(write_sweep(tmp_path), tiny_cohort, output, *more)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "minimize val/loss; one training a trial; 20 trials or 2 hours" in said
    assert "model.network.dropout" in said
    assert "its power is not known" in said  # one or two validation participants of a class
    assert "Work: 20 trainings of networks." in said
    assert "Time: at most about" in said
    assert "Timed here: " in said
    assert not output.exists()


def test_a_dry_run_counts_folds_and_finished_trials(finished, tiny_cohort, files_below, tmp_path, capsys):
    sweep = write_sweep(finished)
    before = files_below(finished)
    assert main(words(sweep, tiny_cohort, finished, "--num-trials", "9", "--dry-run", "--json")) == 0
    costs = json.loads(capsys.readouterr().out)["costs"]
    taken = [
        json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in finished.glob("sweeps/*/*/*/done.json")
    ]
    assert costs["trainings"] == 9
    assert costs["hours"]["expected"] == pytest.approx(9 * pd.Series(taken).median() / 3600 / 2)
    assert files_below(finished) == before
    study = {"base": str(CONF / "outcome_classification.yaml"), "protocol": "cross-site"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    folds = {"base": "study.yaml", "metric": "auroc"}
    more = ["--num-trials", "9", "--dry-run", "--json"]
    assert main(words(write_sweep(tmp_path, **folds), tiny_cohort, tmp_path / "outputs", *more)) == 0
    assert json.loads(capsys.readouterr().out)["costs"]["trainings"] == 9 * 3
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("num_devices", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_worker_that_is_killed_leaves_nothing_running_and_its_trial_goes_on(
    num_devices, tiny_cohort, tmp_path, make_database, commands
):
    make_database(tmp_path)
    longer = ["--num-trials", "1", "--num-workers", "1", "--trainer.max_epochs", "40"]
    if num_devices > 1:
        longer += ["--trainer.devices", str(num_devices), "--trainer.strategy", "ddp"]
    command = words(write_sweep(tmp_path), tiny_cohort, tmp_path, *longer)
    pid = commands.start(command, tmp_path / "log")
    commands.wait_for("runs/*/checkpoints/step-*.ckpt", tmp_path, pid)
    os.kill(pid, signal.SIGKILL)
    commands.wait(pid)
    commands.wait_until_deserted(tmp_path)
    assert not list(tmp_path.glob("sweeps/*/trials/*/done.json")), "its trial has ended with it"
    assert commands.run_all(command, 1, tmp_path / "again") == [0], (tmp_path / "again").read_text(encoding="utf-8")
    store, parent, children = runs_of(tmp_path)
    assert set(children) == {"trial-0"}
    assert children["trial-0"].info.status == "FINISHED"
    table = table_of(store, parent)
    assert table["state"].tolist() == ["fail", "complete"]
    assert table["why"].iloc[0] == "its worker is gone"
    assert table["model.optimizer.lr"].nunique() == 1, "the same trial, not another one"
    folders = sorted((tmp_path / "sweeps").glob("*/trials/*"))
    first, second = (json.loads((folder / "run.json").read_text(encoding="utf-8")) for folder in folders)
    assert first == second, "the run goes on from its checkpoint"


def test_folds_are_scored_one_by_one_and_a_hopeless_trial_is_stopped(tiny_cohort, tmp_path, make_database):
    make_database(tmp_path)
    study = {"base": str(CONF / "outcome_classification.yaml"), "protocol": "cross-site", "num_folds": 2}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    sweep = write_sweep(
        tmp_path,
        base="study.yaml",
        metric="brier",
        space={"model.network.dropout": {"choices": [0.0, 0.5]}},
        sampler={"class_path": "GridSampler", "init_args": {"search_space": {"model.network.dropout": ["0.0", "0.5"]}}},
        pruner={"class_path": "ThresholdPruner", "init_args": {"upper": 0.0, "n_warmup_steps": 1}},
    )
    assert main(words(sweep, tiny_cohort, tmp_path, "--num-trials", "2", "--trainer.max_epochs", "1")) == 1
    store, parent, children = runs_of(tmp_path)
    assert {run.data.tags["trial_state"] for run in children.values()} == {"pruned"}
    assert parent.data.metrics["trials/pruned"] == 2
    for run in children.values():
        scores = store.client.get_metric_history(run.info.run_id, "fold/brier")
        assert [point.step for point in scores] == [0, 1], "the third site was spared"
        assert all(0 < point.value < 1 for point in scores)


def nested_study(folder):
    study = {"base": str(CONF / "outcome_classification.yaml"), "protocol": "k-fold", "num_folds": 2}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**study, "external_sites": ["west"]}), encoding="utf-8")
    return write_sweep(folder, base=str(path), metric="brier")


@pytest.mark.parametrize("kind", ["study", "fit"])
def test_a_nested_sweep_sees_nobody_who_is_tested(kind, tiny_cohort, tmp_path):
    store = SimpleNamespace(output_folder=tmp_path)
    sweep = read_sweep(nested_study(tmp_path) if kind == "study" else write_sweep(tmp_path))
    words = ["--data.table", str(tiny_cohort)]
    frame = pd.read_csv(tiny_cohort, sep="\t")
    plans = plan_nested(sweep, words, store, "cross-site")
    assert [plan.sweep.name.partition("@")[2] for plan in plans] == ["north", "south", "west"]
    for plan in plans:
        tested = {
            f"tiny/{name}" for name in frame[frame["site"] == plan.sweep.name.partition("@")[2]]["participant_id"]
        }
        assert len(plan.folds) == (2 if kind == "study" else 1)
        for fold in plan.folds:
            seen = {*fold.keys("train"), *fold.keys("val")}
            assert not tested & seen
            assert tested <= set(fold.keys("unused"))
            assert len(fold.keys("val")) > 2
        judged = [key for fold in plan.folds for key in fold.keys("val")]
        assert kind == "fit" or sorted(judged) == sorted(set(judged)), "each is judged by once"


def test_a_signal_of_the_outer_test_site_changes_nothing_that_is_chosen(make_tiny_cohort, tmp_path, make_database):
    chosen = []
    for name in ("plain", "planted"):
        table = make_tiny_cohort(tmp_path / name / "tiny", 30)
        frame = pd.read_csv(table, sep="\t")
        west = frame["site"] == "west"
        if name == "planted":
            frame.loc[west, "outcome"] = 1 - frame.loc[west, "outcome"]
            frame.to_csv(table, sep="\t", index=False)
        output = tmp_path / name / "out"
        make_database(output)
        more = ["--outer-protocol", "external", "--num-trials", "2", "--trainer.max_epochs", "1", "--allow-unverified"]
        assert main(words(nested_study(tmp_path), table, output, *more, "--num-workers", "1")) == 0
        store, parent, _ = runs_of(output)
        assert parent.data.tags["sweep_group"] == "tests/sweep"
        chosen.append(table_of(store, parent).drop(columns="seconds"))
    pd.testing.assert_frame_equal(*chosen, check_exact=True)
    assert chosen[0]["brier"].nunique() == 2

"""A cross-validation on the command line: jobs, resumption, the lock, and what it leaves in the store."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import nibabel as nib
import pandas as pd
import pytest
import yaml

from experiments.cli import main
from experiments.lock import site_tags, times_scored
from tracking.store import Store

CONF = Path(__file__).parent.parent / "conf"
ARMS = {"scratch": {}, "scratch-again": {"seed_offset": 1000}, "age-only": {"baseline": ["age"]}}


def write_study(folder, **changes):
    study = {"base": str(CONF / "outcome_classification.yaml"), "protocol": "cross-site", "arms": ARMS, **changes}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path


def words(study, table, output, *more):
    return ["crossval", "--config", str(study), "--data.table", str(table), "--output-dir", str(output), *more]


def result(output):
    (folder,) = (output / "crossval").iterdir()
    return folder


def table_of(output):
    return pd.read_parquet(result(output) / "predictions.parquet").drop(columns="run_id")


def open_store(output):
    return Store(f"sqlite:///{output / 'mlflow.db'}", output)


@pytest.fixture(scope="module")
def finished(tiny_cohort, tmp_path_factory, make_database):
    """A cross-validation that nothing has disturbed."""
    output = tmp_path_factory.mktemp("finished")
    make_database(output)
    assert main(words(write_study(output), tiny_cohort, output)) == 0
    return output


def test_the_table_holds_every_arm_on_the_same_participants(finished, tiny_cohort):
    table = table_of(finished)
    tested = table[table["split"] == "external"]
    everybody = set(pd.read_csv(tiny_cohort, sep="\t")["participant_id"])
    for _, rows in tested.groupby(["arm", "seed", "repeat"]):
        assert set(rows["participant_id"]) == everybody
        assert len(rows) == len(everybody)
    assert set(table["arm"]) == set(ARMS)
    assert set(table["split"]) == {"val", "external"}
    assert all(site not in sites.split("+") for site, sites in zip(tested["site"], tested["train_sites"], strict=True))
    scratch, again = (tested[tested["arm"] == arm]["prediction"].to_numpy() for arm in ("scratch", "scratch-again"))
    assert (scratch != again).any()


def test_the_store_has_one_parent_with_aggregates_and_one_child_per_job(finished):
    store = open_store(finished)
    (study,) = [e for e in store.client.search_experiments() if e.name != "Default"]
    runs = store.client.search_runs([study.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert len(children) == 3 * 3
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children)
    keys = ("study", "protocol", "repeat", "fold", "train_sites", "test_site", "arm", "seed")
    assert all(key in run.data.tags for run in children for key in keys)
    assert {"scratch/external/auroc", "scratch/external/auroc_low", "gain/scratch-again/auroc"} <= set(
        parent.data.metrics
    )
    rows = [line.split(" | ") for line in parent.data.tags["mlflow.note.content"].splitlines() if line.startswith("| ")]
    assert [row[0].removeprefix("| ") for row in rows] == ["arm", "---", *ARMS]
    value = parent.data.metrics["scratch-again/external/auroc"]
    assert rows[3][1].startswith(f"{value:.3f} [")
    for name in ("predictions.parquet", "lock.json", "folds.json", "audit.json", "conclusion.json", "config.yaml"):
        assert store.download(parent.info.run_id, name).is_file()
    report = store.download(parent.info.run_id, "report.html").read_text(encoding="utf-8")
    assert "No two of 30 images have the same voxels" in report
    arms = ["--arm-a", "scratch", "--arm-b", "scratch-again", "--split", "external"]
    assert main(["compare", parent.info.run_id, parent.info.run_id, *arms, "--output-dir", str(finished)]) == 0


def test_a_scan_of_two_sites_under_two_names_stops_it_before_any_training(
    make_tiny_cohort, tmp_path, make_database, capsys
):
    table = make_tiny_cohort(tmp_path / "tiny", 30)
    first = pd.read_csv(table, sep="\t").drop_duplicates("site")["t1w"]
    nib.save(nib.load(table.parent / first.iloc[0]), tmp_path / "plain.nii")
    nib.save(nib.load(tmp_path / "plain.nii"), table.parent / first.iloc[1])
    make_database(tmp_path)
    assert main(words(write_study(tmp_path), table, tmp_path, "--allow-unverified")) == 1
    assert "1 scan in two parts, voxel for voxel" in capsys.readouterr().err
    assert not done_at(tmp_path)


MOMENTS = ((signal.SIGKILL, "runs/*/checkpoints/step-*.ckpt"), (signal.SIGTERM, "crossval/*/jobs/*/run.json"))
SMALL = {"protocol": "external", "external_sites": ["west"]}


@pytest.fixture(scope="module")
def small(tiny_cohort, tmp_path_factory, make_database, commands):
    """A small cross-validation that nothing has disturbed, in processes."""
    output = tmp_path_factory.mktemp("small")
    make_database(output)
    command = words(write_study(output, **SMALL), tiny_cohort, output, "--launcher", "processes")
    assert commands.run_all(command, 1, output / "log") == [0], (output / "log").read_text(encoding="utf-8")
    return table_of(output)


def test_the_store_counts_how_often_participants_were_scored(finished):
    store = open_store(finished)
    held_out = pd.read_parquet(result(finished) / "predictions.parquet")
    tags = site_tags(held_out)
    assert set(tags) == {"tested/north", "tested/south", "tested/west"}
    before = times_scored(store, tags)
    assert before >= 1
    parent = (result(finished) / "parent").read_text(encoding="utf-8").strip()
    assert times_scored(store, tags, but=[parent]) == before - 1
    assert times_scored(store, {"tested/north": "0" * 16}) == 0


def test_inline_gives_the_same_table_as_processes(small, tiny_cohort, tmp_path, make_database):
    make_database(tmp_path)
    assert main(words(write_study(tmp_path, **SMALL), tiny_cohort, tmp_path)) == 0
    pd.testing.assert_frame_equal(table_of(tmp_path), small, check_exact=True)


@pytest.mark.parametrize("launcher", [pytest.param("inline", marks=pytest.mark.slow), "processes"])
def test_killed_at_any_moment_and_repeated_it_gives_the_same_table(
    launcher, small, tiny_cohort, tmp_path, make_database, commands
):
    make_database(tmp_path)
    command = words(write_study(tmp_path, **SMALL), tiny_cohort, tmp_path, "--launcher", launcher)
    for attempt, (number, mark) in enumerate(MOMENTS):
        pid = commands.start(command, tmp_path / f"log{attempt}")
        wait_for_another(mark, tmp_path, pid, commands)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        code = commands.wait(pid)
        assert code in ((-number,) if number == signal.SIGKILL else (130, -number))
        commands.wait_until_deserted(tmp_path)
    before = done_at(tmp_path)
    assert commands.run_all(command, 1, tmp_path / "last") == [0], (tmp_path / "last").read_text(encoding="utf-8")
    pd.testing.assert_frame_equal(table_of(tmp_path), small, check_exact=True)
    assert before.items() <= done_at(tmp_path).items(), "a finished job was done again"


def wait_for_another(mark, folder, pid, commands, patience=120.0):
    """Wait until there is one file more that fits a pattern, or the command has ended."""
    deadline = time.monotonic() + patience
    before = set(folder.glob(mark))
    while set(folder.glob(mark)) <= before and commands.poll(pid) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def done_at(output):
    return {path.parent.name: path.stat().st_mtime_ns for path in output.glob("crossval/*/jobs/*/done.json")}


def test_a_finished_cross_validation_is_not_done_again_and_more_arms_are_a_deviation(
    finished, tiny_cohort, tmp_path, capsys
):
    study = write_study(tmp_path, arms={**ARMS, "site-only": {"baseline": ["site"]}})
    study = study.rename(finished / "more.yaml")
    before = done_at(finished)
    command = words(study, tiny_cohort, finished, "--study", f"{finished.name}/study")
    assert main(command) == 0
    assert "site-only" in capsys.readouterr().out
    lock = json.loads((result(finished) / "lock.json").read_text(encoding="utf-8"))
    assert any("site-only" in note for note in lock["deviations"])
    assert before.items() < done_at(finished).items()
    changed = write_study(tmp_path, arms={**ARMS, "age-only": {"baseline": ["site"]}}).rename(finished / "other.yaml")
    assert main(words(changed, tiny_cohort, finished, "--study", f"{finished.name}/study")) == 1
    assert "another one when this analysis was locked" in capsys.readouterr().err


def test_what_fails_is_named_and_done_again(tiny_cohort, tmp_path, make_database, capsys):
    make_database(tmp_path)
    arms = {"scratch": {}, "wild": {"model.optimizer.lr": 1.0e30}}
    study = write_study(tmp_path, arms=arms, protocol="external", external_sites=["west"])
    assert main(words(study, tiny_cohort, tmp_path)) == 1
    said = capsys.readouterr().err
    assert "1 of 2 jobs failed" in said
    assert "wild-external-external-r0-s0" in said
    assert "stopped being finite" in said
    assert not (result(tmp_path) / "predictions.parquet").exists()
    assert len(done_at(tmp_path)) == 1


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"protocl": "k-fold"}, [], "Did you mean 'protocol'"),
        ({"protocol": "crosssite"}, [], "Did you mean 'cross-site'"),
        ({"base": "nowhere.yaml"}, [], "Mend `base`"),
        ({}, ["--arms", "scrach"], "Did you mean 'scratch'"),
        ({"arms": {"pretrained": {"model.transfer.strategy": "full"}}}, [], "--pretrained pretrained=RUN"),
        ({}, ["--pretrained", "pretrained"], "ARM=SOURCE"),
        ({}, ["--num-folds", "40", "--protocol", "k-fold"], "too few for 40"),
        ({}, ["--launcher", "cluster"], "There are: inline, processes"),
        ({"arms": {"clinic": {"baseline": ["apgar"]}}}, ["--protocol", "k-fold"], "apgar"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_training(changes, more, message, tiny_cohort, tmp_path, capsys):
    assert main(words(write_study(tmp_path, **changes), tiny_cohort, tmp_path, *more)) == 1
    assert message in capsys.readouterr().err
    assert not done_at(tmp_path)


def test_a_dry_run_shows_the_jobs_and_leaves_nothing(tiny_cohort, tmp_path, capsys):
    output = tmp_path / "outputs"
    study = write_study(tmp_path, label_fractions=[0.5, 1.0])
    assert main(words(study, tiny_cohort, output, "--dry-run", "--value", "0.7", "--gain", "0.2")) == 0
    said = capsys.readouterr().out
    assert "18 jobs" in said
    assert "scratch@0.5" in said
    assert "power to tell a gain of 0.2 from none" in said
    assert "Work: 18 jobs, 12 trainings of networks." in said
    assert "No hours: add --time" in said
    assert not output.exists()


def test_a_dry_run_foresees_hours_from_finished_jobs(finished, tiny_cohort, files_below, capsys):
    study = write_study(finished)
    before = files_below(finished)
    assert main(words(study, tiny_cohort, finished, "--dry-run", "--json", "--num-seeds", "2", "--gain", "0.2")) == 0
    costs = json.loads(capsys.readouterr().out)["costs"]
    seconds = [
        json.loads((path.parent / "done.json").read_text(encoding="utf-8"))["seconds"]
        for path in finished.glob("crossval/*/jobs/*/job.json")
        if not json.loads(path.read_text(encoding="utf-8"))["baseline"]
    ]
    assert costs["hours"]["expected"] == pytest.approx(12 * pd.Series(seconds).median() / 3600)
    assert costs["runs_bytes"] == 12 * costs["run_bytes"] > 0
    assert files_below(finished) == before

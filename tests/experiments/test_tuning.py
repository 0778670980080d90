"""Arms that are tuned within their jobs: with equal effort, on inner data alone, and not twice."""

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from experiments import tuning
from experiments.cli import main
from experiments.effort import BASELINE, UNTUNED
from experiments.jobs import Job
from tracking.store import Store

CONF = Path(__file__).parent.parent / "conf"
SPACE = {"model.optimizer.lr": {"low": 1.0e-4, "high": 1.0e-2, "log": True}}
TUNE = {"space": SPACE, "num_trials": 3, "num_folds": 2}
ARMS = {"scratch": {}, "wider": {"model.network.width": 3}, "age-only": {"baseline": ["age"]}}
STUDY = {"base": str(CONF / "outcome_classification.yaml"), "protocol": "external", "external_sites": ["west"]}


def crossval(folder, table, *more, **changes):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "arms": ARMS, **changes}, sort_keys=False), encoding="utf-8")
    return main(["crossval", "--config", str(path), "--data.table", str(table), "--output-dir", str(folder), *more])


def job_of(folder, arm):
    (found,) = folder.glob(f"crossval/*/jobs/{arm}-*")
    return found


def choice_of(folder, arm):
    return json.loads((job_of(folder, arm) / "tuning" / "choice.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tuned(tiny_cohort, tmp_path_factory, make_database):
    folder = tmp_path_factory.mktemp("tuned")
    make_database(folder)
    assert crossval(folder, tiny_cohort, tune=TUNE) == 0
    return folder


def test_every_network_gets_the_same_trials_on_the_same_inner_folds(tuned):
    efforts = set()
    for arm in ("scratch", "wider"):
        choice = choice_of(tuned, arm)
        efforts.add(choice["effort"])
        assert len(choice["trials"]) == TUNE["num_trials"]
        means = {sum(one["scores"]) / 2: one["chosen"] for one in choice["trials"] if one["state"] == "complete"}
        assert choice["value"] == max(means)
        assert choice["chosen"] in [chosen for mean, chosen in means.items() if mean == max(means)]
        run_id = json.loads((job_of(tuned, arm) / "done.json").read_text(encoding="utf-8"))["run_id"]
        config = yaml.safe_load((tuned / "runs" / run_id / "config.yaml").read_text(encoding="utf-8"))
        assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == pytest.approx(
            choice["chosen"]["model.optimizer.lr"]
        )
        logged = json.loads((tuned / "runs" / run_id / "tuning.json").read_text(encoding="utf-8"))
        assert logged == choice
    assert len(efforts) == 1
    assert not (job_of(tuned, "age-only") / "tuning").exists()
    for number in range(TUNE["num_folds"]):
        first, second = (job_of(tuned, arm) / "tuning" / f"{number}-folds.json" for arm in ("scratch", "wider"))
        assert first.read_bytes() == second.read_bytes()
        parts = json.loads(first.read_text(encoding="utf-8"))["parts"]
        assert not any("west" in parts[part] for part in ("train", "val")), "a test site is in an inner fold"
    report = next(tuned.glob("crossval/*/report.html")).read_text(encoding="utf-8")
    assert f"with equal effort in every arm that has a network: {efforts.pop()}" in report


def test_an_interrupted_search_replays_what_is_done(tuned, monkeypatch):
    job = job_of(tuned, "scratch")
    content = json.loads((job / "job.json").read_text(encoding="utf-8"))
    before = choice_of(tuned, "scratch")
    trained = []

    def best_rows(words, store, original=tuning.best_rows):
        trained.append(words)
        return original(words, store)

    monkeypatch.setattr(tuning, "best_rows", best_rows)
    store = Store(f"sqlite:///{tuned / 'mlflow.db'}", tuned)
    assert Job.read(job).stage == ""
    (job / "tuning" / "choice.json").unlink()
    (job / "tuning" / "trial-2-fold-0.json").unlink()
    done = sum(len(one["scores"]) for one in before["trials"]) - 1
    assert Job.read(job).stage == f"tuning, {done} of at most 6 trainings"
    words = tuning.tuned_words(content["words"], job, tuning.Tuning.from_json(content["tune"]), store)
    assert len(trained) == 1
    assert choice_of(tuned, "scratch") == before
    assert words[len(content["words"])] == "--model.optimizer.lr"


def test_an_undefined_score_fails_its_trial_alone(tuned, tmp_path, monkeypatch):
    job = Job.read(job_of(tuned, "scratch"))
    shutil.copytree(job.folder, tmp_path / "job", ignore=shutil.ignore_patterns("tuning"))
    values = iter([math.nan, 0.5, 0.6, 0.7, 0.8])
    monkeypatch.setattr(tuning, "best_rows", lambda words, store: None)
    monkeypatch.setattr(tuning, "score", lambda rows, metric: [next(values)])
    tuning.tuned_words(job.words, tmp_path / "job", tuning.Tuning.from_json(job.tune), None)
    choice = json.loads((tmp_path / "job" / "tuning" / "choice.json").read_text(encoding="utf-8"))
    assert [one["state"] for one in choice["trials"]] == ["fail", "complete", "complete"]
    assert choice["trials"][0]["scores"] == [None]
    assert choice["chosen"] == choice["trials"][2]["chosen"]


def test_a_signal_in_the_test_site_alone_changes_nothing_that_is_chosen(
    tuned, make_tiny_cohort, tmp_path, make_database
):
    table = make_tiny_cohort(tmp_path / "tiny")
    frame = pd.read_csv(table, sep="\t")
    there = frame["site"] == "west"
    frame.loc[there, "outcome"] = 1 - frame.loc[there, "outcome"]
    frame.to_csv(table, sep="\t", index=False)
    make_database(tmp_path)
    arms = {"scratch": {}}
    assert crossval(tmp_path, table, "--allow-unverified", arms=arms, tune=TUNE) == 0
    assert choice_of(tmp_path, "scratch")["trials"] == choice_of(tuned, "scratch")["trials"]


def test_compare_prints_the_effort_of_both_and_flags_an_unequal_one(tuned, tiny_cohort, capsys):
    effort = choice_of(tuned, "scratch")["effort"]
    assert crossval(tuned, tiny_cohort, "--study", "untuned", arms={"scratch": {}}) == 0
    tables = {path.parent.name: path for path in tuned.glob("crossval/*/predictions.parquet")}
    (plain,) = [path for name, path in tables.items() if name.startswith("untuned")]
    (better,) = [path for name, path in tables.items() if not name.startswith("untuned")]
    some = ["--split", "external", "--metric", "auroc", "--output-dir", str(tuned)]

    def said(*words):
        capsys.readouterr()
        assert main(["compare", *map(str, words), *some]) == 0
        return capsys.readouterr().out

    found = said(better, better, "--arm-a", "scratch", "--arm-b", "wider")
    assert found.count(f"effort: {effort}") == 2
    assert "Unequal" not in found
    found = said(plain, better, "--arm-b", "wider")
    assert f"Unequal effort: A was {UNTUNED}, B was tuned by {effort}." in found
    found = said(better, better, "--arm-a", "age-only", "--arm-b", "wider")
    assert f"effort: {BASELINE}" in found
    assert "Unequal" not in found
    found = json.loads(said(plain, better, "--arm-b", "wider", "--json"))
    assert found["effort"] == {"a": UNTUNED, "b": effort}


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({**TUNE, "num_trails": 3}, "Did you mean 'num_trials'"),
        ({**TUNE, "num_folds": 1}, "two inner folds"),
        ({**TUNE, "space": {"model.optimizer.lrr": {"low": 1e-4, "high": 1e-2}}}, "no argument 'model.optimizer.lrr'"),
        ({"num_trials": 3}, "names no argument"),
        ({**TUNE, "sampler": "TPSampler"}, "Did you mean 'TPESampler'"),
    ],
)
def test_a_tuning_that_cannot_be_done_is_refused_before_anything(tune, message, tiny_cohort, tmp_path, capsys):
    assert crossval(tmp_path, tiny_cohort, tune=tune) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("crossval/*"))

"""What a study can show and cost, before it begins: the numbers, the words, and that nothing stays behind."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from datamodules.protocols import PROTOCOLS, Design, plan_cells
from evaluation.power import Comparison
from evaluation.power_models import MODELS
from experiments.cli import main
from experiments.costs import Finished, Load, Work, num_test_sets
from experiments.expectation_text import verdict
from experiments.plan import equal_sites

CONF = Path(__file__).parent.parent / "conf"
ROOT = Path(__file__).parents[2]
LARGE = ["--n", "800", "--prevalence", "0.47", "--value", "0.75"]  # every class is large enough for the formula
README_LINE = "plan --n 156 --prevalence 0.47 --metric auroc --value 0.75 --gain 0.03"


def planned(capsys, *words):
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_readmes_line_answers_in_an_empty_folder_and_without_torch(tmp_path):
    script = (
        "import sys\nfrom experiments.cli import main\n"
        f"code = main({README_LINE.split()})\n"
        "heavy = {'torch', 'pytorch_lightning', 'mlflow', 'optuna'} & set(sys.modules)\n"
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "95 % interval 0.667 to 0.818" in " ".join(done.stdout.split())
    assert "power to tell a gain of 0.03 from none" in done.stdout
    assert "Work: 10 jobs, 10 trainings of networks." in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_json_holds_what_the_comparison_says(capsys):
    found = planned(capsys, *LARGE, "--gain", "0.05", "--correlation", "0.7")["shows"]
    comparison = Comparison(MODELS["auroc"], 0.75, 0.05, ((376, 424),), correlation=0.7)
    assert found["power"] == pytest.approx(comparison.power())
    assert found["interval"] == pytest.approx(list(comparison.interval()))
    assert found["detectable_gain"] == pytest.approx(comparison.detectable_gain())
    assert found["needed_participants"] == comparison.needed_participants()
    assert [one["correlation"] for one in found["by_correlation"]] == [0.4, 0.6, 0.7, 0.8]
    assert planned(capsys, *LARGE)["shows"]["power"] is None


def test_sites_seeds_arms_and_tuning_are_counted(capsys):
    words = [
        "--n",
        "3000",
        *LARGE[2:],
        "--gain",
        "0.03",
        "--protocol",
        "cross-site",
        "--num-sites",
        "3",
        "--seeds",
        "2",
        "--arms",
        "3",
    ]
    found = planned(capsys, *words, "--tune-trials", "10", "--num-inner-folds", "5")
    assert found["shows"]["sites"] == [list(site) for site in equal_sites(3000, 3, 0.47)]
    assert found["shows"]["num_runs"] == 2
    assert found["shows"]["power_after_holm"] < found["shows"]["power"]
    assert found["costs"]["jobs"] == 3 * 2 * 3
    assert found["costs"]["trainings"] == 18 * (1 + 5 + 10 * 3)


def test_an_error_is_planned_in_the_unit_of_the_target(capsys):
    words = ["--n", "300", "--metric", "mae", "--value", "7.7", "--gain", "0.8"]
    wide, normal = (planned(capsys, *words, *more)["shows"] for more in (["--sd", "12"], []))
    assert wide["power"] < normal["power"]
    assert wide["interval"][1] - 7.7 == pytest.approx(1.96 * 12 / 300**0.5, rel=0.01)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--n 156", "--prevalence must be given"),
        ("--n 0 --prevalence 0.4", "'0' is no number above 0"),
        ("--n 156 --prevalence 47", "47 does not lie between 0 and 1"),
        ("--n 156 --prevalence 0.4 --value 0.4", "--value is 0.5 to 1"),
        ("--n 156 --prevalence 0.4 --value 0.9 --gain 0.2", "ends before a perfect arm"),
        ("--n 156 --prevalence 0.4 --gain -0.1", "--gain is positive"),
        ("--n 156 --prevalence 0.4 --metric auprc", "There are: auroc, accuracy"),
        ("--n 156 --prevalence 0.4 --sd 3", "--sd is the standard deviation of the absolute errors of mae"),
        ("--n 156 --prevalence 0.4 --correlation 1", "--correlation is 0 to less than 1"),
        ("--n 10 --prevalence 0.1", "a report leaves out sites with fewer than 2"),
        ("--n 156 --prevalence 0.4 --protocol cross-site --num-sites 1", "needs 2 sites at least"),
        ("--n 156 --prevalence 0.4 --data.table x.tsv", "unknown words without a --config: --data.table x.tsv"),
        ("--config study.yaml --arms 3", "the study says which arms and sites there are"),
    ],
)
def test_what_cannot_be_planned_is_wrong_usage(words, message, capsys):
    assert main(["plan", *words.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("power", "gain", "words"),
    [
        (0.9, 0.1, "can be shown"),
        (0.6, 0.1, "may or may not"),
        (0.1, 0.1, "most likely not"),
        (None, None, "Name the gain that you hope for"),
    ],
)
def test_the_verdict_says_whether_a_gain_can_be_shown(power, gain, words):
    found = {"num_participants": 156, "detectable_gain": 0.08, "gain": gain, "power": power}
    text = " ".join(verdict({**found, "needed_participants": 1500}))
    assert words in text
    assert "gains of 0.080 or more" in text
    assert ("1,500" in text) == (power is not None and power < 0.8)
    assert (
        "not even that of a perfect arm" in verdict({**found, "detectable_gain": None, "needed_participants": None})[0]
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_test_sets_are_counted_as_they_are_drawn(protocol):
    people = [{"participant_id": f"p{number}", "site": "abc"[number % 3], "dataset": "d"} for number in range(60)]
    frame = pd.DataFrame(people).assign(outcome=[float(number // 3 % 2) for number in range(60)])
    away = ("a",) if protocol == "external" else ()
    cells = plan_cells(frame, Design(protocol, num_folds=4, external_sites=away), "outcome")
    assert num_test_sets(protocol, 3, 4) == len(cells)


def test_hours_and_disk_are_those_of_all_trainings():
    clock = SimpleNamespace(run_bytes=7, seconds=lambda loads: [3600.0 * sum(load.times for load in loads)] * 3)
    work = Work(9, (Load(6, 100, 20, 30, is_run=True), Load(4, 50, 10)), 160, 1000, 2)
    assert work.as_json(clock)["hours"] == {"low": 5.0, "expected": 5.0, "high": 5.0}
    assert work.as_json(clock)["runs_bytes"] == 6 * 7
    assert work.as_json(None) == {"jobs": 9, "trainings": 10, "at_once": 2, "cache_bytes": 160_000}
    assert work.scaled(0.5).loads[0] == Load(6, 50, 10, 15, is_run=True)
    capped = Work(None, work.loads, 160, 1000, 2, max_hours=1.5)
    assert capped.as_json(clock)["hours"]["expected"] == 1.5
    assert Work(None, (), 160, 1000, 2, max_hours=1.5).as_json(clock)["trainings"] is None


def test_finished_jobs_foresee_the_others(tmp_path):
    for number, seconds in enumerate((10.0, 20.0, 30.0, 999.0)):
        folder = tmp_path / "crossval" / "one" / "jobs" / str(number)
        files = {"done": {"seconds": seconds}, "job": {"baseline": [] if number < 3 else ["site"]}}
        kept = tmp_path / "runs" / str(number) / "checkpoints" / "last.ckpt"
        for path in (folder, kept.parent):
            path.mkdir(parents=True)
        for name, content in {**files, "run": {"run_id": str(number)}}.items():
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        kept.write_bytes(bytes(100))
    store = SimpleNamespace(output_folder=tmp_path)
    found = Finished.find([tmp_path / "crossval" / "one"], 12, store)
    assert found.seconds([]) == (12 * 15, 12 * 20, 12 * 25)
    assert found.run_bytes == 100
    assert "3 finished jobs" in found.said[0]
    assert Finished.find([tmp_path / "crossval" / "other"], 12, store) is None


def test_a_study_is_timed_and_leaves_nothing_behind(tiny_cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--config", str(CONF / "brain_age_regression.yaml"), "--data.table", str(tiny_cohort)]
    words += ["--protocol", "k-fold", "--num-folds", "3", "--seeds", "2", "--metric", "mae", "--value", "9"]
    found = planned(capsys, *words, "--gain", "3")
    shows, costs = found["shows"], found["costs"]
    sites = Counter(pd.read_csv(tiny_cohort, sep="\t")["site"])
    assert sorted(shows["sites"]) == sorted([count] for count in sites.values())
    assert shows["num_runs"] == 2
    assert (costs["jobs"], costs["trainings"]) == (6, 6)
    assert 0 < costs["hours"]["low"] <= costs["hours"]["expected"] <= costs["hours"]["high"] < 0.2
    assert costs["runs_bytes"] == 6 * costs["run_bytes"] > 6 * 10_000
    assert costs["cache_bytes"] == 30 * 32**3 * 2
    assert not list(tmp_path.iterdir())
    larger = planned(capsys, *words, "--gain", "3", "--no-time", "--n", "60")
    assert larger["shows"]["num_participants"] == 60
    assert larger["shows"]["power"] > shows["power"]
    assert larger["costs"]["cache_bytes"] == 2 * costs["cache_bytes"]
    assert "hours" not in larger["costs"]

import argparse
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from evaluation.predictions import PredictionsError
from experiments import evaluate


@pytest.fixture
def table(tmp_path):
    generator = np.random.default_rng(41)
    target = generator.uniform(20, 80, 60)
    frame = pd.DataFrame({"participant_id": [f"p{number:03}" for number in range(60)], "target": target})
    frame = frame.assign(prediction=target + generator.normal(0, 5, 60), split="test", arm="scratch", output="age")
    frame["site"] = np.where(frame.index < 20, "A", "B")
    return frame


def verb(*words):
    parser = argparse.ArgumentParser(prog="fontanel evaluate")
    evaluate.add_arguments(parser)
    return evaluate.run(parser.parse_args([str(word) for word in words]))


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_json_of_a_foreign_table(table, tmp_path, capsys, ending):
    path, foreign = tmp_path / f"theirs.{ending}", table[["participant_id", "target", "prediction"]]
    if ending == "parquet":
        foreign.to_parquet(path)
    else:
        foreign.to_csv(path, index=False, sep="," if ending == "csv" else "\t")
    assert verb(path, "--task", "regression", "--json") == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert printed.err == ""
    assert set(result) == {"metrics", "num_participants"}
    assert result["num_participants"] == 60
    error = (table["prediction"] - table["target"]).abs().mean()
    assert result["metrics"]["mae"]["estimate"] == pytest.approx(error)
    for name in ("mae", "rmse", "r2", "pearson_r", "mean_bias", "bias_slope"):
        assert set(result["metrics"][name]) == {"estimate", "low", "high"}


def test_undefined_is_null_and_replicates_and_seed_are_heard(table, tmp_path, capsys):
    path = tmp_path / "p.csv"
    table.assign(prediction=50.0).to_csv(path, index=False)
    printed = []
    for words in (["--seed", 1], ["--seed", 2], ["--num-replicates", 0]):
        verb(path, "--task", "regression", "--json", *words)
        printed.append(json.loads(capsys.readouterr().out)["metrics"])
    assert printed[0]["pearson_r"] == {"estimate": None, "low": None, "high": None}
    assert printed[0]["mae"]["low"] != printed[1]["mae"]["low"]
    assert printed[2]["mae"]["low"] is None


def test_table_for_people_says_what_it_rests_on(table, tmp_path, capsys):
    path = tmp_path / "p.csv"
    table.loc[0, "target"] = np.nan
    table.to_csv(path, index=False)
    assert verb(path, "--task", "regression") == 0
    text = capsys.readouterr().out
    for words in (
        "Regression, output age, split test, arm scratch",
        "59 participants, 59 sessions, 59 rows",
        "target is missing: 1 row.",
        "Mean absolute error (years)",
        "own targets (no column baseline)",
        "2000 bootstrap replicates over participants, seed 0",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 120


def test_mixed_table_names_choices_and_flags_and_the_flags_choose(table, tmp_path, capsys):
    path = tmp_path / "p.csv"
    pd.concat([table, table.assign(arm="pretrained", prediction=table["target"])]).to_csv(path, index=False)
    with pytest.raises(PredictionsError, match=r"'pretrained', 'scratch'\. Choose one with --arm") as caught:
        verb(path, "--task", "regression")
    assert str(path) in str(caught.value)
    verb(path, "--task", "regression", "--json", "--arm", "pretrained", "--site", "A")
    chosen = json.loads(capsys.readouterr().out)
    assert chosen["metrics"]["mae"]["estimate"] == pytest.approx(0)
    assert chosen["num_participants"] == 20
    verb(path, "--task", "regression", "--json", "--arm", "pretrained", "--site", "A", "--site", "B")
    assert json.loads(capsys.readouterr().out)["num_participants"] == 60


@pytest.mark.parametrize(
    "words",
    [
        ["--task", "astrology"],
        [],
        ["--task", "regression", "--num-replicates", "-1"],
        ["--task", "binary", "--prevalence", "1"],
        ["--task", "binary", "--design", "nested"],
    ],
)
def test_wrong_usage_exits_with_two(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        verb(tmp_path / "p.csv", *words)
    assert stopped.value.code == 2


def test_help_imports_nothing_heavy():
    code = (
        "import argparse, sys; from experiments import evaluate; evaluate.add_arguments(argparse.ArgumentParser()); "
        "print([name for name in ('numpy', 'pandas', 'torch', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"

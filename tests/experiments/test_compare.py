import argparse
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from evaluation.predictions import PredictionsError
from experiments import compare
from tracking.errors import StoreError
from tracking.store import Store


def table(effect, draw=0, **columns):
    """Predictions of a binary outcome in 60 participants."""
    target = (np.arange(60) % 3 == 0).astype(float)
    odds = effect * target + np.random.default_rng(draw).normal(0, 1, 60)
    frame = pd.DataFrame({"participant_id": [f"p{number:02}" for number in range(60)], "target": target})
    return frame.assign(prediction=1 / (1 + np.exp(-odds)), **columns)


def verb(*words):
    parser = argparse.ArgumentParser(prog="fontanel compare")
    compare.add_arguments(parser)
    return compare.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def files(tmp_path):
    """Two tables of other software."""
    paths = tmp_path / "a.csv", tmp_path / "b.tsv"
    table(0.5, 1).to_csv(paths[0], index=False)
    table(2.0, 2).to_csv(paths[1], index=False, sep="\t")
    return paths


def test_json_is_printed_and_written_and_is_b_less_a(files, tmp_path, capsys):
    output = tmp_path / "new" / "comparison.json"
    words = ["--task", "binary", "--json", "--output", output, "--num-replicates", 100]
    assert verb(*files, *words) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert printed.err == ""
    assert found == json.loads(output.read_text(encoding="utf-8"))
    assert set(found) == {"comparisons", "num_participants"}
    assert found["num_participants"] == 60
    first, second = (
        ((pd.read_csv(path, sep=None, engine="python").eval("prediction - target")) ** 2).mean() for path in files
    )
    assert found["comparisons"]["brier"]["difference"] == pytest.approx(second - first)
    assert found["comparisons"]["auroc"]["test"] == "DeLong, paired"
    verb(*reversed(files), *words)
    back = json.loads(capsys.readouterr().out)["comparisons"]["brier"]
    assert back["difference"] == pytest.approx(first - second)


@pytest.mark.parametrize("uri", [None, "/a/plain/folder", "http://127.0.0.1:1"])
def test_runs_that_no_store_knows_are_compared_all_the_same(uri, tmp_path, monkeypatch, capsys):
    for name, draw in (("a", 1), ("b", 2)):
        table(1.0, draw, run_id="1" * 32).to_csv(tmp_path / f"{name}.csv", index=False)
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    words = ["--metric", "auroc", "--num-replicates", 50, "--output-dir", tmp_path / "out"]
    assert verb(tmp_path / "a.csv", tmp_path / "b.csv", *words) == 0
    assert "effort" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_table_for_people_names_tests_and_what_could_have_been_found(files, capsys):
    assert verb(*files, "--metric", "auroc", "--metric", "brier", "--num-replicates", 200, "--seed", 5) == 0
    text = capsys.readouterr().out
    for words in (
        "Binary, 60 participants",
        f"A: {files[0]}, 1 run",
        "95 % interval        p  p, Holm  detectable",
        "Area under the ROC curve",
        "Test: DeLong, paired, for auroc; bootstrap over participants (200 replicates, seed 5, drawn alike in A and B)",
        "adjusted for the 2 metrics",
        "One run on each side",
        "Decisions are taken at 0.5 where a table has no column threshold",
        "McNemar: A alone is right in",
    ):
        assert " ".join(words.split()) in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 120
    assert "Sensitivity" not in text


def test_text_of_a_k_fold_and_of_single_sites(tmp_path, capsys):
    runs = pd.concat([table(1.0, seed, seed=seed, site=np.repeat(["S", "T"], 30)) for seed in range(3)])
    path = tmp_path / "k.parquet"
    runs.assign(protocol="k-fold", fold=np.tile(np.arange(60) // 20, 3)).to_parquet(path)
    verb(path, path, "--num-replicates", 50, "--metric", "auroc")
    text = " ".join(capsys.readouterr().out.split())
    assert "two-way bootstrap over participants and runs" in text
    assert "Nadeau-Bengio corrected resampled t over folds and repeats, auroc: difference 0.000" in text
    assert "3 runs" in text
    runs.assign(protocol="k-fold", fold=np.tile(range(3), 60)).to_parquet(path)  # all events are in one fold
    verb(path, path, "--num-replicates", 50, "--metric", "auroc")
    assert "No corrected resampled t test: auroc is undefined in a fold." in capsys.readouterr().out
    runs.assign(protocol="cross-site", train_sites=np.where(runs["site"] == "S", "T", "S")).to_parquet(path)
    other = tmp_path / "other.parquet"
    pd.read_parquet(path).assign(seed=lambda frame: frame["seed"] + 5).to_parquet(other)
    verb(path, other, "--num-replicates", 50, "--metric", "auroc")
    text = " ".join(capsys.readouterr().out.split())
    assert "Each site was scored by a model of its own; values are means of the sites S and T." in text
    assert "is for the protocol k-fold, not for 'cross-site': its folds are whole sites" in text
    assert "A and B have other repeats and seeds" in text


def test_options_choose_rows_and_refusals_name_them(tmp_path, capsys):
    parts = [
        table(2.0 * (arm == "tuned"), 3, arm=arm, split=split)
        for arm in ("scratch", "tuned")
        for split in ("val", "test")
    ]
    path = tmp_path / "all.parquet"
    pd.concat(parts).assign(output="death").to_parquet(path)
    with pytest.raises(PredictionsError, match=r"'scratch', 'tuned'\. Choose one with --arm-b\.") as caught:
        verb(path, path, "--arm-a", "scratch", "--split", "val")
    assert str(path) in str(caught.value)
    with pytest.raises(PredictionsError, match="no row has output 'life'"):
        verb(path, path, "--outcome", "life")
    with pytest.raises(PredictionsError, match=r"'test', 'val'\. Choose one with --split"):
        verb(path, path, "--arm-a", "scratch", "--arm-b", "tuned")
    two = tmp_path / "two.parquet"
    pd.concat([table(1.0, output="death"), table(1.0, output="bleed")]).to_parquet(two)
    with pytest.raises(PredictionsError, match="Choose one with --outcome"):
        verb(two, two)
    verb(path, path, "--arm-a", "scratch", "--arm-b", "tuned", "--split", "test", "--metric", "auroc", "--json")
    assert json.loads(capsys.readouterr().out)["comparisons"]["auroc"]["difference"] > 0.2
    with pytest.raises(PredictionsError, match="no such file"):
        verb(tmp_path / "absent.csv", path)
    fewer = tmp_path / "fewer.csv"
    table(1.0).iloc[2:].to_csv(fewer, index=False)
    whole = tmp_path / "whole.csv"
    table(1.0).to_csv(whole, index=False)
    with pytest.raises(PredictionsError, match=r"2 in A alone \('p00', 'p01'\); 58 are in both"):
        verb(whole, fewer)


def test_runs_are_fetched_from_the_store(tmp_path, files, capsys):
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    path = tmp_path / "predictions.parquet"
    ids = []
    for name, effect in (("scratch-holdout-0-r0-s0", 0.5), ("tuned-holdout-0-r0-s0", 2.0)):
        ids.append(store.start_run("hie/outcome", name, {}))
        table(effect, 4).to_parquet(path)
        store.log_artifact(ids[-1], path)
    words = ["--output-dir", tmp_path, "--tracking-uri", store.uri, "--metric", "auroc", "--json"]
    verb("scratch-holdout-0-r0-s0", ids[1], *words)
    found = json.loads(capsys.readouterr().out)
    verb(*words, "scratch-holdout-0-r0-s0", path)
    assert json.loads(capsys.readouterr().out) == found
    assert found["comparisons"]["auroc"]["difference"] > 0.2
    empty = store.start_run("hie/outcome", "empty-holdout-0-r0-s0", {})
    with pytest.raises(StoreError, match=f"no predictions to compare. Make some: fontanel test {empty}"):
        verb(empty, path, *words)
    with pytest.raises(StoreError, match="There is no run 'nobody'"):
        verb("nobody", path, *words)


def test_help_imports_nothing_heavy():
    code = (
        "import argparse, sys; from experiments import compare; compare.add_arguments(argparse.ArgumentParser()); "
        "print([name for name in ('numpy', 'pandas', 'torch', 'mlflow', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"

import argparse
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from evaluation.predictions import PredictionsError
from evaluation.tasks import metrics_of
from experiments import evaluate


def verb(*words):
    parser = argparse.ArgumentParser(prog="fontanel evaluate")
    evaluate.add_arguments(parser)
    return evaluate.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def outcomes(tmp_path):
    """A binary table of other software: 200 participants, a fifth with the outcome."""
    generator = np.random.default_rng(42)
    target = (np.arange(200) % 5 == 0).astype(int)
    score = 1 / (1 + np.exp(-(3 * target - 2 + generator.normal(0, 1.2, 200))))
    frame = pd.DataFrame({"participant_id": [f"p{number:03}" for number in range(200)], "target": target})
    path = tmp_path / "outcomes.csv"
    frame.assign(prediction=score).to_csv(path, index=False)
    return path


def test_binary_table_of_other_software(outcomes, capsys):
    assert verb(outcomes, "--task", "binary", "--json", "--num-replicates", 100) == 0
    result = json.loads(capsys.readouterr().out)
    frame = pd.read_csv(outcomes)
    assert result["num_participants"] == 200
    assert list(result["metrics"]) == list(metrics_of("binary"))
    assert result["metrics"]["auroc"]["estimate"] == pytest.approx(roc_auc_score(frame["target"], frame["prediction"]))
    for value in result["metrics"].values():
        assert value["low"] < value["estimate"] < value["high"]


def test_binary_table_for_people_says_what_it_rests_on(outcomes, capsys):
    frame = pd.read_csv(outcomes)
    verb(outcomes, "--task", "binary", "--num-replicates", 300)
    text = capsys.readouterr().out
    called = frame["prediction"] >= 0.5
    for words in (
        "Area under the ROC curve",
        "The decision is 1 from 0.5 on, because the table has no column threshold.",
        f"Decisions: {(called & (frame['target'] == 1)).sum()} true positives",
        "10 bins of equal width",
        "Hosmer-Lemeshow (legacy): chi-squared",
        "10 degrees of freedom (external rows)",
        "groups by np.array_split of the stable ranks",
        "Interventions avoided per 100",
        "over participants, events and non-events apart, seed 0.",
        "DeLong's (on the log odds of the area): auroc.",
        "Wilson's: accuracy, sensitivity, specificity, ppv, npv, prevalence.",
        "200 replicates: ici.",
    ):
        assert words in text
    assert "Null model" not in text
    frame.assign(score_1=frame["prediction"] ** 2, threshold=0.31, split="train").to_csv(outcomes, index=False)
    verb(outcomes, "--task", "binary", "--num-replicates", 50)
    other = capsys.readouterr().out
    before = np.mean((frame["prediction"] ** 2 - frame["target"]) ** 2)
    assert f"Before (score_1) and after recalibration (prediction):\n  Brier {before:.3f} -> " in other
    assert "from the threshold on: 0.310 (column threshold)." in other
    assert "8 degrees of freedom (development rows)" in other
    assert max(map(len, [*text.splitlines(), *other.splitlines()])) <= 120


def test_case_control_table_withholds_risks_until_the_prevalence_is_stated(outcomes, capsys):
    verb(outcomes, "--task", "binary", "--design", "case-control", "--num-replicates", 50)
    text = capsys.readouterr().out
    assert "no prevalence is stated (--prevalence)" in text
    assert "share of events (0.200) was chosen" in text
    assert "Interventions avoided" not in text
    withheld = [line.split()[-2] for line in text.splitlines() if line.endswith("undefined")]
    assert {"calibration_in_the_large", "oe_ratio", "ppv"} < set(withheld)
    assert "auroc" not in withheld
    options = ("--design", "case-control", "--prevalence", "0.05", "--num-replicates", 50)
    verb(outcomes, "--task", "binary", *options)
    text = capsys.readouterr().out
    assert "Rows are re-weighted to a prevalence of 0.05." in text
    assert "Interventions avoided" in text
    assert "undefined" not in text
    assert "Wilson's: sensitivity, specificity." in text
    verb(outcomes, "--task", "binary", "--json", *options)
    assert json.loads(capsys.readouterr().out)["metrics"]["prevalence"]["estimate"] == pytest.approx(0.05)


def test_rows_that_are_not_binary_are_named_with_the_file(outcomes):
    frame = pd.read_csv(outcomes).assign(site="A")
    frame.loc[[1, 7], "target"] = [3, -1]
    frame.loc[4, "prediction"] = 1.2
    frame.loc[0, "site"] = "B"
    frame.to_csv(outcomes, index=False)
    with pytest.raises(PredictionsError, match="in rows 2, 8") as caught:
        verb(outcomes, "--task", "binary", "--site", "A")
    assert "between 0 and 1 in row 5." in str(caught.value)
    assert str(outcomes) in str(caught.value)

import numpy as np
import pandas as pd
import pytest

from evaluation.report.text import answer, checklist, methods


@pytest.fixture
def test_rows(table):
    return table[table["split"] == "test"]


def test_answer_is_one_sentence_with_intervals(table, test_rows, parts_from):
    test, external, _ = parts_from(table)
    error = (test_rows["prediction"] - test_rows["target"]).abs().mean()
    text = answer(test, external)
    assert text.startswith(
        f"In 24 participants of sites A and B the mean absolute error was {error:.1f} years (95 % interval"
    )
    assert " lower than that of predicting the training mean; in 12 participants of site C, held out from" in text
    assert text.endswith(").")
    assert ". " not in text


def test_useless_and_harmful_models_are_called_so(test_rows, parts_from):
    noise = np.random.default_rng(1).normal(0, 0.1, len(test_rows))
    useless = answer(*parts_from(test_rows.assign(prediction=41.5 + noise)))
    assert "cannot be told from the error of predicting the training mean (difference" in useless
    harmful = answer(*parts_from(test_rows.assign(prediction=-3 * test_rows["target"])))
    assert "higher than that of predicting the training mean" in harmful


def test_answer_says_what_the_participants_are_to_the_model(table, test_rows, parts_from):
    validation = answer(*parts_from(table[table["split"] == "val"]))
    assert "validation part, which chose the model" in validation
    training = answer(*parts_from(test_rows.assign(split="train")))
    assert "no measure of performance" in training
    foreign = answer(*parts_from(test_rows[["participant_id", "target", "prediction"]]))
    assert foreign.startswith("In 24 participants the mean")
    assert "the mean of these participants themselves" in foreign


def test_methods_are_facts_of_the_run(table, parts_from, context_with):
    table.loc[table["split"] == "val", "target"] = np.nan
    parts = parts_from(pd.concat([table.assign(seed=seed) for seed in range(3)]))
    text = " ".join(methods(parts[0], parts, context_with(phantom=True)))
    for words in (
        "cohort.tsv (sha256 ffffffffffff)",
        "Every image file was verified",
        "protocol “holdout” with seed 3 (hash eeeeeeeeeeee)",
        "each of 3 runs",
        "of 200 bootstrap replicates",
        "the mean of the training targets",
        "no evidence about people",
        "Software: torch 2.15.0 and Python 3.11.9.",
    ):
        assert words in text
    bare = context_with(cohort=None, split=None, environment=None, config_yaml=None)
    short = " ".join(methods(parts[0], parts, bare))
    assert not any(words in short for words in ("sha256", "verified", "seed 3", "configuration", "Software"))


def test_checklist_is_filled_where_the_software_knows(table, parts_from, context_with):
    parts = parts_from(table)
    items = {item.number: item.text for item in checklist(parts[0], parts, context_with(phantom=True))}
    assert items["4"] == "Does it work?"
    assert "cohort.tsv" in items["5"]
    assert "24 participants" in items["10"]
    assert "no evidence" in items["26"]
    for author in ("1", "3", "6", "17", "19", "25", "27"):
        assert items[author] == ""
    bare = context_with(cohort=None, question=None, config_yaml=None, run_id=None, environment=None)
    blank = {item.number: item.text for item in checklist(parts[0], parts, bare)}
    assert [blank[number] for number in ("4", "5", "7", "18e-f", "21", "22", "26")] == [""] * 7

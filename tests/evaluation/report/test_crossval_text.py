import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from evaluation.estimate import Estimate
from evaluation.gain import gains
from evaluation.report.context import CrossvalContext
from evaluation.report.crossval_text import answer, beside, checklist, methods, protocol_sentences, question
from evaluation.report.results import results_of


@pytest.fixture
def results(simulate):
    """Results of two arms and the noise, with few replicates."""
    table = simulate({"A": 20, "B": 25}, {"scratch": 1.0, "scratch-again": 1.0, "pretrained": 1.3}, repeats=1)
    given = gains(table, num_replicates=20)
    return results_of(table, CrossvalContext(title="t", gains=given, num_replicates=20))


@pytest.fixture
def with_gain(results):
    """Change the gain of an arm over all sites."""

    def changed(low, high, p_holm=0.01, arm="pretrained", site=None, **context):
        found = [
            replace(gain, gain=Estimate((low + high) / 2, low, high), p_holm=p_holm)
            if (gain.arm, gain.site) == (arm, site)
            else replace(gain, gain=Estimate(0.0, -0.1, 0.1))
            for gain in results.gains
        ]
        return replace(results, gains=found, context=replace(results.context, **context))

    return changed


@pytest.mark.parametrize(
    ("low", "high", "p_holm", "verdict"),
    [
        (-0.01, 0.07, 0.5, ": not distinguishable from none;"),
        (0.01, 0.07, 0.02, ": an improvement;"),
        (0.01, 0.07, 0.09, ": an improvement, but not after Holm's adjustment for 2 comparisons (p = 0.090);"),
        (-0.07, -0.01, 0.02, ": negative transfer, it did harm;"),
        (0.0, 0.07, 0.5, ": not distinguishable from none;"),
    ],
)
def test_verdict_follows_the_interval_and_holm(with_gain, low, high, p_holm, verdict):
    text = answer(with_gain(low, high, p_holm))
    assert verdict in text
    assert text.startswith("Pretraining changed the AUROC by ")
    assert text.endswith(".")
    assert ". " not in text.replace("0.", "")


def test_answer_gives_the_change_with_its_interval_and_what_could_be_detected(with_gain):
    results = with_gain(-0.01, 0.07, phantom=True)
    whole = results.whole(results.main)
    text = answer(results)
    assert text.startswith(
        "On phantom data: pretraining changed the AUROC by +0.03 (95 % interval \u22120.01 to 0.07) "
    )
    assert f"from {whole.reference_value.estimate:.2f} to {whole.value.estimate:.2f}" in text
    assert "(45 participants of sites A and B, mean over sites, 3 runs of each arm)" in text
    assert text.endswith(f"would have detected four times in five is {whole.detectable:.2f}.")


def test_end_of_an_interval_near_zero_is_not_rounded_to_it(with_gain):
    assert "0.002 to 0.070" in answer(with_gain(0.002, 0.07))


def test_an_error_that_falls_is_a_gain(simulate):
    table = simulate({"A": 12, "B": 12}, {"scratch": 1.0, "pretrained": 1.0}, repeats=1, seeds=1)
    error = table["arm"].map({"scratch": 4.0, "pretrained": 1.0})
    age = 20 + table["participant_id"].str[1:].astype(int)
    years = table.assign(target=age, prediction=age + error, output="age").drop(columns=["score_1", "threshold"])
    results = results_of(years, CrossvalContext(title="t", num_replicates=20))
    assert "changed the mean absolute error by \u22123.00 years (95 % interval \u22123.00 to \u22123.00)" in answer(
        results
    )
    assert "from 4.00 years to 1.00 years" in answer(results)


def test_noise_harm_and_deviations_stand_beside_the_answer(with_gain):
    lines = beside(with_gain(-0.2, -0.1, site="B", lock={"deviations": ["arm X added"]}))
    assert lines[0].startswith("The noise, scratch against itself: scratch-again 0.00 (\u22120.10 to 0.10)")
    assert lines[1].startswith("Negative transfer")
    assert lines[1].endswith(": pretrained at B.")
    assert lines[2] == "The analysis deviates from its lock: arm X added."
    assert len(beside(with_gain(-0.01, 0.1))) == 1


def test_undefined_gain_and_no_interval_are_said(results):
    none = replace(results, gains=[replace(g, gain=Estimate(math.nan), left_out=("B",)) for g in results.gains])
    assert "could not be computed (B has too few participants of a class)" in answer(none)
    few = replace(results, gains=[replace(g, gain=Estimate(0.1), detectable=math.nan) for g in results.gains])
    assert answer(few).endswith(": too few participants for an interval.")


def test_methods_say_how_the_study_was_done(results):
    context = replace(
        results.context,
        phantom=True,
        settings={"num_inner_folds": 0, "match_train_size": True, "max_train_per_site": 9},
    )
    text = " ".join(methods(replace(results, context=context)))
    for words in (
        "no evidence about people",
        "trained on the other sites alone",
        "Each arm has 3 runs: 1 repeat with 3 seeds each.",
        "made equally large",
        "at most 9 participants of a site",
        "chosen on the validation participants",
        "20 replicates for the primary metric",
        "over 2 comparisons (pretrained and scratch-again)",
    ):
        assert words in text, words
    bare = " ".join(methods(results))
    assert not any(words in bare for words in ("validation participants.", "equally large", "at most", "no evidence"))


def test_protocol_is_in_words_and_folds_are_named_where_there_are_some(results):
    table = results.table.assign(protocol="same-site")
    same = replace(results, table=table, context=replace(results.context, settings={"num_folds": 5}))
    text = " ".join(protocol_sentences(same))
    assert "other folds of the same site" in text
    assert "5 folds" in text
    assert "folds of" not in " ".join(protocol_sentences(results))
    assert question(same).startswith("Does pretraining help to predict the outcome in participants of the site")


def test_checklist_knows_the_lock_the_size_and_the_events(results):
    locked = replace(results.context, lock={"locked": "2026-11-22", "identity": "abc"})
    items = {item.number: item.text for item in checklist(replace(results, context=locked))}
    assert "Analysis locked on 2026-11-22" in items["18a-d"]
    assert items["10"].startswith("45 participants; smallest gain detectable with a power of 80 %: 0.")
    assert items["13"].startswith("18 (40 %) with the outcome")
    assert items["1"] == items["25"] == ""
    assert not np.any([item.text == "None" for item in checklist(results)])


def test_a_single_training_and_a_missing_validation_part_are_said(results):
    reference = replace(results.reference, rows=results.rows[results.rows["run"] == 0])
    once = replace(results, arms=[reference, *results.arms[1:]])
    assert any("Each arm was trained once" in line for line in beside(once))
    assert not any("trained once" in line for line in beside(results))
    cells = pd.DataFrame({"repeat": [0], "fold": ["A"], "part": ["train"], "site": ["B"], "participants": [25]})
    context = replace(results.context, cells=cells, settings={"num_inner_folds": 0})
    text = " ".join(methods(replace(once, context=context)))
    assert "No participants were set apart for validation." in text
    assert "Each arm has 1 run." in text

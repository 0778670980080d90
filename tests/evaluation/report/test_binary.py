import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from evaluation.design import Design
from evaluation.report.binary import answer, refusal, results_table, sites_frame, worst_table
from evaluation.report.run import ReportContext, render_report


@pytest.fixture
def run(simulate):
    """Predictions of one run: test participants of one site, and those of a site held out."""
    table = simulate({"A": 40, "B": 30}, {"scratch": 1.6}, repeats=1, seeds=1, protocol="holdout")
    return table.assign(split=table["site"].map({"A": "test", "B": "external"}), fold="0", train_sites="A")


def test_answer_gives_the_area_against_chance_and_the_operating_point(run, parts_from):
    test, external = parts_from(run)
    own = run[run["site"] == "A"]
    area = roc_auc_score(own["target"], own["prediction"])
    text = answer(test, external)
    assert text.startswith(
        "In 40 participants of site A (16 (40 %) with the outcome) the area under the ROC curve was "
    )
    assert f"was {area:.2f} (95 % interval" in text
    assert "better than chance" in text
    assert "at the model's own threshold of 0.45, sensitivity was" in text
    assert "in 30 participants of site B, held out from training, the area was" in text
    without = answer(parts_from(run.drop(columns="threshold"))[0])
    assert "the threshold 0.5 (the table gives none)" in without


def test_answer_says_what_cannot_be_said(run, parts_from):
    constant = answer(parts_from(run.assign(prediction=0.3))[0])
    assert "with too few participants for an interval" in constant or "cannot be told from chance" in constant
    one = answer(parts_from(run.assign(target=1.0))[0])
    assert "undefined: all of them have the same outcome." in one


def test_results_have_events_and_intervals_by_site(run, parts_from):
    both = run.assign(split="test")
    part = parts_from(both)[0]
    shown = results_table([part])
    assert [row[:3] for row in shown.rows[1:]] == [["all sites", "70", "28"], ["A", "40", "16"], ["B", "30", "12"]]
    area = part.sites["B"].metrics["auroc"]
    assert shown.rows[3][3] == f"{area.estimate:.2f}\n{area.low:.2f} to {area.high:.2f}"
    few = both[(both["site"] == "A") | both["participant_id"].isin(["B000", "B001", "B002"])]
    assert sites_frame(parts_from(few))["low"].isna().tolist() == [False, True]


def test_surest_errors_of_all_parts_come_first(run, parts_from):
    run["prediction"] = np.where(run["target"] == 1, 0.6, 0.4)
    run.loc[[3, 50], "prediction"] = 1 - run.loc[[3, 50], "target"] * 0.98 - 0.01
    shown = worst_table(parts_from(run))
    assert {row[0] for row in shown.rows[:2]} == set(run.loc[[3, 50], "participant_id"])
    assert shown.rows[0][-1] == "1 of 1"
    assert shown.columns[-3:] == ["True", "Predicted risk", "Decisions wrong"]


def test_page_of_a_classifier_has_its_figures_and_methods(run, parse):
    page = render_report(run, ReportContext(title="a classifier", num_replicates=30))
    found = parse(page)
    assert len(found.images) == 9  # two parts of four figures, and the sites
    text = " ".join(found.text.split())
    for words in (
        *("How well does the model predict the outcome?", "Calibration slope", "Surest errors"),
        *("Net benefit by threshold probability", "true positives", "DeLong's", "Wilson's", "16 (40 %)"),
        *("A probability; the decision is taken at", "Average precision", "External", "those with and without the"),
    ):
        assert words in text, words
    assert "Brain-age gap" not in text
    assert "No decision curve" not in text


def test_case_control_design_gives_no_decision_curve_and_says_why(run, parse):
    context = ReportContext(title="a classifier", num_replicates=0, design=Design("case-control"))
    found = parse(render_report(run[run["split"] == "test"], context))
    assert "No decision curve: The design is case-control" in found.text
    assert "what rests on the risk observed is undefined" in found.text
    assert len(found.images) == 4


def test_one_class_leaves_what_needs_none(run, parse, parts_from):
    own = run[run["split"] == "test"].assign(target=0.0)
    assert refusal(parts_from(own)[0]) == "One class is missing."
    found = parse(render_report(own, ReportContext(title="healthy", num_replicates=20)))
    assert "undefined" in found.text
    assert len(found.images) == 2  # histogram and sites


def test_two_outcomes_have_a_table_each(run, table, parse):
    ages = table[table["split"] == "test"].assign(protocol="holdout", repeat=0, seed=0)
    both = pd.concat([run[run["split"] == "test"], ages], ignore_index=True)
    text = parse(render_report(both, ReportContext(title="several", num_replicates=10))).text
    assert text.count("Results by part and site.") == 2

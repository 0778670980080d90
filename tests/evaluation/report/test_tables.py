import numpy as np
import pandas as pd

from evaluation.assessment import assess
from evaluation.report.page import facts_table
from evaluation.report.tables import (
    correction_table,
    metrics_table,
    published_table,
    results_table,
    sites_frame,
    worst_table,
)
from evaluation.wording import number_text


def test_held_out_parts_come_first_and_each_site_has_its_row(table, parts_from):
    parts = parts_from(table)
    assert [(part.split, part.held_out) for part in parts] == [("test", True), ("external", True), ("val", False)]
    shown = results_table(parts)
    assert [row[0] for row in shown.rows] == [
        *("Test: held-out participants", "all sites", "A", "B"),
        *("External: held-out sites", "C"),
        *("Validation: chose the model", "all sites", "A", "B"),
    ]
    expected = assess(table[(table["split"] == "test") & (table["site"] == "B")], num_replicates=200).metrics["mae"]
    assert shown.rows[3][2] == f"{expected.estimate:.2f}\n{expected.low:.2f} to {expected.high:.2f}"
    assert "the mean of the training targets" in shown.note


def test_few_participants_get_no_interval(table, parts_from):
    few = [f"Btest{number}" for number in range(4)]
    rows = table[(table["split"] == "test") & ((table["site"] == "A") | table["participant_id"].isin(few))]
    parts = parts_from(rows)
    cells = {row[0]: row[1:] for row in results_table(parts).rows if len(row) > 1}
    assert cells["B"][0] == "4"
    assert not any("\n" in cell for cell in cells["B"])
    assert all("\n" in cell for cell in cells["A"][1:])
    assert sites_frame(parts)["mae_low"].isna().tolist() == [False, True]


def test_metrics_of_parts_stand_side_by_side_with_the_spread_of_models(table, parts_from):
    runs = [table.assign(seed=seed, prediction=table["prediction"] + 3 * seed) for seed in range(2)]
    test, external, _ = parts_from(pd.concat(runs))
    shown = metrics_table([test, external])
    assert shown.columns[2:] == ["Test (n = 24)", "External (n = 12)"]
    assert f"2 models, standard deviation of their MAE {number_text(test.assessment.between_runs('mae'))}" in shown.note
    names = [row[1] for row in shown.rows]
    assert names[:3] == ["mae", "median_ae", "rmse"]


def test_arms_are_parts_of_their_own(table, parts_from):
    test = table[table["split"] == "test"]
    parts = parts_from(pd.concat([test, test.assign(arm="pretrained")]))
    assert [part.short for part in parts] == ["Test, arm pretrained", "Test, arm scratch"]


def test_training_sites_that_share_participants_are_parts_of_their_own(table, parts_from):
    test = table[table["split"] == "test"]
    parts = parts_from(pd.concat([test, test.assign(train_sites="D")]))
    assert [part.model for part in parts] == ["train_sites A+B", "train_sites D"]


def test_published_stands_beside_measured(table, parts_from):
    published = [
        {"metric": "mae", "value": 2.14, "unit": "years", "source": "Peng", "cohort": "UKB", "doi": "10.1/x"},
        {"metric": "auroc", "value": 0.8},
    ]
    shown = published_table(published, parts_from(table)[0], "phantom")
    assert shown.columns[2:] == ["Published", "Measured on phantom"]
    assert shown.rows[0][:3] == ["Mean absolute error", "Peng, UKB, doi:10.1/x", "2.14 years"]
    assert shown.rows[0][3].endswith(") years")
    assert shown.rows[1][3] == "not measured"
    assert published_table([], parts_from(table)[0], "phantom") is None


def test_corrections_are_fitted_on_the_validation_part_and_labelled(table, parts_from):
    test, _, validation = parts_from(table)
    shown = correction_table(test, validation)
    assert "not a performance measure" in shown.caption
    rows = validation.assessment.rows
    slope, _ = np.polyfit(rows["target"], rows["prediction"] - rows["target"], 1)
    assert shown.rows[1][0] == "Beheshti 2019"
    assert f"slope {number_text(slope, 3)}" in shown.rows[1][1]
    assert correction_table(test, None) is None
    few = parts_from(table[table["participant_id"].isin(["Aval0", "Aval1", "Aval2"])])[0]
    assert correction_table(test, few) is None


def test_largest_errors_come_first_over_all_parts(table, parts_from):
    table["prediction"] = table["target"] + 1
    table.loc[3, "prediction"] = table.loc[3, "target"] - 29
    table.loc[55, "prediction"] = table.loc[55, "target"] - 40
    shown = worst_table(parts_from(table)[:2])
    assert [row[0] for row in shown.rows[:2]] == [table.loc[55, "participant_id"], table.loc[3, "participant_id"]]
    assert [row[-1] for row in shown.rows[:3]] == [number_text(-40, 1), number_text(-29, 1), "1.0"]
    assert len(shown.rows) == 10
    assert shown.columns[-1] == "Error (years)"


def test_facts_are_flat_and_long_lists_are_cut():
    facts = {"a": {"b": 1, "c": None}, "list": list(range(12)), "none": [], "tables": [{"name": "x"}]}
    assert facts_table("Facts.", facts).rows == [
        ["a.b", "1"],
        ["list", "0, 1, 2, 3, 4, 5, 6, 7 and 4 more"],
        ["tables.0.name", "x"],
    ]


def test_held_out_sites_are_marked_in_the_figure(table, parts_from):
    assert sites_frame(parts_from(table)[:2])["site"].tolist() == ["A", "B", "C (external)"]

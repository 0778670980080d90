import numpy as np
import pandas as pd

from evaluation.report.cohort import cohort_name, flow_of, split_table


def test_flow_counts_the_cohort_and_what_was_scored(table, parts_from, cohort):
    table.loc[0, "target"] = np.nan
    flow = flow_of(cohort, parts_from(table))
    assert flow.source.count == "60 participants"
    assert flow.source.lines == ["65 images", "3 sites", "every file verified"]
    assert [box.title for box in flow.parts] == ["Training", "Test", "External"]
    assert flow.parts[0].lines == ["26 images, sites A and B"]
    assert flow.parts[1].lines[1:] == ["scored: 23", "left out, target missing: 1 row"]


def test_flow_without_a_cohort_counts_the_table_once_whatever_the_arms(table, parts_from):
    both = pd.concat([table.assign(seed=seed, arm=arm) for seed in (0, 1) for arm in ("pretrained", "scratch")])
    flow = flow_of(None, parts_from(both))
    assert flow.source.count == "60 participants"
    assert flow.source.lines == ["3 sites", "60 images"]
    assert [(box.title, box.count) for box in flow.parts] == [
        ("Test", "24 participants"),
        ("External", "12 participants"),
        ("Validation", "24 participants"),
    ]


def test_parts_show_participants_images_and_ages(table, parts_from, cohort):
    shown = split_table(cohort, parts_from(table), "years")
    assert shown.columns == ["Site", "Participants", "Images", "Age: mean (SD) (years)", "Range"]
    assert shown.rows[:3] == [["Training"], ["A", "12", "13", "40.0 (9.0)", "2.0 to 80.0"], ["B", *shown.rows[1][1:]]]
    assert [row[0] for row in shown.rows if len(row) == 1] == ["Training", "Test", "External"]


def test_without_a_cohort_the_ages_are_those_scored(table, parts_from):
    shown = split_table(None, parts_from(table), None)
    ages = table.loc[(table["split"] == "test") & (table["site"] == "A"), "target"]
    assert shown.rows[1] == [
        *("A", "12", "12"),
        f"{ages.mean():.1f} ({ages.std():.1f})",
        f"{ages.min():.1f} to {ages.max():.1f}",
    ]
    assert "Scored rows only" in shown.note


def test_cohort_is_called_by_its_datasets(table, parts_from, cohort):
    assert cohort_name(cohort, parts_from(table)) == "phantom"
    assert cohort_name(None, parts_from(table)) == "phantom"
    assert cohort_name(None, parts_from(table.drop(columns="dataset"))) == "this table"


def test_binary_outcome_is_counted_in_events(simulate, parts_from, cohort):
    rows = simulate({"A": 10, "B": 15}, {"scratch": 1.0}, repeats=1, seeds=2).assign(split="test")
    parts = parts_from(rows)
    shown = split_table(None, parts, None)
    assert shown.columns == ["Site", "Participants", "Images", "Outcome: events"]
    assert shown.rows == [["Test"], ["A", "10", "10", "4 (40 %)"], ["B", "15", "15", "6 (40 %)"]]
    outcome = {"outcome": {"known": 12, "mean": 0.25, "sd": 0.4, "min": 0.0, "max": 1.0}}
    counted = {"counts": [entry | {"targets": outcome} for entry in cohort["counts"]]}
    assert split_table(counted, parts, None).rows[1] == ["A", "12", "13", "3 (25 %)"]

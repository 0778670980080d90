"""Pages that may be sent away: nobody is named, no small count is told, and the statistics are those of the whole."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from evaluation.disclosure import Sharing
from evaluation.figures import regression as figures
from evaluation.leakage import Finding
from evaluation.predictions import PredictionsError
from evaluation.report.context import CrossvalContext
from evaluation.report.crossval import render_crossval
from evaluation.report.crossval_sharing import shared_characteristics, shared_subgroups, site_counts
from evaluation.report.page import Picture, Table
from evaluation.report.run import ReportContext, render_report

SHARING = Sharing(b"k" * 32)
FACE = Picture("data:image/png;base64,AAAA", "a face", "a face", "full")


def cells(page):
    """Return the rows of every table of a page, as lists of texts."""
    clean = [re.sub(r"<span class=.interval.>", " ", row) for row in re.findall(r"<tr.*?>(.*?)</tr>", page, re.DOTALL)]
    return [
        [re.sub(r"<.*?>", "", one).replace("&lt;", "<") for one in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in clean
    ]


def people(sizes, seed=0):
    """Return ages up to 99 and their predictions, people named after themselves."""
    generator = np.random.default_rng(seed)
    names = [(site, number) for site, size in sizes.items() for number in range(size)]
    age = generator.uniform(60, 99, len(names))
    return pd.DataFrame(
        {
            "participant_id": [f"Ann-Example-{site}-{number}" for site, number in names],
            "session_id": "2019-03-04",
            "dataset": "memory",
            "site": [site for site, _ in names],
            "output": "age",
            "split": "test",
            "target": age,
            "prediction": age + generator.normal(0, 6, len(names)),
        }
    )


def test_the_page_of_a_run_names_nobody_and_keeps_its_statistics():
    rows = people({"A": 20, "B": 9, "C": 3})
    context = ReportContext(title="t", num_replicates=50, saliency=(FACE,))
    whole, page = render_report(rows, context), render_report(rows, replace(context, sharing=SHARING, saliency=()))
    assert "Ann-Example" in whole
    assert "Ann-Example" not in page
    assert "2019-03-04" not in page
    shown = cells(page)
    assert ["C", "<5", *[""] * 6] in shown
    assert ["B", "\u22655", *[""] * 6] in shown, "it would give the other away"
    everybody = [row for row in cells(whole) if row[:1] == ["all sites"]]
    assert everybody
    assert everybody == [row for row in shown if row[:1] == ["all sites"]]
    assert [row for row in cells(whole) if row[1:2] == ["mae"]] == [row for row in shown if row[1:2] == ["mae"]]
    worst = [row for row in shown if row[0].startswith("p-")]
    assert len(worst) == 10
    codes = set(SHARING.codes(rows)["code"])
    assert {row[0] for row in worst} <= codes
    assert {row[2] for row in worst} <= {"A", "other sites"}
    assert any(row[3] == "90+" for row in worst)
    for row in worst:
        assert (row[-1] == "") == (row[3] == "90+"), "the error and the prediction would give the age away"
    assert "Shared form of the report" in page
    assert "Shared form" not in whole
    assert "holds no participant identifiers" in page


def test_no_figure_is_given_an_age_over_89_or_the_sites_of_a_few(monkeypatch):
    rows, drawn = people({"A": 20, "B": 9, "C": 3}), {}
    for name in ("predicted_vs_target", "error_vs_target", "error_by_bin", "error_by_site"):
        draw = getattr(figures, name)
        monkeypatch.setattr(
            figures, name, lambda *a, _name=name, _draw=draw, **k: drawn.update({_name: (a, k)}) or _draw(*a, **k)
        )
    render_report(rows, ReportContext(title="t", num_replicates=20, sharing=SHARING))
    for name in ("predicted_vs_target", "error_vs_target"):
        (points,), _ = drawn[name]
        assert points[["target", "prediction"]].to_numpy().max() == 90
        assert set(points["site"]) == {"A", "other sites"}
        assert not points["participant_id"].str.contains("Ann").any()
    pd.testing.assert_series_equal(
        drawn["error_vs_target"][1]["fitted_on"]["target"].sort_values(),
        rows["target"].sort_values(),
        check_index=False,
    )
    (bins,), words = drawn["error_by_bin"]
    assert words["labels"][-1] == "90+"
    assert set(bins["num_participants"]) <= {*range(5, 33), "<5", "\u22655"}
    (sites,), _ = drawn["error_by_site"]
    assert sites["site"].tolist() == ["A"]


def test_small_classes_hide_metrics_of_a_site_because_intervals_tell_counts():
    generator = np.random.default_rng(1)
    rows = pd.DataFrame(
        {
            "participant_id": [f"p{number}" for number in range(60)],
            "site": ["A"] * 20 + ["B"] * 40,
            "target": [1, 1] + [0] * 18 + [0, 1] * 20,
            "prediction": generator.uniform(0, 1, 60),
            "threshold": 0.5,
        }
    )
    page = render_report(rows, ReportContext(title="t", num_replicates=20, sharing=SHARING))
    assert ["A", "20", "<5", *[""] * 8] in cells(page)
    assert [row[1:3] for row in cells(page) if row[:1] == ["B"]][-1] == ["40", "\u22655"]
    assert "true positives" not in page
    with pytest.raises(PredictionsError, match="nothing of it may be shared"):
        render_report(rows[:20], ReportContext(title="t", num_replicates=20, sharing=SHARING))


def test_the_page_of_a_cross_validation_hides_small_counts(simulate, parse):
    table = simulate({"A": 30, "B": 40, "C": 4}, {"scratch": 1.0, "pretrained": 1.4}, repeats=1)
    keys = ["dataset", "participant_id"]
    person = table[keys].drop_duplicates().iloc[0]
    context = CrossvalContext(
        title="t",
        cohort={"participants": 76, "images": 80, "without_target": 2},
        findings=[Finding("twins", "warning", f"{person['participant_id']} is there twice.", {}, "Look at it.")],
        num_replicates=20,
    )
    whole, page = (render_crossval(table, one) for one in (context, replace(context, sharing=SHARING)))
    text = " ".join(parse(page).text.split())
    assert "outcome not known: <5" in text
    assert "76 participants" not in text, "two would follow"
    assert "is there twice" not in page
    assert "Look at it." in page
    assert person["participant_id"] not in page
    assert [row[2] for row in cells(page) if row[1:2] == ["C"]] == ["<5"] * 2
    primary = [row for row in cells(whole) if row[:1] == ["pretrained"]]
    assert primary[0] == next(row for row in cells(page) if row[:1] == ["pretrained"])


def test_characteristics_hide_what_would_follow_from_sites_and_classes():
    rows = [["Outcome = 1, n (%)", "3 (15 %)", "12 (40 %)", "15 (30 %)", "0", "0.30"]]
    rows += [["Weight (g), mean (SD)", "3000 (400)", "3100 (380)", "3060 (390)", "6 (12 %)", "0.10"]]
    rows += [["Sex, n (%)", "", "", "", "2 (4 %)", "0.2"]]
    rows += [
        ["\u2003f", "9 (45 %)", "16 (53 %)", "25 (50 %)", "", ""],
        ["\u2003m", "11 (55 %)", "14 (47 %)", "25 (50 %)", "", ""],
    ]
    heads = ["Characteristic", "A (n = 20)", "B (n = 30)", "All (n = 50)", "Missing", "SMD"]
    counts = {("n", "A"): 20, ("n", "B"): 30, ("n", ""): 50}
    found = shared_characteristics(Table("t", heads, rows), counts, "outcome")
    assert list(found.columns) == heads
    assert found.rows[0] == ["Outcome = 1, n (%)", "<5", "\u22655", "15 (30 %)", "<5", "0.30"]
    assert found.rows[1] == rows[1]
    assert found.rows[2][4] == "<5"
    assert found.rows[3:] == rows[3:]
    small = ["Characteristic", "A (n = 4)", "B (n = 30)", "C (n = 20)", "All (n = 54)", "Missing", "SMD"]
    found = shared_characteristics(Table("t", small, [["Age, mean (SD)", *"1234", "0", "0"]]), {}, "outcome")
    assert list(found.columns)[1:5] == ["A (n < 5)", "B (n = 30)", "C (n \u2265 5)", "All (n = 54)"]
    assert found.rows[0][1:5] == ["", "2", "", "4"]


def test_subgroups_hide_small_levels_and_ages(simulate):
    rows = simulate({"A": 30, "B": 40}, {"scratch": 1.0}, repeats=1)
    counts = site_counts(rows.assign(participant=rows["participant_id"]), "binary", shared=True)
    level = {"metric": "auroc", "estimate": 0.8, "low": 0.7, "high": 0.9, "note": "", "arm": "scratch", "column": "age"}
    sizes = {"60 to 75": (40, 20), "75 to 94": (26, 12), "missing": (4, 2)}
    table = pd.DataFrame(
        [{**level, "level": name, "num_participants": n, "num_events": e} for name, (n, e) in sizes.items()]
    )
    found = shared_subgroups(table, counts).set_index("level")
    assert found.index.tolist() == ["60 to 75", "75 to 90+", "missing"]
    assert found.loc["missing", ["num_participants", "num_events"]].tolist() == ["<5", "<5"]
    assert found.loc["75 to 90+", "num_participants"] == "\u22655"
    assert np.isnan(found.loc["75 to 90+", "estimate"])
    assert found.loc["60 to 75", "num_participants"] == 40

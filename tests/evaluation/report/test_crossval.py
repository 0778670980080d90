import json
import math
from datetime import UTC, datetime

import pandas as pd
import pytest

from evaluation.design import Design
from evaluation.gain import gains
from evaluation.leakage import Finding
from evaluation.predictions import PredictionsError
from evaluation.report.context import CrossvalContext, gain_from_json
from evaluation.report.crossval import render_crossval
from evaluation.report.page import Table

ARMS = {"scratch": 1.0, "scratch-again": 1.0, "pretrained": 1.4, "permuted-age": 0.9, "lesion-burden": 1.2}
SITES = {"A": 30, "B": 40}


@pytest.fixture
def context_of():
    """Make a context that knows everything, changed where a test wants it."""
    source = {"file": "best.ckpt", "sha256": "ab" * 32, "kind": "run", "study": "age2hie/pretrain", "run_id": "c" * 32}
    ledger = {"source": {**source, "datasets": ["brain-age"]}, "options": {"strategy": "full"}, "share": 0.987}
    places = (("train", "B", 33), ("val", "B", 7), ("external", "A", 30))
    cells = [{"repeat": 0, "fold": "A", "part": p, "site": s, "participants": n} for p, s, n in places]
    values = {
        "title": "age2hie/crossval: cross-site",
        "run_id": "f" * 32,
        "settings": {"num_repeats": 2, "num_seeds": 3, "num_inner_folds": 5},
        "arms": {"lesion-burden": {"baseline": ["lesion_ml"]}},
        "cells": pd.DataFrame(cells),
        "cohort": {"tables": [{"name": "t.tsv", "dataset": "newborns", "sha256": "d" * 64}], "without_target": 3},
        "characteristics": Table("Participants by site.", ["Characteristic", "A"], [["Sex = 1, n (%)", "12 (40 %)"]]),
        "lock": {"locked": "2026-11-22 06:00:00 UTC", "identity": "e" * 64, "deviations": ["arm X added"]},
        "times_scored": 4,
        "ledgers": {"pretrained": ledger},
        "findings": [Finding("site and label", "warning", "Cramer's V 0.21.", {"v": math.nan}, "Look at site-only.")],
        "published": [
            {"metric": "accuracy", "of": "gain", "protocol": "same-site", "value": "+3 %", "source": "AGE2HIE"},
            {"metric": "accuracy", "of": "gain", "protocol": "cross-site", "value": "+5 %", "cohort": "156 newborns"},
        ],
        "phantom": True,
        "num_replicates": 40,
        "created": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    }
    return lambda **changes: CrossvalContext(**(values | changes))


def test_page_of_two_sites_says_everything_that_is_known(simulate, context_of, parse):
    page = render_crossval(simulate(SITES, ARMS), context_of())
    found = parse(page)
    assert all(address.startswith(("#", "data:image/svg+xml;base64,")) for address in found.addresses)
    for outside in ("http://", "https://", "url(", "@import", "<script", "<link"):
        assert outside not in page
    assert len(found.images) == 5  # forest, ROC, calibration, decision curve, heat map
    assert all(image["alt"] for image in found.images)
    assert found.captions == page.count("<table>")
    text = " ".join(found.text.split())
    for words in (
        *("On phantom data: pretraining changed the AUROC by", "four times in five", "scratch-again"),
        *("outcome not known: 3", "trained on 33", "validated on 7", "12 (40 %)", "regression on lesion_ml, no image"),
        *("Baselines without images", "p (Holm)", "Smallest detectable gain", "Ensemble of the runs"),
        *("No pooled value: it needs >= 3 sites", "by 4 runs, this one included", "arm X added", "another protocol"),
        *("98.7 %", "age2hie/pretrain run cccccccc", "brain-age", "Cramer's V 0.21", "156 newborns"),
        *("Holm's adjustment is over 4 comparisons", "5 inner folds", "Analysis locked on 2026-11-22", "Locked"),
    ):
        assert words in text, words


def test_gains_that_are_given_are_shown_and_not_computed(simulate, context_of, parse):
    table = simulate(SITES, {"scratch": 1.0, "pretrained": 1.4}, repeats=1)
    given = gains(table, num_replicates=30, seed=9)
    text = parse(render_crossval(table, context_of(gains=given))).text
    whole = next(gain for gain in given if gain.site is None)
    assert f"{whole.detectable:.3f}" in text
    assert f"{whole.gain.low:.3f} to {whole.gain.high:.3f}".replace("-", "\u2212") in text


def test_context_goes_through_json_and_gives_the_same_page(simulate, context_of):
    table = simulate(SITES, {"scratch": 1.0, "pretrained": 1.4}, repeats=1, seeds=1)
    subgroups = pd.DataFrame(
        [
            {"arm": "scratch", "column": "sex", "level": level, "num_participants": 35, "num_events": events}
            | {"estimate": value, "low": math.nan, "high": math.nan, "note": note}
            for level, events, value, note in (("f", 14.0, 0.7, ""), ("m", math.nan, math.nan, "too few"))
        ]
    )
    given = gains(table, num_replicates=30)
    context = context_of(gains=given, subgroups=subgroups)
    again = CrossvalContext.from_json(json.loads(json.dumps(context.as_json(), allow_nan=False)))
    page = render_crossval(table, context)
    assert render_crossval(table, again) == page
    assert "too few" in page
    assert [repr(gain_from_json(gain.as_dict())) for gain in given] == [repr(gain) for gain in given]


def test_three_sites_are_pooled(simulate, context_of, parse):
    text = parse(render_crossval(simulate({"A": 30, "B": 30, "C": 30}, {"scratch": 1.5}, 1), context_of())).text
    assert "Random effects over 3 sites" in text
    assert "there is no second arm to compare it with" in text


def test_one_seed_has_no_spread_and_no_ensemble(simulate, context_of, parse):
    table = simulate(SITES, {"scratch": 1.0, "pretrained": 1.4}, repeats=1, seeds=1)
    text = parse(render_crossval(table.drop(columns="threshold"), context_of())).text
    assert "It needs three seeds." in text
    assert "Ensemble" not in text
    assert "at 0.5" in text


def test_site_of_one_class_is_named_and_left_out(simulate, context_of, parse):
    table = simulate(SITES, {"scratch": 1.0, "pretrained": 1.4}, repeats=1)
    table.loc[table["site"] == "B", "target"] = 0.0
    text = parse(render_crossval(table, context_of())).text
    assert "Left out of the mean, for too few participants of a class: B." in text
    assert "undefined" in text
    nobody = parse(render_crossval(table.assign(target=0.0), context_of(published=()))).text
    assert "could not be computed" in nobody
    assert "One class is missing." in nobody


def test_label_efficiency_stands_where_arms_have_shares(simulate, context_of):
    names = {f"{arm}{share}": 1.0 for arm in ("scratch", "pretrained") for share in ("", "@0.25")}
    page = render_crossval(simulate(SITES, names, repeats=1, seeds=2), context_of())
    assert 'id="efficiency"' in page
    assert "pretrained with 25 %" in page


def test_regression_needs_no_classes(simulate, context_of, parse):
    table = simulate(SITES, {"scratch": 1.0, "pretrained": 1.4}, repeats=1)
    age = 45 + table["participant_id"].str[1:].astype(int) / 10
    years = table.assign(target=age, prediction=age + 5 * table["prediction"], output="age")
    page = render_crossval(years.drop(columns=["score_0", "score_1", "threshold"]), context_of())
    text = parse(page).text
    assert "changed the mean absolute error by" in text
    assert "Mean absolute error (years)" in text
    assert "ROC" not in text.partition("Methods")[0]


def test_case_control_design_has_no_decision_curve(simulate, context_of, parse):
    table = simulate(SITES, {"scratch": 1.0, "pretrained": 1.4}, repeats=1, seeds=1)
    page = render_crossval(table, context_of(design=Design("case-control")))
    assert "No decision curve: The design is case-control" in parse(page).text
    assert page.count("<img") == 4


def test_nobody_held_out_is_refused(simulate, context_of):
    with pytest.raises(PredictionsError, match="no held-out row"):
        render_crossval(simulate(SITES, {"scratch": 1.0}).assign(split="val"), context_of())


def test_text_from_outside_is_escaped(simulate, context_of):
    hostile = "<script>alert(1)</script>"
    table = simulate({hostile: 30}, {"scratch": 1.0, hostile: 1.2}, repeats=1, seeds=1)
    page = render_crossval(table, context_of(title=hostile, cells=None, question=hostile))
    assert "<script" not in page

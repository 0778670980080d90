"""What the audit makes of facts, without a cohort on disk."""

from dataclasses import replace

import numpy as np
import pandas as pd

from experiments import audit_checks
from experiments.audit_facts import CohortFacts


def facts_of(parts, **columns):
    rows = pd.DataFrame({"key": [f"d/{number}" for number in range(len(parts))], "site": "a", **columns})
    files = pd.DataFrame(columns=["row", "key", "role", "voxel_sha256"])
    return CohortFacts(rows, files, (pd.Series(parts),), tuple(name for name in columns if name.endswith("_id")))


def test_a_participant_and_a_group_on_two_sides():
    facts = facts_of(["train", "test", "", "test"], family_id=["x", "y", "y", "x"])
    assert audit_checks.check_participants(facts).status == "ok"
    twice = replace(facts, rows=facts.rows.assign(key=["d/0", "d/1", "d/1", "d/0"]))
    assert audit_checks.check_participants(twice).status == "leak"
    assert "d/0" in audit_checks.check_participants(twice).found
    (declared,), (guessed,) = (audit_checks.check_groups(facts, name) for name in ("family_id", None))
    assert (declared.status, guessed.status) == ("leak", "warning")
    assert declared.numbers == {"values": 2, "shared": 1}  # y stands in a row that nobody uses
    same, few = (facts_of(["train", "test", "test"], anatomy_id=ids) for ids in (["x"] * 3, ["x", "x", ""]))
    assert [audit_checks.check_groups(one, None)[0].status for one in (same, few)] == ["ok", "warning"]


def test_a_shortcut_over_the_site_is_named():
    rng = np.random.default_rng(3)
    people = pd.DataFrame({"site": ["a"] * 40 + ["b"] * 40, "label": [1.0] * 30 + [0.0] * 50})
    features = rng.normal(size=(80, 9)) + 2 * (people["site"] == "a").to_numpy()[:, None]
    label = people["label"].to_numpy()
    confounded = audit_checks.check_site_and_label(people, "label", 200)
    site = audit_checks.check_site_from_intensities(people, features)
    cheap = audit_checks.check_label_from_intensities(label, features, "label", 200)
    assert (confounded.status, site.status, cheap.status) == ("warning", "warning", "ok")
    assert confounded.numbers["site_only_auroc"] > 0.8
    assert audit_checks.warn_of_shortcut(confounded, site, cheap).status == "warning"
    assert audit_checks.warn_of_shortcut(replace(confounded, status="ok"), site, cheap).status == "ok"
    headers = pd.DataFrame({"t1w spacing i": 1.0 + label, "t1w log size": rng.normal(size=80)})
    told = audit_checks.check_label_from_headers(label, headers, "label", 200)
    assert (told.status, told.numbers["auroc_without_file_size"]) == ("warning", 1.0)
    assert audit_checks.check_label_from_headers(label[:9], headers[:9], "label", 200).status == "unknown"

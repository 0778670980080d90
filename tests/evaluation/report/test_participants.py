import math

import numpy as np
import pandas as pd
import pytest

from evaluation.report.participants import (
    Characteristic,
    characteristics_table,
    largest_difference,
    subgroup_frame,
)


@pytest.fixture
def participants():
    weights = [3000.0, 3200.0, 3400.0, np.nan, 2500.0, 2600.0, 2700.0, 2800.0]
    return pd.DataFrame(
        {
            "site": ["A"] * 4 + ["B"] * 4,
            "outcome": [1.0, 0, 0, 0, 1, 1, 1, 0],
            "birth_weight": weights,
            "scanner": ["x", "x", "y", "", "y", "y", "y", "y"],
        }
    )


def test_table_counts_classes_and_averages_numbers(participants):
    shown = characteristics_table(
        participants,
        [Characteristic("outcome"), Characteristic("birth_weight", "birth weight", "g"), Characteristic("scanner")],
    )
    assert shown.columns == ["Characteristic", "A (n = 4)", "B (n = 4)", "All (n = 8)", "Missing", "SMD"]
    by_head = {row[0]: row[1:] for row in shown.rows}
    assert by_head["Outcome = 1, n (%)"] == ["1 (25 %)", "3 (75 %)", "4 (50 %)", "0", "1.15"]
    assert by_head["Birth weight (g), mean (SD)"][:4] == ["3200 (200)", "2650 (129)", "2886 (329)", "1 (12 %)"]
    assert by_head["Birth weight (g), mean (SD)"][4] == f"{550 / math.sqrt((200**2 + 50000 / 3) / 2):.2f}"
    assert by_head["\u2003x"][:3] == ["2 (67 %)", "0 (0 %)", "2 (29 %)"]
    assert by_head["Scanner, n (%)"][3] == "1 (12 %)"


def test_one_site_has_no_difference_and_free_text_is_left_out(participants):
    people = pd.concat([participants] * 2, ignore_index=True)
    one = people.assign(site="A", note=[f"text {number}" for number in range(16)])
    shown = characteristics_table(one, [Characteristic("note"), Characteristic("outcome")])
    assert shown.columns == ["Characteristic", "A (n = 16)", "Missing"]
    assert [row[0] for row in shown.rows] == ["Outcome = 1, n (%)"]


def test_difference_of_two_shares_is_the_closed_form():
    a, b = pd.Series([1.0] * 3 + [0.0] * 7), pd.Series([1.0] * 6 + [0.0] * 4)
    expected = 0.3 / math.sqrt((0.3 * 0.7 + 0.6 * 0.4) / 2)
    assert largest_difference([a, b], classes=True) == pytest.approx(expected)


def test_difference_of_classes_does_not_depend_on_their_names_and_is_the_largest_of_all_pairs():
    a, b = pd.Series(list("xxyyz")), pd.Series(list("xyyzz"))
    swapped = [group.map({"x": "c", "y": "a", "z": "b"}) for group in (a, b)]
    value = largest_difference([a, b], classes=True)
    assert value == pytest.approx(largest_difference(swapped, classes=True))
    assert largest_difference([a, a, b], classes=True) == pytest.approx(value)
    assert largest_difference([a, a], classes=True) == 0


def test_difference_without_variance_is_undefined_or_none():
    same, other = pd.Series([1.0, 1.0]), pd.Series([2.0, 2.0])
    assert math.isnan(largest_difference([same, other], classes=False))
    assert largest_difference([same, same], classes=False) == 0


def test_subgroups_cut_numbers_at_terciles_and_name_what_is_too_small(simulate):
    table = simulate({"A": 60, "B": 60}, {"scratch": 1.5, "pretrained": 2.0}, repeats=1, seeds=1)
    people = table.drop_duplicates("participant_id")[["dataset", "participant_id"]].assign(
        weight=np.arange(120) * 25 + 2000.0, sex=[0.0, 1.0] * 55 + [0.0] * 9 + [np.nan], only="one"
    )
    found = subgroup_frame(
        table,
        people,
        ["weight", "sex", "only", "site"],
        ["scratch", "pretrained"],
        metric="auroc",
        task="binary",
        num_replicates=20,
    )
    assert set(found["arm"]) == {"scratch", "pretrained"}
    own = found[found["arm"] == "scratch"]
    assert own["column"].tolist() == ["weight"] * 3 + ["sex"] * 3
    assert own["num_participants"].tolist() == [40, 40, 40, 64, 55, 1]
    assert own["level"].tolist()[2:] == ["3980 to 4980", "0", "1", "missing"]  # ends are rounded outwards
    assert own["note"].iloc[-1] == "too few"
    assert own["estimate"].notna().tolist() == [True] * 5 + [False]


def test_no_column_that_tells_anybody_apart_gives_no_subgroups(simulate):
    table = simulate({"A": 20, "B": 20}, {"scratch": 1.5}, repeats=1, seeds=1)
    people = table[["dataset", "participant_id"]].assign(only="one")
    empty = subgroup_frame(table, people, ["only"], ["scratch"], metric="auroc", task="binary", num_replicates=0)
    assert empty.empty

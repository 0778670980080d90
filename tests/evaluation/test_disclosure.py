"""Codes of participants, ages over 89, and small counts that nothing on a page gives away."""

import numpy as np
import pandas as pd
import pytest

from evaluation.disclosure import (
    ENOUGH,
    FEW,
    MIN_POSSIBLE,
    SMALLEST,
    DisclosureError,
    Sharing,
    oldest_shown,
    suppress,
    top_coded_text,
)


def test_a_code_needs_the_key_and_names_dataset_and_participant():
    one, other = Sharing(b"k" * 32), Sharing(b"l" * 32)
    assert one.code("a", "sub-01") == one.code("a", "sub-01")
    codes = {one.code("a", "sub-01"), one.code("b", "sub-01"), one.code("as", "ub-01"), other.code("a", "sub-01")}
    assert len(codes) == 4
    assert all(code.startswith("p-") and len(code) == 14 for code in codes)
    rows = pd.DataFrame({"dataset": "a", "participant_id": ["2", "1", "2"], "session_id": ["x", "y", "z"]})
    found = one.codes(rows)
    assert found["participant_id"].tolist() == ["1", "2"]
    assert found["code"].tolist() == [one.code("a", "1"), one.code("a", "2")]


@pytest.mark.parametrize(
    ("name", "unit", "value", "text"),
    [
        ("age", "years", 89.94, "89.9"),
        ("age", "years", 89.96, "90+"),
        ("age", "years", 90.0, "90+"),
        ("age_at_scan", None, 101, "90+"),
        ("age", "months", 1079.5, "1079.5"),
        ("age", "months", 1080, "1080+"),
        ("stage", None, 300, "300.0"),
        ("volume", "ml", 300, "300.0"),
    ],
)
def test_only_ages_are_top_coded(name, unit, value, text):
    assert top_coded_text(value, oldest_shown(name, unit)) == text


def possible(counts, sums, marks):
    """Return the values of each count that agree with everything printed, found by trying all numbers near it."""
    free = [name for name in counts if name not in {total for total, _ in sums}]
    near = {name: {FEW: range(SMALLEST), ENOUGH: range(SMALLEST, counts[name] + SMALLEST)} for name in free}
    grid = np.meshgrid(*(list(near[name].get(marks[name], [counts[name]])) for name in free), indexing="ij")
    tried = dict(zip(free, (axis.ravel() for axis in grid), strict=True))
    for total, parts in sums:  # parts stand before their sums
        tried[total] = sum(tried[part] for part in parts)
    fits = np.ones(len(tried[free[0]]), dtype=bool)
    for name, numbers in tried.items():
        mark = marks[name]
        fits &= numbers < SMALLEST if mark == FEW else numbers >= SMALLEST if mark == ENOUGH else numbers == mark
    return {name: set(numbers[fits].tolist()) for name, numbers in tried.items()}


@pytest.mark.parametrize("seed", range(25))
def test_no_small_count_follows_from_what_is_printed(seed):
    generator = np.random.default_rng(seed)
    sites, classes = generator.integers(2, 4), generator.integers(1, 3)
    counts = {(i, j): int(generator.choice([0, 1, 2, 4, 5, 6, 9])) for i in range(sites) for j in range(classes)}
    sums = [((i, "n"), [(i, j) for j in range(classes)]) for i in range(sites)]
    sums += [(("all", j), [(i, j) for i in range(sites)]) for j in range(classes)]
    sums.append((("all", "n"), [("all", j) for j in range(classes)]))
    for total, parts in sums:
        counts[total] = sum(counts[part] for part in parts)
    marks = suppress(counts, sums)
    values = possible(counts, sums, marks)
    for name, count in counts.items():
        assert (marks[name] == FEW) == (count < SMALLEST)
        assert marks[name] in (count, FEW, ENOUGH)
        assert count in values[name]
        if count < SMALLEST:
            assert len(values[name]) >= MIN_POSSIBLE, (name, counts, marks)


def test_nothing_is_hidden_that_need_not_be():
    counts = {"a": 12, "b": 3, "c": 9, "all": 24, "elsewhere": 2, "d": 5}
    marks = suppress(counts, [("all", ["a", "b", "c"])])
    assert marks == {"a": 12, "b": FEW, "c": ENOUGH, "all": 24, "elsewhere": FEW, "d": 5}


def test_what_is_printed_already_is_known_and_cannot_be_hidden():
    counts, sums = {"a": 12, "b": 3, "all": 15}, [("all", ["a", "b"])]
    assert suppress(counts, sums, {"all": 15}) == {"a": ENOUGH, "b": FEW, "all": 15}
    assert suppress(counts, sums, {"a": 12}) == {"a": 12, "b": FEW, "all": ENOUGH}
    assert suppress(counts, sums, {"a": ENOUGH})["a"] == ENOUGH
    assert suppress(counts, sums, unprinted=["a"]) == {"a": ENOUGH, "b": FEW, "all": 15}
    with pytest.raises(DisclosureError, match="'b' follows"):
        suppress(counts, sums, {"a": 12, "all": 15})

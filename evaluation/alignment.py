"""Whether two tables score the same participants, so that a difference between them is one between models."""

from collections.abc import Iterable, Sequence

import pandas as pd

from evaluation.prediction_checks import TARGET_TOLERANCE, listed
from evaluation.predictions import PredictionsError
from evaluation.resampled import run_names

UNKNOWN_SITE = "unknown"


def aligned(a: pd.DataFrame, b: pd.DataFrame, names: Sequence[str] = ("A", "B")) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both sides where they score the same participants, sessions and targets, and refuse them where not.

    A side without a dataset or site, as a table of other software has it, takes that of the other side.

    Args:
        a: Rows of one side, as `scored_rows` gives them.
        b: Rows of the other side.
        names: What the sides are called in messages.

    Raises:
        PredictionsError: Outputs, splits, participants, sessions, targets or sites differ; all of it is named.
    """
    problems = [
        f"the {column} is '{a[column].iloc[0]}' in {names[0]} and '{b[column].iloc[0]}' in {names[1]}. "
        f"Compare one {column}."
        for column in ("output", "split")
        if "" not in {a[column].iloc[0], b[column].iloc[0]} and a[column].iloc[0] != b[column].iloc[0]
    ]
    if not problems:
        a, b = _with_dataset(a, b), _with_dataset(b, a)
        problems = _participant_problems(a, b, names)
    if not problems:
        problems = _run_problems(a, b, names)
    if not problems:
        a, b = _with_site(a, b), _with_site(b, a)
        problems = _value_problems(a, b, names)
    if problems:
        raise PredictionsError(problems)
    return a, b


def share_runs(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    """Whether both sides have the same runs (repeat x seed)."""
    return run_names(a) == run_names(b)


def _with_dataset(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Take over the one dataset of the other side where this one names none."""
    if set(rows["dataset"]) != {""} or other["dataset"].nunique() != 1:
        return rows
    dataset = other["dataset"].iloc[0]
    return rows.assign(dataset=dataset, participant=dataset + "/" + rows["participant_id"])


def _with_site(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Take over the sites of the other side where this one names none."""
    if set(rows["site"]) != {UNKNOWN_SITE}:
        return rows
    return rows.assign(site=_units(rows).map(_per_unit(other)["site"]))


def _participant_problems(a: pd.DataFrame, b: pd.DataFrame, names: Sequence[str]) -> list[str]:
    people = [set(a["participant"]), set(b["participant"])]
    units = [set(_units(a)), set(_units(b))]
    what, kept = ("participant", people) if people[0] != people[1] else ("session", units)
    if kept[0] == kept[1]:
        return []
    alone = [
        f"{len(own - other)} in {name} alone ({_shown(own - other)})"
        for name, own, other in zip(names, kept, reversed(kept), strict=True)
        if own - other
    ]
    return [
        f"the scored {what}s differ: {', '.join(alone)}; {len(kept[0] & kept[1])} are in both. A difference is one "
        f"between models only on the same {what}s: predict the others too, or choose rows that both have."
    ]


def _run_problems(a: pd.DataFrame, b: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Name runs that score other participants than they must."""
    everybody = set(_units(a))
    if not share_runs(a, b):
        return [
            f"the runs of {names[0]} and {names[1]} differ, and run '{run}' of {name} scores {len(found)} of "
            f"{len(everybody)} sessions. Give both the same repeats and seeds, or score everybody in every run."
            for name, rows in zip(names, (a, b), strict=True)
            for run, found in _units_of_runs(rows).items()
            if found != everybody
        ][:1]
    second = _units_of_runs(b)
    return [
        f"run '{run}' scores other participants in {names[0]} than in {names[1]}: {_shown(found ^ second[run])}"
        " are in one of them only. Make both from the same folds."
        for run, found in _units_of_runs(a).items()
        if found != second[run]
    ][:1]


def _value_problems(a: pd.DataFrame, b: pd.DataFrame, names: Sequence[str]) -> list[str]:
    both = _per_unit(a).add_suffix("_a").join(_per_unit(b).add_suffix("_b"))
    limit = TARGET_TOLERANCE * both[["target_a", "target_b"]].abs().max(axis=1).clip(lower=1)
    differs = {
        "target": (both["target_a"] - both["target_b"]).abs() > limit,
        "site": both["site_a"] != both["site_b"],
    }
    return [
        f"the {column} of {mask.sum()} of {len(both)} participants differs between {names[0]} and {names[1]}: "
        f"{_shown(both.index[mask])}. Correct the table that is wrong."
        for column, mask in differs.items()
        if mask.any()
    ]


def _shown(keys: Iterable[str]) -> str:
    return listed(key.removeprefix("/") for key in sorted(keys))  # without a dataset nothing stands before the slash


def _units(rows: pd.DataFrame) -> pd.Series:
    """Name the participant and session of each row."""
    session = rows["session_id"].where(rows["session_id"] == "", "/" + rows["session_id"])
    return rows["participant"] + session


def _per_unit(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.groupby(_units(rows), sort=True)[["target", "site"]].first()


def _units_of_runs(rows: pd.DataFrame) -> dict[str, set[str]]:
    units = _units(rows)
    names = run_names(rows)
    return {names[int(str(run))]: set(group) for run, group in units.groupby(rows["run"])}

"""The parts of a report of one run: each protocol, arm, output and split of its predictions, assessed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from evaluation.assessment import Assessment, assess
from evaluation.design import Design
from evaluation.parts import HELD_OUT_OR_UNSAID
from evaluation.predictions import KEY, PredictionsError
from evaluation.tasks import task_of
from evaluation.wording import count_text, join_words

SPLITS = {
    "test": "Test: held-out participants",
    "external": "External: held-out sites",
    "val": "Validation: chose the model",
    "train": "Training: no measure of performance",
    "": "All rows",
}
MIN_SITE_PARTICIPANTS = 5
MAX_NAMED_SITES = 4  # sites that a sentence names


@dataclass(frozen=True)
class Part:
    """One arm, output and split of the predictions.

    Args:
        label: What tells it from the other parts.
        short: The same, shorter.
        model: What tells its model from the others, empty where there is one.
        split: Its split.
        output: Its output.
        assessment: Its metrics.
        sites: Metrics by site, where it has several.
    """

    label: str
    short: str
    model: str
    split: str
    output: str
    assessment: Assessment
    sites: Mapping[str, Assessment]

    @property
    def task(self) -> str:
        """Kind of its outcome."""
        return self.assessment.task

    @property
    def held_out(self) -> bool:
        """Whether the model has not seen these participants in any way."""
        return self.split in HELD_OUT_OR_UNSAID


def parts_of(
    frame: pd.DataFrame, *, unit: str | None, num_replicates: int, seed: int, design: Design | None = None
) -> list[Part]:
    """Assess every protocol, arm, output and split that has targets; held-out ones first.

    Args:
        frame: A normalised predictions table.
        unit: Unit of the target; that of the contract by default.
        num_replicates: Bootstrap replicates.
        seed: Seed of the bootstrap.
        design: How the participants came to be studied; it matters to a binary outcome.

    Raises:
        PredictionsError: No row has a target.
    """
    known = frame[frame["target"].notna()]
    if known.empty:
        raise PredictionsError(["no row has a target, so there is nothing to report. Fill the column 'target'."])
    shared = known.duplicated([name for name in KEY if name != "train_sites"]).any()
    columns = ["protocol", "arm", *(["train_sites"] if shared else []), "output", "split"]
    telling = [name for name in columns if name != "split" and known[name].nunique() > 1]
    tasks = {str(output): task_of(rows) for output, rows in frame.groupby("output")}
    plan = design or Design()
    parts = []
    for values, _ in known.groupby(columns, sort=True):
        chosen = dict(zip(columns, values, strict=True))
        rows = frame[(frame[columns] == pd.Series(chosen)).all(axis=1)]
        task = tasks[str(chosen["output"])]
        is_binary = task == "binary"
        of = partial(
            assess,
            task=task,
            num_replicates=num_replicates,
            seed=seed,
            unit=None if is_binary else unit,
            design=plan.kind if is_binary else "cohort",
            prevalence=plan.prevalence if is_binary else None,
        )
        whole = of(rows)
        names = sorted(whole.rows["site"].unique())
        sites = {site: of(rows[rows["site"] == site]) for site in names} if len(names) > 1 else {}
        split = str(chosen["split"])
        model = ", ".join(f"{name} {chosen[name]}" for name in telling)
        label = ", ".join(filter(None, [SPLITS.get(split, split), model]))
        short = ", ".join(filter(None, [SPLITS.get(split, split).partition(":")[0], model]))
        parts.append(Part(label, short, model, split, str(chosen["output"]), whole, sites))
    order = list(SPLITS)
    return sorted(parts, key=lambda part: order.index(part.split) if part.split in order else len(order))


def who(part: Part) -> str:
    """Say whose participants a part holds, as part of a sentence."""
    people = count_text(part.assessment.num_participants, "participant")
    return people if set(part.assessment.rows["site"]) == {"unknown"} else f"{people} of {sites_text(part)}"


def sites_text(part: Part) -> str:
    """Name the sites of a part, or count them."""
    sites = sorted(part.assessment.rows["site"].unique())
    if len(sites) > MAX_NAMED_SITES:
        return f"{len(sites)} sites"
    return f"{'site' if len(sites) == 1 else 'sites'} {join_words(sites)}"


def all_sites(part: Part) -> str:
    """Return how the sites of a part are called together."""
    return "all sites" if part.sites else str(part.assessment.rows["site"].iloc[0])


def num_missing(parts: Sequence[Part]) -> int:
    """Return how many rows were left out because their target is missing."""
    return sum(part.assessment.num_missing_target for part in parts)


def mean_over_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """Average predictions over runs, for pictures and lists only: no metric is computed from it."""
    keys = ["dataset", "participant_id", "session_id", "site", "participant"]
    return rows.groupby(keys, sort=True)[["target", "prediction"]].mean().reset_index()

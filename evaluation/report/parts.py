"""The parts of a report of one run: each protocol, arm, output and split of its predictions, assessed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from evaluation.assessment import Assessment, assess
from evaluation.design import Design
from evaluation.disclosure import ENOUGH, FEW, SMALLEST, Count, Sharing, is_hidden, is_told, oldest_shown, suppress
from evaluation.parts import HELD_OUT_OR_UNSAID
from evaluation.predictions import KEY, PredictionsError
from evaluation.tasks import task_of
from evaluation.wording import join_words, people_text

SPLITS = {
    "test": "Test: held-out participants",
    "external": "External: held-out sites",
    "val": "Validation: chose the model",
    "train": "Training: no measure of performance",
    "": "All rows",
}
MIN_SITE_PARTICIPANTS = 5
MAX_NAMED_SITES = 4  # sites that a sentence names
OTHER_SITES = "other sites"  # what sites are called together whose counts are hidden


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
        counts: By site, "" for all sites, and as they are printed: participants (`n`), `events`, `others` without the
            outcome, and rows whose target is `missing`.
        oldest: Largest target that is printed, in its unit.
        sharing: How participants are named where the page is shared.
    """

    label: str
    short: str
    model: str
    split: str
    output: str
    assessment: Assessment
    sites: Mapping[str, Assessment]
    counts: Mapping[tuple[str, str], Count]
    oldest: float = math.inf
    sharing: Sharing | None = None

    @property
    def size(self) -> Count:
        """Number of participants."""
        return self.counts["n", ""]

    @property
    def events(self) -> Count:
        """Number of participants with the outcome, where it is binary."""
        return self.counts["events", ""]

    @property
    def hidden_sites(self) -> set[str]:
        """Sites of which a count is not printed: a list of participants must not tell them apart either."""
        return {site for site in self.sites if not self.shows(site)}

    @property
    def shown_sites(self) -> dict[str, Assessment]:
        """The metrics of the sites that are printed: those whose counts are."""
        return {site: own for site, own in self.sites.items() if self.shows(site)}

    def shows(self, site: str) -> bool:
        """Whether the metrics of a site, or of all of them together, are printed."""
        return is_told(self.counts, site)

    @property
    def task(self) -> str:
        """Kind of its outcome."""
        return self.assessment.task

    @property
    def held_out(self) -> bool:
        """Whether the model has not seen these participants in any way."""
        return self.split in HELD_OUT_OR_UNSAID


def parts_of(
    frame: pd.DataFrame,
    *,
    unit: str | None,
    num_replicates: int,
    seed: int,
    design: Design | None = None,
    tasks: Mapping[str, str] | None = None,
) -> list[Part]:
    """Assess every protocol, arm, output and split that has targets; held-out ones first.

    Args:
        frame: A normalised predictions table.
        unit: Unit of the target; that of the contract by default.
        num_replicates: Bootstrap replicates.
        seed: Seed of the bootstrap.
        design: How the participants came to be studied; it matters to a binary outcome.
        tasks: Output -> its kind; told from the columns by default.

    Raises:
        PredictionsError: No row has a target.
    """
    known = frame[frame["target"].notna()]
    if known.empty:
        raise PredictionsError(["no row has a target, so there is nothing to report. Fill the column 'target'."])
    shared = known.duplicated([name for name in KEY if name != "train_sites"]).any()
    columns = ["protocol", "arm", *(["train_sites"] if shared else []), "output", "split"]
    telling = [name for name in columns if name != "split" and known[name].nunique() > 1]
    tasks = tasks or {str(output): task_of(rows) for output, rows in frame.groupby("output")}
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
        counts = _counts(whole, sites)[0]
        parts.append(Part(label, short, model, split, str(chosen["output"]), whole, sites, counts))
    order = list(SPLITS)
    return sorted(parts, key=lambda part: order.index(part.split) if part.split in order else len(order))


def shared(part: Part, sharing: Sharing) -> Part:
    """Return a part with its small counts hidden, ages over 89 not told apart, and participants named by codes."""
    counts, sums = _counts(part.assessment, part.sites)
    oldest = oldest_shown(part.output, part.assessment.unit)
    shown = suppress(counts, sums, unprinted=[(kind, site) for kind, site in counts if kind == "others" and site])
    return replace(part, counts=shown, oldest=oldest if part.task == "regression" else math.inf, sharing=sharing)


def who(part: Part) -> str:
    """Say whose participants a part holds, as part of a sentence."""
    people = people_text(part.size)
    return people if set(part.assessment.rows["site"]) == {"unknown"} else f"{people} of {sites_text(part)}"


def sites_text(part: Part) -> str:
    """Name the sites of a part, or count them."""
    sites = sorted(part.assessment.rows["site"].unique())
    if len(sites) > MAX_NAMED_SITES:
        return f"{len(sites)} sites"
    return f"{'site' if len(sites) == 1 else 'sites'} {join_words(sites)}"


def site_label(part: Part, site: str) -> str:
    """Return how a figure calls a site, or all of them together."""
    name = site or all_sites(part)
    return f"{name} (external)" if part.split == "external" else name


def num_events(assessment: Assessment) -> int:
    """Return how many participants have the outcome."""
    return int(assessment.rows.groupby("participant")["target"].max().sum())


def all_sites(part: Part) -> str:
    """Return how the sites of a part are called together."""
    return "all sites" if part.sites else str(part.assessment.rows["site"].iloc[0])


def num_missing(parts: Sequence[Part]) -> Count:
    """Return how many rows were left out because their target is missing."""
    count = sum(part.assessment.num_missing_target for part in parts)
    if any(is_hidden(part.counts["missing", ""]) for part in parts):
        return FEW if count < SMALLEST else ENOUGH
    return count


def drawn(part: Part, rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of a part as figures and lists show them: on a shared page by codes, without those sites."""
    shown = rows.assign(site=rows["site"].where(~rows["site"].isin(part.hidden_sites), OTHER_SITES))
    if part.sharing is None:
        return shown
    who = zip(rows["dataset"], rows["participant_id"], strict=True)
    return shown.assign(participant_id=[part.sharing.code(*names) for names in who], session_id="")


def mean_over_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """Average predictions over runs, for pictures and lists only: no metric is computed from it."""
    keys = ["dataset", "participant_id", "session_id", "site", "participant"]
    return rows.groupby(keys, sort=True)[["target", "prediction"]].mean().reset_index()


def _counts(
    whole: Assessment, sites: Mapping[str, Assessment]
) -> tuple[dict[tuple[str, str], int], list[tuple[tuple[str, str], list[tuple[str, str]]]]]:
    """Return participants, those with and those without the outcome, by site, and how they add up."""
    kinds = ["n"]
    counts: dict[tuple[str, str], int] = {}
    sums: list[tuple[tuple[str, str], list[tuple[str, str]]]] = []
    for site, own in {**sites, "": whole}.items():
        counts["n", site] = own.num_participants
        counts["missing", site] = own.num_missing_target
        if own.task == "binary":
            kinds = ["n", "events", "others"]
            counts["events", site] = num_events(own)
            counts["others", site] = own.num_participants - counts["events", site]
            sums.append((("n", site), [("events", site), ("others", site)]))
    if sites:
        sums += [((kind, ""), [(kind, site) for site in sites]) for kind in kinds]
    # Somebody who was scanned at two sites counts at both, and then the sum over sites tells nothing.
    return counts, [(total, names) for total, names in sums if counts[total] == sum(counts[name] for name in names)]

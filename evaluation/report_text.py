"""The sentences of the report, made from facts, and the checklist for its author."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.report_context import ReportContext
from evaluation.report_tables import Part
from evaluation.wording import count_text, interval_text, join_words, number_text

PHANTOM_LIMIT = "The cohort is made by software: the report checks software and is no evidence about people."
SOFTWARE = ("fontanel", "torch", "pytorch-lightning", "torchio", "monai", "numpy", "scipy")
MAX_SITES = 4  # sites that a sentence names


@dataclass(frozen=True)
class Item:
    """An item of the checklist.

    Args:
        number: Its number in TRIPOD+AI.
        topic: What it asks for.
        text: What the software knows; empty where only the author does.
    """

    number: str
    topic: str
    text: str = ""


def answer(part: Part, external: Part | None = None) -> str:
    """Answer the question of the report in one sentence with intervals.

    Args:
        part: The part that decides.
        external: The same model at held-out sites, where there is such a part beside.
    """
    text = _answer(part)
    if external is None:
        return f"{text}."
    return f"{text}; in {_who(external)}, held out from training, it was {_with_interval(external, 'mae')}."


def methods(part: Part, parts: Sequence[Part], context: ReportContext) -> list[str]:
    """Return the methods as sentences, each a fact of this run.

    Args:
        part: The part that decides.
        parts: All parts.
        context: What is known about the run.
    """
    return [*_data_sentences(context), *_statistics_sentences(part, parts), *_software_sentences(context.environment)]


def checklist(part: Part, parts: Sequence[Part], context: ReportContext) -> list[Item]:
    """Return the items of TRIPOD+AI in our words, filled where the software knows.

    Args:
        part: The part that decides.
        parts: All parts.
        context: What is known about the run.

    References:
        Collins GS, Moons KGM, Dhiman P, et al. BMJ 2024;385:e078378. doi:10.1136/bmj-2023-078378
    """
    assessment, cohort = part.assessment, context.cohort or {}
    tables = join_words([str(table.get("name")) for table in cohort.get("tables", [])])
    size = f"{count_text(assessment.num_participants, 'participant')} in the part that decides."
    unit = f" in {assessment.unit}" if assessment.unit else ""
    left_out = f"{count_text(_num_missing(parts), 'row')} without a target left out; no value imputed."
    clusters = _sites(part)
    shown = join_words([one.short.lower() for one in parts])
    return [
        Item("1", "Title: model, population, outcome"),
        Item("2", "Abstract"),
        Item("3", "Background: clinical context, intended users, known inequalities"),
        Item("4", "Objectives: development, evaluation, or both", context.question or ""),
        Item("5", "Data: sources, dates, representativeness", tables and f"Read from {tables}."),
        Item("6", "Participants: setting, eligibility, treatments"),
        Item("7", "Data preparation", (context.config_yaml and "Every step is in “Configuration”.") or ""),
        Item("8", "Outcome: definition, assessment, blinding", part.output and f"Output “{part.output}”{unit}."),
        Item("9", "Predictors: choice, measurement, blinding"),
        Item("10", "Sample size", size),
        Item("11", "Missing data", left_out),
        Item("12a-c", "Analysis: use of data, predictors, type of model", "See “Methods”."),
        Item("12d", "Analysis: differences between clusters", f"{clusters[0].upper()}{clusters[1:]}; results by site."),
        Item("12e-g", "Analysis: measures of performance, updating, calculation", "See “Methods”."),
        Item("13", "Class imbalance", "Not applicable: continuous outcome."),
        Item("14", "Fairness", "Results by site; other groups (sex, age, ethnicity) are for the author to add."),
        Item("15", "Model output", f"A continuous value{unit}; no threshold."),
        Item("16", "Training against evaluation data", f"Parts reported: {shown}. See “Participants”."),
        Item("17", "Ethical approval"),
        Item("18a-d", "Open science: funding, interests, protocol, registration"),
        Item("18e-f", "Open science: data and code", " ".join(_software_sentences(context.environment))),
        Item("19", "Patient and public involvement"),
        Item("20", "Participants: flow, characteristics, comparison of parts", "See “Participants”."),
        Item(
            "21", "Model development: numbers in each analysis", (cohort.get("counts") and "See “Participants”.") or ""
        ),
        Item(
            "22", "Model specification", (context.run_id and "Weights and configuration are kept with the run.") or ""
        ),
        Item("23", "Model performance, with intervals and by group", "See “Results”."),
        Item("24", "Model updating"),
        Item("25", "Interpretation"),
        Item("26", "Limitations", PHANTOM_LIMIT if context.phantom else ""),
        Item("27", "Usability: input needed, expertise, next steps"),
    ]


def _answer(part: Part) -> str:
    assessment = part.assessment
    seen = {"val": " (validation part, which chose the model)", "train": " (training part: no measure of performance)"}
    what = "the training mean" if assessment.null_model == "training" else "the mean of these participants themselves"
    gain, unit = assessment.metrics["mae_gain"], f" {assessment.unit}" if assessment.unit else ""
    who = f"{f'For {part.model}: in' if part.model else 'In'} {_who(part)}{seen.get(part.split, '')}"
    text = f"{who} the mean absolute error was {_with_interval(part, 'mae')}, "
    if gain.low is None or gain.high is None or gain.low <= 0 <= gain.high:
        difference = f"{interval_text(gain, 1)}{unit}"
        return f"{text}which cannot be told from the error of predicting {what} (difference {difference})"
    better = gain.low > 0
    low, high = (gain.low, gain.high) if better else (-gain.high, -gain.low)
    size = f"{number_text(abs(gain.estimate), 1)}{unit} ({number_text(low, 1)} to {number_text(high, 1)})"
    return f"{text}{size} {'lower' if better else 'higher'} than that of predicting {what}"


def _data_sentences(context: ReportContext) -> list[str]:
    cohort = context.cohort or {}
    split = context.split or cohort.get("split") or {}
    sentences = []
    if context.phantom:
        sentences.append(PHANTOM_LIMIT)
    if cohort.get("tables"):
        names = [f"{one.get('name', 'table')} (sha256 {str(one.get('sha256'))[:12]})" for one in cohort["tables"]]
        sentences.append(f"The cohort was read from {join_words(names)}.")
    if "verified" in cohort:
        verified = "Every image file was verified before training."
        sentences.append(verified if cohort["verified"] else "The image files were not verified before training.")
    if split:
        protocol = f"protocol “{split.get('protocol') or context.protocol}”"
        seed = f" with seed {split['seed']}" if split.get("seed") is not None else ""
        digest = f" (hash {str(split['hash'])[:12]})" if split.get("hash") else ""
        sentences.append(
            f"Participants were assigned to parts by {protocol}{seed}{digest}; all sessions and images of a "
            "participant stayed in one part."
        )
    if context.config_yaml:
        sentences.append("Model, preprocessing and training are those of the configuration below.")
    return sentences


def _statistics_sentences(part: Part, parts: Sequence[Part]) -> list[str]:
    assessment = part.assessment
    sentences = [
        "The unit of analysis is the participant: predictions were averaged over the images of one participant and "
        "session, and over nothing else.",
        "Errors are prediction less target; R² refers to the mean of the evaluated targets, and the bias slope is the "
        "least-squares slope of the error on the target.",
    ]
    if assessment.num_runs > 1:
        sentences.append(
            f"Each metric was computed for each of {assessment.num_runs} runs (repeat x seed) and averaged; the "
            "intervals are those of this mean over participants, and the spread between runs is given apart."
        )
    if assessment.num_replicates:
        sentences.append(
            f"Intervals are the 2.5th and 97.5th percentiles of {assessment.num_replicates:,} bootstrap replicates "
            f"that resample participants with all their sessions (seed {assessment.seed}); those of a difference are "
            "paired."
        )
    sentences.append(f"The null model predicts {assessment.null_model_text}.")
    missing = count_text(_num_missing(parts), "row")
    sentences.append(f"Rows without a target were left out ({missing}); no value was imputed.")
    return sentences


def _software_sentences(environment: Mapping[str, Any] | None) -> list[str]:
    known = environment or {}
    packages = known.get("packages") or {}
    versions = [f"{name} {packages[name]}" for name in SOFTWARE if name in packages]
    if known.get("python"):
        versions.append(f"Python {known['python']}")
    return [f"Software: {join_words(versions)}."] if versions else []


def _num_missing(parts: Sequence[Part]) -> int:
    return sum(part.assessment.num_missing_target for part in parts)


def _with_interval(part: Part, name: str) -> str:
    value, unit = part.assessment.metrics[name], f" {part.assessment.unit}" if part.assessment.unit else ""
    text = f"{number_text(value.estimate, 1)}{unit}"
    if value.low is None or value.high is None:
        return text
    return f"{text} (95 % interval {number_text(value.low, 1)} to {number_text(value.high, 1)})"


def _who(part: Part) -> str:
    people = count_text(part.assessment.num_participants, "participant")
    return people if set(part.assessment.rows["site"]) == {"unknown"} else f"{people} of {_sites(part)}"


def _sites(part: Part) -> str:
    sites = sorted(part.assessment.rows["site"].unique())
    if len(sites) > MAX_SITES:
        return f"{len(sites)} sites"
    return f"{'site' if len(sites) == 1 else 'sites'} {join_words(sites)}"

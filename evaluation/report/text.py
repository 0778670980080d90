"""The sentences of the report of one run, made from facts, and its checklist."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.report import binary
from evaluation.report.checklist import Item, checklist_items
from evaluation.report.context import ReportContext
from evaluation.report.parts import Part, num_missing, sites_text, who
from evaluation.wording import capitalised, interval_text, join_words, number_text, people_text

PHANTOM_LIMIT = "The cohort is made by software: the report checks software and is no evidence about people."
SOFTWARE = ("fontanel", "torch", "pytorch-lightning", "torchio", "monai", "numpy", "scipy")


def answer(part: Part, external: Part | None = None) -> str:
    """Answer the question of the report in one sentence with intervals.

    Args:
        part: The part that decides.
        external: The same model at held-out sites, where there is such a part beside.
    """
    if part.task == "binary":
        return binary.answer(part, external)
    text = _answer(part)
    if external is None:
        return f"{text}."
    return f"{text}; in {who(external)}, held out from training, it was {_with_interval(external, 'mae')}."


def methods(part: Part, parts: Sequence[Part], context: ReportContext) -> list[str]:
    """Return the methods as sentences, each a fact of this run.

    Args:
        part: The part that decides.
        parts: All parts.
        context: What is known about the run.
    """
    return [*data_sentences(context), *_statistics_sentences(part, parts), *software_sentences(context.environment)]


def checklist(part: Part, parts: Sequence[Part], context: ReportContext) -> list[Item]:
    """Return the items of the checklist, filled where the software knows.

    Args:
        part: The part that decides.
        parts: All parts.
        context: What is known about the run.
    """
    assessment, cohort = part.assessment, context.cohort or {}
    tables = join_words([str(table.get("name")) for table in cohort.get("tables", [])])
    unit = f" in {assessment.unit}" if assessment.unit else ""
    shown = join_words([one.short.lower() for one in parts])
    texts = {
        "4": context.question or "",
        "5": tables and f"Read from {tables}.",
        "7": (context.config_yaml and "Every step is in “Configuration”.") or "",
        "8": part.output and f"Output “{part.output}”{unit}.",
        "10": f"{people_text(part.size)} in the part that decides.",
        "11": f"{people_text(num_missing(parts), 'row')} without a target left out; no value imputed.",
        "12a-c": "See “Methods”.",
        "12d": f"{capitalised(sites_text(part))}; results by site.",
        "12e-g": "See “Methods”.",
        "13": "Not applicable: continuous outcome.",
        "14": "Results by site; other groups (sex, age, ethnicity) are for the author to add.",
        "15": f"A continuous value{unit}; no threshold.",
        "16": f"Parts reported: {shown}. See “Participants”.",
        "18e-f": " ".join(software_sentences(context.environment)),
        "20": "See “Participants”.",
        "21": (cohort.get("counts") and "See “Participants”.") or "",
        "22": (context.run_id and "Weights and configuration are kept with the run.") or "",
        "23": "See “Results”.",
        "26": PHANTOM_LIMIT if context.phantom else "",
    }
    return checklist_items(texts | (binary.checklist_texts(part) if part.task == "binary" else {}))


def _answer(part: Part) -> str:
    assessment = part.assessment
    seen = {"val": " (validation part, which chose the model)", "train": " (training part: no measure of performance)"}
    what = "the training mean" if assessment.null_model == "training" else "the mean of these participants themselves"
    gain, unit = assessment.metrics["mae_gain"], f" {assessment.unit}" if assessment.unit else ""
    start = f"{f'For {part.model}: in' if part.model else 'In'} {who(part)}{seen.get(part.split, '')}"
    text = f"{start} the mean absolute error was {_with_interval(part, 'mae')}, "
    if gain.low is None or gain.high is None or gain.low <= 0 <= gain.high:
        difference = f"{interval_text(gain, 1)}{unit}"
        return f"{text}which cannot be told from the error of predicting {what} (difference {difference})"
    better = gain.low > 0
    low, high = (gain.low, gain.high) if better else (-gain.high, -gain.low)
    size = f"{number_text(abs(gain.estimate), 1)}{unit} ({number_text(low, 1)} to {number_text(high, 1)})"
    return f"{text}{size} {'lower' if better else 'higher'} than that of predicting {what}"


def data_sentences(context: ReportContext) -> list[str]:
    """Say where the participants come from and how they were assigned to parts."""
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
    is_binary = part.task == "binary"
    sentences = [
        "The unit of analysis is the participant: predictions were averaged over the images of one participant and "
        "session, and over nothing else."
    ]
    if is_binary:
        sentences += binary.metric_sentences(part)
    else:
        sentences.append(
            "Errors are prediction less target; R² refers to the mean of the evaluated targets, and the bias slope is "
            "the least-squares slope of the error on the target."
        )
    if assessment.num_runs > 1:
        sentences.append(
            f"Each metric was computed for each of {assessment.num_runs} runs (repeat x seed) and averaged; the "
            "intervals are those of this mean over participants, and the spread between runs is given apart."
        )
    if assessment.num_replicates:
        classes = ", those with and without the outcome apart" if is_binary else ""
        paired = "" if is_binary else "; those of a difference are paired"
        sentences.append(
            f"Intervals are the 2.5th and 97.5th percentiles of {assessment.num_replicates:,} bootstrap replicates "
            f"that resample participants with all their sessions{classes} (seed {assessment.seed}){paired}."
        )
    if is_binary:
        sentences += binary.interval_sentences(part)
    else:
        sentences.append(f"The null model predicts {assessment.null_model_text}.")
    missing = people_text(num_missing(parts), "row")
    return [*sentences, f"Rows without a target were left out ({missing}); no value was imputed."]


def software_sentences(environment: Mapping[str, Any] | None) -> list[str]:
    """Name the software with its versions, as far as they are known."""
    known = environment or {}
    packages = known.get("packages") or {}
    versions = [f"{name} {packages[name]}" for name in SOFTWARE if name in packages]
    if known.get("python"):
        versions.append(f"Python {known['python']}")
    return [f"Software: {join_words(versions)}."] if versions else []


def _with_interval(part: Part, name: str) -> str:
    value, unit = part.assessment.metrics[name], f" {part.assessment.unit}" if part.assessment.unit else ""
    text = f"{number_text(value.estimate, 1)}{unit}"
    if value.low is None or value.high is None:
        return text
    return f"{text} (95 % interval {number_text(value.low, 1)} to {number_text(value.high, 1)})"

"""The sentences of the report of a cross-validation, made from its numbers, and its checklist."""

from collections.abc import Mapping
from typing import Any

from evaluation.estimate import Estimate
from evaluation.gain import Gain
from evaluation.report.arms import Arm
from evaluation.report.checklist import Item, checklist_items
from evaluation.report.curves import NUM_REPLICATES as NUM_BAND_REPLICATES
from evaluation.report.results import CrossvalResults
from evaluation.report.text import PHANTOM_LIMIT, software_sentences
from evaluation.tasks import metrics_of
from evaluation.wording import (
    capitalised,
    count_text,
    enough_digits,
    join_words,
    number_text,
    p_text,
    people_text,
    share_text,
    signed_text,
)

ALPHA = 0.05
PROTOCOLS: Mapping[str, str] = {
    "same-site": "Each participant was scored by models trained on the other folds of the same site",
    "multi-site": "Each participant was scored by models trained on the other folds of the same site and on all other "
    "sites",
    "cross-site": "Each site was scored by models trained on the other sites alone: no participant of a test site was "
    "seen in training or validation",
    "k-fold": "Each participant was scored by models trained on the other folds of all sites together",
    "external": "The external sites were scored by models trained on all other sites",
}
WHERE: Mapping[str, str] = {
    "same-site": "in participants of the site that the model was trained at",
    "multi-site": "in participants of one of several training sites",
    "cross-site": "at a site that the model has never seen",
    "k-fold": "in participants that the model has never seen",
    "external": "at external sites that the model has never seen",
}


def question(results: CrossvalResults) -> str:
    """Return what was to be found out, in one sentence."""
    if results.context.question:
        return results.context.question
    where = WHERE.get(results.protocol, "in participants that the model has never seen")
    if results.main is None:
        return f"How well does {results.reference.name} predict {_outcome(results)} {where}?"
    return f"Does {_subject(results.main)} help to predict {_outcome(results)} {where}, and by how much?"


def answer(results: CrossvalResults) -> str:
    """Answer the question in one sentence: the change, its interval, what it amounts to, and what could be detected."""
    lead = "On phantom data: " if results.context.phantom else ""
    return capitalised(f"{lead}{_alone(results) if results.main is None else _against(results, results.main)}.")


def beside(results: CrossvalResults) -> list[str]:
    """Return what belongs beside the answer: the noise, other arms, harm, deviations, and scores taken before."""
    lines = []
    noise = [_short(results, arm) for arm in results.arms if arm.kind == "noise"]
    others = [_short(results, arm) for arm in results.arms[1:] if arm.kind in ("transfer", "variant", "baseline")]
    others = [text for text in others if text and not (results.main and text.startswith(f"{results.main.name} "))]
    if any(noise):
        lines.append(f"The noise, {results.reference.name} against itself: {'; '.join(filter(None, noise))}.")
    if others:
        lines.append(f"Other arms against {results.reference.name}: {'; '.join(others)}.")
    if results.main is not None and results.num_runs == 1:
        lines.append(
            "Each arm was trained once: the interval holds the chance of the participants, and leaves out that of the "
            "initial weights. Train three seeds or more before believing it."
        )
    harmed = [_place(gain) for gain in results.gains if gain.negative_transfer and _is_transfer(results, gain)]
    if harmed:
        lines.append(
            f"Negative transfer (the whole interval of the gain, unadjusted, lies below zero): {join_words(harmed)}."
        )
    lock = results.context.lock or {}
    if lock.get("deviations"):
        lines.append(f"The analysis deviates from its lock: {'; '.join(lock['deviations'])}.")
    return lines


def protocol_sentences(results: CrossvalResults) -> list[str]:
    """Return the protocol in words, with its numbers."""
    settings = results.context.settings
    sentences = [f"{PROTOCOLS.get(results.protocol, f'Protocol “{results.protocol}”')}."]
    sentences.append(
        "All arms share test participants, folds, repeats and seeds; validation participants come from training sites "
        "only, and everything about a participant stays on one side."
    )
    if settings.get("num_folds") and results.protocol not in ("cross-site", "external"):
        sentences.append(f"Each site was dealt into {count_text(int(settings['num_folds']), 'fold')}.")
    repeats, seeds = (int(results.rows[name].nunique()) for name in ("repeat", "seed"))
    drawn = f": {count_text(repeats, 'repeat')} with {count_text(seeds, 'seed')} each" if results.num_runs > 1 else ""
    sentences.append(f"Each arm has {count_text(results.num_runs, 'run')}{drawn}.")
    if settings.get("match_train_size"):
        sentences.append("Trainings of the protocols same-site, multi-site and cross-site were made equally large.")
    if settings.get("max_train_per_site"):
        sentences.append(f"A training used at most {settings['max_train_per_site']} participants of a site.")
    return sentences


def methods(results: CrossvalResults) -> list[str]:
    """Return the methods as sentences, each a fact of this study."""
    context = results.context
    return [
        *([PHANTOM_LIMIT] if context.phantom else []),
        *_cohort_sentences(context.cohort),
        *protocol_sentences(results),
        *_arm_sentences(results),
        *_choice_sentences(results),
        *_statistics_sentences(results),
        *software_sentences(context.environment),
    ]


def checklist(results: CrossvalResults) -> list[Item]:
    """Return the items of the checklist, filled where the software knows."""
    context = results.context
    tables = join_words([str(table.get("name")) for table in (context.cohort or {}).get("tables", [])])
    whole = results.whole(results.main)
    size = people_text(results.size)
    if whole is not None and whole.detectable == whole.detectable:
        digits = metrics_of(results.task)[results.metric].digits
        size += (
            f"; smallest gain detectable with a power of 80 %: {number_text(whole.detectable, digits)} in "
            f"{results.metric_name()}"
        )
    is_binary = results.task == "binary"
    by_group = "Results by site and by subgroup." if context.subgroups is not None else "Results by site."
    texts = {
        "4": question(results),
        "5": tables and f"Read from {tables}.",
        "7": (context.config_yaml and "Every step is in “Configuration”.") or "",
        "8": f"Output “{results.output}”" + (f" in {results.unit}." if results.unit else "."),
        "10": f"{size}.",
        "11": f"{_missing(results)} without a known outcome left out of the scores.",
        "12a-c": "See “Methods” and “Arms”.",
        "12d": f"{capitalised(_sites_words(results))}; results by site, and by training and test site.",
        "12e-g": "See “Methods”.",
        "13": f"{_events(results)}; see “Configuration” for weights or sampling."
        if is_binary
        else "Not applicable: continuous outcome.",
        "14": f"{by_group} Other groups are for the author to add.",
        "15": "A probability, and a decision at each model's own threshold."
        if is_binary
        else "A continuous value; no threshold.",
        "16": f"Protocol “{results.protocol}”. See “Protocol”.",
        "18a-d": _lock_words(context.lock),
        "18e-f": " ".join(software_sentences(context.environment)),
        "20": "See “Participants”.",
        "21": "See “Protocol”." if context.cells is not None else "",
        "22": (context.run_id and "Weights and configurations are kept with the runs of each arm.") or "",
        "23": "See “Primary result”.",
        "26": PHANTOM_LIMIT if context.phantom else "",
    }
    return checklist_items(texts)


def value_text(results: CrossvalResults, value: Estimate, metric: str | None = None) -> str:
    """Return a value of a metric with as many decimals as a sentence bears, and its unit."""
    shown = metrics_of(results.task)[metric or results.metric]
    unit = f" {results.unit}" if shown.in_unit and results.unit else ""
    return f"{number_text(value.estimate, min(shown.digits, 2))}{unit}" if value.defined else "undefined"


def _alone(results: CrossvalResults) -> str:
    value = results.scores[results.metric][results.reference.name].value
    interval = _interval(value.low, value.high)
    return (
        f"{_scope(results)}, the {results.metric_name()} of {results.reference.name} was "
        f"{value_text(results, value)}{interval}; there is no second arm to compare it with"
    )


def _against(results: CrossvalResults, arm: Arm) -> str:
    whole = results.whole(arm)
    name = f"the {results.metric_name()}"
    if whole is None or not whole.gain.defined:
        sites = join_words(list(whole.left_out)) if whole else ""
        where = f" ({sites} has too few participants of a class)" if sites else ""
        return f"what {_subject(arm)} does to {name} could not be computed{where}"
    text = (
        f"{_subject(arm)} changed {name} by {_change(results, whole)} against {_reference_words(results)}, from "
        f"{value_text(results, whole.reference_value)} to {value_text(results, whole.value)} "
        f"({_scope(results).removeprefix('in ')}): {_verdict(results, arm, whole)}"
    )
    if whole.detectable != whole.detectable:
        return text
    digits = min(metrics_of(results.task)[results.metric].digits, 2)
    unit = f" {results.unit}" if results.unit else ""
    return (
        f"{text}; the smallest gain that this study would have detected four times in five is "
        f"{number_text(whole.detectable, digits)}{unit}"
    )


def _verdict(results: CrossvalResults, arm: Arm, whole: Gain) -> str:
    low, high = whole.gain.low, whole.gain.high
    if low is None or high is None:
        return "too few participants for an interval"
    if low <= 0 <= high:
        return "not distinguishable from none"
    survives = whole.p_holm < ALPHA
    family = len({gain.arm for gain in results.gains if gain.site is None})
    holm = (
        "" if survives else f", but not after Holm's adjustment for {family} comparisons (p = {p_text(whole.p_holm)})"
    )
    if low > 0:
        return f"an improvement{holm}"
    return f"{'negative transfer, it did harm' if arm.kind == 'transfer' else 'a loss'}{holm}"


def _change(results: CrossvalResults, gain: Gain) -> str:
    """Return the change of the metric itself: a gain in an error is a change downwards."""
    digits = enough_digits([gain.gain.low, gain.gain.high], min(metrics_of(results.task)[results.metric].digits, 2))
    unit = f" {results.unit}" if results.unit else ""
    sign = 1 if results.larger_is_better else -1
    ends = sorted(sign * end for end in (gain.gain.low, gain.gain.high) if end is not None)
    interval = _interval(ends[0], ends[-1], digits) if ends else ""
    return f"{signed_text(sign * gain.gain.estimate, digits)}{unit}{interval}"


def _short(results: CrossvalResults, arm: Arm) -> str:
    whole = results.whole(arm)
    if whole is None or not whole.gain.defined:
        return ""
    return f"{arm.name} {_change(results, whole).replace('95 % interval ', '')}"


def _interval(low: float | None, high: float | None, digits: int = 2) -> str:
    if low is None or high is None:
        return ""
    return f" (95 % interval {number_text(low, digits)} to {number_text(high, digits)})"


def _subject(arm: Arm) -> str:
    if arm.kind == "transfer":
        return "pretraining" if arm.name == "pretrained" else f"pretraining (arm {arm.name})"
    if arm.kind == "noise":
        return f"training once more ({arm.name})"
    return f"the baseline {arm.name}" if arm.kind == "baseline" else f"the arm {arm.name}"


def _reference_words(results: CrossvalResults) -> str:
    return "training from scratch" if results.reference.name == "scratch" else results.reference.name


def _scope(results: CrossvalResults) -> str:
    people = people_text(results.size)
    runs = f", {results.num_runs} runs of each arm" if results.num_runs > 1 else ""
    mean = ", mean over sites" if len(results.sites) > 1 else ""
    return f"in {people} of {_sites_words(results)}{mean}{runs}"


def _outcome(results: CrossvalResults) -> str:
    return "the outcome" if results.output in ("outcome", "target") else results.output


def _sites_words(results: CrossvalResults) -> str:
    sites = results.sites
    if len(sites) > 4:
        return f"{len(sites)} sites"
    return f"{'site' if len(sites) == 1 else 'sites'} {join_words(sites)}"


def _place(gain: Gain) -> str:
    return gain.arm if gain.site is None else f"{gain.arm} at {gain.site}"


def _is_transfer(results: CrossvalResults, gain: Gain) -> bool:
    return any(arm.name == gain.arm and arm.kind == "transfer" for arm in results.arms)


def _events(results: CrossvalResults) -> str:
    return f"{share_text(results.counts['events', ''], results.size)} with the outcome"


def _missing(results: CrossvalResults) -> str:
    return people_text(results.missing if results.shared else results.num_missing)


def _lock_words(lock: Mapping[str, Any] | None) -> str:
    if not lock or not lock.get("locked"):
        return ""
    return f"Analysis locked on {lock['locked']}, identity {str(lock.get('identity', ''))[:12]}."


def _cohort_sentences(cohort: Mapping[str, Any] | None) -> list[str]:
    known = cohort or {}
    sentences = []
    if known.get("tables"):
        names = [f"{one.get('name', 'table')} (sha256 {str(one.get('sha256'))[:12]})" for one in known["tables"]]
        sentences.append(f"The cohort was read from {join_words(names)}.")
    if "verified" in known:
        verified = "Every image file was verified before training."
        sentences.append(verified if known["verified"] else "The image files were not verified before training.")
    return sentences


def _arm_sentences(results: CrossvalResults) -> list[str]:
    words = [f"{arm.name} ({arm.description})" for arm in results.arms]
    sentences = [f"{'Arms' if len(words) > 1 else 'Arm'}: {join_words(words)}."]
    for name, ledger in results.context.ledgers.items():
        source = ledger.get("source", {})
        share = f"{100 * float(ledger['share']):.1f} %" if ledger.get("share") is not None else "an unknown share"
        sentences.append(
            f"In {name}, {share} of the encoder's parameters came from {source.get('file', 'a file')} "
            f"(sha256 {str(source.get('sha256', ''))[:12]}); the head was new."
        )
    return sentences


def _choice_sentences(results: CrossvalResults) -> list[str]:
    settings, cells = results.context.settings, results.context.cells
    if settings.get("num_inner_folds") is None:
        return []
    how = "Epoch, threshold and temperature were chosen on the validation participants."
    if inner := settings["num_inner_folds"]:
        how = (
            f"Threshold, temperature and number of epochs were chosen from pooled out-of-fold predictions of {inner} "
            "inner folds of the training participants."
        )
    elif cells is not None and not cells.loc[cells["part"] == "val", "participants"].any():
        how = "No participants were set apart for validation."
    if not settings.get("tuned"):
        return [how]
    among = f"{join_words(settings['tuned'])} were chosen within the training participants of each run"
    return [f"{among}, with equal effort in every arm that has a network: {settings['effort']}.", how]


def _statistics_sentences(results: CrossvalResults) -> list[str]:
    context = results.context
    stratum = "within site and outcome class" if results.task == "binary" else "within site"
    several = len(results.sites) > 1
    sentences = [
        "The unit of analysis is the participant: predictions were averaged over the images of one participant and "
        "session, and over nothing else.",
        f"The primary metric is the {results.metric_name()}, that of a single model: it was computed for each run"
        + (" at each site, and averaged over runs and sites." if several else ", and averaged over the runs.")
        + " A gain is the paired difference to the reference, positive where the arm is better.",
    ]
    if context.num_replicates:
        sentences.append(
            f"Intervals are percentiles of a two-way bootstrap over participants ({stratum}) and runs, "
            f"{context.num_replicates:,} replicates for the primary metric and {results.secondary_replicates:,} for "
            f"others, bands of figures {min(NUM_BAND_REPLICATES, context.num_replicates)} over participants (seed "
            f"{context.seed}); p-values belong to these intervals."
        )
    tested = sorted({gain.arm for gain in results.gains if gain.site is None and gain.p_value == gain.p_value})
    if tested:
        sentences.append(
            f"Holm's adjustment is over {count_text(len(tested), 'comparison')} ({join_words(tested)}) in the primary "
            "metric over all sites; nothing else is adjusted. The smallest detectable gain is 2.8 standard errors of "
            "the paired difference (80 % power, two-sided 5 %)."
        )
    if any(gain.corrected_t for gain in results.gains):
        sentences.append("The corrected resampled t-test is Nadeau and Bengio's (doi:10.1023/A:1024068626366).")
    sentences.append(
        f"Participants without a known outcome were not scored ({_missing(results)}); no outcome was imputed."
    )
    return sentences

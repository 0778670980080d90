"""Tables of what a cross-validation recorded: weight ledgers, the audit, the lock; and of what others published."""

from evaluation.estimate import Estimate
from evaluation.report.arms import Score
from evaluation.report.page import Table
from evaluation.report.results import CrossvalResults
from evaluation.report.tables import published_text, source_text
from evaluation.tasks import metrics_of
from evaluation.wording import count_text, interval_text, join_words


def ledger_table(results: CrossvalResults) -> Table | None:
    """Return what each transfer loaded, and from where; None where there was none."""
    rows = []
    for arm, ledger in results.context.ledgers.items():
        source, options = ledger.get("source", {}), ledger.get("options", {})
        origin = " ".join(filter(None, [_known(source.get("study")), f"run {str(source.get('run_id'))[:8]}"]))
        datasets = source.get("datasets")
        seen = join_words(list(datasets)) if isinstance(datasets, (list, tuple)) else str(datasets or "unknown")
        skipped = [f"{len(ledger.get(name) or [])} {name}" for name in ("excluded", "unexpected") if ledger.get(name)]
        rows.append(
            [
                arm,
                f"{source.get('file', 'unknown')}, sha256 {str(source.get('sha256', ''))[:12]}",
                f"{source.get('kind', 'unknown')}, {origin if _known(source.get('run_id')) else 'no run known'}",
                seen,
                str(options.get("strategy", "full")),
                join_words(skipped) or "none",
                f"{100 * float(ledger['share']):.1f} %" if ledger.get("share") is not None else "unknown",
            ]
        )
    if not rows:
        return None
    columns = ["Arm", "Source", "Provenance", "Datasets seen", "Strategy", "Tensors left out", "Encoder loaded"]
    note = "Encoder loaded: share of its parameters. Of one run of each arm; each run keeps its own transfer.json."
    return Table("Weight ledger.", columns, rows, 6, note)


def findings_table(results: CrossvalResults) -> Table | None:
    """Return what the leakage audit found; None where there was none."""
    if results.context.findings is None:
        return None
    note = "leak: invalidates a test. warning: may explain a score. unknown: could not be looked at."
    if results.shared:  # what was found is said with names and counts of participants
        rows = [[one.check, one.status, one.advice] for one in results.context.findings]
        return Table("Leakage audit.", ["Check", "Status", "What to do"], rows, 3, note)
    rows = [[one.check, one.status, one.found, one.advice] for one in results.context.findings]
    return Table("Leakage audit.", ["Check", "Status", "Found", "What to do"], rows, 4, note)


def lock_table(results: CrossvalResults) -> Table | None:
    """Return what was locked when, what deviates from it, and how often these participants have been scored."""
    lock, times = results.context.lock, results.context.times_scored
    rows: list[list[str]] = []
    if lock:
        rows += [
            ["Locked", str(lock.get("locked") or "unknown")],
            ["Identity", str(lock.get("identity") or "unknown")],
            ["Primary metric", str(lock.get("primary_metric") or results.metric)],
            ["Protocol", str(lock.get("protocol") or results.protocol)],
            ["Arms", ", ".join(lock.get("arms") or [arm.name for arm in results.arms])],
            ["Deviations since", "; ".join(lock.get("deviations") or []) or "none"],
        ]
    if times is not None:
        rows.append(["Scored in this store", _times_text(times)])
    if not rows:
        return None
    note = (
        "Locked before the first test score. Identity: hash of study, protocol, primary metric, folds, table and "
        "configuration."
    )
    return Table("The analysis, as it was locked.", ["What", "How"], rows, 2, note if lock else "")


def published_beside(results: CrossvalResults, cohort: str) -> Table | None:
    """Return published figures beside the measured ones, each with its cohort; None without any."""
    rows = []
    for entry in results.context.published:
        metric, protocol = str(entry["metric"]), entry.get("protocol")
        is_gain = entry.get("of") == "gain"
        known = metrics_of(results.task).get(metric)
        label = known.label if known else metric
        what = f"Gain in {label.lower()} over training from scratch" if is_gain else label
        in_percent = "%" in published_text(entry)
        comparable = protocol in (None, results.protocol)
        measured = _measured(results, metric, is_gain, in_percent) if comparable else "another protocol"
        rows.append([what, str(protocol or "not said"), source_text(entry), published_text(entry), measured])
    if not rows:
        return None
    columns = ["Quantity", "Protocol", "Source and cohort", "Published", f"Measured on {cohort}"]
    note = "The cohorts differ: the columns stand side by side for orientation, and neither reproduces the other."
    return Table("Published beside measured.", columns, rows, 5, note)


def _measured(results: CrossvalResults, metric: str, is_gain: bool, in_percent: bool) -> str:
    arm = results.main if results.main is not None else results.reference
    score: Score | None = results.scores.get(metric, {}).get(arm.name)
    value = None if score is None else (score.gain if is_gain else score.value)
    if value is None or not value.defined:
        return "not measured"
    digits, unit = min(metrics_of(results.task)[metric].digits, 3), ""
    if in_percent:
        ends = (None if end is None else 100 * end for end in (value.low, value.high))
        value, digits, unit = Estimate(100 * value.estimate, *ends), 1, " %"
    return f"{interval_text(value, digits)}{unit}, arm {arm.name}"


def _times_text(times: int) -> str:
    return f"These participants, by {count_text(times, 'run')}, this one included"


def _known(text: object) -> str:
    return "" if text in (None, "", "unknown") else str(text)

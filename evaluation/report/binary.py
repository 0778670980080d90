"""What the report of one run says about a binary outcome: tables, sentences and figures."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from evaluation.assessment import Assessment
from evaluation.binary import MAX_SLOW_REPLICATES, decisions
from evaluation.calibration import reliability_table
from evaluation.decision_curve import decision_curve
from evaluation.design import DesignError
from evaluation.estimate import Estimate
from evaluation.figures import binary as figures
from evaluation.figures.binary import Line
from evaluation.operating_point import DEFAULT_THRESHOLD, confusion
from evaluation.report.curves import NUM_REPLICATES, calibration_table, ranked_by_confident_error, roc_table
from evaluation.report.page import Picture, Table, picture
from evaluation.report.parts import MIN_SITE_PARTICIPANTS, Part, all_sites, drawn, num_events, site_label, who
from evaluation.tasks import metrics_of
from evaluation.wording import interval_text, number_text, share_text, size_text

RESULTS = ("auroc", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "brier", "calibration_slope")
HEADS = ("AUROC", "Balanced accuracy", "Sensitivity", "Specificity", "PPV", "NPV", "Brier", "Calibration slope")
NUM_WORST = 10
MAX_HALF_SITES = 4  # more need the whole width


def answer(part: Part, external: Part | None = None) -> str:
    """Answer the question of the report in one sentence with intervals.

    Args:
        part: The part that decides.
        external: The same model at held-out sites, where there is such a part beside.
    """
    seen = {"val": " (validation part, which chose the model)", "train": " (training part: no measure of performance)"}
    area = part.assessment.metrics["auroc"]
    start = f"{f'For {part.model}: in' if part.model else 'In'} {who(part)}{seen.get(part.split, '')}"
    if not area.defined:
        return f"{start} the area under the ROC curve is undefined: all of them have the same outcome."
    text = f"{start} ({events_text(part)}) the area under the ROC curve was {_with_interval(area)}, "
    text += _against_chance(area)
    metrics = part.assessment.metrics
    if metrics["sensitivity"].defined and metrics["specificity"].defined:
        text += (
            f"; at {_threshold_words(part)}, sensitivity was {number_text(metrics['sensitivity'].estimate)} and "
            f"specificity {number_text(metrics['specificity'].estimate)}"
        )
    if external is None:
        return f"{text}."
    there = external.assessment.metrics["auroc"]
    value = _with_interval(there) if there.defined else "undefined (one class)"
    return f"{text}; in {who(external)}, held out from training, the area was {value}."


def results_table(parts: Sequence[Part]) -> Table:
    """Return the main results: each part, and each of its sites."""
    first = parts[0].assessment
    rows: list[list[str]] = []
    for part in parts:
        rows.append([part.label])
        for site, assessment in {"": part.assessment, **part.sites}.items():
            counts = [str(part.counts[kind, site]) for kind in ("n", "events")]
            values = [_shown(assessment, key) if part.shows(site) else "" for key in RESULTS]
            rows.append([site or all_sites(part), *counts, *values])
    note = (
        f"n: participants. Second lines: 95 % intervals (see “Methods”), {first.num_replicates:,} bootstrap replicates "
        f"where they are bootstrapped, from {MIN_SITE_PARTICIPANTS} participants on. AUROC: area under the ROC curve, "
        "0.5 for a model that knows nothing. Calibration slope: 1 is ideal, below 1 predictions are too extreme."
    )
    return Table("Results by part and site.", ["Site", "n", "Events", *HEADS], rows, 1, note)


def worst_table(parts: Sequence[Part]) -> Table:
    """Return the participants about whom the model was surest and wrong."""
    rows = pd.concat(
        [drawn(part, ranked_by_confident_error(part.assessment.rows)).assign(part=part.short) for part in parts],
        ignore_index=True,
    )
    worst = rows.sort_values("error", ascending=False, kind="stable").head(NUM_WORST)
    optional = [name for name in ("dataset", "session_id") if (rows[name] != "").any()]
    several = ["part"] if len(parts) > 1 else []
    titles = {"dataset": "Dataset", "session_id": "Session", "part": "Part"}
    cells = [
        [
            *(row[name] for name in ("participant_id", *optional, "site", *several)),
            f"{row['target']:.0f}",
            number_text(row["prediction"]),
            f"{row['num_wrong']} of {row['num_runs']}",
        ]
        for row in worst.to_dict("records")
    ]
    columns = ["Participant", *(titles[name] for name in optional), "Site", *(titles[name] for name in several)]
    columns += ["True", "Predicted risk", "Decisions wrong"]
    note = "Look at these images first: wrong labels, wrong orientation and motion are found here."
    if parts[0].assessment.num_runs > 1:
        note += " Risks are averaged over the runs on the log odds, for this list only."
    return Table(f"Surest errors: {len(cells)} of {len(rows)}.", columns, cells, len(columns) - 3, note)


def pictures(parts: Sequence[Part]) -> list[Picture]:
    """Return the figures: ROC curve, calibration, decision curve and risks of each part, and the sites."""
    found = [one for part in parts for one in _pictures(part)]
    return [*found, _sites(parts, fills_row=len(found) % 2 == 0)]


def refusal(part: Part) -> str:
    """Say why there is no decision curve, empty where there is one."""
    try:
        part.assessment.design.require_risks("a decision curve")
    except DesignError as error:
        return str(error)
    return "" if 0 < num_events(part.assessment) < part.assessment.num_participants else "One class is missing."


def checklist_texts(part: Part) -> dict[str, str]:
    """Return the items of the checklist that differ from those of a continuous outcome."""
    return {
        "13": f"{events_text(part)}; nothing was resampled for the evaluation.",
        "15": f"A probability; the decision is taken at {_threshold_words(part)}.",
    }


def metric_sentences(part: Part) -> list[str]:
    """Say how the metrics are defined."""
    sentences = [
        "Predictions are probabilities of the outcome after the temperature of the model; discrimination is the area "
        f"under the ROC curve, ties counting half; decisions are taken at {_threshold_words(part)}.",
        "Calibration slope and calibration-in-the-large are those of logistic models on the log odds of the "
        "prediction; the integrated calibration index uses lowess with a span of 2/3, the expected and maximum "
        "calibration error 10 bins of equal width.",
    ]
    design = part.assessment.design
    if design.prevalence is not None:
        sentences.append(f"Rows were re-weighted to a prevalence of {design.prevalence:g}.")
    elif not design.knows_risks:
        sentences.append(
            "The design is case-control and no prevalence is stated, so what rests on the risk observed is undefined."
        )
    return sentences


def interval_sentences(part: Part) -> list[str]:
    """Say which intervals are no percentiles of the bootstrap."""
    kinds = {value.interval for value in part.assessment.metrics.values() if value.low is not None}
    sentences = []
    if "DeLong" in kinds:
        sentences.append("The interval of the area under the ROC curve is DeLong's, on the log odds of the area.")
    if "Wilson" in kinds:
        sentences.append("Intervals of proportions are Wilson's.")
    if part.assessment.num_replicates > MAX_SLOW_REPLICATES:
        sentences.append(
            f"The integrated calibration index has {MAX_SLOW_REPLICATES} replicates, and bands of figures "
            f"{NUM_REPLICATES}."
        )
    return sentences


def events_text(part: Part) -> str:
    """Say how many participants have the outcome."""
    return f"{share_text(part.events, part.size)} with the outcome"


def sites_frame(parts: Sequence[Part]) -> pd.DataFrame:
    """Return the area under the ROC curve by site of the given parts, for the figure."""
    records = []
    for part in parts:
        for site, assessment in (part.shown_sites or {"": part.assessment}).items():
            area = assessment.metrics["auroc"]
            ends = (area.low, area.high) if assessment.num_participants >= MIN_SITE_PARTICIPANTS else (None, None)
            records.append(
                {
                    "site": site_label(part, site),
                    "num_participants": part.counts["n", site],
                    "num_events": part.counts["events", site],
                    "estimate": area.estimate,
                    "low": np.nan if ends[0] is None else ends[0],
                    "high": np.nan if ends[1] is None else ends[1],
                }
            )
    return pd.DataFrame(records)


def _pictures(part: Part) -> list[Picture]:
    assessment = part.assessment
    rows, replicates = assessment.rows, min(assessment.num_replicates, NUM_REPLICATES)
    band = f"Bands: 95 %, pointwise, {replicates} bootstrap replicates." if replicates else ""
    found = []
    area = assessment.metrics["auroc"]
    if area.defined:
        curve = roc_table(rows, num_replicates=replicates, seed=assessment.seed)
        words = f"AUROC {interval_text(area)}"
        over = f" Averaged vertically over {assessment.num_runs} runs." if assessment.num_runs > 1 else ""
        found.append(
            picture(
                figures.roc_curves({Line(words, 0): curve}),
                f"ROC curve; {words}",
                f"ROC curve. {part.label}. {band}{over}",
            )
        )
        found += [_calibration(part, replicates, band), *_decision(part, replicates, band)]
    found.append(_histogram(part))
    return found


def _calibration(part: Part, replicates: int, band: str) -> Picture:
    assessment = part.assessment
    rows, seed = assessment.rows, assessment.seed
    after = Line("after temperature" if _is_recalibrated(rows) else "smooth curve", 0)
    curves = {after: calibration_table(rows, num_replicates=replicates, seed=seed)}
    if _is_recalibrated(rows):
        before = calibration_table(rows, column="score_1", num_replicates=0)
        curves[Line("before temperature", 1, band=False, thin=True)] = before
    bins = reliability_table(rows["target"], rows["prediction"]) if assessment.num_runs == 1 else None
    slope = interval_text(assessment.metrics["calibration_slope"])
    ratio = interval_text(assessment.metrics["oe_ratio"])
    points = " Points: bins of width 0.1 with Wilson's intervals." if bins is not None else ""
    return picture(
        figures.calibration_curves(curves, {after: rows}, bins),
        f"Calibration curve; slope {slope}, observed over expected events {ratio}",
        f"Calibration: slope {slope}, observed / expected events {ratio}. {part.label}. {band}{points} Below: "
        "predicted risks of those with the outcome (up) and without (down).",
    )


def _decision(part: Part, replicates: int, band: str) -> list[Picture]:
    if refusal(part):
        return []
    rows, assessment = part.assessment.rows, part.assessment
    table = decision_curve(
        rows["target"],
        rows["prediction"],
        participant_id=rows["participant"],
        run=rows["run"],
        design=assessment.design,
        num_replicates=replicates,
        seed=assessment.seed,
    )
    useful = table[table["net_benefit"] > table[["treat_all", "treat_none"]].max(axis=1)]["threshold"]
    where = f"above both from {useful.min():g} to {useful.max():g}" if len(useful) else "nowhere above both"
    return [
        picture(
            figures.decision_curves({Line("model", 0): table}),
            f"Decision curve of the model beside treating all and none: {where}",
            f"Net benefit by threshold probability, beside treating all and none. {part.label}. {band}",
        )
    ]


def _histogram(part: Part) -> Picture:
    rows = part.assessment.rows
    limits = (rows["threshold"].min(), rows["threshold"].max()) if "threshold" in rows else (DEFAULT_THRESHOLD,) * 2
    counts = confusion(rows["target"], decisions(rows))
    over = f", summed over {part.assessment.num_runs} runs" if part.assessment.num_runs > 1 else ""
    words = f"at {_threshold_words(part)}"
    if part.sharing is None:  # small numbers of wrong decisions follow from the others
        words += (
            f": {counts.true_positives} true positives, {counts.false_positives} false positives, "
            f"{counts.false_negatives} false negatives, {counts.true_negatives} true negatives{over}"
        )
    sizes = None if part.sharing is None else {1: size_text(part.events), 0: size_text(part.counts["others", ""])}
    return picture(
        figures.score_histogram(rows, threshold=limits, sizes=sizes),
        f"Histogram of the predicted risk by class, decided {words}",
        f"Predicted risks of those with the outcome (up) and without (down). {part.label}. Decided {words}.",
    )


def _sites(parts: Sequence[Part], *, fills_row: bool) -> Picture:
    sites = sites_frame(parts)
    full = fills_row or len(sites) > MAX_HALF_SITES
    listed = "; ".join(f"{row['site']}: {number_text(row['estimate'])}" for row in sites.to_dict("records"))
    return picture(
        figures.metric_by_site(sites, label="AUROC", width=8.8 if full else 4.3),
        f"Area under the ROC curve by site: {listed}",
        "Area under the ROC curve by site, with 95 % intervals from 5 participants on. Dashed: chance.",
        "full" if full else "half",
    )


def _is_recalibrated(rows: pd.DataFrame) -> bool:
    known = "score_1" in rows and rows["score_1"].notna().all()
    return bool(known and not np.allclose(rows["score_1"], rows["prediction"], atol=1e-6))


def _threshold_words(part: Part) -> str:
    rows = part.assessment.rows
    if "threshold" not in rows or rows["threshold"].isna().all():
        return f"the threshold {DEFAULT_THRESHOLD} (the table gives none)"
    low, high = rows["threshold"].min(), rows["threshold"].max()
    if number_text(low) == number_text(high):
        return f"the model's own threshold of {number_text(low)}"
    return f"each model's own threshold ({number_text(low)} to {number_text(high)})"


def _against_chance(area: Estimate) -> str:
    if area.low is None or area.high is None:
        return "with too few participants for an interval"
    if area.low > 0.5:
        return "better than chance"
    return "worse than chance" if area.high < 0.5 else "which cannot be told from chance"


def _with_interval(value: Estimate) -> str:
    text = number_text(value.estimate)
    if value.low is None or value.high is None:
        return text
    return f"{text} (95 % interval {number_text(value.low)} to {number_text(value.high)})"


def _shown(assessment: Assessment, name: str) -> str:
    value, digits = assessment.metrics[name], min(metrics_of("binary")[name].digits, 2)
    if assessment.num_participants < MIN_SITE_PARTICIPANTS:
        return interval_text(Estimate(value.estimate), digits)
    return interval_text(value, digits).replace(" (", "\n").removesuffix(")")

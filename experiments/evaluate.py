"""Compute metrics with intervals from a predictions table of any software.

The table (CSV, TSV or Parquet) needs only the columns participant_id, target and prediction. For a binary outcome
the target is 0 or 1 and the prediction the probability of 1; a column threshold says from where on the decision is 1
(0.5 without it), score_1 holds probabilities before recalibration. A table with several protocols, arms, splits or
outputs needs the options that choose one of each. Nothing is written; the numbers go to standard output.
"""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from evaluation.assessment import Assessment

DESIGNS = ("cohort", "case-control")
NET_BENEFIT_AT = (0.05, 0.1, 0.2, 0.3, 0.5)

FILTERS = {
    "protocol": "rows of this protocol",
    "arm": "rows of this arm",
    "train_sites": "rows of models trained on these sites",
    "split": "rows of this split (test, external, val, ...)",
    "output": "rows of this output (age, ...)",
    "site": "rows of this site; may be repeated",
    "dataset": "rows of this dataset; may be repeated",
}
REPEATABLE = ("site", "dataset")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    from evaluation.tasks import TASKS

    parser.add_argument("table", type=Path, metavar="TABLE", help="predictions table: CSV, TSV or Parquet")
    parser.add_argument("--task", choices=tuple(TASKS), required=True, help="kind of outcome")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON (undefined values are null)")
    parser.add_argument("--unit", help="unit of the target (default: years for the output 'age')")
    parser.add_argument(
        "--design", choices=DESIGNS, default=DESIGNS[0], help="binary outcomes: how participants came to be studied"
    )
    parser.add_argument(
        "--prevalence", type=_share, metavar="P", help="binary outcomes: share of events in the population meant"
    )
    parser.add_argument(
        "--num-replicates", type=_count, default=2000, metavar="N", help="bootstrap replicates; 0: no intervals"
    )
    parser.add_argument("--seed", type=_count, default=0, metavar="S", help="seed of the bootstrap (default 0)")
    chosen = parser.add_argument_group("choose rows")
    for name, text in FILTERS.items():
        flag = f"--{name.replace('_', '-')}"
        chosen.add_argument(flag, action="append" if name in REPEATABLE else "store", metavar=name.upper(), help=text)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate the table and print the metrics."""
    from evaluation.assessment import assess
    from evaluation.predictions import PredictionsError, read_predictions, select

    try:
        frame = select(read_predictions(arguments.table), **{name: getattr(arguments, name) for name in FILTERS})
        assessment = assess(
            frame,
            arguments.task,
            num_replicates=arguments.num_replicates,
            seed=arguments.seed,
            unit=arguments.unit,
            design=arguments.design,
            prevalence=arguments.prevalence,
        )
    except PredictionsError as error:
        raise PredictionsError(error.problems, arguments.table) from None
    if arguments.json:
        print(json.dumps(assessment.as_json(), indent=2, allow_nan=False))
    else:
        print(describe(assessment))
    return 0


def describe(assessment: "Assessment") -> str:
    """Return the metrics as a table for a terminal, with what they rest on."""
    from evaluation.tasks import metrics_of
    from evaluation.wording import count_text, with_unit

    rows = assessment.rows
    named = [f"{name} {value}" for name in ("output", "split", "arm", "protocol") if (value := rows[name].iloc[0])]
    counts = (
        count_text(assessment.num_participants, "participant"),
        count_text(len(rows.drop_duplicates(["participant", "session_id"])), "session"),
        count_text(int(rows["num_images"].sum()), "row"),
    )
    lines = [", ".join([assessment.task.capitalize(), *named]), ", ".join(counts)]
    if assessment.num_runs > 1:
        lines.append(f"Each metric is the mean over {assessment.num_runs} runs (repeat x seed).")
    if assessment.num_missing_target:
        lines.append(f"Left out because the target is missing: {count_text(assessment.num_missing_target, 'row')}.")
    shown = metrics_of(assessment.task)
    labels = {
        name: with_unit(shown[name].label, assessment.unit if shown[name].in_unit else None)
        for name in assessment.metrics
    }
    width, name_width = max(map(len, labels.values())), max(map(len, labels))
    lines += ["", f"{'Metric':<{width}}  {'Name':<{name_width}}  {'Estimate':>9}  95 % interval"]
    for name, value in assessment.metrics.items():
        number = f"{value.estimate:.3f}" if value.defined else "undefined"
        interval = "" if value.low is None or value.high is None else f"{value.low:.3f} to {value.high:.3f}"
        lines.append(f"{labels[name]:<{width}}  {name:<{name_width}}  {number:>9}  {interval}".rstrip())
    if assessment.task == "binary":
        lines += ["", *_decision_lines(assessment), *_risk_lines(assessment)]
    else:
        lines += ["", f"Null model: predicts {assessment.null_model_text}."]
    return "\n".join([*lines, *_interval_lines(assessment)])


def _decision_lines(assessment: "Assessment") -> list[str]:
    """Say where the threshold comes from and how many decisions were right."""
    from evaluation.binary import decisions
    from evaluation.operating_point import DEFAULT_THRESHOLD, confusion

    rows = assessment.rows
    if "threshold" in rows:
        low, high = rows["threshold"].min(), rows["threshold"].max()
        limits = f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}, by model"
        text = f"The decision is 1 from the threshold on: {limits} (column threshold)."
    else:
        text = f"The decision is 1 from {DEFAULT_THRESHOLD} on, because the table has no column threshold."
    counts = confusion(rows["target"], decisions(rows))
    over = f" (sum over {assessment.num_runs} runs)" if assessment.num_runs > 1 else ""
    return [
        text,
        f"Decisions{over}: {counts.true_positives} true positives, {counts.false_positives} false positives, "
        f"{counts.false_negatives} false negatives, {counts.true_negatives} true negatives.",
    ]


def _risk_lines(assessment: "Assessment") -> list[str]:
    """Return what concerns the size of the risks: the design, calibration before recalibration, net benefit."""
    design, lines = assessment.design, []
    if not design.knows_risks:
        share = assessment.rows["target"].mean()
        return [
            "The design is case-control and no prevalence is stated (--prevalence): what rests on the observed risk is",
            "undefined, and there is no decision curve. Average precision, accuracy, F1 and Matthews correlation are",
            f"those of this sample, whose share of events ({share:.3f}) was chosen.",
            "",
        ]
    if design.prevalence is not None:
        lines.append(f"Rows are re-weighted to a prevalence of {design.prevalence:g}.")
    lines.append("ECE and MCE: 10 bins of equal width. ICI: lowess with a span of 2/3.")
    return [*lines, *_before_recalibration(assessment), *_legacy_test(assessment), "", *_net_benefit_table(assessment)]


def _before_recalibration(assessment: "Assessment") -> list[str]:
    """Compare calibration with that of the scores before the model's temperature, where the table has them."""
    rows = assessment.rows
    if "score_1" not in rows or rows["score_1"].isna().any() or (rows["score_1"] == rows["prediction"]).all():
        return []
    from dataclasses import replace

    before = replace(assessment, rows=rows.assign(prediction=rows["score_1"]))
    pairs = [
        f"{label} {before.over_runs(name):.3f} -> {assessment.over_runs(name):.3f}"
        for name, label in (("brier", "Brier"), ("calibration_slope", "slope"), ("ici", "ICI"), ("ece", "ECE"))
    ]
    return ["Before (score_1) and after recalibration (prediction):", f"  {', '.join(pairs)}."]


def _legacy_test(assessment: "Assessment") -> list[str]:
    """Return the test of Hosmer and Lemeshow, for one model of which the rows are a sample of its population."""
    from evaluation.calibration import hosmer_lemeshow

    rows = assessment.rows
    if assessment.num_runs > 1 or assessment.design.prevalence is not None:
        return []
    seen: Literal["development", "external"] = "development" if rows["split"].iloc[0] == "train" else "external"
    test = hosmer_lemeshow(rows["target"], rows["prediction"], rows=seen)
    if not test.defined:
        return []
    return [
        f"Hosmer-Lemeshow (legacy): chi-squared {test.statistic:.2f}, {test.degrees_of_freedom} degrees of freedom "
        f"({seen} rows), p {test.p_value:.3f};",
        "10 groups by np.array_split of the stable ranks of the predictions.",
    ]


def _net_benefit_table(assessment: "Assessment") -> list[str]:
    from evaluation.decision_curve import decision_curve

    rows = assessment.rows
    table = decision_curve(
        rows["target"],
        rows["prediction"],
        participant_id=rows["participant"],
        run=rows["run"],
        thresholds=NET_BENEFIT_AT,
        design=assessment.design,
        num_replicates=assessment.num_replicates,
        seed=assessment.seed,
    )
    lines = ["Threshold  Net benefit  95 % interval     Treat all  Interventions avoided per 100"]
    for limit, benefit, low, high, treat_all, _, avoided in (table.round(3) + 0.0).itertuples(index=False):  # no -0.000
        band = "" if math.isnan(low) else f"{low:.3f} to {high:.3f}"
        lines.append(f"{limit:>9.2f}  {benefit:>11.3f}  {band:<16}  {treat_all:>9.3f}  {avoided:>29.1f}")
    return [*lines, "Treating nobody has a net benefit of 0.", ""]


def _interval_lines(assessment: "Assessment") -> list[str]:
    """Say how the intervals were computed."""
    if not assessment.num_replicates:
        return []
    within = "participants" if assessment.task != "binary" else "participants, events and non-events apart"
    lines = [f"Intervals: percentiles of {assessment.num_replicates} bootstrap replicates over {within}, seed "]
    lines[0] += f"{assessment.seed}."
    if assessment.task != "binary":
        return lines
    from evaluation.binary import MAX_SLOW_REPLICATES

    kinds: dict[str, list[str]] = {}
    for name, value in assessment.metrics.items():
        if value.low is not None:
            kinds.setdefault(value.interval, []).append(name)
    if "DeLong" in kinds:
        lines.append("DeLong's (on the log odds of the area): auroc.")
    if "Wilson" in kinds:
        lines.append(f"Wilson's: {', '.join(kinds['Wilson'])}.")
    if assessment.num_replicates > MAX_SLOW_REPLICATES:
        lines.append(f"{MAX_SLOW_REPLICATES} replicates: ici.")
    return [*lines, "Centred on the estimate, because resampling inflates distances: ici, ece, mce."]


def _share(text: str) -> float:
    """Parse a number between 0 and 1."""
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{number} does not lie between 0 and 1")
    return number


def _count(text: str) -> int:
    """Parse a whole number that is not negative."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number

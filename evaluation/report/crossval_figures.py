"""The figures of the report of a cross-validation."""

import numpy as np
import pandas as pd

from evaluation.decision_curve import decision_curve
from evaluation.design import DesignError
from evaluation.figures import binary as binary_figures
from evaluation.figures import transfer as transfer_figures
from evaluation.figures.binary import Line
from evaluation.gain import share_of_labels
from evaluation.report.arms import lines_of
from evaluation.report.curves import NUM_REPLICATES, calibration_table, roc_table
from evaluation.report.page import Picture, picture
from evaluation.report.results import CrossvalResults
from evaluation.tasks import metrics_of
from evaluation.wording import interval_text, with_unit

ALL_SITES = "all sites, mean"
RATIOS = (0.5, 1.0)  # ends of the colour scale of an area under the ROC curve


def forest_picture(results: CrossvalResults) -> Picture | None:
    """Return the gains of all arms by site and over all sites; None where there is one arm."""
    rows = []
    for arm in results.arms[1:]:
        own = [gain for gain in results.gains if gain.arm == arm.name]
        at_sites = [gain for gain in own if gain.site is not None and results.shows(gain.site)]
        for gain in [*at_sites, *(gain for gain in own if gain.site is None)]:
            rows.append(
                {
                    "arm": arm.name,
                    "kind": arm.kind,
                    "site": gain.site or (ALL_SITES if at_sites else results.sites[0]),
                    "whole": gain.site is None,
                    "num_participants": results.counts["n", gain.site or ""]
                    if results.shared
                    else gain.num_participants,
                    "gain": gain.gain.estimate,
                    "low": float("nan") if gain.gain.low is None else gain.gain.low,
                    "high": float("nan") if gain.gain.high is None else gain.gain.high,
                }
            )
    if not rows:
        return None
    wholes = {arm.name: (arm, whole.gain) for arm in results.arms[1:] if (whole := results.whole(arm)) is not None}
    noise = next((gain for arm, gain in wholes.values() if arm.kind == "noise"), None)
    band = None if noise is None or noise.low is None or noise.high is None else (noise.low, noise.high)
    digits = min(metrics_of(results.task)[results.metric].digits, 2)
    label = with_unit(results.metric_name(), results.unit)
    spoken = "; ".join(f"{arm.name} {interval_text(gain)}" for arm, gain in wholes.values())
    return picture(
        transfer_figures.forest(
            pd.DataFrame(rows), label=label, digits=digits, noise=band, reference=results.reference.name
        ),
        f"Forest plot of the gain of each arm over {results.reference.name}, all sites: {spoken}",
        f"Gain in {label} over {results.reference.name}, paired, with 95 % intervals: circles single sites, diamonds "
        f"all of them.{' Grey: what the reference gains over itself, the noise.' if band else ''}",
        "full",
    )


def model_pictures(results: CrossvalResults) -> list[Picture]:
    """Return ROC curves, calibration and decision curves of the arms; none where the outcome is continuous."""
    if results.task != "binary":
        return []
    lines = lines_of(results.arms, results.main)
    rows = {arm.name: arm.rows for arm in results.arms if arm.name in lines}
    replicates = min(results.context.num_replicates, NUM_REPLICATES)
    roc = {}
    for name, line in lines.items():
        score = results.scores["auroc"][name].value
        if score.defined:
            labelled = Line(f"{name} {score.estimate:.2f}", line.number, line.band, line.thin)
            roc[labelled] = roc_table(
                rows[name],
                by_site=True,
                num_replicates=replicates if line.band else 0,
                seed=results.context.seed,
            )
    found = []
    if roc:
        spoken = "; ".join(line.label for line in roc)
        found.append(
            picture(
                binary_figures.roc_curves(roc),
                f"ROC curves with their areas: {spoken}",
                "ROC curves, averaged vertically over runs and sites, with their areas. Bands: 95 %, pointwise, over "
                "participants.",
            )
        )
    drawn = {line: rows[name] for name, line in lines.items() if line.band}
    calibrated = {
        line: calibration_table(own, num_replicates=replicates, seed=results.context.seed)
        for line, own in drawn.items()
    }
    slopes = "; ".join(
        f"{line.label} {interval_text(results.scores['calibration_slope'][line.label].value)}" for line in drawn
    )
    found.append(
        picture(
            binary_figures.calibration_curves(calibrated, drawn),
            f"Calibration curves; calibration slopes: {slopes}",
            f"Calibration, all runs together. Slopes (mean over sites): {slopes}. Bands: 95 %, pointwise, over "
            "participants. Below: predicted risks of those with the outcome (up) and without (down).",
        )
    )
    return [*found, *_decision_pictures(results, lines, replicates)]


def refusal(results: CrossvalResults) -> str:
    """Say why there is no decision curve, empty where there is one."""
    if results.task != "binary":
        return ""
    try:
        results.context.design.require_risks("a decision curve")
    except DesignError as error:
        return str(error)
    return "" if results.rows["target"].nunique() == 2 else "One class is missing."


def heat_map_picture(results: CrossvalResults) -> Picture | None:
    """Return the matrix of training and test sites; None where no value is defined."""
    if not any(matrix["estimate"].notna().any() for matrix in results.matrices.values()):
        return None
    label = with_unit(results.metric_name(), results.unit)
    limits = RATIOS if results.metric in ("auroc", "balanced_accuracy") else None
    digits = min(metrics_of(results.task)[results.metric].digits, 2)
    figure = transfer_figures.site_heat_map(results.matrices, label=label, limits=limits, digits=digits)
    spoken = "; ".join(
        f"{arm}, trained at {cell['train_sites']}, tested at {cell['test_site']}: {cell['estimate']:.2f}"
        for arm, matrix in results.matrices.items()
        for cell in matrix.to_dict("records")
        if np.isfinite(cell["estimate"]) or not results.shared
    )
    return picture(
        figure,
        f"Heat map of the {label} by training and test site. {spoken}",
        f"{label[0].upper()}{label[1:]} by training and test site. Empty: no model of this protocol.",
        "full",
    )


def efficiency_picture(results: CrossvalResults) -> Picture | None:
    """Return the metric by share of the labels; None where every arm had all labels."""
    table = results.efficiency
    if table is None:
        return None
    known = lines_of(results.arms, results.main)
    lines = {
        share_of_labels(name)[0]: Line(share_of_labels(name)[0], line.number)
        for name, line in known.items()
        if share_of_labels(name)[0] in set(table["arm"])
    }
    label = with_unit(results.metric_name(), results.unit)
    spoken = "; ".join(
        f"{row['arm']} with {100 * row['fraction']:g} %: {row['estimate']:.2f}" for row in table.to_dict("records")
    )
    return picture(
        transfer_figures.label_efficiency_curves(table, lines=lines, label=f"{label[0].upper()}{label[1:]}"),
        f"{label} by share of the training labels: {spoken}",
        f"Label efficiency: {label} by share of the training labels (logarithmic), with 95 % intervals.",
    )


def _decision_pictures(results: CrossvalResults, lines: dict[str, Line], replicates: int) -> list[Picture]:
    if refusal(results):
        return []
    rows = {arm.name: arm.rows for arm in results.arms}
    curves = {
        line: decision_curve(
            rows[name]["target"],
            rows[name]["prediction"],
            participant_id=rows[name]["participant"],
            run=rows[name]["run"],
            design=results.context.design,
            num_replicates=replicates if line.band else 0,
            seed=results.context.seed,
        )
        for name, line in lines.items()
    }
    return [
        picture(
            binary_figures.decision_curves(curves, width=8.8),
            "Decision curves of the arms beside treating all and none",
            "Net benefit by threshold probability, beside treating all and none; mean over runs. Bands: 95 %, "
            "pointwise, over participants.",
            "full",
        )
    ]

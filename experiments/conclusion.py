"""What a finished cross-validation says: its table, the metrics of its arms, their gains, and the report."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from datamodules.facts import describe_cohorts
from evaluation.design import Design
from evaluation.estimate import NUM_REPLICATES, Estimate
from evaluation.gain import Gain, gains
from evaluation.leakage import Finding
from evaluation.parts import HELD_OUT
from evaluation.predictions import KEY, scored_rows, write_predictions
from evaluation.report.arms import Arm, Score, scores
from evaluation.tasks import metrics_of
from experiments.jobs import Job
from experiments.lock import LOCK, site_tags
from experiments.reporting import write_crossval_report
from experiments.study import REFERENCE
from experiments.workplan import Workplan
from tracking.files import write_json
from tracking.logger import RunLogger
from tracking.store import Store

TABLE, CONCLUSION, REPORT = "predictions.parquet", "conclusion.json", "report.html"
NOTE = "mlflow.note.content"  # tag: the description of a run on its page
SUMMARY = {
    "binary": ("auroc", "auprc", "balanced_accuracy", "accuracy", "f1", "sensitivity", "specificity", "brier"),
    "regression": ("mae", "rmse", "r2", "pearson_r"),
}


@dataclass
class Conclusion:
    """The end of a cross-validation, made from its table alone; making it again gives the same.

    Args:
        workplan: What was planned.
        store: Where its runs are kept.
        jobs: What was done.
        findings: Of the leakage audit.
    """

    workplan: Workplan
    store: Store
    jobs: Sequence[Job]
    findings: Sequence[Finding]

    @cached_property
    def table(self) -> pd.DataFrame:
        """Every row of every job, sorted by the key of the predictions table."""
        table = pd.concat([job.predictions() for job in self.jobs], ignore_index=True)
        return table.sort_values(list(KEY), ignore_index=True)

    @cached_property
    def held_out(self) -> pd.DataFrame:
        """The rows that count: those of the test participants."""
        return self.table[self.table["split"].isin(HELD_OUT)]

    @property
    def split(self) -> str:
        """`test`, or `external` where the test sites are never trained on."""
        return str(self.held_out["split"].iloc[0])

    @cached_property
    def primary(self) -> list[Gain]:
        """The gains that decide, over all sites and by site; none where there is one arm."""
        names = [arm.name for arm in self.workplan.study.arms]
        if self.held_out["arm"].nunique() < 2:
            return []
        reference = REFERENCE if REFERENCE in names else names[0]
        lock = self.workplan.lock
        return gains(self.held_out, reference=reference, metric=lock.primary_metric, task=self.workplan.task)

    @cached_property
    def values(self) -> dict[str, dict[str, Score]]:
        """Metric -> arm -> its mean over the test sites."""
        rows = {str(name): scored_rows(own) for name, own in self.held_out.groupby("arm", sort=False)}
        arms = [Arm(name, "variant", "", rows[name]) for name in self.workplan.lock.arms if name in rows]
        task = self.workplan.task
        metrics = list(dict.fromkeys([self.workplan.lock.primary_metric, *SUMMARY[task]]))
        return scores(arms, metrics, task=task, design=Design(), num_replicates=NUM_REPLICATES, seed=0)

    def conclude(self, parent: RunLogger) -> None:
        """Write table, metrics and report into the folder and the parent run.

        Args:
            parent: The parent run, which is still open.
        """
        folder = self.workplan.folder
        write_predictions(self.table, parent.folder / TABLE)
        write_predictions(self.table, folder / TABLE)
        parent.log_artifact(parent.folder / TABLE)
        parent.log_metrics(self.parent_metrics(), step=0)
        document = self.document()
        write_json(folder / CONCLUSION, document)
        parent.log_json(CONCLUSION, document)
        parent.log_text(LOCK, (folder / LOCK).read_text(encoding="utf-8"))  # arms may have been added
        parent.release()
        report = write_crossval_report(
            self.workplan, self.store, self, parent.run_id, parent.folder / REPORT, self.findings
        )
        parent.log_artifact(report)
        shutil.copyfile(report, folder / REPORT)
        for name, value in {**site_tags(self.held_out), NOTE: describe(self)}.items():
            self.store.set_tag(parent.run_id, name, value)

    @property
    def is_phantom(self) -> bool:
        """Whether its participants are phantoms."""
        return bool(describe_cohorts(self.workplan.cli.datamodule.cohorts)["phantom"])

    def parent_metrics(self) -> dict[str, float]:
        """Return `<arm>/<split>/<metric>` with `_low`, `_high` and `_sd`, and the gains as `gain/<arm>/<metric>`."""
        found: dict[str, float] = {}
        for metric, values in self.values.items():
            for arm, score in values.items():
                name = f"{arm}/{self.split}/{metric}"
                found |= _ends(name, score.value) | {f"{name}_sd": score.spread}
        for gain in self.primary:
            name = f"gain/{gain.arm}/{gain.metric}" + ("" if gain.site is None else f"/{gain.site}")
            found |= _ends(name, gain.gain) | {f"{name}_p": gain.p_value}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def document(self) -> dict[str, Any]:
        """Return what was found as JSON: values of the arms, gains, the lock and what deviates from it."""
        lock = self.workplan.lock
        return {
            "study": lock.study,
            "protocol": lock.protocol,
            "primary_metric": lock.primary_metric,
            "locked": lock.locked,
            "deviations": list(lock.deviations),
            "values": {
                metric: {arm: score.value.as_dict() for arm, score in values.items()}
                for metric, values in self.values.items()
            },
            "gains": [gain.as_dict() for gain in self.primary],
        }


def _ends(name: str, estimate: Estimate) -> dict[str, float]:
    ends = {name: estimate.estimate, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return {key: value for key, value in ends.items() if value is not None}


def summary_rows(conclusion: Conclusion) -> tuple[str, list[list[str]]]:
    """Return title and rows, the header first, of the table of the arms."""
    metric = conclusion.workplan.lock.primary_metric
    label = metrics_of(conclusion.workplan.task)[metric].label
    sites = "mean over sites" if len({gain.site for gain in conclusion.primary}) > 1 else "test participants"
    title = f"{label} of {conclusion.workplan.study.protocol}, {sites}, with 95 % intervals"
    rows = [["arm", label, "sd between runs", "gain", "p", "smallest detectable gain"]]
    by_arm = {gain.arm: gain for gain in conclusion.primary if gain.site is None}
    for arm, score in conclusion.values[metric].items():
        cells = [arm, _shown(score.value), f"{score.spread:.3f}" if math.isfinite(score.spread) else ""]
        gain = by_arm.get(arm)
        rows.append([*cells, *(("",) * 3 if gain is None else _gain_cells(gain))])
    return title, rows


def _gain_cells(gain: Gain) -> tuple[str, str, str]:
    return _shown(gain.gain), f"{gain.p_value:.3f}", f"{gain.detectable:.3f}"


def describe(conclusion: Conclusion) -> str:
    """Return the table of the arms as Markdown, which MLflow shows on the page of the run."""
    title, (header, *rows) = summary_rows(conclusion)
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---", *["---:"] * (len(header) - 1)], *rows)]
    phantom = ["Phantom participants: a check of the software, no evidence."] if conclusion.is_phantom else []
    return "\n".join([f"**{title}**", "", *lines, "", *phantom, f"The whole report is the artifact {REPORT}."])


def print_conclusion(conclusion: Conclusion) -> None:
    """Print the arms, and what each gains over the reference, at each site and over all."""
    from rich.console import Console
    from rich.table import Table

    metric = conclusion.workplan.lock.primary_metric
    label = metrics_of(conclusion.workplan.task)[metric].label
    console = Console(width=110)
    title, (header, *rows) = summary_rows(conclusion)
    arms = Table(title=title)
    for column in header:
        arms.add_column(column, justify="left" if column == "arm" else "right")
    for row in rows:
        arms.add_row(*row)
    console.print(arms)
    at_sites = [gain for gain in conclusion.primary if gain.site is not None]
    if at_sites:
        table = Table(title="Gain by test site")
        for column in ("site", "arm", label, f"{at_sites[0].reference}", "gain"):
            table.add_column(column, justify="left" if column in ("site", "arm") else "right")
        for gain in sorted(at_sites, key=lambda gain: (gain.site or "", gain.arm)):
            table.add_row(gain.site, gain.arm, *map(_shown, (gain.value, gain.reference_value, gain.gain)))
        console.print(table)


def _shown(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.estimate:.3f}" if estimate.defined else "undefined"
    return f"{estimate.estimate:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"

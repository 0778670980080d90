"""Every number of the report of a cross-validation, computed once; tables, figures and sentences only show them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from evaluation.assessment import UNITS
from evaluation.cross_site import Pooled, pool_sites, site_matrix
from evaluation.disclosure import Count, few_text, is_told
from evaluation.gain import Gain, gains, label_efficiency, share_of_labels
from evaluation.parts import HELD_OUT_OR_UNSAID
from evaluation.predictions import PredictionsError, normalise_predictions, scored_rows
from evaluation.report.arms import Arm, Score, describe_arms, gain_of, main_arm, scores
from evaluation.report.context import CrossvalContext
from evaluation.report.crossval_sharing import Counts, require_enough, shared_matrix, shared_subgroups, site_counts
from evaluation.tasks import metrics_of, primary_of, task_of

MAX_SECONDARY_REPLICATES = 500  # of metrics that do not decide, and of single sites
SECONDARY: Mapping[str, Sequence[str]] = {
    "binary": (
        *("auroc", "auprc", "balanced_accuracy", "accuracy", "f1", "sensitivity", "specificity", "ppv", "npv"),
        *("brier", "oe_ratio", "calibration_slope"),
    ),
    "regression": ("mae", "median_ae", "rmse", "r2", "pearson_r", "spearman_r", "mean_bias", "bias_slope"),
}
NAMES = {"auroc": "AUROC", "auprc": "average precision", "mae": "mean absolute error", "r2": "R²", "f1": "F1 score"}


@dataclass(frozen=True)
class CrossvalResults:
    """What a cross-validation found.

    Args:
        context: What is known beside the numbers.
        table: Every held-out row, normalised.
        task: Kind of outcome.
        metric: The primary metric.
        arms: The arms on all labels, the reference first.
        main: The arm that answers the question; None where there is one arm only.
        gains: Gain of every arm in the primary metric, over all sites and at each.
        ensemble: The same of the ensembles of runs, over all sites: another estimand.
        scores: Metric -> arm -> values.
        matrices: Arm -> training sites by test site, for the reference and the main arm.
        pooled: Arm -> AUC pooled over sites, for the same arms and a binary outcome.
        efficiency: The primary metric by share of the labels; None where every arm had all labels.
        secondary_replicates: Bootstrap replicates of what does not decide.
        counts: Participants (`n`) and `events` by test site, "" for all of them, as they are printed.
    """

    context: CrossvalContext
    table: pd.DataFrame
    task: str
    metric: str
    arms: Sequence[Arm]
    main: Arm | None
    gains: Sequence[Gain]
    ensemble: Sequence[Gain]
    scores: Mapping[str, Mapping[str, Score]]
    matrices: Mapping[str, pd.DataFrame]
    pooled: Mapping[str, Pooled]
    efficiency: pd.DataFrame | None
    secondary_replicates: int
    counts: Counts

    @property
    def shared(self) -> bool:
        """Whether the page may leave the place where the participants are known."""
        return self.context.sharing is not None

    @property
    def size(self) -> Count:
        """Number of participants scored, as it is printed."""
        return self.counts["n", ""]

    def shows(self, site: str) -> bool:
        """Whether the metrics of a site are printed."""
        return is_told(self.counts, site)

    @property
    def reference(self) -> Arm:
        """The arm that the others are compared with."""
        return self.arms[0]

    @property
    def rows(self) -> pd.DataFrame:
        """The scored rows of the reference: whoever they are, every arm has the same participants."""
        return self.reference.rows

    @property
    def protocol(self) -> str:
        """Who trains for whom."""
        return str(self.table["protocol"].iloc[0])

    @property
    def sites(self) -> list[str]:
        """The test sites."""
        return sorted(self.rows["site"].unique())

    @property
    def output(self) -> str:
        """Name of the outcome."""
        return str(self.table["output"].iloc[0]) or "outcome"

    @property
    def unit(self) -> str | None:
        """Unit of the primary metric, None where it has none."""
        if not metrics_of(self.task)[self.metric].in_unit:
            return None
        return self.context.unit or UNITS.get(self.output)

    @property
    def num_participants(self) -> int:
        """Number of participants scored."""
        return int(self.rows["participant"].nunique())

    @property
    def num_runs(self) -> int:
        """Runs (repeat x seed) of the reference."""
        return int(self.rows["run"].nunique())

    @property
    def num_missing(self) -> int:
        """Participants without a known outcome, who were not scored."""
        known = (self.context.cohort or {}).get("without_target")
        left_out = self.table[self.table["target"].isna()]
        return int(known) if known is not None else len(left_out[["dataset", "participant_id"]].drop_duplicates())

    @property
    def missing(self) -> str:
        """The same, as it is printed."""
        return few_text(self.num_missing) if self.shared else f"{self.num_missing:,}"

    @property
    def larger_is_better(self) -> bool:
        """Whether a larger value of the primary metric is better."""
        return metrics_of(self.task)[self.metric].larger_is_better is not False

    def whole(self, arm: Arm | None) -> Gain | None:
        """Return the gain of an arm over all sites."""
        return None if arm is None else gain_of(self.gains, arm.name)

    def metric_name(self, metric: str | None = None) -> str:
        """Return a metric as a sentence names it."""
        name = metric or self.metric
        return NAMES.get(name, metrics_of(self.task)[name].label.lower())


def results_of(predictions: pd.DataFrame, context: CrossvalContext) -> CrossvalResults:
    """Compute every number of the report.

    Args:
        predictions: The table of a cross-validation: one protocol and output; of its splits, `test` and `external`
            count.
        context: What is known beside.

    Raises:
        PredictionsError: The table has problems, several protocols, or nobody was held out.
    """
    everything = normalise_predictions(predictions)
    table = everything[everything["split"].isin(HELD_OUT_OR_UNSAID)].reset_index(drop=True)
    if not table["target"].notna().any():
        raise PredictionsError(["no held-out row has a target, so there is nothing to report. Fill 'target'."])
    task = task_of(table)
    metric = context.primary_metric or primary_of(task)
    few = min(context.num_replicates, MAX_SECONDARY_REPLICATES)
    rows = {str(name): scored_rows(own) for name, own in table.groupby("arm", sort=True)}
    reference = context.reference if any(share_of_labels(name)[0] == context.reference for name in rows) else min(rows)
    arms = describe_arms(rows, context.arms, reference, tuple(context.ledgers))
    main = main_arm(arms)
    shown = [arm for arm in [*arms[:1], main] if arm is not None]
    every = list(dict.fromkeys([metric, *SECONDARY[task]]))
    given = context.gains
    if given is None:
        given = (
            gains(
                table,
                reference=reference,
                metric=metric,
                task=task,
                num_replicates=context.num_replicates,
                seed=context.seed,
            )
            if len(rows) > 1
            else []
        )
    shares = {share_of_labels(name)[1] for name in rows}
    counts = site_counts(arms[0].rows, task, shared=context.sharing is not None)
    parts = {arm.name: table[table["arm"] == arm.name] for arm in shown}
    quick = {"num_replicates": few, "seed": context.seed}
    matrices = {name: site_matrix(own, task=task, metric=metric, **quick) for name, own in parts.items()}
    if context.sharing is not None:
        require_enough(is_told(counts, ""))
        context = replace(context, subgroups=shared_subgroups(context.subgroups, counts))
        matrices = {name: shared_matrix(matrix, counts) for name, matrix in matrices.items()}
    return CrossvalResults(
        context=context,
        table=table,
        task=task,
        metric=metric,
        arms=arms,
        main=main,
        gains=given,
        ensemble=_ensemble(table, arms, metric, task, few, context.seed),
        scores=scores(arms, every, task=task, design=context.design, **quick),
        matrices=matrices,
        pooled={name: pool_sites(own, **quick) for name, own in parts.items()} if task == "binary" else {},
        efficiency=_efficiency(table, arms, metric, task, few, context.seed) if len(shares) > 1 else None,
        secondary_replicates=few,
        counts=counts,
    )


def _ensemble(
    table: pd.DataFrame, arms: Sequence[Arm], metric: str, task: str, num_replicates: int, seed: int
) -> list[Gain]:
    """Return the gains of the ensembles over all sites; none where an arm is one model, or alone."""
    if len(arms) < 2 or arms[0].rows["run"].nunique() < 2:
        return []
    own = table[table["arm"].isin([arm.name for arm in arms])]
    found = gains(
        own,
        reference=arms[0].name,
        metric=metric,
        task=task,
        estimand="ensemble",
        num_replicates=num_replicates,
        seed=seed,
    )
    return [gain for gain in found if gain.site is None]


def _efficiency(
    table: pd.DataFrame, arms: Sequence[Arm], metric: str, task: str, num_replicates: int, seed: int
) -> pd.DataFrame:
    """Return the metric by share of the labels, of networks alone: a baseline has no curve worth drawing."""
    names = {share_of_labels(arm.name)[0] for arm in arms if arm.kind not in ("baseline", "noise")}
    own = table[[share_of_labels(name)[0] in names for name in table["arm"]]]
    return label_efficiency(own, metric=metric, task=task, num_replicates=num_replicates, seed=seed)

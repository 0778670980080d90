"""Whether model B is better than model A on the same participants: intervals and tests of paired differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from evaluation.alignment import aligned, share_runs
from evaluation.binary import decisions
from evaluation.discrimination import delong_paired
from evaluation.estimate import CONFIDENCE, NUM_REPLICATES, Estimate, FloatArray, PairedTest
from evaluation.prediction_checks import listed
from evaluation.predictions import UNIT, PredictionsError, normalise_predictions, scored_rows
from evaluation.resampled import DETECTABLE, Resampled, StatisticOf, bootstrap_p, resample
from evaluation.tasks import TASKS, metrics_of, primary_of, statistic_of, told_task

NOT_OF_THE_MODEL = ("prevalence", "mae_predict_mean")  # the same for every model of the same participants
K_FOLD = "k-fold"


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two classifiers on the same participants.

    Args:
        only_a: Participants whom A alone classified correctly.
        only_b: Participants whom B alone classified correctly.
        statistic: Chi-squared with the continuity correction, one degree of freedom.
        p_value: Its p-value.
        p_exact: Two-sided p-value of the binomial distribution.
    """

    only_a: int
    only_b: int
    statistic: float
    p_value: float
    p_exact: float


@dataclass(frozen=True)
class CorrectedT:
    """Nadeau and Bengio's corrected resampled t test of differences over folds and repeats.

    Args:
        difference: Mean difference, B less A.
        low: Lower end of the interval.
        high: Upper end of the interval.
        statistic: Student's t.
        degrees: Degrees of freedom.
        p_value: Two-sided p-value.
    """

    difference: float
    low: float
    high: float
    statistic: float
    degrees: int
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """Model B against model A on the same participants.

    Args:
        task: Kind of outcome.
        tests: Paired difference, B less A, of each metric.
        values: The metric of A and of B, with their intervals.
        adjusted: Holm's p-values of the metrics of which one value is better than another, adjusted for all of these.
        detectable: Smallest difference of each metric that this comparison would have found with a power of 80 %.
        num_participants: Participants scored.
        num_runs: Runs (repeat x seed) of A and of B.
        shared_runs: Whether both have the same runs, which are then drawn together.
        sites: Test sites over whose values each metric is averaged, where each site was scored by a model of its own.
        mcnemar: Test of the decisions, where each side is one classifier.
        corrected_t: Nadeau and Bengio's test of the primary metric, where folds and repeats are those of a k-fold.
        assumed_threshold: Whether a side has no operating point of its own, so that 0.5 is used.
        rows: The rows of A and of B that counted.
    """

    task: str
    tests: Mapping[str, PairedTest]
    values: Mapping[str, tuple[Estimate, Estimate]]
    adjusted: Mapping[str, float]
    detectable: Mapping[str, float]
    num_participants: int
    num_runs: tuple[int, int]
    shared_runs: bool
    sites: tuple[str, ...]
    mcnemar: McNemar | None
    corrected_t: CorrectedT | None
    assumed_threshold: bool
    rows: tuple[pd.DataFrame, pd.DataFrame]

    def as_json(self) -> dict[str, Any]:
        """Return the JSON contract of `fontanel compare --json`; undefined values are None."""
        return {
            "comparisons": {
                name: {
                    "difference": _defined(test.difference),
                    "low": test.low,
                    "high": test.high,
                    "p_value": _defined(test.p_value),
                    "test": test.test,
                }
                for name, test in self.tests.items()
            },
            "num_participants": self.num_participants,
        }


def compare(
    a: pd.DataFrame,
    b: pd.DataFrame,
    task: str | None = None,
    *,
    metrics: Sequence[str] | None = None,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> Comparison:
    """Compare two predictions tables of the same participants.

    Each metric is computed per run, then averaged, as `evaluate` does it; where each site was scored by a model of its
    own, it is computed per site and averaged over sites. Intervals and p-values are those of the two-way bootstrap over
    participants and runs; for the AUC of two fixed models on one test set they are DeLong's.

    Args:
        a: Predictions table of one protocol, arm, output and split.
        b: The same of the other model.
        task: A name in `evaluation.tasks.TASKS`; told from the table by default.
        metrics: Metrics to compare, the family of Holm's adjustment; by default all that are quick to compute.
        num_replicates: Bootstrap replicates; 0 gives differences alone.
        seed: Seed of the bootstrap.

    Raises:
        PredictionsError: A table has problems, or the tables do not score the same participants.

    >>> a = pd.DataFrame({"participant_id": ["a", "b"], "target": [1.0, 2.0], "prediction": [1.5, 2.5]})
    >>> compare(a, a.assign(prediction=a["target"])).tests["mae"].difference
    -0.5
    """
    first, second = aligned(scored_rows(normalise_predictions(a)), scored_rows(normalise_predictions(b)))
    task = known_task(task, pd.concat([first, second]))
    require_metrics(task, metrics or [])
    by_site = scored_by_several_models(first) or scored_by_several_models(second)
    resampled = resample(
        (first, second),
        statistics(task, metrics),
        by="site" if by_site else None,
        stratify=task == "binary",
        num_replicates=num_replicates,
        seed=seed,
    )
    one_model = task == "binary" and not by_site and _is_one_model(first) and _is_one_model(second)
    tests, values, detectable = {}, {}, {}
    for name in metrics or [name for name in resampled[0] if name not in NOT_OF_THE_MODEL]:
        sides = resampled[0][name].mean(), resampled[1][name].mean()
        tests[name], detectable[name] = paired_test(*sides), smallest_detectable(*sides)
        values[name] = sides[0].estimate, sides[1].estimate
    if one_model and "auroc" in tests and num_replicates:
        tests["auroc"] = _delong(first, second, tests["auroc"])
    directed = metrics_of(task)
    return Comparison(
        task=task,
        tests=tests,
        values=values,
        adjusted=holm({name: tests[name].p_value for name in tests if directed[name].larger_is_better is not None}),
        detectable=detectable,
        num_participants=int(first["participant"].nunique()),
        num_runs=(int(first["run"].nunique()), int(second["run"].nunique())),
        shared_runs=share_runs(first, second),
        sites=tuple(sorted(first["site"].unique())) if by_site else (),
        mcnemar=mcnemar(*_correct(first, second)) if one_model else None,
        corrected_t=None if corrected_t_refusal(first, second) else corrected_t(first, second, task),
        assumed_threshold=task == "binary" and any(_thresholds(rows).isna().any() for rows in (first, second)),
        rows=(first, second),
    )


def paired_test(a: Resampled, b: Resampled) -> PairedTest:
    """Return the difference B - A of two sides that were resampled together, with its interval and p-value.

    Args:
        a: One part (or a mean over parts) of side A.
        b: The same of side B.
    """
    difference = b.minus(a)
    value = difference.estimate
    several = max(len(a.runs), len(b.runs)) > 1
    name = "two-way bootstrap over participants and runs" if several else "bootstrap over participants"
    p_value = bootstrap_p(difference.replicates[:, 0]) if value.defined else math.nan
    return PairedTest(value.estimate, value.low, value.high, p_value, name)


def smallest_detectable(a: Resampled, b: Resampled) -> float:
    """Return 2.8 standard errors of the paired difference: what a two-sided test at 5 % finds four times in five."""
    return DETECTABLE * b.minus(a).standard_error


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemar:
    """Test whether two classifiers are wrong equally often on the same participants.

    Args:
        correct_a: (N,) whether A classified each participant correctly.
        correct_b: (N,) the same of B.

    References:
        McNemar Q. Psychometrika 1947;12:153-157. doi:10.1007/BF02295996

    >>> result = mcnemar([True] * 8 + [False] * 2, [False] * 6 + [True] * 4)
    >>> result.only_a, result.only_b, result.statistic, round(result.p_exact, 4)
    (6, 2, 1.125, 0.2891)
    """
    first, second = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    if only_a + only_b == 0:
        return McNemar(0, 0, 0.0, 1.0, 1.0)
    statistic = max(abs(only_a - only_b) - 1, 0) ** 2 / (only_a + only_b)
    exact = float(stats.binomtest(only_a, only_a + only_b).pvalue)
    return McNemar(only_a, only_b, statistic, float(stats.chi2.sf(statistic, 1)), exact)


def nadeau_bengio(
    differences: ArrayLike, num_train: float, num_test: float, confidence: float = CONFIDENCE
) -> CorrectedT:
    """Test the mean of differences over folds and repeats, whose training parts overlap.

    t = mean(d) / sqrt((1 / J + num_test / num_train) var(d)) with J - 1 degrees of freedom. The correction is for
    test parts drawn at random from one population: not for cross-site folds, which are different populations.

    Args:
        differences: (J,) difference of the metric, B less A, in each fold of each repeat.
        num_train: Participants that a model was trained on.
        num_test: Participants that it was tested on.
        confidence: Coverage of the interval.

    Raises:
        ValueError: There are fewer than two differences, or an undefined one.

    References:
        Nadeau C, Bengio Y. Machine Learning 2003;52:239-281. doi:10.1023/A:1024068626366

    >>> result = nadeau_bengio([0.01, 0.03, 0.02, 0.04], num_train=90, num_test=10)
    >>> round(result.statistic, 3), result.degrees
    (3.223, 3)
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"The corrected t test needs two or more defined differences, not {values.tolist()}.")
    mean, degrees = float(values.mean()), len(values) - 1
    error = math.sqrt((1 / len(values) + num_test / num_train) * float(values.var(ddof=1)))
    if error == 0:
        return CorrectedT(mean, mean, mean, math.copysign(math.inf, mean) if mean else 0.0, degrees, float(mean == 0))
    statistic = mean / error
    reach = float(stats.t.ppf((1 + confidence) / 2, degrees)) * error
    p_value = float(2 * stats.t.sf(abs(statistic), degrees))
    return CorrectedT(mean, mean - reach, mean + reach, statistic, degrees, p_value)


def corrected_t_refusal(a: pd.DataFrame, b: pd.DataFrame) -> str | None:
    """Say why Nadeau and Bengio's test does not fit two sides, None where it does.

    Args:
        a: Rows of side A, as `scored_rows` gives them.
        b: Rows of side B.
    """
    protocols = sorted({*a["protocol"], *b["protocol"]})
    if protocols != [K_FOLD]:
        reason = (
            "its folds are whole sites, and differences between sites are no chance of drawing from one population"
            if "cross-site" in protocols
            else "its test parts are no random folds of one population"
        )
        return f"The corrected resampled t test is for the protocol {K_FOLD}, not for {listed(protocols)}: {reason}."
    folds = [rows.groupby(["repeat", "fold"])["participant"].agg(frozenset).to_dict() for rows in (a, b)]
    if folds[0] != folds[1]:
        return "The corrected resampled t test needs the same folds on both sides."
    if len(folds[0]) < 2:
        return "The corrected resampled t test needs two or more folds."
    if a.drop_duplicates(["repeat", "fold", "participant"]).duplicated(["repeat", "participant"]).any():
        return "The corrected resampled t test needs folds that score different participants."
    return None


def corrected_t(a: pd.DataFrame, b: pd.DataFrame, task: str, metric: str | None = None) -> CorrectedT | None:
    """Test the difference of a metric over the folds and repeats of a k-fold protocol; seeds are averaged first.

    Args:
        a: Rows of side A, as `scored_rows` gives them.
        b: Rows of side B.
        task: A name in `evaluation.tasks.TASKS`.
        metric: The metric; the task's primary one by default.

    Returns:
        The test, None where the metric is undefined in a fold.

    Raises:
        PredictionsError: The protocol is another one, or the folds differ.
    """
    if refusal := corrected_t_refusal(a, b):
        raise PredictionsError([refusal])
    name = metric or primary_of(task)
    values = [_value_per_fold(rows, statistics(task, [name]), name) for rows in (a, b)]
    differences = values[1] - values[0]
    if not np.isfinite(differences).all():
        return None
    num_test = a.groupby(["repeat", "fold"])["participant"].nunique().mean()
    return nadeau_bengio(differences, a["participant"].nunique() - num_test, num_test)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p-values of a family by Holm's step-down method; undefined ones are no part of it.

    References:
        Holm S. Scandinavian Journal of Statistics 1979;6:65-70. https://www.jstor.org/stable/4615733

    >>> holm({"auroc": 0.01, "brier": 0.04, "f1": 0.03})
    {'auroc': 0.03, 'f1': 0.06, 'brier': 0.06}
    """
    family = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (p, name) in enumerate(family):
        largest = max(largest, min(1.0, (len(family) - rank) * p))
        adjusted[name] = largest
    return adjusted


def statistics(task: str, names: Sequence[str] | None = None) -> StatisticOf:
    """Return the metrics of a task that are wanted, by default all quick ones, as a function of the rows of one run."""
    of_task = statistic_of(task)
    return lambda rows: of_task(rows, names)


def known_task(task: str | None, rows: pd.DataFrame) -> str:
    """Return the task, told from the rows by default: targets 0 and 1 with predictions between them are binary.

    Raises:
        PredictionsError: There is no such task, or targets or predictions are none of a binary outcome.
    """
    if task is None:
        task = told_task(rows)
    if task not in TASKS:
        raise PredictionsError([f"the task '{task}' is unknown. There are: {', '.join(TASKS)}."])
    wrong = ~(rows["target"].isin([0, 1]) & rows["prediction"].between(0, 1))
    if task == "binary" and wrong.any():
        people = rows["participant"][wrong].drop_duplicates()
        raise PredictionsError(
            [
                "a binary outcome has targets 0 and 1 and predictions between them, but not so for "
                f"{len(people)} participants: {listed(people)}. Correct them, or choose another task."
            ]
        )
    return task


def require_metrics(task: str, metrics: Sequence[str]) -> None:
    """Refuse names that are no metrics of a task.

    Raises:
        PredictionsError: There is no such metric; those that there are are named.
    """
    there = list(metrics_of(task))
    if unknown := [name for name in metrics if name not in there]:
        raise PredictionsError([f"the task {task} has no metric {listed(unknown)}. It has: {', '.join(there)}."])


def scored_by_several_models(rows: pd.DataFrame) -> bool:
    """Whether sites were scored by models with different training sites, so that scores cannot be pooled."""
    return bool(rows["site"].nunique() > 1 and rows["train_sites"].nunique() > 1)


def _is_one_model(rows: pd.DataFrame) -> bool:
    """Whether one fixed model scored each participant once."""
    models = len(rows[["run", "fold", "train_sites"]].drop_duplicates())
    return models == 1 and not rows["participant"].duplicated().any()


def _delong(a: pd.DataFrame, b: pd.DataFrame, otherwise: PairedTest) -> PairedTest:
    first, second = (rows.sort_values(list(UNIT)) for rows in (a, b))
    test = delong_paired(first["target"], first["prediction"], second["prediction"])
    return otherwise if test.low is None else test


def _correct(a: pd.DataFrame, b: pd.DataFrame) -> list[NDArray[np.bool_]]:
    """Return whether A and B classified each participant correctly, in the same order."""
    correct = []
    for rows in (a, b):
        ordered = rows.sort_values(list(UNIT))
        correct.append(decisions(ordered) == ordered["target"].to_numpy(dtype=np.float64))
    return correct


def _thresholds(rows: pd.DataFrame) -> pd.Series:
    return rows["threshold"] if "threshold" in rows else pd.Series(math.nan, index=rows.index)


def _value_per_fold(rows: pd.DataFrame, statistic: StatisticOf, name: str) -> FloatArray:
    """Return the metric of each repeat and fold, averaged over seeds."""
    models = rows.groupby(["repeat", "fold", "seed"], sort=True)
    values = {key: statistic(model)(np.ones((1, len(model))))[name][0] for key, model in models}
    return pd.Series(values).groupby(level=[0, 1], sort=True).mean().to_numpy(dtype=np.float64)


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None

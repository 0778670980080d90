"""Signs that a score comes from something else than the disease: from the site, the scanner, or the file's header.

Everything here is cheap and linear on purpose: what a cheap head gets out of a few numbers about an image, a network
gets too. Chance is found by permuting labels and repeating the whole procedure, not from the interval of one score:
intervals of pooled out-of-fold scores exclude 0.5 in about 16 % of cohorts without any signal.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from evaluation.estimate import CONFIDENCE, NUM_REPLICATES, Estimate, FloatArray, bootstrap

Status = Literal["ok", "warning", "leak", "unknown"]

COVERAGE = 0.99  # share of the permutations in which a run without signal lies
NUM_PERMUTATIONS = 200  # 199 is the fewest whose central 99 % can exclude anything
NUM_FOLDS = 5
PENALTY = 0.1  # of the ridge, in variances of a feature: shrinks directions that carry less than a tenth of one
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
MIN_EXPECTED = 5.0  # cells below it make the chi-squared approximation worthless (Cochran 1954)


@dataclass(frozen=True)
class Finding:
    """What one check of an audit found.

    Args:
        check: What was looked at.
        status: `leak` invalidates a test; `warning` may explain a score; `unknown` could not be looked at.
        found: What was found, in a sentence.
        numbers: The numbers behind it; NaN where undefined.
        advice: What to do about it; empty where nothing is to be done.
    """

    check: str
    status: Status
    found: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types; an undefined number is null."""
        numbers = {name: float(value) if math.isfinite(value) else None for name, value in self.numbers.items()}
        return {
            "check": self.check,
            "status": self.status,
            "found": self.found,
            "numbers": numbers,
            "advice": self.advice,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Finding":
        """Return the finding that `as_dict` was taken from; a null becomes NaN again."""
        numbers = {name: math.nan if value is None else value for name, value in content["numbers"].items()}
        return cls(**{**content, "numbers": numbers})


@dataclass(frozen=True)
class Association:
    """How strongly the site and a label hang together.

    Args:
        value: Effect size in the sample, from 0 to 1; inflated where sites are small. NaN where undefined.
        corrected: Effect size corrected for that bias; 0 is what independence gives.
        p_value: Of independence.
        test: How the p-value was computed.
    """

    value: float
    corrected: float
    p_value: float
    test: str


@dataclass(frozen=True, eq=False)
class Permutations:
    """The score of a cheap head, and its scores after the labels were permuted.

    Args:
        metric: `auroc` for labels of two values, else `r2`.
        value: With the true labels; NaN where undefined.
        distribution: (R,) with permuted labels.
    """

    metric: Literal["auroc", "r2"]
    value: float
    distribution: FloatArray

    @property
    def p_value(self) -> float:
        """One-sided probability of a score at least as high without any signal; never 0."""
        if math.isnan(self.value):
            return math.nan
        return float((1 + (self.distribution >= self.value).sum()) / (1 + len(self.distribution)))

    @property
    def informative(self) -> bool:
        """Whether the score lies above the central 99 % of its permutations."""
        return not math.isnan(self.value) and self.value > central(self.distribution)[1]


def shared_between(keys: ArrayLike, parts: ArrayLike) -> dict[str, tuple[str, ...]]:
    """Return the keys that stand in more than one part, each with its parts.

    Args:
        keys: (N,) participants, groups or content hashes; an empty one is nobody's.
        parts: (N,) part of each row.

    >>> shared_between(["a", "b", "a", "b", ""], ["train", "train", "test", "train", "test"])
    {'a': ('test', 'train')}
    """
    places: dict[str, set[str]] = {}
    for key, part in zip(np.asarray(keys, dtype=str), np.asarray(parts, dtype=str), strict=True):
        if key:
            places.setdefault(str(key), set()).add(str(part))
    return {key: tuple(sorted(found)) for key, found in places.items() if len(found) > 1}


def cramers_v(
    label: ArrayLike, site: ArrayLike, *, num_permutations: int = NUM_REPLICATES, seed: int = 0
) -> Association:
    """Measure the association of two classifications, corrected for the bias of small tables.

    The p-value is Pearson's chi-squared, by permutation where a cell is expected to hold fewer than five.

    Args:
        label: (N,) classes.
        site: (N,) sites.
        num_permutations: Number of permutations where they are needed.
        seed: Seed of the permutations.

    References:
        Bergsma W. A bias-correction for Cramer's V and Tschuprow's T. Journal of the Korean Statistical Society 2013;
        42:323-328. doi:10.1016/j.jkss.2012.10.002

    >>> association = cramers_v([0] * 30 + [1] * 30, ["a"] * 20 + ["b"] * 20 + ["a"] * 10 + ["b"] * 10)
    >>> round(association.value, 3), round(association.corrected, 3), round(association.p_value, 4)
    (0.333, 0.309, 0.0098)
    """
    counts = np.asarray(pd.crosstab(np.asarray(label), np.asarray(site)), dtype=np.float64)
    size, (rows, columns) = counts.sum(), counts.shape
    if min(rows, columns) < 2:
        return Association(math.nan, math.nan, math.nan, "one class or one site")
    result = stats.chi2_contingency(counts, correction=False)
    phi2 = float(result.statistic) / size
    unbiased = max(0.0, phi2 - (rows - 1) * (columns - 1) / (size - 1))
    levels = min(length - (length - 1) ** 2 / (size - 1) for length in (rows, columns))
    p_value, test = float(result.pvalue), "chi-squared"
    if result.expected_freq.min() < MIN_EXPECTED:
        method = stats.PermutationMethod(n_resamples=num_permutations, rng=np.random.default_rng(seed))
        p_value = float(stats.chi2_contingency(counts.astype(np.int64), correction=False, method=method).pvalue)
        test = "chi-squared by permutation"
    corrected = math.sqrt(unbiased / (levels - 1)) if levels > 1 else math.nan
    return Association(math.sqrt(phi2 / (min(rows, columns) - 1)), min(corrected, 1.0), p_value, test)


def variance_explained(label: ArrayLike, site: ArrayLike) -> Association:
    """Measure how much of a number's variance lies between sites: eta squared, epsilon squared, and Kruskal-Wallis.

    Args:
        label: (N,) numbers.
        site: (N,) sites.

    References:
        Kelley TL. An unbiased correlation ratio measure. PNAS 1935;21:554-559. doi:10.1073/pnas.21.9.554
        Kruskal WH, Wallis WA. JASA 1952;47:583-621. doi:10.1080/01621459.1952.10483441

    >>> association = variance_explained([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], ["a", "a", "a", "b", "b", "b"])
    >>> round(association.value, 4), round(association.corrected, 4), round(association.p_value, 4)
    (0.7714, 0.7143, 0.0495)
    """
    numbers, names = np.asarray(label, dtype=np.float64), np.asarray(site)
    parts = [numbers[names == name] for name in np.unique(names)]
    total = float(((numbers - numbers.mean()) ** 2).sum())
    inside = float(sum(((part - part.mean()) ** 2).sum() for part in parts))
    spare = len(numbers) - len(parts)
    if len(parts) < 2 or spare < 1 or total == 0:
        return Association(math.nan, math.nan, math.nan, "one site, one value, or one row a site")
    corrected = max(0.0, 1 - (inside / spare) / (total / (len(numbers) - 1)))
    return Association(1 - inside / total, corrected, float(stats.kruskal(*parts).pvalue), "Kruskal-Wallis")


def site_only_auc(
    label: ArrayLike, site: ArrayLike, *, num_permutations: int = NUM_PERMUTATIONS, seed: int = 0
) -> Permutations:
    """Score every participant by the prevalence at their site, and nothing else.

    Each pair of a case and a control is compared by the prevalences of their sites without the two (leave-pair-out).
    Prevalences with them would be optimistic; leaving out each alone would be as pessimistic, because it is the case
    that lowers its own site's prevalence (a single site would have an AUC of 0). On average over labels without signal
    this AUC is 0.5; sites of equal prevalence come out below it.

    Args:
        label: (N,) two values; the larger is the case.
        site: (N,) sites.
        num_permutations: Number of permutations of the labels.
        seed: Seed of the permutations.

    References:
        Airola A, Pahikkala T, Waegeman W, De Baets B, Salakoski T. Computational Statistics & Data Analysis 2011;
        55:1828-1844. doi:10.1016/j.csda.2010.11.018

    >>> label, site = [1] * 40 + [0] * 10 + [1] * 10 + [0] * 40, ["a"] * 50 + ["b"] * 50
    >>> round(site_only_auc(label, site).value, 3)
    0.8
    """
    values = np.asarray(label, dtype=np.float64)
    is_case = (values == values.max()).astype(np.float64)
    codes = np.unique(np.asarray(site), return_inverse=True)[1]
    at_site = np.eye(codes.max() + 1)[codes]
    shuffled = np.random.default_rng(seed).permuted(np.tile(is_case, (num_permutations, 1)), axis=1)
    scores = _pairs_by_prevalence(np.vstack([is_case, shuffled]) @ at_site, at_site.sum(axis=0))
    return Permutations("auroc", float(scores[0]), scores[1:])


def _pairs_by_prevalence(cases: FloatArray, sizes: FloatArray) -> FloatArray:
    """Return the leave-pair-out AUC (R,) from the cases at each site (R, S) and the sizes of the sites (S,)."""
    controls = sizes - cases
    num_cases, num_rows = cases.sum(axis=1, keepdims=True), sizes.sum()
    elsewhere = (num_cases - 1) / max(num_rows - 2, 1)  # for a site of which nobody is left
    rest = np.maximum(sizes - 1, 1)
    of_case = np.where(sizes > 1, (cases - 1) / rest, elsewhere)
    of_control = np.where(sizes > 1, cases / rest, elsewhere)
    difference = of_case[:, :, None] - of_control[:, None, :]
    wins = np.where(np.abs(difference) < 1e-12, 0.5, difference > 0)
    same = np.arange(len(sizes))
    wins[:, same, same] = 0.5
    num_pairs = cases[:, :, None] * controls[:, None, :]
    total = num_pairs.sum(axis=(1, 2))
    won = (wins * num_pairs).sum(axis=(1, 2))
    return np.asarray(np.divide(won, total, out=np.full(len(cases), np.nan), where=total > 0))


def histogram_quantiles(volume: NDArray[Any]) -> FloatArray:
    """Return the quantiles of each channel (C, D, H, W), one channel after the other.

    >>> histogram_quantiles(np.arange(101.0).reshape(1, 101, 1, 1)).tolist()
    [1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0]
    """
    channels = np.asarray(volume, dtype=np.float32).reshape(len(volume), -1)
    return np.asarray(np.quantile(channels, QUANTILES, axis=1).T, dtype=np.float64).ravel()


def encode_facts(facts: pd.DataFrame) -> FloatArray:
    """Return a table of numbers and words as features (N, K): words one-hot, missing numbers at the mean and flagged.

    Columns that do not vary are left out, so K may be 0.

    >>> facts = pd.DataFrame({"size": [1.0, None, 3.0], "axes": ["RAS", "LPS", "RAS"], "same": [1, 1, 1]})
    >>> encode_facts(facts).tolist()
    [[1.0, 0.0, 0.0, 1.0], [2.0, 1.0, 1.0, 0.0], [3.0, 0.0, 0.0, 1.0]]
    """
    columns: list[FloatArray] = []
    for name in facts:
        values = facts[name]
        if pd.api.types.is_numeric_dtype(values):
            known = values.astype(np.float64)
            columns += [np.asarray(known.fillna(known.mean())), np.asarray(known.isna(), dtype=np.float64)]
        else:
            words = values.fillna("").astype(str).to_numpy()
            columns += [(words == word).astype(np.float64) for word in np.unique(words)]
    varying = [column for column in columns if np.ptp(column) > 0]
    return np.column_stack(varying) if varying else np.empty((len(facts), 0))


def site_from_features(
    features: ArrayLike,
    site: ArrayLike,
    *,
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
    num_replicates: int = NUM_REPLICATES,
) -> tuple[Estimate, float]:
    """Predict the site by multinomial logistic regression, cross-validated over rows.

    Args:
        features: (N, K) finite numbers, one row for each participant.
        site: (N,) sites, each with at least `num_folds` rows.
        num_folds: Folds, stratified by site.
        seed: Seed of folds and bootstrap.
        num_replicates: Replicates of the bootstrap over participants, which holds the predictions fixed.

    Returns:
        The balanced accuracy with its 95 % interval, and the balanced accuracy of guessing.

    >>> rows = np.random.default_rng(0).normal(size=(60, 2)) + np.repeat([[0.0], [9.0]], 30, axis=0)
    >>> site_from_features(rows, ["a"] * 30 + ["b"] * 30)[0].estimate
    1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    matrix, names = np.asarray(features, dtype=np.float64), np.asarray(site, dtype=str)
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    hit = np.asarray(cross_val_predict(head, matrix, names, cv=folds)) == names
    at_site = names[:, None] == np.unique(names)

    def statistic(weights: FloatArray) -> Mapping[str, FloatArray]:
        size = weights @ at_site
        recall = np.divide(weights @ (at_site & hit[:, None]), size, out=np.full_like(size, np.nan), where=size > 0)
        return {"balanced_accuracy": recall.mean(axis=1)}

    rows = np.arange(len(names))
    found = bootstrap(statistic, rows, num_replicates=num_replicates, seed=seed, confidence=CONFIDENCE)
    return found["balanced_accuracy"], 1 / at_site.shape[1]


def permutation_distribution(
    features: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    num_permutations: int = NUM_PERMUTATIONS,
    *,
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
) -> Permutations:
    """Score a cheap head (ridge regression) by cross-validation, with the true labels and with permuted ones.

    Groups stay on one side of a fold and are dealt to the folds balanced over the label. Labels are permuted inside the
    folds, between groups where each has one label, so that permuted labels differ from the true ones in nothing but
    what they have to do with the features. Two values are scored by the AUC over pairs inside the same fold, numbers by
    R2 against the training mean.

    Args:
        features: (N, K) finite numbers.
        labels: (N,) finite numbers.
        groups: (N,) participants; every row its own by default.
        num_permutations: Number of permutations; at least 199 for `inside_central`.
        num_folds: Number of folds; at most the number of groups.
        seed: Seed of folds and permutations.

    References:
        Ojala M, Garriga GC. Permutation tests for studying classifier performance. JMLR 2010;11:1833-1863.

    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 2, 200)
    >>> signal = permutation_distribution(rng.normal(size=(200, 3)) + 2 * labels[:, None], labels)
    >>> noise = permutation_distribution(rng.normal(size=(200, 3)), labels)
    >>> signal.informative, noise.informative
    (True, False)
    """
    matrix, values = np.asarray(features, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    names = np.arange(len(values)) if groups is None else np.asarray(groups)
    codes = np.unique(names, return_inverse=True)[1]
    generator = np.random.default_rng(seed)
    fold = _dealt(values, codes, num_folds, generator)
    drawn = _permuted(values, codes, fold, num_permutations, generator)
    two_valued = len(np.unique(values)) == 2
    gained, possible = np.zeros(len(drawn)), np.zeros(len(drawn))
    for part in np.unique(fold):
        inside, outside = fold == part, fold != part
        mean = drawn[:, outside].mean(axis=1, keepdims=True)
        scores = mean + (drawn[:, outside] - mean) @ _ridge(matrix[outside], matrix[inside]).T
        truth = drawn[:, inside]
        if two_valued:
            won, pairs = _concordant(scores, truth == values.max())
            gained += won
            possible += pairs
        else:
            gained += ((truth - mean) ** 2 - (truth - scores) ** 2).sum(axis=1)
            possible += ((truth - mean) ** 2).sum(axis=1)
    result = np.divide(gained, possible, out=np.full(len(drawn), np.nan), where=possible > 0)
    return Permutations("auroc" if two_valued else "r2", float(result[0]), result[1:])


def central(distribution: ArrayLike, coverage: float = COVERAGE) -> tuple[float, float]:
    """Return the ends of the central part of a permutation distribution, by ranks.

    A value from the same distribution lies outside with a probability of at most 1 - coverage, whatever the number of
    permutations.

    Raises:
        ValueError: There are too few permutations to leave anything outside.

    >>> central(np.arange(200.0)), central(np.arange(1000.0))
    ((0.0, 199.0), (4.0, 995.0))
    """
    ordered = np.sort(np.asarray(distribution, dtype=np.float64))
    beyond = math.floor(round((1 - coverage) * (len(ordered) + 1) / 2, 9))
    if beyond < 1:
        fewest = math.ceil(round(2 / (1 - coverage), 9)) - 1
        raise ValueError(f"{len(ordered)} permutations have no central {coverage:.1%}. Draw at least {fewest}.")
    return float(ordered[beyond - 1]), float(ordered[-beyond])


def inside_central(value: float, distribution: ArrayLike, coverage: float = COVERAGE) -> bool:
    """Say whether a value, such as the AUC of a run with permuted labels, is what chance gives.

    Args:
        value: The score of the run.
        distribution: (R,) scores of a cheap head with permuted labels, at least 199 for a coverage of 0.99.
        coverage: Share of the permutations that count as chance.

    >>> inside_central(0.5, np.linspace(0.4, 0.6, 200)), inside_central(0.61, np.linspace(0.4, 0.6, 200))
    (True, False)
    """
    low, high = central(distribution, coverage)
    return bool(low <= value <= high)


def _dealt(
    values: FloatArray, codes: NDArray[np.int64], num_folds: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return the fold of each row: groups in the order of their label, dealt in blocks of one for each fold."""
    sizes = np.bincount(codes)
    level = np.bincount(codes, weights=values) / sizes
    order = np.lexsort([generator.random(len(sizes)), level])
    blocks = [generator.permutation(num_folds) for _ in range(-(-len(sizes) // num_folds))]
    fold = np.empty(len(sizes), dtype=np.int64)
    fold[order] = np.concatenate(blocks)[: len(sizes)]
    dealt: NDArray[np.int64] = fold[codes]
    return dealt


def _permuted(
    values: FloatArray, codes: NDArray[np.int64], fold: NDArray[np.int64], number: int, generator: np.random.Generator
) -> FloatArray:
    """Return the true labels, then `number` permutations of them inside the folds, (1 + number, N)."""
    first = np.unique(codes, return_index=True)[1]
    one_label_each = bool((values == values[first][codes]).all())
    unit, first = (codes, first) if one_label_each else (np.arange(len(values)), np.arange(len(values)))
    drawn = np.tile(values[first], (1 + number, 1))
    for part in np.unique(fold):
        inside = np.flatnonzero(fold[first] == part)
        drawn[1:, inside] = generator.permuted(drawn[1:, inside], axis=1)
    permuted: FloatArray = drawn[:, unit]
    return permuted


def _ridge(train: FloatArray, test: FloatArray) -> FloatArray:
    """Return the matrix (test rows, training rows) that takes centred training labels to predictions above the mean."""
    mean, scale = train.mean(axis=0), train.std(axis=0)
    scale[scale == 0] = 1
    known, new = (train - mean) / scale, (test - mean) / scale
    penalised = known.T @ known + PENALTY * len(known) * np.eye(known.shape[1])
    return np.asarray(new @ np.linalg.solve(penalised, known.T))


def _concordant(scores: FloatArray, is_case: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Return, for each row of scores, the pairs of a case above a control (a tie is half of one), and all pairs."""
    num_cases = is_case.sum(axis=1)
    ranks = np.where(is_case, stats.rankdata(scores, axis=1), 0).sum(axis=1)
    return ranks - num_cases * (num_cases + 1) / 2, (num_cases * (~is_case).sum(axis=1)).astype(np.float64)

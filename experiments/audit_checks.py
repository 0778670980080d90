"""What `fontanel audit` judges: one function for each check, from facts to findings."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from evaluation.estimate import FloatArray
from evaluation.leakage import (
    COVERAGE,
    NUM_FOLDS,
    Finding,
    Permutations,
    central,
    cramers_v,
    encode_facts,
    permutation_distribution,
    shared_between,
    site_from_features,
    site_only_auc,
    variance_explained,
)
from evaluation.wording import count_text
from experiments.audit_facts import FILE_SIZE, CohortFacts
from experiments.leakage import MAXIMUM_NAMES

MIN_PARTICIPANTS = 20  # below it no cross-validation of a cheap head means anything
MIN_PER_CLASS = NUM_FOLDS  # one for each fold
SMALL_P = 0.01
SMALL_V, SMALL_ETA = 0.1, 0.01  # small effects (Cohen 1988)
METRIC_NAMES = {"auroc": "AUC", "r2": "R2"}


def check_participants(facts: CohortFacts) -> Finding:
    """Look for participants on two sides of a split."""
    check = "participants across splits"
    found = _shared(facts, facts.rows["key"], facts.rows.index)
    number = facts.rows["key"].nunique()
    numbers = {"participants": number, "splits": len(facts.divisions), "shared": len(found)}
    if found:
        said = f"{len(found)} of {number} participants are in two parts: {name_some(found)}."
        return Finding(check, "leak", said, numbers, "Draw the split anew; leave data.split_file out.")
    if len(facts.divisions) > 1:
        return Finding(
            check, "ok", f"{number} participants, {len(facts.divisions)} folds; nobody is in two parts.", numbers
        )
    counts = facts.rows["key"].groupby(facts.divisions[0]).nunique()
    listed = ", ".join(f"{part} {count}" for part, count in counts.items())
    return Finding(check, "ok", f"{number} participants ({listed}); nobody is in two parts.", numbers)


def check_groups(facts: CohortFacts, group_by: str | None) -> list[Finding]:
    """Look for anatomies, families and the like on two sides of a split.

    Args:
        facts: The cohort.
        group_by: Column that the split was told to keep together.
    """
    findings = []
    for name in facts.identities:
        found = _shared(facts, facts.rows[name], facts.rows.index)
        number = facts.rows[name][facts.rows[name] != ""].nunique()
        check, numbers = f"{name} across splits", {"values": number, "shared": len(found)}
        if not found:
            findings.append(Finding(check, "ok", f"None of the {number} values is in two parts.", numbers))
            continue
        if facts.rows[name].nunique() == 1 and name != group_by:
            findings.append(Finding(check, "ok", f"Everybody has the same, {found[0]}: it ties nobody.", numbers))
            continue
        said = f"{len(found)} of {number} values are in two parts: {name_some(found)}."
        if name == group_by:
            findings.append(Finding(check, "leak", said, numbers, "Draw the split anew; leave data.split_file out."))
        else:
            advice = f"If equal values mean the same anatomy or family, set data.group_by to {name}."
            findings.append(Finding(check, "warning", said, numbers, advice))
    return findings


def check_duplicates(facts: CohortFacts) -> Finding:
    """Look for the same scan, voxel for voxel, in several rows."""
    check = "duplicate images"
    images = facts.files[facts.files["role"] == "image"]
    several = images[images.groupby("voxel_sha256")["row"].transform("nunique") > 1]
    across = _shared(facts, several["voxel_sha256"], several["row"])
    people = several.groupby("voxel_sha256")["key"].unique()
    sets = {str(voxels): ", ".join(keys) for voxels, keys in people.items()}
    numbers = {"images": len(images), "duplicated": len(sets), "across_splits": len(across)}
    if across:
        named = name_some([f"[{sets[voxels]}]" for voxels in across])
        said = f"{count_text(len(across), 'scan')} in two parts, voxel for voxel, under other names: {named}."
        return Finding(check, "leak", said, numbers, "Find out whose they are, and remove the other rows.")
    if sets:
        named = name_some([f"[{names}]" for names in sets.values()])
        said = f"{count_text(len(sets), 'scan')} in several rows: {named}."
        return Finding(check, "warning", said, numbers, "Find out whose they are, and remove the other rows.")
    return Finding(check, "ok", f"No two of {len(images)} images have the same voxels.", numbers)


def check_site_and_label(people: pd.DataFrame, target: str, num_permutations: int) -> Finding:
    """Look whether the site tells the label.

    Args:
        people: One row for each participant, with `site` and the target.
        target: The label.
        num_permutations: Permutations of the AUC of the site alone.
    """
    check = f"site and {target}"
    label, site = people[target].to_numpy(np.float64), people["site"].to_numpy(str)
    if len(np.unique(site)) < 2:
        return Finding(check, "ok", "There is one site.")
    if reason := too_few(label):
        return Finding(check, "unknown", reason)
    if len(np.unique(label)) == 2:
        found = cramers_v(label, site)
        alone = site_only_auc(label, site, num_permutations=num_permutations)
        said = f"Cramer's V {found.corrected:.2f} (bias-corrected, p {found.p_value:.2g}); site alone {_score(alone)}."
        numbers = {"cramers_v": found.corrected, "p_value": found.p_value, "site_only_auroc": alone.value}
        small = SMALL_V
    else:
        found = variance_explained(label, site)
        said = f"Sites explain {found.corrected:.0%} of the variance (eta2 {found.value:.2f}, p {found.p_value:.2g})."
        numbers = {"eta_squared": found.value, "epsilon_squared": found.corrected, "p_value": found.p_value}
        small = SMALL_ETA
    if found.p_value < SMALL_P and found.corrected >= small:
        advice = "Report the cross-site protocol and the site-only baseline; a model may learn the scanner instead."
        return Finding(check, "warning", said, numbers, advice)
    return Finding(check, "ok", said, numbers)


def check_site_from_intensities(people: pd.DataFrame, features: FloatArray) -> Finding:
    """Look whether a few quantiles of the preprocessed images tell the site.

    Args:
        people: One row for each participant, with `site`.
        features: (N, K) of the same rows.
    """
    check = "site from intensities"
    sizes = people["site"].value_counts()
    large = sizes.index[sizes >= MIN_PER_CLASS]
    chosen = people["site"].isin(large).to_numpy()
    if len(sizes) < 2:
        return Finding(check, "ok", "There is one site.")
    if len(large) < 2 or chosen.sum() < MIN_PARTICIPANTS:
        needed = f"{MIN_PARTICIPANTS} at two sites with {MIN_PER_CLASS} each are needed"
        said = f"{len(people)} participants at {len(sizes)} sites are too few; {needed}."
        return Finding(check, "unknown", said)
    accuracy, chance = site_from_features(features[chosen], people["site"].to_numpy(str)[chosen])
    interval = "" if accuracy.low is None else f" [{accuracy.low:.2f}, {accuracy.high:.2f}]"
    said = f"Balanced accuracy {accuracy.estimate:.2f}{interval} over {len(large)} sites, {chance:.2f} by chance."
    numbers = {
        "balanced_accuracy": accuracy.estimate,
        "low": _number(accuracy.low),
        "high": _number(accuracy.high),
        "chance": chance,
        "sites": len(large),
    }
    if accuracy.low_above(chance):
        advice = "Normalise each image by itself, augment intensities, and report the cross-site protocol."
        return Finding(check, "warning", said, numbers, advice)
    return Finding(check, "ok", said, numbers)


def check_label_from_headers(label: FloatArray, headers: pd.DataFrame, target: str, num_permutations: int) -> Finding:
    """Look whether voxel sizes, shapes, orientation, type and size of the files tell the label.

    Args:
        label: (N,) label of each participant.
        headers: One row for each of them.
        target: Name of the label.
        num_permutations: Permutations that show what chance gives.
    """
    check = f"{target} from headers"
    if reason := too_few(label):
        return Finding(check, "unknown", reason)
    features = encode_facts(headers)
    if features.shape[1] == 0:
        return Finding(check, "ok", "The headers do not differ.")
    found = permutation_distribution(features, label, num_permutations=num_permutations)
    metric = found.metric
    numbers = {metric: found.value, "p_value": found.p_value, **_chance(found)}
    said = f"{_score(found)}{_by_chance(found)}"
    bare = encode_facts(headers.loc[:, [not str(name).endswith(FILE_SIZE) for name in headers]])
    if bare.shape[1]:
        numbers[f"{metric}_without_file_size"] = permutation_distribution(bare, label, num_permutations=0).value
        said += f"; without file sizes {numbers[f'{metric}_without_file_size']:.2f}"
    if found.informative:
        advice = f"The acquisition alone tells {target}: match protocols between classes, and report this as an arm."
        return Finding(check, "warning", f"{said}.", numbers, advice)
    return Finding(check, "ok", f"{said}.", numbers)


def check_label_from_intensities(
    label: FloatArray, features: FloatArray, target: str, num_permutations: int
) -> Finding:
    """Score a cheap head on intensities, and say where a run with permuted labels must lie.

    Args:
        label: (N,) label of each participant.
        features: (N, K) quantiles of their images.
        target: Name of the label.
        num_permutations: Permutations that show what chance gives.
    """
    check = f"{target} from intensities"
    if reason := too_few(label):
        return Finding(check, "unknown", reason)
    found = permutation_distribution(features, label, num_permutations=num_permutations)
    said = (
        f"A cheap head on the histogram has {_score(found)}{_by_chance(found)}, where a run with permuted labels lies."
    )
    return Finding(check, "ok", said, {found.metric: found.value, "p_value": found.p_value, **_chance(found)})


def warn_of_shortcut(confounded: Finding, site: Finding, label: Finding) -> Finding:
    """Return the finding on label and intensities as a warning where the site may be what links them.

    Args:
        confounded: Of site and label.
        site: Of site from intensities.
        label: Of label from intensities.
    """
    chance = label.numbers.get("chance_high", math.inf)
    value = label.numbers.get("auroc", label.numbers.get("r2", math.nan))
    if confounded.status == site.status == "warning" and value > chance:
        advice = (
            "The site tells the label and the histogram tells the site: only a test at unseen sites can be trusted."
        )
        return replace(label, status="warning", advice=advice)
    return label


def too_few(label: FloatArray) -> str:
    """Return why a label cannot be looked at, empty where it can."""
    values, counts = np.unique(label, return_counts=True)
    if len(label) < MIN_PARTICIPANTS:
        return f"{len(label)} participants with a label are too few; {MIN_PARTICIPANTS} are needed."
    if len(values) < 2:
        return "Every participant has the same label."
    if len(values) == 2 and counts.min() < MIN_PER_CLASS:
        return f"{counts.min()} participants of a class are too few; {MIN_PER_CLASS} are needed."
    return ""


def _shared(facts: CohortFacts, keys: pd.Series, rows: Sequence[int] | pd.Index | pd.Series) -> list[str]:
    """Return the keys that stand in two parts of some division; unused rows do not count."""
    found: dict[str, None] = {}
    for division in facts.divisions:
        parts = division.loc[list(rows)].to_numpy()
        used = parts != ""
        found |= dict.fromkeys(shared_between(keys.to_numpy()[used], parts[used]))
    return list(found)


def name_some(names: Sequence[str]) -> str:
    """Return the first few of a list of names as text, and how many more there are."""
    more = f" and {len(names) - MAXIMUM_NAMES} more" if len(names) > MAXIMUM_NAMES else ""
    return ", ".join(names[:MAXIMUM_NAMES]) + more


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _score(found: Permutations) -> str:
    return f"{METRIC_NAMES[found.metric]} {found.value:.2f} (p {found.p_value:.2g})"


def _chance(found: Permutations) -> dict[str, float]:
    low, high = central(found.distribution) if not math.isnan(found.value) else (math.nan, math.nan)
    return {"chance_low": low, "chance_high": high, "permutations": len(found.distribution)}


def _by_chance(found: Permutations) -> str:
    low, high = central(found.distribution)
    return f"; by chance {low:.2f} to {high:.2f} ({COVERAGE:.0%} of {len(found.distribution)} permutations)"

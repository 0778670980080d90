"""What `fontanel audit` judges of a pretraining: who was seen, in which anatomies, and with or without their skulls."""

import math

from datamodules.base import BaseDataModule
from evaluation.leakage import Finding
from experiments.audit_checks import name_some
from experiments.audit_facts import CohortFacts, SeenCohort, UnreachableError, seen_cohort, share_stripped
from experiments.leakage import (
    OVERLAP_ADVICE,
    TESTED_PARTS,
    Pretraining,
    describe_overlap,
    pretraining_overlap,
    seen_participants,
)

MIXED_STRIPPING = 0.5  # difference of the shares of stripped heads


def check_pretraining(
    pretraining: Pretraining, datamodule: BaseDataModule, facts: CohortFacts, *, everybody: bool
) -> list[Finding]:
    """Look whom the cohort shares with a pretraining, and whether both show the same kind of head.

    Args:
        pretraining: Where the weights come from.
        datamodule: The cohort.
        facts: Its rows and files.
        everybody: Whether every participant is tested in turn, or only those outside the training part.
    """
    check = f"pretraining {pretraining.name}"
    findings = []
    for contract in pretraining.contracts:
        overlap = pretraining_overlap(contract, datamodule, None if everybody else TESTED_PARTS)
        numbers = {
            "pretrained": len(seen_participants(contract)),
            "pretrained_images": len(contract.training_images),
            "shared_participants": len(overlap.participants),
            "shared_images": sum(map(len, overlap.images.values())),
        }
        if overlap.keys:
            said = describe_overlap(overlap, pretraining.name, contract)
            findings.append(Finding(check, "leak", said, numbers, OVERLAP_ADVICE))
        elif contract.training_images and seen_participants(contract):
            said = (
                f"None of its {numbers['pretrained']} participants and {numbers['pretrained_images']} images is tested."
            )
            findings.append(Finding(check, "ok", f"{contract.run_name}: {said}", numbers))
        try:
            findings += _compare_cohorts(
                seen_cohort(contract), datamodule, facts, pretraining.name, everybody=everybody
            )
        except UnreachableError as error:
            said = f"Heads, voxels and anatomies could not be compared: {error}."
            findings.append(Finding(f"{check}: heads", "unknown", said, {}, "Run the audit where the table is."))
    if pretraining.gap:
        advice = "Ask its author who was trained on; until then call its gain unproven."
        findings.append(Finding(f"{check}: provenance", "unknown", pretraining.gap, {}, advice))
    return findings


def _compare_cohorts(
    seen: SeenCohort, datamodule: BaseDataModule, facts: CohortFacts, name: str, *, everybody: bool
) -> list[Finding]:
    check = f"pretraining {name}"
    findings = [_compare_voxels(seen, facts, check, everybody=everybody)]
    for column in facts.identities:
        if column in seen.groups:
            shared = sorted(seen.groups[column] & set(facts.rows[column]))
            numbers = {"shared": len(shared)}
            if shared:
                said = f"{len(shared)} values of {column} are in both cohorts: {name_some(shared)}."
                advice = "If equal values mean the same anatomy, test on others; a gain may be recognition."
                findings.append(Finding(f"{check}: {column}", "warning", said, numbers, advice))
            else:
                findings.append(Finding(f"{check}: {column}", "ok", "No value is in both cohorts.", numbers))
    own = share_stripped([channel for sample in datamodule.samples for channel in sample.files.channels])
    theirs = share_stripped(seen.images)
    said = f"Skull-stripped are {theirs:.0%} of the heads looked at in the pretraining, and {own:.0%} here."
    seen_heads = {"pretraining_stripped": theirs, "stripped": own}
    if math.isnan(own) or math.isnan(theirs):
        findings.append(Finding(f"{check}: heads", "unknown", "There is no image to look at.", seen_heads))
    elif abs(own - theirs) >= MIXED_STRIPPING:
        advice = "Strip both or neither: the network has learnt from the skull, or has never seen one."
        findings.append(Finding(f"{check}: heads", "warning", said, seen_heads, advice))
    else:
        findings.append(Finding(f"{check}: heads", "ok", said, seen_heads))
    return findings


def _compare_voxels(seen: SeenCohort, facts: CohortFacts, check: str, *, everybody: bool) -> Finding:
    """Compare voxels, so that a scan is known again in another file format or compression."""
    if seen.voxels is None:
        advice = "Run `fontanel verify` on its table."
        return Finding(f"{check}: voxels", "unknown", "The pretraining's table has no fitting manifest.", {}, advice)
    images = facts.files[facts.files["role"] == "image"]
    if not everybody:
        images = images[images["row"].map(facts.divisions[0]).isin(TESTED_PARTS)]
    same = images[images["voxel_sha256"].isin(list(seen.voxels))]
    numbers = {"pretrained_images": len(seen.voxels), "shared": len(same)}
    if same.empty:
        return Finding(f"{check}: voxels", "ok", f"None of {len(images)} images has the voxels of one of its.", numbers)
    pairs = [f"{row['key']} is {seen.voxels[row['voxel_sha256']]}" for _, row in same.iterrows()]
    said = f"{len(same)} images have the voxels of an image that it was trained on: {name_some(pairs)}."
    return Finding(f"{check}: voxels", "leak", said, numbers, OVERLAP_ADVICE)

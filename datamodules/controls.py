"""Controls: what is trained on is made wrong on purpose, to see what a gain comes from."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from datamodules.cohort import participant_key
from datamodules.dataset import Sample
from datamodules.strata import draw


def permute_targets(samples: Sequence[Sample], parts: Sequence[str], seed: int) -> list[Sample]:
    """Give every participant of a part the targets of another one of the same part, each one's to one.

    Images, order and number of labels stay as they were, so that a training differs in what it is told alone. All
    sessions of a participant get theirs from the same other: the first the first's, and so on, from the beginning again
    where there are fewer. A missing target stays missing. The order of the samples does not matter.

    Args:
        samples: All samples.
        parts: Splits to shuffle, each within itself; the others keep their targets.
        seed: Of the permutation.
    """
    targets = [dict(sample.targets) for sample in samples]
    for part in parts:
        for name in sorted({name for sample in samples for name in sample.targets}):
            known: dict[str, list[int]] = defaultdict(list)
            for index in sorted(range(len(samples)), key=lambda index: _place(samples[index])):
                if samples[index].split == part and np.isfinite(samples[index].targets[name]):
                    known[_person(samples[index])].append(index)
            # The draw leaves the target out, so that targets that everybody has move together.
            givers = sorted(known, key=lambda person: draw(seed, "permute", person))
            for taker, giver in zip(sorted(known), givers, strict=True):
                for visit, index in enumerate(known[taker]):
                    given = known[giver][visit % len(known[giver])]
                    targets[index][name] = samples[given].targets[name]
    return [replace(sample, targets=own) for sample, own in zip(samples, targets, strict=True)]


def _person(sample: Sample) -> str:
    return participant_key(sample.dataset, sample.participant_id)


def _place(sample: Sample) -> tuple[str, str]:
    return sample.session_id, sample.image_id

"""From distances to tissue: soft boundaries where age puts them, hypointensities, and the T1-weighted signal."""

import numpy as np

from datamodules.phantoms.geometry import Field, logistic

GREY, CSF, FAT, MUSCLE, BONE = 0.70, 0.22, 0.95, 0.45, 0.06  # T1 signal, relative to young adult white matter
FAT_MM = 5.0  # depth of the bright layer under the skin
HYPOINTENSITY = 0.5  # share of the contrast between white and grey matter that a hypointensity loses


def aged(aging: float, development: float) -> tuple[float, float, float]:
    """Return what age does to a brain: where its boundaries move, and how bright its white matter is.

    Args:
        aging: (age in years - 20) / 75, 0 below 20 years.
        development: 1 - age in years / 20, 0 above 20 years.

    Returns:
        Outward shift of the ventricular wall in mm, loss of cortical thickness in mm, and change of the signal of white
        matter relative to that of a young adult.

    >>> aged(1.0, 0.0)
    (2.7, 1.1, -0.08)
    """
    return -0.5 + 3.2 * aging**1.5, 1.1 * aging - 0.6 * development, -0.08 * aging - 0.02 * development


def tissue_fractions(distance: dict[str, Field], wall_shift: float, thinning: float, voxel: float) -> dict[str, Field]:
    """Turn signed distances into the share of each voxel that a tissue fills.

    Args:
        distance: Fields (D, H, W) in mm by the names of `anatomy.FIELDS`, at the participant's voxels.
        wall_shift: How far the ventricular wall moves out, in mm.
        thinning: How far the surface of the brain moves in, in mm.
        voxel: Voxel size in mm.

    Returns:
        Fractions `ventricles`, `white`, `grey`, `fluid` (all cerebrospinal fluid), `bone`, `soft` (outside the skull),
        `fat` (of the soft tissue) and `intracranial`; and in mm `from_wall`, the distance to the ventricles, and
        `depth`, that to the surface of the brain.
    """
    width = np.float32(np.hypot(0.5, 0.16 * voxel))  # the boundary's own width, and that of averaging over a voxel
    ventricles = logistic((np.float32(wall_shift) - distance["ventricles"]) / width)
    intracranial = logistic(-distance["intracranial"] / width)
    brain = logistic((np.float32(-thinning) - distance["brain"]) / width) * (1 - ventricles)
    white = logistic(-distance["white_matter"] / width) * brain
    outside = logistic(-distance["head"] / width) * (1 - intracranial)
    bone = logistic(-distance["bone"] / width) * outside
    return {
        "ventricles": ventricles,
        "intracranial": intracranial,
        "white": white,
        "grey": brain - white,
        "fluid": np.maximum(intracranial - brain, 0),
        "bone": bone,
        "soft": outside - bone,
        "fat": logistic((distance["head"] + np.float32(FAT_MM)) / np.float32(1.5)),
        "from_wall": np.maximum(distance["ventricles"] - np.float32(wall_shift), 0),
        "depth": -distance["brain"],
    }


def hypointensities(tissue: dict[str, Field], texture: Field, num_voxels: float) -> Field:
    """Place white-matter hypointensities: caps and bands at the ventricles, blobs in deep white matter.

    Args:
        tissue: What `tissue_fractions` returns.
        texture: Smooth random field (D, H, W) of unit variance.
        num_voxels: Intended volume, in voxels.

    Returns:
        Share (D, H, W) of each voxel that they fill.
    """
    lesion = np.zeros_like(texture)
    candidates = np.flatnonzero((tissue["white"] > 0.5) & (tissue["depth"] > 5))
    rank = int(num_voxels) + 1
    if num_voxels <= 0 or candidates.size < rank:
        return lesion
    score = (texture + 2.5 * np.exp(-tissue["from_wall"] / np.float32(5))).ravel()[candidates]
    threshold = np.partition(score, -rank)[-rank]
    inside = np.clip((score - threshold) / np.float32(0.2) + np.float32(0.5), 0, 1)
    lesion.ravel()[candidates] = inside * tissue["white"].ravel()[candidates]
    return lesion


def t1_signal(tissue: dict[str, Field], texture: Field, lesion: Field, white_signal: float) -> Field:
    """Return the T1-weighted signal (D, H, W), young adult white matter being 1.

    Args:
        tissue: What `tissue_fractions` returns.
        texture: Smooth random field of unit variance; shows in the muscles.
        lesion: What `hypointensities` returns.
        white_signal: Signal of white matter, below that of grey matter in the first months of life.
    """
    drop = np.float32(HYPOINTENSITY * (white_signal - GREY))
    brain = tissue["white"] * np.float32(white_signal) + tissue["grey"] * np.float32(GREY) - lesion * drop
    scalp = MUSCLE + np.float32(0.05) * texture + (FAT - MUSCLE) * tissue["fat"]
    outside = tissue["soft"] * scalp + tissue["bone"] * np.float32(BONE)
    signal: Field = brain + tissue["fluid"] * np.float32(CSF) + outside
    return signal

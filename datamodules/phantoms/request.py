"""What can be asked of a phantom of heads: the limits that all of them share."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.phantoms import PhantomError
from datamodules.phantoms.anatomy import list_anatomies
from datamodules.phantoms.geometry import Triple
from datamodules.phantoms.scanner import make_scanners


def check_request(
    num_participants: int,
    seed: int,
    num_sites: int,
    shape: Sequence[int],
    spacing: Triple | None,
    labels: Path | None,
    anatomies: Sequence[str] | None,
) -> None:
    """Refuse a cohort that cannot be made.

    Args:
        num_participants: Number of participants.
        seed: Seed of everything.
        num_sites: Number of sites.
        shape: Voxels along right, anterior and superior.
        spacing: Voxel size in mm; None derives it from the shape.
        labels: Folder of label maps; None for ICBM152.
        anatomies: Names of the label maps to use; None for all.

    Raises:
        PhantomError: An argument is out of range, or a label map is missing.
    """
    if num_participants < 1:
        raise PhantomError(f"A cohort has at least one participant, not {num_participants}. Change --num-participants.")
    if seed < 0:
        raise PhantomError(f"A seed is not negative, but this one is {seed}. Change --seed.")
    if min(shape) < 16 or np.prod(shape) > 512**3:
        raise PhantomError(f"The shape {shape} is outside 16 voxels an axis to 512^3 voxels. Change --shape.")
    if spacing is not None and not all(0.2 <= size <= 20 for size in spacing):
        raise PhantomError(f"The spacing {spacing} is outside 0.2 to 20 mm. Change --spacing.")
    known = list_anatomies(labels)
    unknown = set(anatomies or ()) - set(known)
    if unknown:
        absent, present = ", ".join(sorted(unknown)), ", ".join(known)
        raise PhantomError(f"There is no anatomy {absent}; there are {present}. Change --anatomies or --labels.")
    make_scanners(num_sites, seed, "off")


def isotropic_spacing(field_of_view: Triple, shape: Sequence[int]) -> Triple:
    """Return the smallest equal voxel sizes in mm with which a grid covers a field of view in mm.

    >>> isotropic_spacing((192.0, 224.0, 192.0), (48, 56, 48))
    (4.0, 4.0, 4.0)
    """
    size = round(max(extent / count for extent, count in zip(field_of_view, shape, strict=True)), 2)
    return size, size, size

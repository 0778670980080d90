"""What a newborn's brain and its injury look like: regions, ADC, its z-score map, and the T1-weighted signal.

ADC is in 1e-3 mm2/s. White matter has 1.6, cortex 1.2, deep grey matter 1.05. An injury lowers ADC to 0.5-0.8 in the
first days (0.8 where it is slight, 0.5 where it is severe); ADC pseudo-normalises after about a week, then rises above.
"""

import numpy as np
from scipy import ndimage

from datamodules.phantoms.geometry import Field, Triple, logistic
from datamodules.phantoms.hie_newborns import remaining_drop
from datamodules.phantoms.tissue import aged, t1_signal

WHITE_ADC, CORTEX_ADC, DEEP_GREY_ADC, FLUID_ADC = 1.6, 1.2, 1.05, 2.9
SLIGHT_ADC, SEVERE_ADC = 0.85, 0.5  # of injured tissue; an injury of 0.15 has 0.8
WHITE_SIGNAL = 0.5  # T1 signal of unmyelinated white matter: below that of grey matter (0.7)
SMOOTHING_MM = 2.0  # standard deviation of the filter of the z-score map
LARGEST_Z = 10.0
AVERAGE_AGING = 0.4  # of a latent factor of 0
AGING_PER_SD = 0.25
_TISSUE_SD, _FLUID_SD = 0.12, 0.6  # of normal ADC between newborns: in tissue, and added where sulci and walls vary
_RAGGED = 0.45  # how much a random field counts beside the depth in the region
_EDGE = 0.35  # of the score over which an injury fades out

Ellipsoid = tuple[Triple, Triple]

# Centre and radii in mm on the right of an adult-sized head, from the middle of the brain: thalamus, lentiform nucleus,
# head of the caudate nucleus.
DEEP_GREY: tuple[Ellipsoid, ...] = (
    ((10, 0, 3), (10, 15, 10)),
    ((23, 19, -3), (9, 19, 11)),
    ((12, 29, 5), (6, 10, 10)),
)
# Border zones of the cerebral arteries, wide at the surface: frontal, superior frontal, parietal, parieto-occipital.
WATERSHED: tuple[Ellipsoid, ...] = (
    ((27, 64, 26), (15, 22, 20)),
    ((24, 24, 56), (12, 28, 16)),
    ((27, -34, 52), (14, 26, 18)),
    ((39, -62, 14), (15, 20, 22)),
)


def anatomy_of_factor(factor: float) -> tuple[float, float, float]:
    """Return what a latent factor (0 on average, standard deviation 1) does to a newborn's brain: what age does.

    A standard deviation is worth 19 years between the ages of 20 and 95; a newborn's cortex is as thick as that of
    the brain-age phantom at birth.

    Returns:
        Outward shift of the ventricular wall in mm, loss of cortical thickness in mm, and relative change of white
        matter, as `tissue.aged`.
    """
    return aged(max(AVERAGE_AGING + AGING_PER_SD * factor, 0.0), 1.0)


def membership(points: Field, ellipsoids: tuple[Ellipsoid, ...]) -> Field:
    """Return how deep each point lies in a region on both sides: 1 at a centre, 0 at the boundary, negative outside.

    Args:
        points: Positions (3, D, H, W) in mm from the middle of the brain of an adult-sized head.
        ellipsoids: Centres and radii in mm on the right side.
    """
    aside = np.abs(points[0])
    closest = np.full(aside.shape, np.inf, np.float32)
    for (x, y, z), (width, length, height) in ellipsoids:
        reach = ((aside - x) / width) ** 2 + ((points[1] - y) / length) ** 2 + ((points[2] - z) / height) ** 2
        np.minimum(closest, reach, out=closest)
    inside: Field = 1 - np.sqrt(closest)
    return inside


def injured_share(inside: Field, brain: Field, texture: Field, uneven: Field, injury: float) -> Field:
    """Place an injury in a region: worst at its centre, ragged, and worse on one side.

    Args:
        inside: What `membership` returns.
        brain: Share of each voxel that is brain.
        texture: Smooth random field of unit variance.
        uneven: Preference of one side, added to the score.
        injury: Injury of the region, 0 to 1: 0.9 of it is injured at 1.

    Returns:
        Share (D, H, W) of each voxel that is injured.
    """
    share = np.zeros_like(brain)
    candidates = np.flatnonzero((inside > 0) & (brain > 0.5))
    rank = round(0.9 * injury**0.8 * candidates.size)
    if rank < 1:
        return share
    score = (inside + np.float32(_RAGGED) * texture + uneven).ravel()[candidates]
    threshold = np.partition(score, -rank)[-rank]
    part = np.clip((score - threshold) / np.float32(_EDGE) + np.float32(0.5), 0, 1)
    share.ravel()[candidates] = part * brain.ravel()[candidates]
    return share


def normal_adc(tissue: dict[str, Field], deep: Field, white_change: float, texture: Field | float = 0.0) -> Field:
    """Return the ADC (D, H, W) of a newborn without injury; 0 outside the skull.

    Args:
        tissue: What `tissue.tissue_fractions` returns.
        deep: Share of the brain of each voxel that is deep grey matter.
        white_change: Relative change of the ADC of white matter.
        texture: Smooth random field of unit variance; shows in white matter.
    """
    white = np.float32(WHITE_ADC * (1 + white_change)) + np.float32(0.06) * texture
    brain = tissue["white"] + tissue["grey"]
    outer = tissue["white"] * white + tissue["grey"] * np.float32(CORTEX_ADC)
    adc: Field = outer * (1 - deep) + brain * deep * np.float32(DEEP_GREY_ADC) + tissue["fluid"] * np.float32(FLUID_ADC)
    return adc


def injured_adc(adc: Field, injuries: tuple[tuple[Field, float], ...], day: float) -> Field:
    """Lower ADC where tissue is injured, as far as it still is on this day of life.

    Args:
        adc: ADC (D, H, W) without injury.
        injuries: For each region, the injured share of each voxel and the injury, 0 to 1.
        day: Day of life, 0 to 14.
    """
    left = np.float32(remaining_drop(day))
    for share, injury in injuries:
        lowest = np.float32(SLIGHT_ADC - (SLIGHT_ADC - SEVERE_ADC) * injury)
        adc = adc + left * share * (lowest - adc)
    return adc


def z_scores(adc: Field, normal: tuple[Field, Field], spacing: Triple) -> Field:
    """Compare recorded ADC with the mean of normal newborns, in standard deviations, smoothed and cut at +-10.

    Args:
        adc: Recorded ADC (D, H, W).
        normal: Mean and standard deviation of normal newborns at each voxel.
        spacing: Voxel size in mm.
    """
    mean, deviation = normal
    smooth = ndimage.gaussian_filter((adc - mean) / deviation, [SMOOTHING_MM / size for size in spacing])
    return np.asarray(np.clip(smooth, -LARGEST_Z, LARGEST_Z), np.float32)


def normative(average: dict[str, Field], deep: Field) -> tuple[Field, Field]:
    """Return the mean and the standard deviation of ADC in normal newborns, registered to this newborn's head.

    Args:
        average: What `tissue.tissue_fractions` returns for this head with the boundaries of an average factor.
        deep: Share of the brain of each voxel that is deep grey matter.
    """
    *_, white_change = anatomy_of_factor(0.0)
    return normal_adc(average, deep, white_change), np.float32(_TISSUE_SD) + np.float32(_FLUID_SD) * average["fluid"]


def newborn_t1(
    tissue: dict[str, Field], deep: Field, white_change: float, texture: Field, injury: Field, day: float
) -> Field:
    """Return the T1-weighted signal (D, H, W): grey above white matter, and injured deep grey bright from day three on.

    Args:
        tissue: What `tissue.tissue_fractions` returns.
        deep: Share of the brain of each voxel that is deep grey matter.
        white_change: Change of the signal of white matter.
        texture: Smooth random field of unit variance.
        injury: Injured share of each voxel's deep grey matter times its injury.
        day: Day of life, 0 to 14.
    """
    none = np.zeros_like(texture)
    signal = t1_signal(tissue, texture, none, WHITE_SIGNAL + white_change)
    shown = 1 / (1 + np.exp(-(day - 3.0)))
    brain = tissue["white"] + tissue["grey"]
    even: Field = signal + tissue["white"] * deep * np.float32(0.68 - WHITE_SIGNAL - white_change)
    return even + brain * np.float32(0.3 * shown) * injury


def deep_grey_share(inside: Field, voxel: float) -> Field:
    """Return the share of each voxel's brain that is deep grey matter, from what `membership` returns.

    Args:
        inside: Depth in the region.
        voxel: Voxel size in mm.
    """
    return logistic(inside * np.float32(10.0 / np.hypot(1.0, 0.3 * voxel)))

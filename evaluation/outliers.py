"""Which images of a cohort stand out: robust z-scores of a few measures of each image.

A z-score is the distance from the median in robust standard deviations (1.4826 times the median absolute deviation),
so that the images that stand out do not hide themselves. The median is that of the image's own site where it has
`MIN_IMAGES`, of the cohort otherwise, because sites differ and are compared apart; the standard deviation is that of
all images around these medians. It has a lower limit: where nearly all images are alike, a trifle does not stand out.
The score of an image is its largest z-score, and the measure that it comes from says why.

An image mirrored left to right looks like any other to these measures, and to most others.

References:
    Iglewicz and Hoaglin. How to Detect and Handle Outliers. ASQC 1993 (the limit of 3.5).
    Leys et al. Detecting outliers: do not use standard deviation around the mean, use absolute deviation around the
    median. J Exp Soc Psychol 2013. doi:10.1016/j.jesp.2013.03.013
    Esteban et al. MRIQC: advancing the automatic prediction of image quality in MRI from unseen sites. PLoS ONE 2017.
    doi:10.1371/journal.pone.0184661 (measures of image quality)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.estimate import FloatArray
from evaluation.wording import number_text

LIMIT = 3.5  # robust standard deviations from which an image stands out
MIN_IMAGES = 5  # fewer have no usual look
TO_SD = 1.4826  # of a normal distribution, standard deviation over median absolute deviation


@dataclass(frozen=True)
class Measure:
    """Something that is measured on every image.

    Args:
        label: What it is called in a sentence.
        unit: Of the value, empty without one.
        is_amount: Whether it is compared by its ratio, as long as all are above 0.
        smallest_sd: Of the value, or of the logarithm of an amount; a smaller robust standard deviation counts as it.
        low_only: Whether only low values stand out.
        digits: Decimals that are shown.
    """

    label: str
    unit: str = ""
    is_amount: bool = False
    smallest_sd: float = 0.05
    low_only: bool = False
    digits: int = 2


SIMILARITY = "similarity"
MEASURES: dict[str, Measure] = {
    "voxel_volume": Measure("voxel volume", "mm\N{SUPERSCRIPT THREE}", is_amount=True),
    "foreground_volume": Measure("foreground volume", "ml", is_amount=True, digits=0),
    "intensity": Measure("median intensity", "", is_amount=True, smallest_sd=0.1),
    "spread": Measure("spread of intensities", "", is_amount=True, smallest_sd=0.1),
    "skew": Measure("skew of intensities"),
    "roughness": Measure("roughness", "", is_amount=True),
    SIMILARITY: Measure("similarity to the median image", smallest_sd=0.03, low_only=True),
}


@dataclass(frozen=True)
class Deviation:
    """How far one measure of an image is from what is usual.

    Args:
        column: Image column that it was measured on.
        measure: Key of `MEASURES`.
        value: What was measured.
        median: What is usual.
        z: Distance in robust standard deviations, with its sign.
        reference: Site whose median it is, empty for that of all.
    """

    column: str
    measure: str
    value: float
    median: float
    z: float
    reference: str = ""

    @property
    def stands_out(self) -> float:
        """How much it counts, in robust standard deviations."""
        return max(-self.z, 0.0) if MEASURES[self.measure].low_only else abs(self.z)


@dataclass(frozen=True)
class Score:
    """How much an image stands out.

    Args:
        deviations: Of every measure that could be taken, the largest first.
    """

    deviations: tuple[Deviation, ...] = ()

    @property
    def value(self) -> float:
        """The largest z-score; NaN where nothing could be compared."""
        return self.deviations[0].stands_out if self.deviations else float("nan")

    @property
    def is_outlying(self) -> bool:
        """Whether the image stands out."""
        return self.value >= LIMIT


def score_images(measured: Sequence[Mapping[tuple[str, str], float]], sites: Sequence[str]) -> list[Score]:
    """Compare every image with the others.

    Args:
        measured: For each image, (column, measure) -> value; NaN or absent where it could not be measured.
        sites: Site of each image.

    >>> usual = [{("t1w", "skew"): 0.01 * step} for step in range(-5, 6)]
    >>> scores = score_images([*usual, {("t1w", "skew"): 0.9}], ["a"] * 12)
    >>> scores[-1].is_outlying, scores[0].is_outlying
    (True, False)
    """
    found: list[list[Deviation]] = [[] for _ in measured]
    several = len(set(sites)) > 1
    for column, measure in dict.fromkeys(key for one in measured for key in one):
        values = np.array([one.get((column, measure), np.nan) for one in measured], dtype=np.float64)
        comparison = compare(values, sites, MEASURES[measure])
        for index, (site, value, median, z) in enumerate(
            zip(sites, values.tolist(), comparison.median.tolist(), comparison.z.tolist(), strict=True)
        ):
            if np.isfinite(z):
                reference = site if several and comparison.by_site[index] else ""
                found[index].append(Deviation(column, measure, value, median, z, reference))
    return [Score(tuple(sorted(one, key=lambda deviation: -deviation.stands_out))) for one in found]


class Comparison(NamedTuple):
    """How far values are from what is usual.

    Args:
        z: (N,) distance from the median in robust standard deviations, NaN where there is none.
        median: (N,) what is usual.
        by_site: (N,) whether that is the median of the value's own site.
    """

    z: FloatArray
    median: FloatArray
    by_site: NDArray[np.bool_]


def compare(values: ArrayLike, sites: Sequence[str], measure: Measure) -> Comparison:
    """Return how far values are from the median of their site, or of all where the site has too few.

    Args:
        values: (N,), NaN where unknown; fewer than `MIN_IMAGES` known ones have no distances.
        sites: (N,) name of the site of each.
        measure: What they are of.

    >>> lengths = [10.0, 11.0, 9.0, 10.5, 9.5, 30.0]
    >>> compare(lengths, ["a"] * 6, Measure("length")).z.round(1).tolist()
    [-0.2, 0.7, -1.1, 0.2, -0.7, 17.8]
    """
    own, names = np.asarray(values, dtype=np.float64), np.asarray(sites, dtype=object)
    known = np.isfinite(own)
    median, by_site = np.full(len(own), np.nan), np.zeros(len(own), bool)
    if known.sum() < MIN_IMAGES:
        return Comparison(median, median, by_site)
    median[:] = np.median(own[known])
    for site in set(names):
        members = names == site
        if (known & members).sum() >= MIN_IMAGES:
            median[members], by_site[members] = np.median(own[known & members]), True
    is_amount = measure.is_amount and not (own[known] <= 0).any()
    distance = np.log(own) - np.log(median) if is_amount else own - median
    # Each median lies on one of its own images, or between two: what it took from the spread is given back.
    num_medians = len(set(names[by_site])) + (not by_site.all())
    middle = np.quantile(np.abs(distance[known]), min(0.5 * (1 + num_medians / known.sum()), 1.0))
    return Comparison(distance / max(TO_SD * float(middle), measure.smallest_sd), median, by_site)


def similarity(vectors: ArrayLike, sites: Sequence[str]) -> FloatArray:
    """Return how alike each image is to the median image of its site, or of all where the site has too few.

    It is the correlation over the voxels in which the median image is above its mean: its foreground.

    Args:
        vectors: (N, V), one coarse image a row, all on one grid.
        sites: (N,) name of the site of each.

    >>> similarity([[0, 1, 2, 3], [0, 1, 2, 4], [9, 4, 3, 0]], ["a"] * 3).round(2).tolist()
    [1.0, 1.0, -1.0]
    """
    images, names = np.asarray(vectors, dtype=np.float32), np.asarray(sites, dtype=object)
    alike = np.full(len(images), np.nan)
    large = [site for site in set(names) if (names == site).sum() >= MIN_IMAGES]
    groups = [(names == site, names == site) for site in large]
    for members, usual in [*groups, (~np.isin(names, large), np.ones(len(names), bool))]:
        if members.any():
            alike[members] = _correlation(images[members], np.median(images[usual], axis=0))
    return alike


def _correlation(images: FloatArray, usual: FloatArray) -> FloatArray:
    inside = usual > usual.mean()
    own, other = images[:, inside], usual[inside].astype(np.float64)
    own, other = own - own.mean(axis=1, keepdims=True), other - other.mean()
    lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(other)
    alike: FloatArray = np.divide(own @ other, lengths, out=np.full(len(own), np.nan), where=lengths > 0)
    return alike


def describe(deviation: Deviation, *, several_columns: bool = False) -> str:
    """Say in words how far an image is from what is usual.

    Args:
        deviation: The distance.
        several_columns: Whether the column must be named.

    >>> describe(Deviation("t1w", "foreground_volume", 2100.0, 1400.0, 4.13))
    'foreground volume 4.1 robust SD above the median of the cohort (2100 ml, usually 1400 ml)'
    """
    measure = MEASURES[deviation.measure]
    column = f" of {deviation.column}" if several_columns else ""
    direction = "above" if deviation.z >= 0 else "below"
    whose = deviation.reference or "the cohort"
    value, usual = (value_text(number, measure) for number in (deviation.value, deviation.median))
    distance = f"{abs(deviation.z):,.1f} robust SD {direction} the median of {whose}"
    return f"{measure.label}{column} {distance} ({value}, usually {usual})"


def value_text(value: float, measure: Measure) -> str:
    """Return a measured value with its unit.

    >>> value_text(1234.5, MEASURES["foreground_volume"]), value_text(0.123, MEASURES["skew"])
    ('1234 ml', '0.12')
    """
    return f"{number_text(value, 0 if abs(value) >= 100 else measure.digits)} {measure.unit}".strip()

"""A brain-age cohort with known truth: T1-like heads whose ventricles, cortex and white matter age.

Each participant is real anatomy (ICBM152, or a whole-head label map), bent by a smooth random deformation and scaled to
a head size, with soft tissue boundaries moved by *apparent* age = chronological age + a hidden brain-age gap. A site's
scanner then records it. A model sees the image; the table has the chronological age as the target, the rest as truth.

With s = (apparent age - 20) / 75, cut at 0: the ventricular wall moves out by 3.2 s^1.5 mm, the cortex thins by
1.1 s mm, white matter loses 8 % s of its signal, and hypointensities double in volume with every decade after 50.
Below six years the head grows from 0.72 of its size, and below about seven months white matter is darker than grey.
The gap has a standard deviation of 3 years, less in proportion below 20 years.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import nibabel as nib
import numpy as np

from datamodules.phantoms import PhantomError
from datamodules.phantoms.anatomy import FIELDS, list_anatomies, load_anatomy
from datamodules.phantoms.columns import (
    DEFORMATION,
    SCANNER,
    VOLUMES,
    Limits,
    anatomy_column,
    identity_columns,
    truth_columns,
)
from datamodules.phantoms.geometry import Triple, deformed_grid, smooth_field
from datamodules.phantoms.request import check_request, isotropic_spacing
from datamodules.phantoms.scanner import Scanner, SkullChoice, acquire, make_scanners, store
from datamodules.phantoms.table import Report, Row, by_anatomy, save_image, write_cohort
from datamodules.phantoms.tissue import GREY, aged, hypointensities, t1_signal, tissue_fractions

if TYPE_CHECKING:  # workers render without pandas
    from datamodules.schema import Column

Scenario = Literal["independent", "confounded"]

FIELD_OF_VIEW_MM = (192.0, 224.0, 192.0)
GAP_SD = 3.0  # years
_TRAITS, _SHAPE, _SCAN = range(3)  # independent random streams of a participant

_TRUTHS: dict[str, Limits] = {
    "true_brain_age": ("years", 0, None),
    "brain_age_gap": ("years", None, None),
    **VOLUMES,
    "hypointensity_ml": ("ml", 0, None),
    **DEFORMATION,
    "white_matter_signal": (None, 0, None),
    **SCANNER,
}


@dataclass(frozen=True)
class Participant:
    """Everything about a participant that is drawn before the image.

    Args:
        index: Place in the cohort, from 0.
        scanner: Where the image is taken.
        anatomy_id: Whose anatomy is deformed.
        age: Chronological age in years.
        sex: 0 female, 1 male.
        gap: Hidden brain-age gap in years.
        head_scale: Size of the head relative to its anatomy.
        wall_shift: Outward shift of the ventricular wall in mm.
        thinning: Loss of cortical thickness in mm.
        white_signal: Signal of white matter.
        lesion_ml: Intended volume of white-matter hypointensities in ml.
    """

    index: int
    scanner: Scanner
    anatomy_id: str
    age: float
    sex: int
    gap: float
    head_scale: float
    wall_shift: float
    thinning: float
    white_signal: float
    lesion_ml: float

    @property
    def participant_id(self) -> str:
        """Identifier within the cohort; it does not depend on the number of participants."""
        return f"sub-{self.index + 1:05d}"

    @property
    def apparent_age(self) -> float:
        """Age in years that the image shows."""
        return round(max(self.age + self.gap, 0.0), 3)


@dataclass(frozen=True)
class BrainAgePhantom:
    """Generator of brain-age cohorts: participant k is the same person with the same image, however many are made.

    Args:
        num_participants: Number of participants, one image each.
        seed: Seed of everything; other seeds make other people and other scanners.
        scenario: `independent` draws age without regard to the site; `confounded` lets age rise from the first site to
            the last.
        num_sites: Number of sites.
        shape: Voxels along right, anterior and superior; sites store them in orders of their own.
        spacing: Voxel size in mm, varied by +-6 % between sites; by default it covers 192 x 224 x 192 mm.
        labels: Folder of whole-head label maps with FreeSurfer numbers to deform instead of ICBM152.
        anatomies: Names of the label maps to use, without suffix; all by default. Disjoint lists make cohorts that
            share no head.
        age_range: Lowest and highest age in years.
        skull: Whole heads `on`, `off`, or `mixed` (every other site is skull-stripped).

    Raises:
        PhantomError: An argument is out of range, or a label map is missing.
    """

    num_participants: int
    seed: int
    scenario: Scenario = "independent"
    num_sites: int = 3
    shape: tuple[int, int, int] = (48, 56, 48)
    spacing: Triple | None = None
    labels: Path | None = None
    anatomies: tuple[str, ...] | None = None
    age_range: tuple[float, float] = (20.0, 90.0)
    skull: SkullChoice = "mixed"

    def __post_init__(self) -> None:
        check_request(
            self.num_participants, self.seed, self.num_sites, self.shape, self.spacing, self.labels, self.anatomies
        )
        if not 0 <= self.age_range[0] < self.age_range[1] <= 100:
            raise PhantomError(
                f"The age range {self.age_range} does not rise within 0 to 100 years. Change --age-range."
            )

    @property
    def num_files(self) -> int:
        """Number of files besides the table."""
        return self.num_participants

    @property
    def grid_spacing(self) -> Triple:
        """Voxel size in mm before sites vary it."""
        if self.spacing is not None:
            return self.spacing
        return isotropic_spacing(FIELD_OF_VIEW_MM, self.shape)

    def participant(self, index: int) -> Participant:
        """Draw the participant at a place in the cohort."""
        rng = self._stream(index, _TRAITS)
        position, site_noise = rng.uniform(), rng.normal(0, 0.15)
        low, high = self.age_range
        age = round(low + (high - low) * position, 3)
        sex = int(rng.integers(2))
        gap = round(GAP_SD * min(1.0, (age + 0.75) / 20) * rng.standard_normal(), 3)
        names = self.anatomies or list_anatomies(self.labels)
        anatomy_id = names[rng.integers(len(names))]
        apparent = max(age + gap, 0.0)
        aging, development = max((apparent - 20) / 75, 0.0), max(1 - apparent / 20, 0.0)
        wall_shift, thinning, white_change = aged(aging, development)
        maturity = 1 - 1.6 * np.exp(-apparent / 1.234)  # of the grey-white contrast: 0 at seven months
        growth = 1 - 0.28 * np.exp(-apparent / 1.7)
        load = 0.5 * np.exp(0.6 * rng.standard_normal()) * 2 ** (max(apparent - 50, 0) / 10) * (apparent > 18)
        return Participant(
            index=index,
            scanner=self._scanner(index, position + site_noise),
            anatomy_id=anatomy_id,
            age=age,
            sex=sex,
            gap=gap,
            head_scale=round(growth * (1 + 0.035 * rng.standard_normal() + 0.02 * (2 * sex - 1)), 4),
            wall_shift=round(wall_shift + 0.35 * rng.standard_normal(), 4),
            thinning=round(thinning + 0.1 * rng.standard_normal(), 4),
            white_signal=round(GREY + (1 - GREY) * maturity + white_change + 0.01 * rng.standard_normal(), 4),
            lesion_ml=round(float(load), 4),
        )

    def _scanner(self, index: int, tendency: float) -> Scanner:
        scanners = make_scanners(self.num_sites, self.seed, self.skull)
        if self.scenario == "independent":
            return scanners[index % self.num_sites]
        return scanners[int(np.clip(tendency * self.num_sites, 0, self.num_sites - 1))]

    def _stream(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, index, purpose])

    def render(self, person: Participant) -> tuple[nib.Nifti1Image, Row]:
        """Make a participant's image and measure what it shows.

        Returns:
            The image as the site stores it, and the volumes in ml as columns of the table.
        """
        spacing = person.scanner.spacing(self.grid_spacing)
        anatomy = load_anatomy(person.anatomy_id, self.labels, 0.35 * float(np.mean(self.grid_spacing)))
        rng = self._stream(person.index, _SHAPE)
        points = deformed_grid(self.shape, spacing, person.head_scale, rng)
        distances = (anatomy.sample(points) * np.float32(person.head_scale)).reshape(len(FIELDS), *self.shape)
        tissue = tissue_fractions(
            dict(zip(FIELDS, distances, strict=True)), person.wall_shift, person.thinning, float(np.mean(spacing))
        )
        texture = smooth_field(rng.standard_normal((36, 36, 36)), self.shape, spacing)
        voxel_ml = float(np.prod(spacing)) / 1000
        lesion = hypointensities(tissue, texture, person.lesion_ml / voxel_ml)
        signal = t1_signal(tissue, texture, lesion, person.white_signal)
        recorded = acquire(signal, spacing, person.scanner, self._stream(person.index, _SCAN))
        keep = None if person.scanner.skull else tissue["intracranial"] > 0.5
        parts = {"ventricle": tissue["ventricles"], "grey_matter": tissue["grey"], "white_matter": tissue["white"]}
        volumes: Row = {
            f"{name}_ml": round(float(part.sum(dtype=np.float64)) * voxel_ml, 3)
            for name, part in {**parts, "hypointensity": lesion}.items()
        }
        return store(recorded, spacing, person.scanner.orientation, keep), volumes

    def make(self, index: int, folder: Path) -> Row:
        """Write a participant's image under the folder and return the row of the table."""
        person = self.participant(index)
        image, volumes = self.render(person)
        path = f"images/{person.participant_id}_T1w.nii.gz"
        save_image(image, folder / path)
        return {
            "participant_id": person.participant_id,
            "dataset": f"phantom-brain-age-{self.seed}",
            "site": person.scanner.site,
            "t1w": path,
            "age": person.age,
            "sex": person.sex,
            "anatomy_id": person.anatomy_id,
            "true_brain_age": person.apparent_age,
            "brain_age_gap": round(person.apparent_age - person.age, 3),
            **volumes,
            "head_scale": person.head_scale,
            "ventricle_wall_shift": person.wall_shift,
            "cortical_thinning": person.thinning,
            "white_matter_signal": person.white_signal,
            **person.scanner.facts(self.grid_spacing),
        }

    def order(self) -> list[int]:
        """Return all indices, those of one anatomy together so that its geometry is loaded once."""
        return by_anatomy(self.participant(index).anatomy_id for index in range(self.num_participants))

    def columns(self) -> "tuple[Column, ...]":
        """Return the meaning of every column of the table, in order."""
        from datamodules.schema import Column

        return (
            *identity_columns(),
            Column(
                "t1w", "image", "path", description="T1-weighted volume in the site's own orientation and voxel size"
            ),
            Column("age", "target", "number", "years", 0, 100, description="Chronological age"),
            Column("sex", "covariate", "number", minimum=0, maximum=1, description="0 female, 1 male"),
            anatomy_column(),
            *truth_columns(_TRUTHS),
        )

    def write(
        self,
        folder: Path,
        *,
        num_workers: int = 0,
        overwrite: bool = False,
        on_image: Report | None = None,
        on_check: Report | None = None,
    ) -> Path:
        """Write the cohort; see `write_cohort`."""
        return write_cohort(
            self, folder, num_workers=num_workers, overwrite=overwrite, on_image=on_image, on_check=on_check
        )

    def findings(self, table: Path) -> list[str]:
        """Return what to print about a table that was written: how far the hidden gap keeps any reader from the age."""
        gaps = [abs(self.participant(index).gap) for index in range(self.num_participants)]
        return [
            f"The hidden brain-age gap is {np.mean(gaps):.2f} years on average, which no reader of an image can see."
        ]

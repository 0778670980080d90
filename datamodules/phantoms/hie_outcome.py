"""A cohort of newborns after hypoxia-ischaemia with a known law of their outcome at two years.

Each newborn is the anatomy of the brain-age phantom at 0.72 of its size with a smooth cortex, seen by diffusion: ADC in
1e-3 mm2/s, and its z-score against normal newborns. Injury follows one of four patterns; a hidden severity of the
insult drives it, and the signs at birth with it (`hie_newborns`). The outcome is a coin of known probability.

A latent factor, hidden from the models, moves in the image exactly what age moves in the brain-age phantom: the wall of
the ventricles, the thickness of the cortex, the white matter. With the shared factor on, the outcome depends on it, and
a network that reads age has something to transfer; with it off, the outcome does not. The images are the same bytes.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from datamodules.phantoms import PhantomError
from datamodules.phantoms.anatomy import FIELDS, list_anatomies, load_anatomy
from datamodules.phantoms.geometry import Field, Triple, deformed_grid, smooth_field
from datamodules.phantoms.hie_columns import IMAGES, OUTCOME_COLUMNS, Image, hie_columns
from datamodules.phantoms.hie_injury import (
    DEEP_GREY,
    WATERSHED,
    anatomy_of_factor,
    deep_grey_share,
    injured_adc,
    injured_share,
    membership,
    newborn_t1,
    normal_adc,
    normative,
    z_scores,
)
from datamodules.phantoms.hie_newborns import (
    MODELS,
    NUM_NORMALS,
    Factor,
    Newborn,
    draw_newborns,
)
from datamodules.phantoms.hie_truth import describe_truth, write_truth
from datamodules.phantoms.request import check_request, isotropic_spacing
from datamodules.phantoms.scanner import acquire, diffusion_scanner, make_scanners, store
from datamodules.phantoms.table import TABLE, Report, Row, by_anatomy, save_image, write_cohort, write_table
from datamodules.phantoms.tissue import tissue_fractions

if TYPE_CHECKING:  # workers render without pandas
    from datamodules.schema import Column

CLINICAL = ("gestational_age", "birth_weight", "sex", "apgar_5min", "cord_ph", "day_of_life")
DECIMAL = ("gestational_age", "cord_ph")
FIELD_OF_VIEW_MM = (120.0, 140.0, 120.0)
HEAD_SCALE = 0.72  # of an adult's
SMOOTH_MM = 2.5  # least smoothing of an adult-sized anatomy: a newborn's folds are shallow
ADC_STEP, Z_STEP = 0.001, 0.001  # a step of the stored integers, in 1e-3 mm2/s and standard deviations
_T1_HABITS = ("gain", "gamma", "bias_amplitude", "noise")  # in which a T1-weighted volume differs from ADC
_TRAITS, _SHAPE, _DIFFUSION, _T1 = range(4)  # independent random streams of a participant


@dataclass(frozen=True)
class _Head:
    """A newborn's head at the voxels of the images; all fields are (D, H, W).

    Args:
        spacing: Voxel size in mm.
        distances: Signed distances in mm, by the names of `anatomy.FIELDS`.
        tissue: What `tissue.tissue_fractions` returns.
        deep: Share of the brain that is deep grey matter.
        coarse: Smooth random field of unit variance, over centimetres.
        fine: Another, over millimetres.
        deep_grey_injury: Share that is injured deep grey matter.
        watershed_injury: Share that is injured watershed.
    """

    spacing: Triple
    distances: dict[str, Field]
    tissue: dict[str, Field]
    deep: Field
    coarse: Field
    fine: Field
    deep_grey_injury: Field
    watershed_injury: Field

    @property
    def keep(self) -> NDArray[np.bool_]:
        """Whether a voxel is inside the skull."""
        return np.asarray(self.tissue["intracranial"] > 0.5)

    @property
    def lesion(self) -> Field:
        """Share that is injured."""
        return np.maximum(self.deep_grey_injury, self.watershed_injury)


@dataclass(frozen=True)
class HIEOutcomePhantom:
    """Generator of newborn cohorts: participant k is the same newborn with the same images, however many are made.

    Args:
        num_participants: Number of participants.
        seed: Seed of everything; other seeds make other newborns and other scanners.
        num_sites: Number of sites; an adverse outcome has a prevalence of 0.58 and 0.37 at them by turns.
        shape: Voxels along right, anterior and superior; sites store them in orders of their own.
        spacing: Voxel size in mm, varied by +-6 % between sites; by default it covers 120 x 140 x 120 mm.
        images: Images to render; the lesion map is always written.
        shared_factor: Whether the outcome depends on the latent factor. The images and all other columns are the same
            but for the outcome's probability.
        labels: Folder of whole-head label maps with FreeSurfer numbers to deform instead of ICBM152.
        anatomies: Names of the label maps to use, without suffix; all by default.

    Raises:
        PhantomError: An argument is out of range, or a label map is missing.
    """

    num_participants: int
    seed: int
    num_sites: int = 2
    shape: tuple[int, int, int] = (40, 48, 40)
    spacing: Triple | None = None
    images: tuple[Image, ...] = ("adc", "zadc")
    shared_factor: Factor = "on"
    labels: Path | None = None
    anatomies: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_request(
            self.num_participants, self.seed, self.num_sites, self.shape, self.spacing, self.labels, self.anatomies
        )
        if not self.images or len(set(self.images)) < len(self.images) or not set(self.images) <= set(IMAGES):
            raise PhantomError(
                f"The images {self.images} are not some of {', '.join(IMAGES)}, each once. Change --images."
            )
        if self.shared_factor not in get_args(Factor):
            raise PhantomError(f"The shared factor is on or off, not {self.shared_factor}. Change --shared-factor.")

    @property
    def grid_spacing(self) -> Triple:
        """Voxel size in mm before sites vary it."""
        if self.spacing is not None:
            return self.spacing
        return isotropic_spacing(FIELD_OF_VIEW_MM, self.shape)

    @property
    def num_files(self) -> int:
        """Number of files besides the table."""
        return self.num_participants * (len(self.images) + 1)

    def participant(self, index: int) -> Newborn:
        """Draw the participant at a place in the cohort."""
        rng = self._stream(index, _TRAITS)
        drawn = draw_newborns(rng.standard_normal((NUM_NORMALS, 1)))
        values = {name: float(value[0]) for name, value in drawn.items()}
        site = index % self.num_sites
        names = self.anatomies or list_anatomies(self.labels)
        anatomy_id = names[rng.integers(len(names))]
        wall_shift, thinning, white_change = anatomy_of_factor(values["latent_factor"])
        growth = 1 + 0.012 * (values["gestational_age"] - 39.3) + 0.01 * (2 * values["sex"] - 1)
        return Newborn(
            index=index,
            scanner=make_scanners(self.num_sites, self.seed, "off")[site],
            anatomy_id=anatomy_id,
            values=values,
            head_scale=round(HEAD_SCALE * (growth + 0.03 * rng.standard_normal()), 4),
            wall_shift=round(wall_shift + 0.35 * rng.standard_normal(), 4),
            thinning=round(thinning + 0.1 * rng.standard_normal(), 4),
            white_change=round(white_change + 0.01 * rng.standard_normal(), 4),
            log_odds=float(MODELS[self.shared_factor].log_odds(drawn, np.array([site]))[0]),
        )

    def _stream(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, index, purpose])

    def render(self, newborn: Newborn) -> tuple[dict[str, nib.Nifti1Image], Row]:
        """Make a newborn's images and measure what they show.

        Returns:
            By column, the images and the `lesion` map as the site stores them; and volumes in ml, by column too.
        """
        head = self._head(newborn)
        images: dict[str, nib.Nifti1Image] = {}
        if {"adc", "zadc"} & set(self.images):
            images |= self._diffusion(newborn, head)
        if "t1w" in self.images:
            images["t1w"] = self._t1(newborn, head)
        lesion = head.lesion > 0.5
        images["lesion"] = store(lesion.astype(np.float32), head.spacing, newborn.scanner.orientation)
        parts = {
            "lesion": lesion,
            "deep_grey_injury": head.deep_grey_injury,
            "watershed_injury": head.watershed_injury,
            "true_lesion": head.lesion,
            "ventricle": head.tissue["ventricles"],
            "grey_matter": head.tissue["grey"],
            "white_matter": head.tissue["white"],
        }
        voxel_ml = float(np.prod(head.spacing)) / 1000
        volumes: Row = {
            f"{name}_ml": round(float(part.sum(dtype=np.float64)) * voxel_ml, 3) for name, part in parts.items()
        }
        return images, volumes

    def _head(self, newborn: Newborn) -> _Head:
        spacing = newborn.scanner.spacing(self.grid_spacing)
        rng = self._stream(newborn.index, _SHAPE)
        points = deformed_grid(self.shape, spacing, newborn.head_scale, rng)
        distances = self._distances(newborn, points)
        tissue = tissue_fractions(distances, newborn.wall_shift, newborn.thinning, float(np.mean(spacing)))
        coarse, fine = (smooth_field(rng.standard_normal((size,) * 3), self.shape, spacing) for size in (16, 36))
        places = points.reshape(3, *self.shape)
        deep_grey, watershed = membership(places, DEEP_GREY), membership(places, WATERSHED)
        uneven = np.float32(newborn.values["asymmetry"]) * np.sign(places[0])
        brain = tissue["white"] + tissue["grey"]
        return _Head(
            spacing=spacing,
            distances=distances,
            tissue=tissue,
            deep=deep_grey_share(deep_grey, float(np.mean(spacing))),
            coarse=coarse,
            fine=fine,
            deep_grey_injury=injured_share(deep_grey, brain, fine, uneven, newborn.values["deep_grey_injury"]),
            watershed_injury=injured_share(watershed, brain, fine, uneven, newborn.values["watershed_injury"]),
        )

    def _distances(self, newborn: Newborn, points: Field) -> dict[str, Field]:
        """Return the signed distances (D, H, W) in mm at the newborn's voxels, by the names of `anatomy.FIELDS`."""
        blur = max(0.35 * float(np.mean(self.grid_spacing)) / HEAD_SCALE, SMOOTH_MM)
        anatomy = load_anatomy(newborn.anatomy_id, self.labels, blur)
        sampled = (anatomy.sample(points) * np.float32(newborn.head_scale)).reshape(len(FIELDS), *self.shape)
        return dict(zip(FIELDS, sampled, strict=True))

    def _diffusion(self, newborn: Newborn, head: _Head) -> dict[str, nib.Nifti1Image]:
        values, scanner = newborn.values, diffusion_scanner(newborn.scanner)
        injuries = (
            (head.deep_grey_injury, values["deep_grey_injury"]),
            (head.watershed_injury, values["watershed_injury"]),
        )
        normal = normal_adc(head.tissue, head.deep, newborn.white_change, head.coarse)
        signal = injured_adc(normal, injuries, values["day_of_life"])
        adc = acquire(signal, head.spacing, scanner, self._stream(newborn.index, _DIFFUSION))
        images: dict[str, nib.Nifti1Image] = {}
        if "adc" in self.images:
            images["adc"] = store(adc, head.spacing, scanner.orientation, head.keep, ADC_STEP)
        if "zadc" in self.images:
            wall_shift, thinning, _ = anatomy_of_factor(0.0)
            average = tissue_fractions(head.distances, wall_shift, thinning, float(np.mean(head.spacing)))
            z = z_scores(adc, normative(average, head.deep), head.spacing)
            images["zadc"] = store(z, head.spacing, scanner.orientation, head.keep, Z_STEP)
        return images

    def _t1(self, newborn: Newborn, head: _Head) -> nib.Nifti1Image:
        values, scanner = newborn.values, newborn.scanner
        injury = head.deep_grey_injury * np.float32(values["deep_grey_injury"])
        signal = newborn_t1(head.tissue, head.deep, newborn.white_change, head.fine, injury, values["day_of_life"])
        t1w = acquire(signal, head.spacing, scanner, self._stream(newborn.index, _T1))
        return store(t1w, head.spacing, scanner.orientation, head.keep)

    def make(self, index: int, folder: Path) -> Row:
        """Write a participant's images under the folder and return the row of the table."""
        newborn = self.participant(index)
        images, volumes = self.render(newborn)
        paths = self._paths(newborn)
        for name, image in images.items():
            save_image(image, folder / paths[name])
        return {**paths, **volumes, **self._facts(newborn)}

    def _paths(self, newborn: Newborn) -> dict[str, str]:
        endings: dict[str, str] = {name: IMAGES[name][2] for name in self.images}
        endings["lesion"] = "lesion"
        return {name: f"images/{newborn.participant_id}_{ending}.nii.gz" for name, ending in endings.items()}

    def _facts(self, newborn: Newborn) -> Row:
        """Return the cells of a row that need no image."""
        values, scanner = newborn.values, newborn.scanner
        t1w = {f"scanner_t1w_{name}": float(getattr(scanner, name)) for name in _T1_HABITS}
        return {
            "participant_id": newborn.participant_id,
            "dataset": f"phantom-hie-{self.seed}",
            "site": scanner.site,
            "outcome": newborn.outcome,
            **{name: _cell(values, name) for name in CLINICAL},
            "anatomy_id": newborn.anatomy_id,
            "pattern": newborn.pattern,
            **{name: values[name] for name in ("severity", "deep_grey_injury", "watershed_injury", "asymmetry")},
            "latent_factor": values["latent_factor"],
            "true_apgar_5min": values["apgar_5min"],
            "true_cord_ph": values["cord_ph"],
            "linear_predictor": newborn.log_odds,
            "bayes_probability": newborn.probability,
            "head_scale": newborn.head_scale,
            "ventricle_wall_shift": newborn.wall_shift,
            "cortical_thinning": newborn.thinning,
            "white_matter_change": newborn.white_change,
            **diffusion_scanner(scanner).facts(self.grid_spacing),
            **t1w,
        }

    def order(self) -> list[int]:
        """Return all indices, those of one anatomy together so that its geometry is loaded once."""
        return by_anatomy(self.participant(index).anatomy_id for index in range(self.num_participants))

    def columns(self) -> "tuple[Column, ...]":
        """Return the meaning of every column of the table, in order."""
        return hie_columns(self.images)

    def write(
        self,
        folder: Path,
        *,
        num_workers: int = 0,
        overwrite: bool = False,
        on_image: Report | None = None,
        on_check: Report | None = None,
    ) -> Path:
        """Write the cohort, see `write_cohort`, and the file of its truths, `<table>.truth.json`."""
        table = write_cohort(
            self, folder, num_workers=num_workers, overwrite=overwrite, on_image=on_image, on_check=on_check
        )
        self._write_truth(table)
        return table

    def relabel(
        self,
        folder: Path,
        *,
        num_workers: int = 0,
        overwrite: bool = False,
        on_check: Report | None = None,
    ) -> Path:
        """Write a second table over the images of a cohort, with the outcomes of this shared factor.

        Args:
            folder: Holds `cohort.tsv`, made with the same options but for the shared factor.
            num_workers: Threads that verify.
            overwrite: Replace a second table that is already there.
            on_check: Called with the files verified and in all.

        Returns:
            The table, `cohort_shared-factor-on.tsv` or `-off.tsv`, with a sidecar, a manifest and truths of its own.

        Raises:
            PhantomError: The folder has no cohort, or one of other newborns; or the table is already there.
        """
        rows = self._rows_again(folder / TABLE)
        table = folder / f"{Path(TABLE).stem}_shared-factor-{self.shared_factor}.tsv"
        if table.exists() and not overwrite:
            raise PhantomError(f"{table} is already there. Replace it with --overwrite.")
        write_table(self.columns(), rows, table, num_workers=num_workers, on_check=on_check)
        self._write_truth(table)
        return table

    def _rows_again(self, source: Path) -> list[Row]:
        if not source.is_file():
            raise PhantomError(f"There is no {source}, so there are no images to reuse. Make the cohort first.")
        with source.open(encoding="utf-8", newline="") as stream:
            rows: list[Row] = [dict(row) for row in csv.DictReader(stream, delimiter="\t")]
        names = [column.name for column in self.columns()]
        if len(rows) != self.num_participants or list(rows[0]) != names:
            raise PhantomError(
                f"{source} has other columns than these images need, or {len(rows)} participants instead of "
                f"{self.num_participants}. Give the options with which it was made."
            )
        for index, row in enumerate(rows):
            facts = self._facts(self.participant(index))
            labels = {name: facts.pop(name) for name in OUTCOME_COLUMNS}
            strange = [name for name, value in facts.items() if row[name] != str(value)]
            if strange:
                raise PhantomError(
                    f"{source}: row {index + 1} has {strange[0]} {row[strange[0]]}, but these options give "
                    f"{facts[strange[0]]}. Give the options with which it was made."
                )
            row.update(labels)
        return rows

    def _write_truth(self, table: Path) -> None:
        newborns = [self.participant(index) for index in range(self.num_participants)]
        rows = [(newborn.scanner.site, newborn.outcome, newborn.probability) for newborn in newborns]
        write_truth(table, self.shared_factor, self.num_sites, rows)

    def findings(self, table: Path) -> list[str]:
        """Return what to print about a table that was written: how well its outcome can be predicted at all."""
        return describe_truth(table)


def _cell(values: dict[str, float], name: str) -> str | float:
    """Return a clinical value as the table has it: empty where missing, without a point where it is whole by nature."""
    if values.get(f"missing_{name}"):
        return ""
    return values[name] if name in DECIMAL else int(values[name])

"""ComBat over the voxels of preprocessed images: fitted on a training part, applied to every image of its sites.

Each voxel of each channel is a feature (see `datamodules.combat`). A site's images, in training, validation and test
alike, go through the same linear map per voxel, with the mean covariates of the training: no covariate of a participant
is written into their image, and an image needs none to be predicted. What is learned from is the training part alone,
each participant once per site, whether their outcome is known or not. The maps travel in the checkpoint, and nobody
who restores one fits anything.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from datamodules.cache import VolumeCache
from datamodules.cohort import Cohort, participant_key
from datamodules.combat import MIN_ROWS, PER_IMAGE, Combat, HarmonisationError, require_seen
from datamodules.dataset import Sample
from datamodules.preprocessing import Preprocessing
from datamodules.selection import tabulate
from datamodules.splits import Split
from datamodules.upkeep import HalfArray
from evaluation.parts import SCORED

Harmonisation = Literal["none", "combat"]
COMBAT = "combat"  # the method, and its key in the datamodule's part of a checkpoint
UNUSED = "unused"
SEPARATE = ("participant_id", "session_id", "image_id", "dataset", "site")  # columns that are no covariates


class SiteMaps:
    """What a fitted ComBat does to the images of each site: voxel times scale plus shift.

    A voxel is changed where at least two training images of every site have something there: elsewhere there is nothing
    to learn how a site differs. What surrounds a stripped brain stays as it is.

    Args:
        sites: Names of the S sites, sorted.
        num_images: Training images of each.
        inside: (C, D, H, W) bool, which voxels are changed; V of them.
        scale: (S, V) float32.
        shift: (S, V) float32.
        covariates: Columns whose effect was no site effect.
        preprocessing: What was done to the images, in JSON types.
    """

    def __init__(
        self,
        sites: Sequence[str],
        num_images: Sequence[int],
        inside: Tensor,
        scale: Tensor,
        shift: Tensor,
        covariates: Sequence[str],
        preprocessing: Mapping[str, object],
    ) -> None:
        self.sites = tuple(sites)
        self.num_images = tuple(num_images)
        self.inside, self.scale, self.shift = inside, scale, shift
        self.covariates = tuple(covariates)
        self.preprocessing = dict(preprocessing)
        self._ready: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}

    @classmethod
    def fit(
        cls,
        volumes: Sequence[HalfArray],
        site: Sequence[str],
        covariates: npt.NDArray[np.float64] | None = None,
        names: Sequence[str] = (),
        preprocessing: Preprocessing = Preprocessing(),  # noqa: B008 - frozen
    ) -> Self:
        """Fit one ComBat to each channel: channels have units of their own, and so does what sites do to them.

        Args:
            volumes: N training images (C, D, H, W), mapped from files.
            site: (N,) name of each image's site.
            covariates: (N, K) numbers.
            names: Names of the columns they are from.
            preprocessing: What was done to the images.

        Raises:
            HarmonisationError: A site has too few images, or there is no voxel that all sites have in common.
        """
        inside = _common_foreground(volumes, site)
        scales, shifts, combat = [], [], None
        for channel, voxels in enumerate(inside.reshape(len(inside), -1)):
            places = np.flatnonzero(voxels)
            if not places.size:
                raise HarmonisationError(
                    f"No voxel of channel {channel} has something in two training images of every site, so there is "
                    f"nothing to fit ComBat to. Look at the preprocessed images, or {PER_IMAGE}."
                )
            rows = [volume[channel].reshape(-1) for volume in volumes]

            def read(
                part: slice, rows: list[HalfArray] = rows, places: npt.NDArray[np.intp] = places
            ) -> npt.NDArray[np.float16]:
                return np.stack([row[places[part]] for row in rows])

            combat = Combat.fit_parts(read, len(places), site, covariates)
            maps = [combat.site_map(name) for name in combat.sites]
            scales.append(np.stack([scale for scale, _ in maps]).astype(np.float32))
            shifts.append(np.stack([shift for _, shift in maps]).astype(np.float32))
        if combat is None:
            raise HarmonisationError("The training images have no channel to fit ComBat to.")
        scale, shift = (torch.from_numpy(np.concatenate(parts, axis=1)) for parts in (scales, shifts))
        done = preprocessing.canonical()
        return cls(combat.sites, combat.num_rows, torch.from_numpy(inside), scale, shift, names, done)

    def state(self) -> dict[str, Any]:
        """Return tensors and plain values that a checkpoint can hold; about 8 V S bytes."""
        return {
            "sites": list(self.sites),
            "num_images": list(self.num_images),
            "inside": self.inside,
            "scale": self.scale,
            "shift": self.shift,
            "covariates": list(self.covariates),
            "preprocessing": self.preprocessing,
        }

    @torch.no_grad()
    def apply(self, image: Tensor, sites: Sequence[str]) -> Tensor:
        """Return a harmonised batch, the same for an image in any batch.

        Args:
            image: (B, C, D, H, W), half or single precision.
            sites: (B,) name of each image's site.

        Returns:
            Single precision, on the same device.

        Raises:
            HarmonisationError: A site is not one of those of the training.
        """
        require_seen(sites, self.sites)
        harmonised = torch.empty(image.shape, dtype=torch.float32, device=image.device)
        for own, site, result in zip(image, sites, harmonised, strict=True):
            scale, shift = self._map(site, image.device)
            # Two roundings on every device; a fused operation has one, on some.
            torch.mul(own.float(), scale, out=result).add_(shift)
        return harmonised

    def _map(self, site: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return scale and shift (C, D, H, W) of a site on a device, where they stay."""
        if (known := self._ready.get((site, device))) is not None:
            return known
        number = self.sites.index(site)
        whole = torch.ones(self.inside.shape), torch.zeros(self.inside.shape)
        for filled, values in zip(whole, (self.scale[number], self.shift[number]), strict=True):
            filled[self.inside] = values
        self._ready[site, device] = ready = whole[0].to(device), whole[1].to(device)
        return ready


class HarmonisedDataModule(LightningDataModule):
    """The part of a datamodule that harmonises its images between sites, and remembers how.

    ComBat is fitted when it is first needed for a training, and never where a checkpoint has it.

    Args:
        harmonisation: `combat`, or `none`.
        covariates: Columns whose effect is no site effect.
    """

    targets: list[str]
    preprocessing: Preprocessing
    cache: VolumeCache
    cohorts: list[Cohort]
    samples: list[Sample]
    split: Split | None

    def __init__(self, harmonisation: Harmonisation, covariates: Sequence[str] | None) -> None:
        super().__init__()
        self.harmonisation = harmonisation
        self.harmonise_covariates = list(covariates or [])
        self._site_maps: SiteMaps | None = None
        self._trains = False

    # Who can be harmonised -----------------------------------------------------------------------------------------

    def require_harmonisable(self, split: Split) -> None:
        """Refuse a split whose training cannot be harmonised with its test; does nothing without harmonisation.

        Raises:
            HarmonisationError: See `require_harmonisable` of this file.
        """
        if self.harmonisation == COMBAT:
            require_harmonisable(split)

    def _require_known_sites(self, split: Split) -> None:
        """Refuse the split, and samples of this cohort from sites that its training does not have.

        The split of a pack names nobody; there the fitted maps alone know the sites (`_require_harmonised`).
        """
        if not split.parts:
            return
        self.require_harmonisable(split)
        if self.harmonisation == COMBAT:
            used = {sample.site for sample in self.samples if sample.split not in ("train", UNUSED)}
            require_seen(sorted(used), sorted(split.parts.get("train", {})))

    def _require_harmonised(self, samples: Sequence[Sample]) -> None:
        """Refuse samples that cannot be harmonised, before any of them is read; fit ComBat first where it is time."""
        if self.harmonisation == COMBAT:
            require_seen([sample.site for sample in samples], self.site_maps.sites)

    # Fitting and remembering ---------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Note whether this is a training, which alone may fit."""
        self._trains = stage == "fit"
        if self._trains and self.harmonisation == COMBAT:
            self._covariate_table()

    @property
    def site_maps(self) -> SiteMaps:
        """What is done to the images of each site.

        Raises:
            HarmonisationError: This is no new training, and no checkpoint has brought them.
        """
        if self._site_maps is None:
            if not self._trains or (self.trainer is not None and self.trainer.ckpt_path is not None):
                raise HarmonisationError(
                    "data.harmonisation is combat, but the checkpoint holds no fitted ComBat: its training saw images "
                    "as they were. Leave data.harmonisation as it was then, or train anew."
                )
            self._site_maps = self._fit()
        return self._site_maps

    def state_dict(self) -> dict[str, Any]:
        """Return the fitted ComBat for the checkpoint."""
        if self.harmonisation != COMBAT or (self._site_maps is None and not self._trains):
            return {}
        return {COMBAT: self.site_maps.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the ComBat of a checkpoint.

        Raises:
            HarmonisationError: This datamodule would give the network other images than its training did.
        """
        if COMBAT not in state_dict:
            return
        maps = SiteMaps(**state_dict[COMBAT])
        then: dict[str, object] = {
            "harmonisation": COMBAT,
            "harmonise_covariates": list(maps.covariates),
            "preprocessing": maps.preprocessing,
        }
        now: dict[str, object] = {
            "harmonisation": self.harmonisation,
            "harmonise_covariates": self.harmonise_covariates,
            "preprocessing": self.preprocessing.canonical(),
        }
        if changed := [name for name in then if then[name] != now[name]]:
            raise HarmonisationError(
                f"The checkpoint's network has seen images that a ComBat harmonised, and data.{changed[0]} would give "
                f"it others ({then[changed[0]]} then, {now[changed[0]]} now). Leave it as it was, or train anew."
            )
        self._site_maps = maps

    def _fit(self) -> SiteMaps:
        """Fit ComBat to the training part, in an order that the table's rows have no part in."""
        covariates = self._covariate_table()
        first: dict[tuple[str, str], int] = {}
        order = sorted(range(len(self.samples)), key=lambda index: _place(self.samples[index]))
        for index in (index for index in order if self.samples[index].split == "train"):
            sample = self.samples[index]
            first.setdefault((participant_key(sample.dataset, sample.participant_id), sample.site), index)
        chosen = [self.samples[index] for index in first.values()]
        volumes = [self.cache.load(sample.files).array for sample in chosen]
        table = _as_numbers(covariates.iloc[list(first.values())]) if self.harmonise_covariates else None
        names = [sample.site for sample in chosen]
        return SiteMaps.fit(volumes, names, table, self.harmonise_covariates, self.preprocessing)

    def _covariate_table(self) -> pd.DataFrame:
        """Return the columns that the user has named, one row per sample.

        Raises:
            CohortError: One is not there, is a target or a hidden truth, says who or where somebody is, or names files.
        """
        names = self.harmonise_covariates
        if wrong := [name for name in names if name in (*self.targets, *SEPARATE)]:
            raise HarmonisationError(
                f"data.harmonise_covariates names {', '.join(wrong)}: ComBat must not see a target, nor who or where "
                "somebody is. Name columns such as age or sex."
            )
        table = tabulate(self.cohorts, self.samples, names)[names]
        paths = {column.name for cohort in self.cohorts for column in cohort.schema.columns if column.kind == "path"}
        if wrong := [name for name in names if name in paths]:
            raise HarmonisationError(f"data.harmonise_covariates names {', '.join(wrong)}, which holds names of files.")
        return table

    # Applying ------------------------------------------------------------------------------------------------------

    def harmonised(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the images of a batch as the network's training meets them, before augmentation."""
        image: Tensor = batch["image"]
        return image if self.harmonisation != COMBAT else self.site_maps.apply(image, batch["site"])

    def describe_harmonisation(self) -> dict[str, Any] | None:
        """Say what was done to the images beyond their preprocessing, in JSON types; None for nothing."""
        if self.harmonisation != COMBAT:
            return None
        sites = [] if self.split is None else sorted(self.split.parts.get("train", {}))
        kept = "in the checkpoint, not in the weights"
        return {"method": COMBAT, "sites": sites, "covariates": self.harmonise_covariates, "parameters": kept}


def require_harmonisable(split: Split) -> None:
    """Refuse a split whose training cannot be harmonised with its validation and test by ComBat.

    Args:
        split: Who is in `train`, and in `val`, `test` and `external`.

    Raises:
        HarmonisationError: A site is tested that is not trained on, has too few participants, or is the only one.
    """
    trained = split.parts.get("train", {})
    tested = {site for part in SCORED for site, keys in split.parts.get(part, {}).items() if keys}
    require_seen(sorted(tested), [site for site, keys in trained.items() if keys])
    if few := [f"{site} ({len(keys)})" for site, keys in trained.items() if 0 < len(keys) < MIN_ROWS]:
        raise HarmonisationError(
            f"ComBat needs at least {MIN_ROWS} training participants of every site to see how they vary; there are "
            f"fewer of {', '.join(few)}. Leave the site out (data.rows), give the training more of it, or {PER_IMAGE}."
        )
    if sum(bool(keys) for keys in trained.values()) < 2:
        raise HarmonisationError(
            f"ComBat has nothing to harmonise: the training has the single site {', '.join(trained)}. Leave "
            "data.harmonisation at none, or train on several sites (protocols k-fold or multi-site)."
        )


def _common_foreground(volumes: Sequence[HalfArray], site: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return where at least two images of every site are not background, (C, D, H, W).

    The background of a channel is its most frequent value: the air around a stripped brain. Images in which air is
    noise have hardly any.
    """
    sites = sorted(set(site))
    seen = np.zeros((len(sites), *volumes[0].shape), dtype=np.int32)
    for volume, name in zip(volumes, site, strict=True):
        for channel, counts in zip(volume, seen[sites.index(name)], strict=True):
            frequency = np.bincount(np.ascontiguousarray(channel).view(np.uint16).ravel(), minlength=2**16)
            counts += channel != frequency.argmax().astype(np.uint16).view(np.float16)
    common: npt.NDArray[np.bool_] = np.all(seen >= MIN_ROWS, axis=0)
    return common


def _as_numbers(table: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return covariates as numbers (N, K): text becomes one column for each value but the first, NaN where missing.

    >>> _as_numbers(pd.DataFrame({"age": [1.0, 2.0, 3.0], "sex": ["F", "M", ""]})).tolist()
    [[1.0, 0.0], [2.0, 1.0], [3.0, nan]]
    """
    columns: list[npt.NDArray[np.float64]] = []
    for name in table:
        values = table[name]
        if pd.api.types.is_numeric_dtype(values):
            columns.append(values.to_numpy(np.float64))
            continue
        texts = values.astype(str)
        for level in sorted(set(texts) - {""})[1:]:
            columns.append(np.where(texts == "", np.nan, (texts == level).astype(np.float64)))
    return np.stack(columns, axis=1) if columns else np.zeros((len(table), 0))


def _place(sample: Sample) -> tuple[str, str, str, str]:
    return sample.dataset, sample.participant_id, sample.session_id, sample.image_id

"""From a verified cohort table to batches: the one road that every dataset takes.

A batch is a dict, in two and three dimensions alike:

==================  ==============================================================================================
``image``           (B, C, D, H, W) or (B, C, H, W); RAS+, so D, H, W run left-right, posterior-anterior,
                    inferior-superior. Half precision from the loader, float32 on the device, after augmentation.
``target``          {name: (B,) float32}, in the unit of the cohort's schema; NaN where a label is missing.
``covariates``      (B, K) float32, in the order of the argument `covariates`; NaN where missing.
``affine``          (B, 4, 4) float64, voxel index to RAS millimetres.
``participant_id``  list of str; with ``dataset`` it identifies a person.
``session_id``      list of str, "" without sessions.
``image_id``        list of str, unique within a dataset.
``dataset``         list of str.
``site``            list of str.
``split``           list of str: train, val, test, external, or predict.
``epoch``           (B,) int64; with ``image_id`` and ``occurrence`` the key of the sample's augmentation.
``occurrence``      (B,) int64; counts the draws of the same sample within the epoch.
==================  ==============================================================================================
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torchio as tio
from nibabel.affines import from_matvec
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.artefacts import TorchioTransforms
from datamodules.augmentation import Augmentation, sample_key
from datamodules.cache import VolumeCache
from datamodules.cohort import Cohort, CohortError, participant_key, stack_rows
from datamodules.controls import permute_targets
from datamodules.dataset import CohortDataset, CohortLoader, KeySampler, Sample, collate
from datamodules.facts import count_samples, describe_cohorts
from datamodules.harmonisation import Harmonisation, HarmonisedDataModule
from datamodules.inspection import inspect_image
from datamodules.preprocessing import Affine, Preprocessing, read_volume, to_native
from datamodules.samples import list_samples
from datamodules.selection import read_cohorts, require_columns, select_rows, tabulate
from datamodules.splits import Split, holdout_split
from datamodules.verify import Limits, check_manifest
from evaluation.parts import HELD_OUT
from tracking.progress import progress, silent

TargetTransform = Literal["identity", "log"]


class BaseDataModule(HarmonisedDataModule):
    """Read, check, split, cache and batch a cohort; a dataset is a subclass that sets defaults.

    Args:
        table: Cohort table (.tsv or .csv, or a folder in a layout such as BIDS) with its sidecar; several are read as
            one cohort, each a dataset of its own.
        images: Image columns, in the order of the channels.
        targets: Target columns that are read into the batch; an image that misses all of them is not trained on.
        mask: Column with the foreground mask, if there is one.
        covariates: Covariate columns that hold numbers, in the order of the batch's last axis.
        root: Folder that image paths are relative to; the table's own folder by default.
        rows: Which rows take part: an expression over the columns such as `age <= 5 and site != 'west'` (the syntax of
            pandas' query). A missing number fulfils no comparison but `!=`; a missing text is ''. A prediction takes
            every row.
        preprocessing: What is done once to every image before it is cached.
        augmentation: Random changes of the training images, on the device; none by default.
        torchio_transforms: Transforms of torchio for what `augmentation` does not cover (motion, ghosting, spikes), by
            sample where it is read, before `augmentation`; they are slow: give them `num_workers`.
        batch_size: Samples per optimisation step, over all devices.
        num_workers: Loader processes; 0 reads in a thread of the training process, which is faster unless
            `torchio_transforms` have work for them.
        val_fraction: Share of the participants of the training sites whose rows choose the model.
        test_fraction: Share of the participants of the training sites held out for the test.
        held_out_sites: Sites that training never sees; their participants form the split `external`.
        group_by: Column whose rows stay on one side of the split (an anatomy, a family).
        stratify_by: Column that is balanced over the splits; the first target by default.
        split_seed: Seed of the split, apart from `seed` so that repeated trainings share their test set.
        split_file: A `folds.json` to use instead of drawing; participants it does not name belong to `external`.
        seed: Seed of order and augmentation; follows `seed_everything` on the command line.
        cache: Folder of preprocessed volumes; `FONTANEL_CACHE`, else the user's cache folder.
        permute_targets: Shuffle the targets among the participants of the training part, and among those of the
            validation part, by `seed`: a control from which no image can learn what its target is. Who is tested keeps
            the truth.
        target_transform: Scale on which the loss is computed, `log` meaning log(target + 0.75); predictions return in
            the target's unit.
        harmonisation: `combat` takes out of every voxel what the sites of the training do to it (`datamodules.combat`),
            fitted on the training part without any outcome; sites that training does not have are refused.
        harmonise_covariates: Columns such as age or sex that differ between sites for reasons of their own, which
            `combat` leaves in; never a target.
        allow_unverified: Train on a cohort without a fitting manifest; recorded in the run.

    Raises:
        CohortError: When the table, its manifest or a column does not fit; all problems at once.
    """

    shows_progress = True  # one of many jobs is shown by whoever started it
    phantom = "brain-age"  # what `fontanel make-cohort` calls a cohort for it

    def __init__(
        self,
        table: Path | list[Path],
        images: list[str],
        targets: list[str] | None = None,
        mask: str | None = None,
        covariates: list[str] | None = None,
        root: Path | None = None,
        rows: str | None = None,
        preprocessing: Preprocessing = Preprocessing(),  # noqa: B008 - frozen
        augmentation: Augmentation | None = None,
        torchio_transforms: list[tio.Transform] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        held_out_sites: list[str] | None = None,
        group_by: str | None = None,
        stratify_by: str | None = None,
        split_seed: int = 0,
        split_file: Path | None = None,
        seed: int = 0,
        cache: Path | None = None,
        permute_targets: bool = False,
        target_transform: TargetTransform = "identity",
        harmonisation: Harmonisation = "none",
        harmonise_covariates: list[str] | None = None,
        allow_unverified: bool = False,
    ) -> None:
        super().__init__(harmonisation, harmonise_covariates)
        self.tables = list(table) if isinstance(table, list) else [table]
        self.images = images
        self.targets = targets or []
        self.mask = mask
        self.covariates = covariates or []
        self.root = root
        self.rows = rows
        self.num_rows = 0  # of the tables, before `rows` chose among them
        self.preprocessing = preprocessing
        preprocessing.normalisations(len(images))  # refuses a list of another length
        self.augmentation = augmentation
        if augmentation is not None:
            augmentation.output_size(preprocessing.shape)  # refuses a crop that does not fit
        self.transform = TorchioTransforms(torchio_transforms, seed) if torchio_transforms else None
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.held_out_sites = held_out_sites or []
        self.group_by = group_by
        self.stratify_by = stratify_by or next(iter(self.targets), None)
        self.split_seed = split_seed
        self.split_file = split_file
        self.seed = seed
        self.cache = VolumeCache(cache, preprocessing)
        self.permute_targets = permute_targets
        self.target_transform: TargetTransform = target_transform
        self.allow_unverified = allow_unverified
        self.cohorts: list[Cohort] = []
        self.samples: list[Sample] = []
        self.split: Split | None = None
        self.verified = False
        self.labels_required = True  # prediction of new images does without
        self.seen_participants: frozenset[str] = frozenset()  # whom the weights that a model started from have seen
        self.seen_images: frozenset[str] = frozenset()  # content a model was trained on, whatever its name here

    # Reading -----------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Read the tables, check them against their manifests, and list the samples; cheap, and done once."""
        if self.cohorts:
            return
        cohorts = read_cohorts(self.tables, self.root, self.phantom)
        for cohort in cohorts:
            self._require_columns(cohort)
        hashes = [self._checked_hashes(cohort) for cohort in cohorts]
        self.num_rows = sum(len(cohort.frame) for cohort in cohorts)
        if self.rows is not None and self.labels_required:
            cohorts = select_rows(cohorts, self.rows)
        self.cohorts = cohorts
        self.samples = [
            sample for cohort, known in zip(cohorts, hashes, strict=True) for sample in self._samples(cohort, known)
        ]

    def assign_splits(self, unknown: str = "external") -> None:
        """Give every sample its split: drawn from the table, or read from `split_file`.

        Args:
            unknown: Split of participants that the split does not name, unless their image is in `seen_images`.
        """
        self.read()
        if self.split is not None:
            return
        frame = stack_rows(self.cohorts)
        if self.split_file is not None:
            self.split = Split.read(self.split_file)
        else:
            self.split = holdout_split(
                frame,
                target=self.stratify_by,
                fractions={
                    "train": 1 - self.val_fraction - self.test_fraction,
                    "val": self.val_fraction,
                    "test": self.test_fraction,
                },
                held_out_sites=tuple(self.held_out_sites),
                group=self.group_by,
                seed=self.split_seed,
            )
        self.samples = [replace(sample, split=self._part_of(sample, self.split) or unknown) for sample in self.samples]
        self._require_known_sites(self.split)
        if self.permute_targets and self.labels_required:
            self.samples = permute_targets(self.samples, ("train", "val"), self.seed)

    def _part_of(self, sample: Sample, split: Split) -> str | None:
        key = participant_key(sample.dataset, sample.participant_id)
        known = split.part_of(key)
        if known is None and key in self.seen_participants:
            return "train"
        if known is None and self.seen_images and self.seen_images.intersection(self._known_hashes(sample)):
            return "train"  # the same scan under another name
        return known

    def image_hashes(self, sample: Sample) -> tuple[str, ...]:
        """Return the sha256 of each image of a sample, from the manifest where there is one."""
        if sample.files.sha256s is not None:
            return sample.files.sha256s[: len(sample.files.images)]
        return tuple(self.cache.content_hash(path) for path in sample.files.images)

    def _known_hashes(self, sample: Sample) -> set[str]:
        """Return every hash that a training may have recorded of a sample: a folder has another one in a manifest."""
        folders = [path for path in sample.files.images if path.is_dir()]
        series = [inspect_image(path, path.parent, Limits()).facts for path in folders]
        by_cache = (self.cache.content_hash(path) for path in folders)
        return {*self.image_hashes(sample), *by_cache, *(facts.sha256 for facts in series if facts is not None)}

    def _require_columns(self, cohort: Cohort) -> None:
        require_columns(
            cohort,
            files=[*self.images, *([self.mask] if self.mask else [])],
            targets=self.targets,
            covariates=self.covariates,
            labels_required=self.labels_required,
        )

    def _checked_hashes(self, cohort: Cohort) -> dict[str, str]:
        if self.allow_unverified:
            return {}
        manifest = check_manifest(cohort)
        self.verified = True
        return {path: facts.sha256 for path, facts in manifest.files.items()}

    def _samples(self, cohort: Cohort, hashes: dict[str, str]) -> list[Sample]:
        labels = {"targets": self.targets, "covariates": self.covariates}
        return list_samples(cohort, hashes, images=self.images, mask=self.mask, **labels)

    # Lightning ---------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Fill the cache, in parallel, once a node; what is there already is not computed again."""
        self.read()
        items = [sample.files for sample in self.samples]
        shown = progress if self.shows_progress else silent
        with shown("Preprocessing images", len(items)) as advance:
            self.cache.build(items, num_workers=os.cpu_count() or 1, on_item=lambda _done, _total: advance(1))

    def setup(self, stage: str) -> None:
        """Read the cohort and assign splits; a prediction uses every row, and marks those the model was trained on."""
        if stage != "predict":
            self.assign_splits()
        elif self.split_file is not None:
            self.assign_splits(unknown="predict")
        else:
            self.read()
        if stage == "fit" and not self.training_samples():
            known = f" with a known {' or '.join(self.targets)}" if self.part("train") else ""
            raise CohortError(
                f"No participant{known} is left for training. Lower data.val_fraction or data.test_fraction, or free a "
                "site."
            )
        super().setup(stage)

    def part(self, *names: str) -> list[Sample]:
        """Return the samples of one or more splits, in the order of the table."""
        return [sample for sample in self.samples if sample.split in names]

    def training_samples(self) -> list[Sample]:
        """Return the training part, without images of which no target is known: even in statistics they would teach."""
        samples = self.part("train")
        return [s for s in samples if not s.targets or any(np.isfinite(value) for value in s.targets.values())]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the training part, shuffled by (seed, epoch); a resumed one begins where it stopped."""
        samples = self.training_samples()
        loader = self._loader(samples, training=True, weights=self.sampling_weights(samples))
        if self.trainer is not None:
            loop = self.trainer.fit_loop
            num_batches = loop.epoch_loop.batch_progress.current.completed if loop.restarting else 0
            epoch: int = loop.epoch_progress.current.processed  # type: ignore[attr-defined]
            loader.keys.resume(epoch, num_batches * (loader.batch_size or 1))
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the validation part."""
        return self._loader(self.part("val"))

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the held-out participants and of the held-out sites."""
        return self._loader(self.part(*HELD_OUT))

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the loader of every row of the table."""
        return self._loader(self.samples)

    def _loader(
        self, samples: list[Sample], *, training: bool = False, weights: Sequence[float] | None = None
    ) -> CohortLoader:
        self._require_harmonised(samples)
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.batch_size % world_size:
            raise CohortError(
                f"data.batch_size {self.batch_size} is the size over all devices: make it a multiple of {world_size}."
            )
        sampler = KeySampler(
            len(samples),
            self.seed,
            shuffle=training,
            weights=weights,
            batch_size=self.batch_size,
            rank=rank,
            world_size=world_size,
        )
        return CohortLoader(
            CohortDataset(samples, self.cache, self.transform if training else None),
            kernel=self._kernel() if training else "none",
            sampler=sampler,
            batch_size=self.batch_size // world_size,
            num_workers=self.num_workers,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,  # a process checks an entry against its hash only once
            pin_memory=torch.cuda.is_available(),
        )

    def _kernel(self) -> str:
        if self.augmentation is None:
            return "none"
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return self.augmentation.kernel_on(device)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Make the images float32 on the device they are on, harmonise them, and augment those of the training."""
        image = self.harmonised(batch)
        if self.augmentation is not None and self.trainer is not None and self.trainer.training:
            keys = [
                sample_key(self.seed, int(epoch), image_id, int(occurrence))
                for epoch, image_id, occurrence in zip(
                    batch["epoch"], batch["image_id"], batch["occurrence"], strict=True
                )
            ]
            return {**batch, "image": self.augmentation(image, keys)}
        if self.augmentation is None or self.augmentation.crop is None:
            return {**batch, "image": image.float()}
        affine: Tensor = batch["affine"]
        shift = torch.from_numpy(self._window_shift(image.shape[2:])).to(affine)
        return {**batch, "image": self.augmentation.centre(image).float(), "affine": affine @ shift}

    def _window_shift(self, shape: Sequence[int]) -> Affine:
        """Return the affine from voxels of the window that an evaluation sees to voxels of the whole image."""
        start = [0, 0, 0] if self.augmentation is None else self.augmentation.window_start(shape)
        shift: Affine = from_matvec(np.eye(3), [*start, 0][:3])
        return shift

    # What a module, a run and a reader need to know ----------------------------------------------------------------

    def sampling_weights(self, samples: Sequence[Sample]) -> list[float] | None:
        """Return one weight per training sample, or None to see each once an epoch."""
        return None

    def target_values(self, name: str) -> Tensor:
        """Return the known values of a target in the training part, (N,) float64, in its own unit."""
        values = np.array([sample.targets[name] for sample in self.part("train")], dtype=np.float64)
        return torch.from_numpy(values[np.isfinite(values)])

    def frame(self, columns: Sequence[str], *, allow_truth: bool = False) -> pd.DataFrame:
        """Return the rows of the cohort, in the order of `samples`, for models that need no images.

        Args:
            columns: What to return beside who it is: `dataset`, `participant_id`, `session_id`, `image_id`, `site` and
                `split`. Numbers are float64, NaN where missing; targets are those that are trained on.
            allow_truth: Give out what a phantom knows and a model must not see, too.

        Raises:
            CohortError: When a table has no such column, or it is a hidden truth.
        """
        self.read()
        return tabulate(self.cohorts, self.samples, columns, allow_truth=allow_truth)

    def target_unit(self, name: str) -> str | None:
        """Return the unit of a target as the schema gives it."""
        return self.cohorts[0].schema.column(name).unit

    def to_native(self, array: np.ndarray, sample: Sample, *, order: Literal[0, 1] = 1) -> np.ndarray:
        """Resample a map (D, H, W) of what an evaluation sees to the grid of the participant's own first image."""
        files = sample.files
        cached = self.cache.load(files)
        affine = cached.affine @ self._window_shift(cached.array.shape[1:])
        native = read_volume(*files.channels[0])
        return to_native(array, affine, native.data.shape[1:], native.affine, order=order)

    def data_contract(self) -> dict[str, Any]:
        """Describe what a network trained on these batches expects: channels, grid, normalisation and outputs."""
        return {
            "channels": list(self.images),
            "mask": self.mask,
            "orientation": "RAS",
            "preprocessing": self.preprocessing.canonical(),
            "harmonisation": self.describe_harmonisation(),
            "crop": None if self.augmentation is None or self.augmentation.crop is None else [*self.augmentation.crop],
            "target_transform": self.target_transform,
            "units": {name: self.target_unit(name) for name in self.targets},
        }

    def cohort_facts(self) -> dict[str, Any]:
        """Describe the cohort for the run: hashes, and counts per split and site, never an identifier."""
        if self.split is None:
            raise CohortError("The splits are assigned in setup(); call it before cohort_facts().")
        facts = {"verified": self.verified, **describe_cohorts(self.cohorts)}
        split = {"protocol": self.split.protocol, "seed": self.split.seed, "hash": self.split.hash}
        chosen = {"expression": self.rows, "kept": len(self.samples), "of": self.num_rows}
        facts |= {"rows": None if self.rows is None else chosen, "permuted_targets": self.permute_targets}
        return {**facts, "split": split, "counts": count_samples(self.samples, self.targets)}

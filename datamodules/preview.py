"""One row of a cohort at a time: what is in its files, what the network is given, and a few measures of both.

A row that cannot be read is no error here: what went wrong is part of what is shown. Only one row's volumes are in
memory at once; what is kept of them are small pictures and some numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from datamodules.augmentation import Augmentation, sample_key
from datamodules.base import BaseDataModule
from datamodules.cache import ImageFiles, to_half
from datamodules.channel_view import ChannelView, measure_file, measure_input
from datamodules.cohort import Cohort
from datamodules.dataset import Sample, SampleKey
from datamodules.inspection import FileFacts
from datamodules.preprocessing import Preprocessing, PreprocessingError, Volume, read_volume, scaled
from datamodules.scanner import read_scanner
from datamodules.slices import BoolArray, Canonical, draw, sample_mask, window_of

SLICE_PIXELS = 128  # of the edge of a single slice, without a configuration
EPOCH = 0  # of which the augmentation is shown
ZSCORE_WINDOW = (-3.0, 3.0)


@dataclass(frozen=True, eq=False)
class Recipe:
    """What is done to the images of a row on their way to the network.

    Args:
        images: Image columns, in the order of the channels.
        mask: Column with the mask, if there is one.
        preprocessing: What is done once to every image.
        together: Whether the images are the channels of one input; else each is preprocessed by itself.
        datamodule: What augments them; None without a configuration.
    """

    images: tuple[str, ...]
    mask: str | None = None
    preprocessing: Preprocessing = Preprocessing()  # noqa: RUF009 - frozen
    together: bool = False
    datamodule: BaseDataModule | None = None

    @classmethod
    def of(cls, datamodule: BaseDataModule) -> "Recipe":
        """Return what a datamodule does."""
        return cls(tuple(datamodule.images), datamodule.mask, datamodule.preprocessing, True, datamodule)

    @classmethod
    def of_table(cls, cohort: Cohort, files: Mapping[str, FileFacts]) -> "Recipe":
        """Return the default: each image of a table by itself, and its first mask outlined.

        Args:
            cohort: The table.
            files: What each file holds, by its path in the table.
        """
        present = [column for column in cohort.schema.columns if column.name in cohort.frame]
        images = tuple(column.name for column in present if column.role == "image")
        masks = sorted((one for one in present if one.kind == "path"), key=lambda one: one.role != "mask")
        known = [files[cell] for column in images for cell in cohort.frame[column] if cell in files]
        mask = next((one.name for one in masks if one.role in ("mask", "target")), None)
        return cls(images, mask, default_preprocessing(known))

    @property
    def augmentation(self) -> Augmentation | None:
        """The random changes on the device."""
        return None if self.datamodule is None else self.datamodule.augmentation

    @property
    def augments(self) -> bool:
        """Whether training images are changed at random."""
        return self.augmentation is not None or (self.datamodule is not None and self.datamodule.transform is not None)


def default_preprocessing(files: Sequence[FileFacts]) -> Preprocessing:
    """Return what is done without a configuration: what a datamodule does by default, or its like for single slices.

    Args:
        files: What the images hold.
    """
    across = {_slice_axis(facts) for facts in files}
    axis = across.pop() if len(across) == 1 else None
    if axis is None:
        return Preprocessing()
    sizes = [max(np.multiply(facts.shape[:2], facts.spacing[:2]), default=1.0) for facts in files]
    spacing, shape = [float(np.median(sizes)) / SLICE_PIXELS] * 3, [SLICE_PIXELS] * 3
    spacing[axis], shape[axis] = 1.0, 1
    return Preprocessing(spacing=(spacing[0], spacing[1], spacing[2]), shape=(shape[0], shape[1], shape[2]))


def _slice_axis(facts: FileFacts) -> int | None:
    """Return the axis (right, front, up) that a single slice lies across; None for other images."""
    if len(facts.shape) > 3 or any(size > 1 for size in facts.shape[2:]):
        return None
    return next((axis for axis, ends in enumerate(("LR", "PA", "IS")) if facts.orientation[2:3] in ends), None)


class Previewer:
    """Look at the rows of a cohort, one by one.

    Args:
        cohort: The cohort; faulty cells are empty.
        files: What each file holds that could be read to its end, by its path in the table.
        recipe: What is done to the images.
    """

    def __init__(self, cohort: Cohort, files: Mapping[str, FileFacts], recipe: Recipe) -> None:
        self.cohort = cohort
        self.files = files
        self.recipe = recipe

    def look(self, row: Mapping[Any, Any]) -> list[ChannelView]:
        """Return what is shown of each image of a row.

        Args:
            row: Of the cohort's frame.
        """
        views = [ChannelView(column) for column in self.recipe.images]
        mask = self._mask(row)
        volumes = [self._read(view, row) for view in views]
        for view, volume in zip(views, volumes, strict=True):
            if volume is not None:
                self._show_file(view, volume, mask)
        channels = list(zip(views, volumes, strict=True))
        for group in [channels] if self.recipe.together else [[channel] for channel in channels]:
            self._show_input(group, mask, row)
        return views

    def _path(self, row: Mapping[Any, Any], column: str) -> str:
        """Return a cell whose file can be read, else an empty text."""
        cell = str(row.get(column, ""))
        return cell if cell in self.files else ""

    def _mask(self, row: Mapping[Any, Any]) -> Volume | None:
        cell = self._path(row, self.recipe.mask) if self.recipe.mask else ""
        try:
            return replace(read_volume(self.cohort.resolve(cell)), source=cell) if cell else None
        except PreprocessingError:  # `fontanel verify` has a word on it; an input that needs it says so, too
            return None

    def _read(self, view: ChannelView, row: Mapping[Any, Any]) -> Volume | None:
        cell = self._path(row, view.column)
        if not cell:
            why = "the file cannot be read" if row.get(view.column) else "the table names no file that may be read"
            view.reasons.append(f"{view.column}: {why}.")
            return None
        path = self.cohort.resolve(cell)
        view.facts = self.files[cell]
        view.scanner = read_scanner(path, self.cohort.root)
        try:
            column = self.cohort.schema.column(view.column)
            return scaled(replace(read_volume(path, column.volume), source=cell), column.scale or 1.0)
        except PreprocessingError as error:
            # Names of files are the table's own; those in a folder of DICOM are not, and may be a patient's.
            why = "the series cannot be read" if path.is_dir() else str(error).replace(str(path), cell)
            view.reasons.append(f"{view.column}: {why.removesuffix('.')}.")
            return None

    def _show_file(self, view: ChannelView, volume: Volume, mask: Volume | None) -> None:
        if not np.linalg.det(volume.affine[:3, :3]) or not np.isfinite(volume.data).all():
            return  # its reason comes from the preprocessing
        canonical = _displayed(volume, volume)
        inside = self._foreground(volume, mask)
        view.native = draw(canonical, window_of(canonical.data), mask)
        measure_file(view, volume, inside)

    def _show_input(
        self, group: Sequence[tuple[ChannelView, Volume | None]], mask: Volume | None, row: Mapping[Any, Any]
    ) -> None:
        views = [view for view, _ in group]
        volumes = [volume for _, volume in group if volume is not None]
        if len(volumes) < len(group):
            if volumes:
                views[0].reasons.append("The network is given all images of a row together, and one is missing.")
            return
        try:
            prepared = self.recipe.preprocessing(volumes, mask)
            half = replace(prepared, data=to_half(prepared).astype(np.float32))
        except PreprocessingError as error:
            views[0].reasons.append(f"No input for the network: {error}")
            return
        seen = self._as_evaluated(half)
        changed = self._augmented(half, row)
        for channel, (view, volume) in enumerate(zip(views, volumes, strict=True)):
            measure_input(view, half, channel, self._foreground_of(volume, mask, half, channel))
            kind = self.recipe.preprocessing.normalisations(len(views))[channel]
            shown = _displayed(seen, volume, channel)
            window = {"zscore": ZSCORE_WINDOW, "percentile": (0.0, 1.0)}.get(kind) or window_of(shown.data)
            view.network = draw(shown, window, mask)
            if changed is not None:
                view.augmented = draw(_displayed(changed, volume, channel), window)

    def _as_evaluated(self, half: Volume) -> Volume:
        """Return what an evaluation is given: the window in the middle, where there is a crop."""
        augmentation = self.recipe.augmentation
        if augmentation is None or augmentation.crop is None:
            return half
        affine = half.affine.copy()
        start = augmentation.window_start(half.data.shape[1:])
        affine[:3, 3] += affine[:3, :3] @ np.array(start)
        image = torch.from_numpy(half.data)[None]
        return Volume(augmentation.centre(image)[0].numpy(), affine, half.source)

    def _augmented(self, half: Volume, row: Mapping[Any, Any]) -> Volume | None:
        """Return what a training is given in its first epoch, from the same key."""
        data = self.recipe.datamodule
        if data is None or not self.recipe.augments:
            return None
        image = torch.from_numpy(half.data).half()
        if data.transform is not None:
            sample = _sample_of(row)
            image = data.transform(image, half.affine, sample, SampleKey(0, EPOCH, 0))
        image = image[None]
        if data.augmentation is not None:
            image = data.augmentation(image, [sample_key(data.seed, EPOCH, str(row["image_id"]), 0)])
        return Volume(image[0].float().numpy(), half.affine, half.source)

    def _foreground(self, volume: Volume, mask: Volume | None) -> BoolArray:
        """Return what counts in an image by the rule of the preprocessing."""
        data, rule = volume.data[0], self.recipe.preprocessing.foreground
        if rule == "mask" and mask is not None:
            return sample_mask(mask, data.shape, volume.affine)
        return np.asarray(data != 0 if rule == "nonzero" else data > data.mean(dtype=np.float64))

    def _foreground_of(self, volume: Volume, mask: Volume | None, half: Volume, channel: int) -> BoolArray:
        """Return the same of what the network is given: what is 0 in the file is no longer 0 there."""
        rule = self.recipe.preprocessing.foreground
        if rule == "above-mean":
            data = half.data[channel]
            return np.asarray(data > data.mean(dtype=np.float64))
        known = volume if rule == "nonzero" else mask
        assert known is not None  # the preprocessing would have refused
        marked = Volume((known.data != 0).astype(np.float32), known.affine) if rule == "nonzero" else known
        return sample_mask(marked, half.data.shape[1:], half.affine)


def _displayed(volume: Volume, native: Volume, channel: int = 0) -> Canonical:
    """Return a channel as it is shown: in anatomical order, a picture without anatomy as it is in its file."""
    canonical = Canonical.of(volume, channel)
    return canonical.as_picture(native.affine) if native.source.casefold().endswith(".png") else canonical


def _sample_of(row: Mapping[Any, Any]) -> Sample:
    return Sample(
        participant_id=str(row["participant_id"]),
        session_id=str(row["session_id"]),
        image_id=str(row["image_id"]),
        dataset=str(row["dataset"]),
        site=str(row["site"]),
        split="train",
        files=ImageFiles(()),
        targets={},
    )

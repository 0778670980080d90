"""The maps of a run's participants: computed, brought to the native grid, measured, written and drawn."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from datamodules.preprocessing import Volume, read_volume, to_native
from evaluation.figures.saliency import Case, contact_sheet, energy_against_chance, overlay, through_maximum
from evaluation.saliency import energy_inside
from experiments.predict import predict
from experiments.runtime import ConfigurationError, Restored
from lightning_modules.saliency import Direction, Method, Saliency, scores_of
from tracking.progress import progress

if TYPE_CHECKING:
    from datamodules.base import BaseDataModule
    from datamodules.dataset import Sample

KEY = ["dataset", "participant_id", "session_id", "image_id"]
NAMES: dict[Method, str] = {
    "grad-cam": "Grad-CAM",
    "guided-backprop": "Guided backpropagation",
    "guided-grad-cam": "Guided Grad-CAM",
}
MEASURES = ("energy", "chance", "hit", "foreground_energy", "foreground_chance")
MAX_SHOWN = 12  # participants of a summary
DPI = 300
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Request:
    """What is to be shown, and where it is written to.

    Args:
        folder: Folder to write.
        method: Which map.
        toward: Whether it shows what makes the prediction higher or lower.
        layer: Layer that Grad-CAM takes.
        output: Which output, each without.
        mask: Column with the mask that maps should point at.
    """

    folder: Path
    method: Method = "grad-cam"
    toward: Direction = "higher"
    layer: str | None = None
    output: str | None = None
    mask: str | None = None

    @property
    def suffix(self) -> str:
        """What files of the method are called after."""
        return self.method if self.toward == "higher" else f"{self.method}-lower"

    @property
    def map_name(self) -> str:
        """What a figure calls the map."""
        return NAMES[self.method] if self.toward == "higher" else f"{NAMES[self.method]} (toward lower)"

    def path(self, stem: str, output: str, ending: str) -> Path:
        """Return the file of one participant, or of a summary, and one output."""
        return self.folder / f"{stem}_{file_name(output)}_{self.suffix}{ending}"


@dataclass(frozen=True)
class _Map:
    """A map on the grid of the network's input."""

    sample: "Sample"
    output: str
    values: NDArray[np.float32]
    facts: dict[str, Any]


def write_maps(restored: Restored, request: Request) -> tuple[pd.DataFrame, list[Path]]:
    """Predict the samples of the datamodule, and write map and picture of each, and the summaries.

    Returns:
        Rows of the table, and the summaries' files.
    """
    data, outputs = restored.cli.datamodule, _outputs(restored, request.output)
    predictions = predict(restored)
    assert predictions is not None  # this process is the only one
    predictions = predictions.set_index([*KEY, "output"])
    request.folder.mkdir(parents=True, exist_ok=True)
    stems = dict(zip((sample.image_id for sample in data.samples), file_stems(data.samples), strict=True))
    shown: dict[str, list[Case]] = {output: [] for output in outputs}
    rows = []
    with progress(f"Making {NAMES[request.method]} maps", len(data.samples) * len(outputs)) as advance:
        for one in _maps(restored, request, outputs):
            key = (*(getattr(one.sample, name) for name in KEY), one.output)
            stem, prediction = stems[one.sample.image_id], predictions.loc[key]
            case, row = _write_one(data, one, request, stem, prediction)
            rows.append(row)
            if len(shown[one.output]) < MAX_SHOWN:
                title = f"{stem}\n{_words(prediction)}"
                shown[one.output].append(replace(through_maximum(case), title=title))
            advance(1)
    table = pd.DataFrame(rows)
    return table, [path for output in outputs for path in _summaries(shown[output], table, output, request)]


def file_name(text: str) -> str:
    """Return a text with nothing in it that a file system could misunderstand.

    >>> file_name("ward 3/outcome")
    'ward-3-outcome'
    """
    return re.sub(r"[^\w.+=-]", "-", text)


def file_stems(samples: "Sequence[Sample]") -> list[str]:
    """Return what the files of each sample are called after: participant and session, more where that is not enough."""
    stems = ["_".join(part for part in (one.participant_id, one.session_id) if part) for one in samples]
    times = Counter(stems)
    return [
        file_name(stem if times[stem] == 1 else sample.image_id) for stem, sample in zip(stems, samples, strict=True)
    ]


def foreground(sample: "Sample", native: Volume, kind: str) -> Mask:
    """Return what counts as foreground on the grid of a participant's first image, as preprocessing has it.

    Args:
        sample: The participant's files.
        native: The first of them.
        kind: `mask`, `above-mean` or `nonzero`.
    """
    if kind == "mask" and sample.files.mask is not None:
        return on_grid_of(native, sample.files.mask)
    image = native.data[0]
    inside: Mask = image != 0 if kind == "nonzero" else image > image.mean()
    return inside


def on_grid_of(native: Volume, path: Path) -> Mask:
    """Return where a mask is above 0, on the grid of an image."""
    mask = read_volume(path)
    inside: Mask = mask.data[0] > 0
    shape = native.data.shape[1:]
    if inside.shape == shape and np.allclose(mask.affine, native.affine, atol=1e-3):
        return inside
    return to_native(inside.astype(np.uint8), mask.affine, shape, native.affine, order=0) > 0


def _outputs(restored: Restored, wanted: str | None) -> list[str]:
    known = list(scores_of(restored.cli.model))
    if wanted is not None and wanted not in known:
        raise ConfigurationError(f"This model has no output {wanted}; it has {', '.join(known)} (--output-name).")
    return known if wanted is None else [wanted]


def _maps(restored: Restored, request: Request, outputs: Sequence[str]) -> Iterator[_Map]:
    """Yield the maps of every sample of the datamodule, those of its outputs one after the other."""
    data, trainer = restored.cli.datamodule, restored.cli.datamodule.trainer
    assert trainer is not None  # it has just predicted
    device = trainer.strategy.root_device
    module = restored.cli.model.to(device)
    scores = {name: score for name, score in scores_of(module).items() if name in outputs}
    make = partial(Saliency, method=request.method, layer=request.layer, toward=request.toward)
    makers = {name: make(module.network, score) for name, score in scores.items()}
    samples = {sample.image_id: sample for sample in data.samples}
    for batch in data.predict_dataloader():
        image = data.on_after_batch_transfer({**batch, "image": batch["image"].to(device)}, 0)["image"]
        maps = {name: maker(image).cpu().numpy() for name, maker in makers.items()}
        for index, image_id in enumerate(batch["image_id"]):
            for name, maker in makers.items():
                values = maps[name][index]
                facts = _layer_facts(maker, image) if "cam" in request.method else {}
                yield _Map(samples[image_id], name, values, facts | {"maximum": float(values.max())})


def _layer_facts(maker: Saliency, image: Any) -> dict[str, Any]:  # noqa: ANN401 - a tensor; torch stays out of here
    chosen = maker.feature_map(image)
    return {
        "layer": chosen.name,
        "layer_shape": "x".join(map(str, chosen.shape)),
        "layer_placement": chosen.placement,
    }


def _write_one(
    data: "BaseDataModule", one: _Map, request: Request, stem: str, prediction: pd.Series
) -> tuple[Case, dict[str, Any]]:
    sample = one.sample
    native = read_volume(*sample.files.channels[0])
    # Interpolation may leave a rounding error below 0.
    values = np.maximum(data.to_native(one.values, sample), 0)
    path = request.path(stem, one.output, ".nii.gz")
    nib.save(nib.Nifti1Image(values, native.affine), path)
    mask = None if request.mask is None else _mask(data, sample, request.mask, native)
    measures = dict.fromkeys(MEASURES, np.nan) if request.mask else {}
    if mask is not None:
        measures = _measure(values, mask, foreground(sample, native, data.preprocessing.foreground))
    title = f"{stem}\n{one.output}: {_words(prediction)}"
    case = Case(native.data[0], values, native.affine, mask, title)
    figure = overlay(case, map_name=request.map_name, mask_name=request.mask or "mask")
    _save(figure, request.path(stem, one.output, ".png"))
    who = {name: getattr(sample, name) for name in (*KEY, "site", "split")}
    what = {"output": one.output, "prediction": prediction["prediction"], "target": prediction["target"]}
    how = {"method": request.method, "toward": request.toward, **one.facts}
    return case, {**who, **what, **how, "mask": request.mask or "", **measures, "map": path.name}


def _mask(data: "BaseDataModule", sample: "Sample", column: str, native: Volume) -> Mask | None:
    """Return the mask of a sample on the grid of its first image, None where the table has none."""
    for cohort in data.cohorts:
        frame = cohort.frame
        for name in frame.loc[(frame["dataset"] == sample.dataset) & (frame["image_id"] == sample.image_id), column]:
            return on_grid_of(native, cohort.resolve(name)) if name else None
    return None


def _measure(values: NDArray[np.float32], mask: Mask, inside: Mask) -> dict[str, float]:
    everywhere = energy_inside(values, mask)
    within = energy_inside(values, mask, region=inside | mask)
    found = (everywhere.share, everywhere.chance, everywhere.hit, within.share, within.chance)
    return dict(zip(MEASURES, found, strict=True))


def _words(prediction: pd.Series) -> str:
    observed = f", observed {prediction['target']:.3g}" if np.isfinite(prediction["target"]) else ""
    return f"predicted {prediction['prediction']:.3g}{observed}"


def _summaries(shown: Sequence[Case], table: pd.DataFrame, output: str, request: Request) -> list[Path]:
    sheet = request.path("summary", output, ".png")
    _save(contact_sheet(shown, map_name=request.map_name, mask_name=request.mask or "mask"), sheet)
    own = table[table["output"] == output]
    if "energy" not in own or not own["foreground_energy"].notna().any():
        return [sheet]
    scatter = request.path("energy", output, ".png")
    _save(
        energy_against_chance(own["foreground_energy"], own["foreground_chance"], mask_name=request.mask or "mask"),
        scatter,
    )
    return [sheet, scatter]


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI, metadata={"Software": None})

"""Predict new images, with or without labels, from a run, a checkpoint or a pack.

Examples:
  fontanel predict RUN scan1.nii.gz scan2.nii.gz --output predictions
  fontanel predict RUN --data.table new.tsv --output predictions
  fontanel predict best.ckpt scan.nii.gz
  fontanel predict model.fontanel scan1.nii.gz scan2.nii.gz      a pack of another hospital: no table, no MLflow

Images are checked first, as `fontanel verify` would; a bad one stops the command before any prediction. The folder gets
predictions.parquet, and predictions.tsv with the same rows. A participant that the model was trained on is marked in
the column split. With --data.table the table's labels are in the column target; without, it is empty: fill it in, and
`fontanel evaluate predictions.tsv` and `fontanel compare` accept the table.

A pack's configuration names classes, and naming a class runs its package. Classes of Fontanel, torch, torchio, MONAI
and timm are accepted; others only with --trust-code.
"""

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from datamodules.base import BaseDataModule
    from experiments.runtime import Restored
    from tracking.store import Store

PASSES_ON = True  # words this parser does not know belong to the configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel predict`."""
    from experiments.options import add_store_arguments

    parser.add_argument("reference", metavar="RUN", help="run id, run name, run folder, checkpoint file, or pack")
    parser.add_argument(
        "images", nargs="*", type=Path, metavar="IMAGE", help="images of one participant each; or give --data.table"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("predictions"),
        metavar="DIR",
        help="folder to write (default: ./predictions)",
    )
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="let a pack run classes of packages that are not Fontanel's or those it rests on",
    )
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check the images, predict, write the table and print its head."""
    from evaluation.predictions import write_predictions
    from experiments.options import STEP_TIMEOUT, open_store
    from experiments.ranks import spread
    from experiments.runtime import scratch_folder
    from tracking.packs import is_pack

    arguments.output.mkdir(parents=True, exist_ok=True)
    store = None if is_pack(arguments.reference) else open_store(arguments)
    with scratch_folder() as scratch:
        restored = restore_for(
            arguments.reference,
            arguments.images,
            arguments.rest,
            arguments.output,
            store,
            scratch,
            trust_code=arguments.trust_code,
        )
        if (code := spread("predict", arguments.words, restored.cli, store, STEP_TIMEOUT)) is not None:
            return code
        frame = predict(restored)
    if frame is None:
        return 0
    for name in ("predictions.parquet", "predictions.tsv"):
        write_predictions(frame, arguments.output / name)
    shown = frame[["participant_id", "session_id", "site", "split", "output", "prediction"]]
    print(shown.head(20).to_string(index=False))
    if len(frame) > 20:
        print(f"... {len(frame)} rows")
    print(f"Written: {arguments.output / 'predictions.parquet'} and predictions.tsv")
    return 0


def restore_for(
    reference: str,
    images: list[Path],
    words: list[str],
    folder: Path,
    store: "Store | None",
    scratch: Path,
    *,
    trust_code: bool = False,
) -> "Restored":
    """Restore a model to predict every row of a table, or single images, after checking their files.

    Args:
        reference: Run id, run name, run folder, checkpoint file, or pack.
        images: Image files of one participant each; [] to use the table of `words`.
        words: Further arguments of the configuration.
        folder: Folder for the table made from `images`.
        store: Where the run is looked up; a pack needs none.
        scratch: Folder for the configuration on its way.
        trust_code: Let a pack name classes of packages that are not Fontanel's or those it rests on.
    """
    from experiments.runtime import ConfigurationError, restore

    if bool(images) == any(word.startswith("--data.table") for word in words):
        raise ConfigurationError("Give the images to predict, or a cohort table with --data.table, and not both.")
    restored = restore(reference, words, store, scratch, trust_code)
    data = restored.cli.datamodule
    if images:
        needed = [*data.images, *([data.mask] if data.mask else []), *data.covariates]
        table, data.root = write_image_table(images, needed, folder)
        data.tables = [table]
    verify_now(data)
    data.labels_required = False
    return restored


def predict(restored: "Restored") -> "pd.DataFrame | None":
    """Return the predictions of every row, None on every process but the first."""
    from experiments.session import labelled

    cli, contract, checkpoint = restored
    trainer = cli.make_trainer(logger=False)
    trainer.predict(
        cli.model, datamodule=cli.datamodule, ckpt_path=str(checkpoint), weights_only=True, return_predictions=False
    )
    frame = cli.model.take_predictions()
    return labelled(frame, contract) if trainer.is_global_zero else None


def write_image_table(images: list[Path], columns: list[str], folder: Path) -> tuple[Path, Path]:
    """Write a cohort table for single images and return it with the folder that its paths are relative to."""
    from experiments.runtime import ConfigurationError

    if len(columns) != 1:
        raise ConfigurationError(
            f"This model needs more of each participant than one image: {', '.join(columns)}. Write a table with the "
            "columns participant_id and these, and use --data.table."
        )
    absent = [str(image) for image in images if not image.exists()]
    if absent:
        raise ConfigurationError(f"No such image: {', '.join(absent)}.")
    paths = [image.resolve() for image in images]
    root = Path(os.path.commonpath([path.parent for path in paths]))
    rows = [f"{identifier(path.relative_to(root))}\t{path.relative_to(root)}" for path in paths]
    table = folder / "images.tsv"
    table.write_text("\n".join([f"participant_id\t{columns[0]}", *rows]) + "\n", encoding="utf-8")
    return table, root


def identifier(path: Path) -> str:
    """Return a participant identifier made from an image's path.

    >>> identifier(Path("ward 3/scan.nii.gz"))
    'ward-3_scan'
    >>> identifier(Path("ward 3/series"))
    'ward-3_series'
    """
    name = "_".join(path.parts).removesuffix(".gz")
    stem, _, _ = name.rpartition(".")
    return re.sub(r"[^\w.+=-]", "-", stem or name)


def verify_now(data: "BaseDataModule") -> None:
    """Check the files of every table that has no fitting manifest yet; problems are raised all at once."""
    from datamodules.cohort import CohortError, read_cohort
    from datamodules.verify import check_manifest, verify_cohort
    from tracking.progress import progress

    for table in data.tables:
        try:
            check_manifest(read_cohort(table, root=data.root))
        except CohortError:
            with progress(f"Checking the images of {table.name}", 1) as advance:
                verification = verify_cohort(table, root=data.root)
                advance(1)
            if not verification.ok:
                raise CohortError.of(str(table), verification.problems) from None
            data.allow_unverified = True

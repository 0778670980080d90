"""Show which parts of the images a run's predictions rest on.

Examples:
  fontanel saliency RUN                                           the first eight held-out participants
  fontanel saliency RUN --participants sub-07 sub-12 --mask lesion
  fontanel saliency RUN --data.table new.tsv --num 20 --method guided-grad-cam

The folder gets, of each participant and output, a map (NIfTI, on the grid of the participant's own first image; high is
important) and a picture of it (PNG), and saliency.tsv: predictions and, with --mask, how much of each map lies inside
the mask beside what chance would put there, in the whole volume (energy, chance) and in the foreground alone, which is
the fair comparison. Table and summaries are added to the run, in its folder saliency/; a summary with images goes to
a server of another machine only with --share-images.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from datamodules.base import BaseDataModule
    from datamodules.dataset import Sample
    from evaluation.report.page import Picture
    from experiments.runtime import Restored
    from tracking.store import Store

PASSES_ON = True  # words this parser does not know belong to the configuration
METHODS = ("grad-cam", "guided-backprop", "guided-grad-cam")
TABLE = "saliency.tsv"
FOLDER = "saliency"  # among the artifacts of a run
TAG = "saliency"  # of a run that has some


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel saliency`."""
    from experiments.options import add_image_argument, add_store_arguments

    parser.add_argument("reference", metavar="RUN", help="run id, run name, run folder, or checkpoint file")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--participants", nargs="+", metavar="ID", help="whom to show, whatever part they are in")
    who.add_argument(
        "--num", type=int, default=8, help="or how many of the held-out ones, in the order of the table (default: 8)"
    )
    parser.add_argument("--method", choices=METHODS, default="grad-cam", help="which map (default: grad-cam)")
    parser.add_argument(
        "--toward",
        choices=("higher", "lower"),
        default="higher",
        help="show what makes the prediction higher (default) or lower",
    )
    parser.add_argument(
        "--layer", metavar="NAME", help="layer whose map Grad-CAM takes (default: the last of more than one voxel)"
    )
    parser.add_argument("--output-name", metavar="TARGET", help="which output to explain (default: each)")
    parser.add_argument("--mask", metavar="COLUMN", help="column with a mask that maps should point at, as of a lesion")
    parser.add_argument(
        "--output", type=Path, default=Path("saliency"), metavar="DIR", help="folder to write (default: ./saliency)"
    )
    add_image_argument(parser)
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Predict, write maps, pictures and the table, add the summaries to the run, and print the table's head."""
    from experiments.options import open_store
    from experiments.runtime import scratch_folder
    from experiments.saliency_maps import Request, write_maps

    store = open_store(arguments)
    with scratch_folder() as scratch:
        restored = restore_for(arguments, store, scratch)
        request = Request(
            arguments.output, arguments.method, arguments.toward, arguments.layer, arguments.output_name, arguments.mask
        )
        rows, summaries = write_maps(restored, request)
    table = merge_table(arguments.output / TABLE, rows)
    print(describe(rows, arguments.mask))
    print(f"Written: {table}, and beside it {len(rows)} maps with their pictures")
    keep(restored, store, [table, *summaries])
    return 0


def restore_for(arguments: argparse.Namespace, store: "Store", scratch: Path) -> "Restored":
    """Restore a model, with a datamodule of those who are to be shown and of nobody else.

    Args:
        arguments: Of the command.
        store: Where the run is looked up.
        scratch: Folder for the configuration on its way.
    """
    from experiments.predict import verify_now
    from experiments.runtime import restore

    restored = restore(arguments.reference, [*arguments.rest, "--trainer.devices", "1"], store, scratch)
    data = restored.cli.datamodule
    if any(word.startswith("--data.table") for word in arguments.rest):
        verify_now(data)
        data.labels_required = False
    data.assign_splits()
    data.samples = choose(data, arguments.participants, arguments.num)
    if arguments.mask is not None:
        require_mask_column(data, arguments.mask)
    return restored


def choose(data: "BaseDataModule", participants: Sequence[str] | None, num: int) -> "list[Sample]":
    """Return the samples to show: of the named participants, or the first that the model was not trained on.

    Args:
        data: The cohort, its splits assigned.
        participants: Identifiers, with the dataset before a slash where two datasets have the same.
        num: How many samples, where nobody is named.
    """
    from datamodules.cohort import participant_key
    from evaluation.parts import HELD_OUT
    from experiments.runtime import ConfigurationError

    if participants is None:
        held_out = data.part(*HELD_OUT)
        if not held_out or num < 1:
            raise ConfigurationError(
                "There is nobody to show: no row is held out from the training (or --num is below 1). Name "
                "participants with --participants, or another cohort with --data.table."
            )
        return held_out[:num]
    wanted = set(participants)
    names = [{sample.participant_id, participant_key(sample.dataset, sample.participant_id)} for sample in data.samples]
    absent = sorted(wanted.difference(*names))
    if absent:
        known = ", ".join(sorted({sample.participant_id for sample in data.samples})[:5])
        raise ConfigurationError(f"No participant is called {', '.join(absent)}. The cohort has {known}, ...")
    return [sample for sample, own in zip(data.samples, names, strict=True) if own & wanted]


def require_mask_column(data: "BaseDataModule", column: str) -> None:
    """Refuse a column that holds no files."""
    from experiments.runtime import ConfigurationError

    for cohort in data.cohorts:
        paths = [known.name for known in cohort.schema.columns if known.kind == "path" and known.name in cohort.frame]
        if column not in paths:
            raise ConfigurationError(
                f"{cohort.table.name} has no column {column} with the paths of masks; those with paths are "
                f"{', '.join(paths)}. Name one with --mask."
            )


def merge_table(path: Path, rows: "pd.DataFrame") -> Path:
    """Write the table, with rows of other participants, outputs and methods that the folder had already."""
    import pandas as pd

    from experiments.saliency_maps import KEY

    key = [*KEY, "output", "method", "toward"]
    if path.is_file():
        before = pd.read_csv(path, sep="\t", dtype=dict.fromkeys(key, str), keep_default_na=False, na_values=[""])
        before[key] = before[key].fillna("")
        replaced = pd.MultiIndex.from_frame(before[key]).isin(pd.MultiIndex.from_frame(rows[key]))
        rows = pd.concat([before[~replaced], rows], ignore_index=True)
    rows.to_csv(path, sep="\t", index=False)
    return path


def describe(rows: "pd.DataFrame", mask: str | None) -> str:
    """Return the head of the table, and how the maps compare with chance."""
    columns = ["participant_id", "session_id", "split", "output", "prediction", "target"]
    columns += ["foreground_energy", "foreground_chance", "hit"] if mask else []
    lines = [rows[columns].head(20).to_string(index=False, float_format="{:.3g}".format, na_rep="")]
    if len(rows) > 20:
        lines.append(f"... {len(rows)} rows")
    if mask:
        lines.append(agreement(rows, mask))
    if nothing := int((rows["maximum"] == 0).sum()):
        lines.append(f"{nothing} of {len(rows)} maps are 0 everywhere: nothing in these images speaks for it.")
    if trained := int(rows["split"].isin(["train", "val"]).sum()):
        lines.append(f"{trained} of {len(rows)} maps are of participants of the training or validation part.")
    return "\n".join(lines)


def agreement(rows: "pd.DataFrame", mask: str) -> str:
    """Return in a sentence how much of the maps lies inside a mask, beside what chance would put there."""
    known = rows[rows["foreground_energy"].notna()]
    if known.empty:
        return f"No participant has both a map and a {mask}."
    energy, chance = known["foreground_energy"], known["foreground_chance"]
    return (
        f"Share of the map inside {mask}, of what is in the foreground: {energy.mean():.3f} on average, and "
        f"{chance.mean():.3f} by chance; above chance in {(energy > chance).sum()} of {len(known)}."
    )


def pictures(folder: Path, run_name: str) -> "list[Picture]":
    """Return what a report shows of a run's maps: its summaries, and how they compare with chance.

    Args:
        folder: Its artifacts of this kind: table and summaries.
        run_name: What captions call the run.
    """
    import pandas as pd

    from evaluation.report.page import Picture, png_data_uri
    from evaluation.wording import count_text
    from experiments.saliency_maps import NAMES, Request

    table = pd.read_csv(folder / TABLE, sep="\t", keep_default_na=False, na_values=[""])
    found = []
    for _, rows in table.groupby(["output", "method", "toward"], sort=False):
        first = rows.iloc[0]
        request = Request(folder, first["method"], first["toward"])
        mask = first["mask"] if isinstance(first["mask"], str) else ""  # an empty column is read as one of numbers
        people = count_text(rows["participant_id"].nunique(), "participant")
        parts = " and ".join(sorted(set(rows["split"])))
        what = f"{NAMES[request.method]} of {first['output']} in {people} ({parts}), run {run_name}"
        inside = f" {agreement(rows, mask)}" if mask else ""
        captions = {
            "summary": f"What makes the prediction {request.toward}: {what}. Light is important.{inside}",
            "energy": f"Each participant's share of the map inside {mask}, beside chance: {what}.",
        }
        for kind, caption in captions.items():
            path = request.path(kind, first["output"], ".png")
            if path.is_file():
                width = "full" if kind == "summary" else "half"
                found.append(Picture(png_data_uri(path), f"{kind} of {what}", caption, width))
    return found


def keep(restored: "Restored", store: "Store", files: Sequence[Path]) -> None:
    """Add files to the artifacts of the run; a checkpoint may be of a run that this store does not have."""
    from experiments.session import Session
    from tracking.errors import StoreError
    from tracking.files import make_private_folder
    from tracking.shipping import kept_text
    from tracking.store import PARENT_TAG

    try:
        run_id = store.find_run(Session.reopen(restored.contract, store).run_id).run_id
    except StoreError as error:
        print(f"Nothing is added to the run: {error}")
        return
    home = make_private_folder(store.folder(run_id) / FOLDER)
    added = {file.name: store.log_artifact(run_id, _copied(file, home), FOLDER, depicts=_shows(file)) for file in files}
    store.set_tag(run_id, TAG, "true")
    print(f"Added to run {run_id}: {FOLDER}/ with {', '.join(name for name in added if added[name])}")
    if kept := [name for name, sent in added.items() if not sent]:
        print(kept_text(kept, store.shown_uri, run_id))
    shown = store.client.get_run(run_id).data.tags.get(PARENT_TAG, run_id)
    print(f"A report shows them when it is written again: fontanel report {shown}")


def _shows(file: Path) -> bool:
    """Tell whether a file shows images; the table and the chart of shares do not."""
    return file.name.startswith("summary_")


def _copied(file: Path, home: Path) -> Path:
    """Copy a file into the run's own folder, where a report finds it whether or not it was sent."""
    copy = home / file.name
    copy.write_bytes(file.read_bytes())
    copy.chmod(0o600)
    return copy

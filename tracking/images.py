"""Images of participants, which leave this machine only when that was asked for; the others are kept here."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from tracking.files import make_private_folder, read_json, write_json

SHARE_IMAGES = "FONTANEL_SHARE_IMAGES"  # environment variable: 1 sends images to a server of another machine
WITHHELD = "withheld.json"  # in a run's folder: images that wait there to be asked for
VOLUMES = (
    *(".nii", ".nii.gz", ".img", ".hdr", ".mgz", ".mgh", ".mha", ".mhd", ".nrrd", ".nhdr", ".dcm", ".npy", ".npz"),
)  # whatever holds voxels shows somebody


class Withheld(NamedTuple):
    """An image that was not sent.

    Args:
        path: File or folder, below the folder of its run.
        folder: Where it belongs among the artifacts; the top where there is none.
    """

    path: str
    folder: str | None


def asked_to_share() -> bool:
    """Tell whether the environment asks to send images to servers of other machines."""
    return os.environ.get(SHARE_IMAGES, "").strip().lower() in {"1", "true", "yes"}


def holds_voxels(path: Path) -> bool:
    """Tell whether a file, or one below a folder, is a volume by its name."""
    files = path.rglob("*") if path.is_dir() else [path]
    return any(file.name.lower().endswith(VOLUMES) for file in files)


def read_withheld(folder: Path) -> list[Withheld]:
    """Return what a run keeps back."""
    path = folder / WITHHELD
    return [Withheld(*one) for one in read_json(path)] if path.is_file() else []


def write_withheld(folder: Path, kept: list[Withheld]) -> None:
    """Say what a run keeps back."""
    if kept:
        write_json(make_private_folder(folder) / WITHHELD, sorted(set(kept), key=str))
    else:
        (folder / WITHHELD).unlink(missing_ok=True)


def withhold(run_folder: Path, path: Path, folder: str | None) -> Path:
    """Keep an image back, in the folder of its run, and return where it is."""
    own = path
    if not path.resolve().is_relative_to(run_folder.resolve()):
        own = make_private_folder(run_folder / (folder or ".")) / path.name
        if path.is_dir():
            shutil.copytree(path, own, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, own)
            own.chmod(0o600)
    inside = str(own.resolve().relative_to(run_folder.resolve()))
    write_withheld(run_folder, [*read_withheld(run_folder), Withheld(inside, folder)])
    return own

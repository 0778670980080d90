"""How an image was acquired, from the tags of a DICOM file or the JSON file that BIDS keeps beside an image.

Only the fields listed here are ever read: none of them says who was scanned, when or where. The remarks in the header
of a NIfTI file are free text, and are not read at all.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk  # noqa: N813 - the library's own idiom

from datamodules.itk_files import quiet
from datamodules.schema import strip_suffix

MAX_SIDECAR_BYTES = 2**20
MAX_WORDS = 48  # letters of a text; a model's name is shorter, and a remark longer
MILLISECONDS = 1000.0


@dataclass(frozen=True)
class Field:
    """One thing that is known of an acquisition.

    Args:
        label: What it is called.
        tag: Of DICOM, as SimpleITK writes it.
        key: Of BIDS.
        unit: Of a number; empty for a text.
        from_bids: What a number of BIDS is multiplied by to have the unit; DICOM has it already.
    """

    label: str
    tag: str
    key: str
    unit: str = ""
    from_bids: float = 1.0


FIELDS = (
    Field("modality", "0008|0060", "Modality"),
    Field("manufacturer", "0008|0070", "Manufacturer"),
    Field("model", "0008|1090", "ManufacturersModelName"),
    Field("field strength", "0018|0087", "MagneticFieldStrength", "T"),
    Field("TR", "0018|0080", "RepetitionTime", "ms", MILLISECONDS),
    Field("TE", "0018|0081", "EchoTime", "ms", MILLISECONDS),
    Field("TI", "0018|0082", "InversionTime", "ms", MILLISECONDS),
    Field("flip angle", "0018|1314", "FlipAngle", "°"),
    Field("slice thickness", "0018|0050", "SliceThickness", "mm"),
    Field("tube voltage", "0018|0060", "XRayTubeVoltage", "kV"),
)


def read_scanner(path: Path, root: Path) -> dict[str, str]:
    """Return what is known of an acquisition, as label -> text; empty where nothing is.

    Args:
        path: The image: a file, or the folder of a DICOM series.
        root: The cohort's folder, which a file beside the image must not leave.
    """
    sidecar = Path(f"{strip_suffix(str(path))}.json")
    if not path.is_dir() and sidecar.is_file() and sidecar.resolve().is_relative_to(root.resolve()):
        known = _read_bids(sidecar)
        return _texts(lambda field: known.get(field.key), {field.label: field.from_bids for field in FIELDS})
    if path.is_dir() or path.suffix.casefold() in (".dcm", ".ima", ""):
        tags = _read_dicom(path)
        return _texts(lambda field: tags.get(field.tag), {})
    return {}


def _read_bids(sidecar: Path) -> Mapping[str, object]:
    """Return the content of a JSON file, nothing where it has none: what is beside an image may be anything."""
    try:
        if sidecar.stat().st_size > MAX_SIDECAR_BYTES:
            return {}
        content = json.loads(sidecar.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_dicom(path: Path) -> dict[str, str]:
    with quiet():
        try:
            names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)) if path.is_dir() else [str(path)]
            reader = sitk.ImageFileReader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileName(names[0])
            reader.ReadImageInformation()
        except (RuntimeError, IndexError):  # no DICOM: other formats have no suffix, too
            return {}
        return {field.tag: reader.GetMetaData(field.tag) for field in FIELDS if reader.HasMetaDataKey(field.tag)}


def _texts(value_of: Callable[[Field], object], factors: Mapping[str, float]) -> dict[str, str]:
    found = {}
    for field in FIELDS:
        value = value_of(field)
        text = _number(value, factors.get(field.label, 1.0), field.unit) if field.unit else _words(value)
        if text:
            found[field.label] = text
    return found


def _number(value: object, factor: float, unit: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return ""
    try:
        number = float(value) * factor
    except ValueError:
        return ""
    return f"{number:.4g} {unit}" if math.isfinite(number) else ""


def _words(value: object) -> str:
    text = value.strip().strip("\0") if isinstance(value, str) else ""
    return text if len(text) <= MAX_WORDS and text.isprintable() else ""

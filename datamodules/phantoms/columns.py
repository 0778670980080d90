"""Columns that the cohorts of head phantoms share: who it is, whose anatomy, which volumes, which scanner."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # workers render without pandas
    from datamodules.schema import Column

Limits = tuple[str | None, float | None, float | None]  # unit, smallest and largest value

VOLUMES: dict[str, Limits] = {
    "ventricle_ml": ("ml", 0, None),
    "grey_matter_ml": ("ml", 0, None),
    "white_matter_ml": ("ml", 0, None),
}
DEFORMATION: dict[str, Limits] = {
    "head_scale": (None, 0, None),
    "ventricle_wall_shift": ("mm", None, None),
    "cortical_thinning": ("mm", None, None),
}
SCANNER: dict[str, Limits] = {
    "scanner_gain": (None, 0, None),
    "scanner_gamma": (None, 0, None),
    "scanner_bias_amplitude": (None, 0, None),
    "scanner_point_spread": ("voxels", 0, None),
    "scanner_noise": (None, 0, None),
    "scanner_skull": (None, 0, 1),
    "scanner_voxel_x": ("mm", 0, None),
    "scanner_voxel_y": ("mm", 0, None),
    "scanner_voxel_z": ("mm", 0, None),
}


def identity_columns() -> "tuple[Column, ...]":
    """Return the columns that say who it is and where."""
    from datamodules.schema import Column

    return (
        Column("participant_id", "id", "text"),
        Column("dataset", "dataset", "text"),
        Column("site", "site", "text"),
    )


def anatomy_column() -> "Column":
    """Return the column that names the anatomy."""
    from datamodules.schema import Column

    meaning = "Real head that was deformed; keep it on one side of a split"
    return Column("anatomy_id", "group", "text", description=meaning)


def truth_columns(limits: Mapping[str, Limits]) -> "tuple[Column, ...]":
    """Return the columns that a model must not see: numbers within limits, and the orientation of the stored array."""
    from datamodules.schema import Column

    return (
        *(Column(name, "truth", "number", unit, low, high) for name, (unit, low, high) in limits.items()),
        Column("scanner_orientation", "truth", "text", description="Axis code of the stored array"),
    )

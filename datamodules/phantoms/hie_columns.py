"""Columns of a cohort of newborns after hypoxia-ischaemia: what each means, and what a model may see."""

from typing import TYPE_CHECKING, Literal

from datamodules.phantoms.columns import (
    DEFORMATION,
    SCANNER,
    VOLUMES,
    Limits,
    anatomy_column,
    identity_columns,
    truth_columns,
)
from datamodules.phantoms.hie_newborns import LATEST_DAY, PATTERNS

if TYPE_CHECKING:  # workers render without pandas
    from datamodules.schema import Column

Image = Literal["adc", "zadc", "t1w"]

_TRUTHS: dict[str, Limits] = {
    "severity": (None, 0, 1),
    "deep_grey_injury": (None, 0, 1),
    "watershed_injury": (None, 0, 1),
    "asymmetry": (None, None, None),
    "latent_factor": ("standard deviations", None, None),
    "true_apgar_5min": (None, 0, 10),
    "true_cord_ph": (None, 6, 8),
    "linear_predictor": ("log odds", None, None),
    "bayes_probability": (None, 0, 1),
    "deep_grey_injury_ml": ("ml", 0, None),
    "watershed_injury_ml": ("ml", 0, None),
    "true_lesion_ml": ("ml", 0, None),
    **VOLUMES,
    **DEFORMATION,
    "white_matter_change": (None, None, None),
    **SCANNER,
    "scanner_t1w_gain": (None, 0, None),
    "scanner_t1w_gamma": (None, 0, None),
    "scanner_t1w_bias_amplitude": (None, 0, None),
    "scanner_t1w_noise": (None, 0, None),
}
# Unit, smallest and largest value, and meaning of what is known at birth or at the scan.
_COVARIATES: dict[str, tuple[str | None, float, float | None, str]] = {
    "gestational_age": ("weeks", 35, 42, "Gestational age at birth"),
    "birth_weight": ("g", 1500, 5500, "Birth weight; unknown for four in ten, as in the public cohort"),
    "sex": (None, 0, 1, "0 female, 1 male"),
    "apgar_5min": (None, 0, 10, "Apgar score at five minutes"),
    "cord_ph": (None, 6.6, 7.4, "pH of umbilical cord blood"),
    "day_of_life": ("days", 0, LATEST_DAY, "Day of the scan; ADC pseudo-normalises after about a week"),
    "lesion_ml": ("ml", 0, None, "Volume of the lesion map"),
}
# Unit, meaning, and suffix of the file.
IMAGES: dict[Image, tuple[str | None, str, str]] = {
    "adc": ("1e-3 mm2/s", "Apparent diffusion coefficient, skull-stripped", "desc-adc"),
    "zadc": ("z-score", "ADC against normal newborns, smoothed by 2 mm and cut at +-10", "desc-zadc"),
    "t1w": (None, "T1-weighted volume, skull-stripped", "T1w"),
}
OUTCOME_COLUMNS = ("outcome", "linear_predictor", "bayes_probability")  # what the shared factor decides


def hie_columns(images: tuple[Image, ...]) -> "tuple[Column, ...]":
    """Return the meaning of every column of the table, in order, for a cohort with these images."""
    from datamodules.schema import Column

    shown = (
        Column(name, "image", "path", unit, grid="head", description=meaning)
        for name, (unit, meaning, _) in ((name, IMAGES[name]) for name in images)
    )
    covariates = (
        Column(name, "covariate", "number", unit, low, high, description=meaning)
        for name, (unit, low, high, meaning) in _COVARIATES.items()
    )
    return (
        *identity_columns(),
        *shown,
        Column("lesion", "mask", "path", grid="head", may_be_empty=True, description="Injured tissue, however old"),
        Column("outcome", "target", "number", minimum=0, maximum=1, description="1 adverse outcome at two years"),
        *covariates,
        anatomy_column(),
        Column("pattern", "truth", "text", description=f"Pattern of injury: {', '.join(PATTERNS)}"),
        *truth_columns(_TRUTHS),
    )

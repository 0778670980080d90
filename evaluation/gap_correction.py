"""Corrections of the brain-age gap for its dependence on age, fitted on held-out controls.

A corrected gap is a variable for group comparisons. Its error is no measure of the model: the correction uses the true
age of the participant it corrects, so that even a model without any information comes out close to the truth.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from evaluation.estimate import FloatArray

CORRECTED_LABEL = "corrected: not a performance measure"
MIN_CONTROLS = 10  # a line through fewer says more about them than about the model


class GapCorrectionError(ValueError):
    """A correction cannot be fitted on these controls."""


@dataclass(frozen=True)
class GapCorrection:
    """A fitted correction.

    Args:
        method: Who proposed it.
        slope: Slope of the fitted line on age.
        intercept: Intercept of the fitted line, in the unit of the target.
        num_controls: Number of rows that it was fitted on.
    """

    method: Literal["beheshti2019", "cole2018"]
    slope: float
    intercept: float
    num_controls: int

    def apply(self, age: ArrayLike, prediction: ArrayLike) -> FloatArray:
        """Return corrected predictions (N,) for participants of known age (N,)."""
        true, predicted = np.asarray(age, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
        if self.method == "cole2018":
            return (predicted - self.intercept) / self.slope
        return predicted - (self.slope * true + self.intercept)


def beheshti2019(age: ArrayLike, prediction: ArrayLike) -> GapCorrection:
    """Fit gap = slope * age + intercept on held-out controls; the fitted gap is subtracted.

    Args:
        age: (N,) true ages of the controls.
        prediction: (N,) their predictions.

    Raises:
        GapCorrectionError: There are fewer than ten controls, or all have one age.

    References:
        Beheshti I, Nugent S, Potvin O, Duchesne S. NeuroImage: Clinical 2019;24:102063. doi:10.1016/j.nicl.2019.102063

    >>> ages = np.arange(20.0, 70.0)
    >>> round(beheshti2019(ages, 0.8 * ages + 10).slope, 6)
    -0.2
    """
    true, predicted = _controls(age, prediction)
    slope, intercept = _line(true, predicted - true)
    return GapCorrection("beheshti2019", slope, intercept, len(true))


def cole2018(age: ArrayLike, prediction: ArrayLike) -> GapCorrection:
    """Fit prediction = slope * age + intercept on held-out controls; the line is inverted.

    Args:
        age: (N,) true ages of the controls.
        prediction: (N,) their predictions.

    Raises:
        GapCorrectionError: There are fewer than ten controls, all have one age, or the predictions ignore age.

    References:
        Cole JH, Ritchie SJ, Bastin ME, et al. Molecular Psychiatry 2018;23:1385-1392. doi:10.1038/mp.2017.62

    >>> ages = np.arange(20.0, 70.0)
    >>> correction = cole2018(ages, 0.8 * ages + 10)
    >>> correction.apply([30.0], [34.0]).round(6)
    array([30.])
    """
    true, predicted = _controls(age, prediction)
    slope, intercept = _line(true, predicted)
    if abs(slope) < 1e-9:
        raise GapCorrectionError(
            "The predictions of the controls do not depend on age, so the line of Cole 2018 cannot be inverted."
        )
    return GapCorrection("cole2018", slope, intercept, len(true))


CORRECTIONS: Mapping[str, Callable[[ArrayLike, ArrayLike], GapCorrection]] = {
    "Beheshti 2019": beheshti2019,
    "Cole 2018": cole2018,
}


def _controls(age: ArrayLike, prediction: ArrayLike) -> tuple[FloatArray, FloatArray]:
    true, predicted = np.asarray(age, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    if len(true) < MIN_CONTROLS or np.ptp(true) == 0:
        raise GapCorrectionError(
            f"A gap correction needs at least {MIN_CONTROLS} held-out controls of different ages, not {len(true)}."
        )
    return true, predicted


def _line(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    centred = x - x.mean()
    slope = float(centred @ (y - y.mean()) / (centred @ centred))
    return slope, float(y.mean() - slope * x.mean())

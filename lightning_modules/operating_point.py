"""What stands between the logits of a binary outcome and a decision: temperature and threshold, saved with the weights.

Example:
    Both are chosen from the validation rows, or given, for example from pooled inner out-of-fold scores:

    .. code-block:: yaml

        model:
          class_path: lightning_modules.ClassificationModule
          init_args: {threshold: 0.31, temperature: 1.4}
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor, nn

from evaluation.operating_point import choose_threshold, fit_temperature
from evaluation.predictions import UNIT
from lightning_modules.networks.encoder import ModelError

Rule = Literal["youden", "sensitivity"]

PRIOR_SD = 0.5  # of the logarithm of a chosen temperature: within a factor of 2.7 of 1, unless many rows say otherwise
SMALL = 300  # validation participants below which a chosen threshold or temperature is mostly noise
NO_THRESHOLD, NO_TEMPERATURE = 0.5, 1.0  # where nothing could be chosen


class OperatingPointWarning(UserWarning):
    """An operating point that deserves little trust; training goes on."""


class OperatingPoint(nn.Module):
    """Temperature and threshold of K binary outputs; both live in the state dict.

    The prediction is sigmoid(logit / temperature), and the decision is whether it reaches the threshold. Numbers that
    are given stay what they are, whatever rows or checkpoint come.

    Args:
        num_outputs: Number of outputs K.
        threshold: Rule by which thresholds are chosen, or the threshold itself, one for all outputs or one for each.
        sensitivity: Smallest sensitivity that the rule `sensitivity` keeps.
        temperature: `fit`, or the temperature itself, one for all outputs or one for each.

    Raises:
        ModelError: A number is outside its range, or there are not as many as outputs.

    Example:
        >>> point = OperatingPoint(num_outputs=1)
        >>> rows = pd.DataFrame({"dataset": "d", "participant_id": list("abcd"), "session_id": ""})
        >>> rows = rows.assign(target=[0, 0, 1, 1], score_0=[0.9, 0.6, 0.7, 0.2], score_1=[0.1, 0.4, 0.3, 0.8])
        >>> point.choose(0, rows)
        >>> point.describe(0)["rule"], point.describe(0)["num_validation_participants"], point.describe(0)["small"]
        ('youden', 4, True)
    """

    threshold: Tensor
    temperature: Tensor
    num_participants: Tensor
    has_both_classes: Tensor

    def __init__(
        self,
        num_outputs: int,
        threshold: Rule | float | Sequence[float] = "youden",
        sensitivity: float = 0.9,
        temperature: Literal["fit"] | float | Sequence[float] = "fit",
    ) -> None:
        super().__init__()
        self.rule: Rule | None = threshold if isinstance(threshold, str) else None
        self.sensitivity = sensitivity
        self.given: dict[str, list[float]] = {}
        if not isinstance(threshold, str):
            self.given["threshold"] = _numbers("threshold", threshold, num_outputs)
        if not isinstance(temperature, str):
            self.given["temperature"] = _numbers("temperature", temperature, num_outputs)
        _require_in_range(sensitivity, self.given)
        self.register_buffer("threshold", torch.full((num_outputs,), NO_THRESHOLD))
        self.register_buffer("temperature", torch.full((num_outputs,), NO_TEMPERATURE))
        self.register_buffer("num_participants", torch.zeros(num_outputs, dtype=torch.int64))
        self.register_buffer("has_both_classes", torch.zeros(num_outputs, dtype=torch.bool))
        self.restore_given()
        self.register_load_state_dict_post_hook(_restore_given)  # type: ignore[no-untyped-call]  # torch has not typed it

    @property
    def is_chosen(self) -> bool:
        """Whether anything is left to choose from validation rows."""
        return len(self.given) < 2

    def restore_given(self) -> None:
        """Put the given numbers in the place of those that a checkpoint brought."""
        for name, values in self.given.items():
            getattr(self, name).copy_(torch.tensor(values))

    def choose(self, output: int, rows: pd.DataFrame) -> None:
        """Choose what is not given from validation rows; without both classes it is 0.5 and 1.

        Args:
            output: Which output, 0 to K - 1.
            rows: Its rows that have a `target`, with `dataset`, `participant_id`, `session_id`, `score_0` and
                `score_1`; images are averaged inside (participant, session).

        Raises:
            ModelError: Images of one session differ in their label.
        """
        raw = rows.groupby(list(UNIT))[["target", "score_1"]].mean()
        if not raw["target"].isin([0, 1]).all():
            keys = ", ".join(str(key[1]) for key in raw.index[~raw["target"].isin([0, 1])][:8])
            raise ModelError(
                f"the images of one session differ in their label (participants {keys}); correct the target's column, "
                "or tell visits apart with the column session_id."
            )
        target = raw["target"].to_numpy(np.float64)
        has_both = bool(0 < target.sum() < len(target))
        self.num_participants[output] = len(rows[["dataset", "participant_id"]].drop_duplicates())
        self.has_both_classes[output] = has_both
        if "temperature" not in self.given:
            found = fit_temperature(target, raw["score_1"], PRIOR_SD) if has_both else NO_TEMPERATURE
            self.temperature[output] = found
        if self.rule is not None:
            cooled = rows.assign(prediction=self.calibrated(output, rows["score_0"], rows["score_1"]))
            prediction = cooled.groupby(list(UNIT))["prediction"].mean()
            self.threshold[output] = (
                choose_threshold(target, prediction, self.rule, self.sensitivity) if has_both else NO_THRESHOLD
            )

    def calibrated(self, output: int, score_0: pd.Series, score_1: pd.Series) -> NDArray[np.float64]:
        """Return the predictions (N,) of an output from its probabilities of 0 and 1 before the temperature."""
        with np.errstate(divide="ignore"):  # a certain network: log(0) is minus infinity, and rightly so
            logit = np.log(score_1.to_numpy(np.float64)) - np.log(score_0.to_numpy(np.float64))
        return np.asarray(expit(logit / float(self.temperature[output])))

    def is_small(self, output: int) -> bool:
        """Whether something of an output was chosen from fewer participants than that takes."""
        seen = bool(self.has_both_classes[output]) and int(self.num_participants[output]) < SMALL
        return self.is_chosen and seen

    def describe(self, output: int) -> dict[str, Any]:
        """Say in JSON types what the operating point of an output is, and where it is from."""
        facts = {
            "threshold": float(self.threshold[output]),
            "temperature": float(self.temperature[output]),
            "rule": self.rule or "fixed",
            "source": self._source("threshold", output),
            "temperature_source": self._source("temperature", output),
            "num_validation_participants": int(self.num_participants[output]),
            "small": self.is_small(output),
        }
        if self.rule == "sensitivity":
            facts["sensitivity"] = self.sensitivity
        if self.is_chosen and not self.has_both_classes[output]:
            seen = "held one class only" if facts["num_validation_participants"] else "were none"
            facts["reason"] = f"labelled validation rows {seen}, so nothing could be chosen from them"
        return facts

    def _source(self, name: str, output: int) -> str:
        if name in self.given:
            return "configuration"
        return "validation" if self.has_both_classes[output] else "default"


def _restore_given(module: OperatingPoint, incompatible: object) -> None:
    module.restore_given()


def _numbers(name: str, value: float | Sequence[float], num_outputs: int) -> list[float]:
    numbers = [float(value)] * num_outputs if isinstance(value, int | float) else [float(item) for item in value]
    if len(numbers) != num_outputs:
        raise ModelError(f"{name} has {len(numbers)} values for {num_outputs} targets; give one, or one per target.")
    return numbers


def _require_in_range(sensitivity: float, given: dict[str, list[float]]) -> None:
    if not 0 < sensitivity <= 1:
        raise ModelError(f"sensitivity is {sensitivity:g} and must lie above 0 and not above 1; 0.9 misses one in ten.")
    if any(not 0 <= value <= 1 for value in given.get("threshold", [])):
        raise ModelError(f"threshold is {given['threshold']} and must be a probability, from 0 to 1.")
    if any(not 0 < value < float("inf") for value in given.get("temperature", [])):
        raise ModelError(f"temperature is {given['temperature']} and must be positive; 1 changes nothing.")

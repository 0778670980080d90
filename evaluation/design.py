"""How participants came to be studied, and what that lets one say about risks."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from evaluation.estimate import FloatArray

DesignKind = Literal["cohort", "case-control"]
DESIGNS: tuple[DesignKind, ...] = get_args(DesignKind)


class DesignError(ValueError):
    """A quantity was asked for that the design of the study cannot give."""


@dataclass(frozen=True)
class Design:
    """The design of a study with a binary outcome.

    Args:
        kind: `cohort` where participants were taken as they came; `case-control` where their share of events was chosen
            by the investigator, so that the sample says nothing about the risk of anybody.
        prevalence: Share of events in the population meant, between 0 and 1; rows are re-weighted to it. By default
            that of the sample, which a case-control study cannot use.
    """

    kind: DesignKind = "cohort"
    prevalence: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in DESIGNS:
            raise DesignError(f"The design '{self.kind}' is unknown. There are: {', '.join(DESIGNS)}.")
        if self.prevalence is not None and not 0 < self.prevalence < 1:
            raise DesignError(f"The prevalence is {self.prevalence}; it has to lie between 0 and 1, both excluded.")

    @property
    def knows_risks(self) -> bool:
        """Whether the prevalence is that of a population, so that risks can be judged."""
        return self.kind == "cohort" or self.prevalence is not None

    def require_risks(self, what: str) -> None:
        """Refuse a quantity that needs the prevalence.

        Args:
            what: The quantity, as a reader would call it.

        Raises:
            DesignError: The design is case-control and no prevalence is stated.
        """
        if not self.knows_risks:
            raise DesignError(
                f"The design is case-control, so the share of events in this table was chosen: {what} cannot be "
                "computed without the prevalence of the population. State it (--prevalence, in Python prevalence=...)."
            )

    def reweight(self, target: FloatArray, weights: FloatArray) -> FloatArray:
        """Scale the weights of events and non-events to the prevalence stated; the total stays.

        Args:
            target: (N,) 0 or 1.
            weights: (R, N) weight of each row in each replicate.

        Returns:
            (R, N) weights, NaN in replicates without one of the classes; those given where no prevalence is stated.

        >>> Design(prevalence=0.1).reweight(np.array([0.0, 1.0]), np.ones((1, 2)))
        array([[1.8, 0.2]])
        """
        if self.prevalence is None:
            return weights
        total = weights.sum(axis=1, keepdims=True)
        events = (weights @ target)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            of_event, of_other = self.prevalence * total / events, (1 - self.prevalence) * total / (total - events)
            scaled: FloatArray = weights * np.where(target == 1, of_event, of_other)
        scaled[(events <= 0)[:, 0] | (events >= total)[:, 0]] = np.nan
        return scaled

"""Newborns after hypoxia-ischaemia, without their images: who they are, what was injured, and what becomes of them.

Everything here is drawn from standard normal numbers by vectorised formulas, so that the same lines make one
participant of a cohort and the 200,000 of a Monte Carlo estimate. A hidden severity of the insult drives the pattern of
injury and the signs at birth; the injury of deep grey matter and of the watershed, acidosis, the Apgar score, the site
and a latent factor make the outcome. The latent factor is anatomy, not injury: in the image it moves what age moves in
the brain-age phantom.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from datamodules.phantoms.scanner import Scanner

Floats = NDArray[np.float64]
Factor = Literal["on", "off"]

NUM_NORMALS = 19  # standard normal numbers that make one newborn
PATTERNS = ("none", "watershed", "basal-ganglia-thalamus", "total")
MISSING = {"gestational_age": 0.03, "birth_weight": 0.40, "apgar_5min": 0.08, "cord_ph": 0.15}  # share without a value
LATEST_DAY = 14
NUM_DRAWS = 200_000  # gives an area under the curve to 0.001

# Share of the largest drop of ADC that is left on a day of life: it deepens over three days and pseudo-normalises after
# a week, to be followed by the rise of lost tissue.
_DAYS = (0.0, 1.0, 2.0, 4.0, 7.0, 9.0, 11.0, 14.0)
_DROP = (0.6, 0.9, 1.0, 1.0, 0.5, 0.05, -0.15, -0.25)


@dataclass(frozen=True)
class OutcomeModel:
    """Log odds of an adverse outcome, linear in what is known about a newborn.

    Args:
        intercepts: Log odds at each site of an uninjured newborn with pH 7, Apgar 5 and an average factor; the sites
            take them by turns.
        deep_grey: Weight of the injury of deep grey matter (0 to 1).
        watershed: Weight of the injury of the watershed (0 to 1).
        acidosis: Weight of every 0.1 of cord pH below 7.
        apgar: Weight of every point of the Apgar score below 5.
        factor: Weight of a standard deviation of the latent factor.
    """

    intercepts: tuple[float, float]
    deep_grey: float
    watershed: float
    acidosis: float
    apgar: float
    factor: float

    def terms(self, newborns: dict[str, Floats], site: NDArray[np.int64]) -> dict[str, Floats]:
        """Return the parts of the log odds (N,): `site`, `injury`, `clinical`, `factor`."""
        injury = self.deep_grey * newborns["deep_grey_injury"] + self.watershed * newborns["watershed_injury"]
        acidosis = (7.0 - newborns["cord_ph"]) / 0.1
        return {
            "site": np.array(self.intercepts)[site % len(self.intercepts)],
            "injury": injury,
            "clinical": self.acidosis * acidosis + self.apgar * (5.0 - newborns["apgar_5min"]),
            "factor": self.factor * newborns["latent_factor"],
        }

    def log_odds(self, newborns: dict[str, Floats], site: NDArray[np.int64]) -> Floats:
        """Return the log odds (N,) of an adverse outcome, rounded as the cohort table has them."""
        total: Floats = np.round(sum(self.terms(newborns, site).values()), 4)
        return total


# The intercepts give prevalences of 0.58 and 0.37, those of the two published sites. Without the factor, injury weighs
# more, so that the outcome is as predictable as with it.
MODELS: dict[Factor, OutcomeModel] = {
    "on": OutcomeModel((-0.56, -2.04), deep_grey=4.5, watershed=1.6, acidosis=0.12, apgar=0.05, factor=1.5),
    "off": OutcomeModel((-0.91, -2.44), deep_grey=6.75, watershed=2.4, acidosis=0.12, apgar=0.05, factor=0.0),
}


@dataclass(frozen=True)
class Newborn:
    """Everything about a newborn that is drawn before the image.

    Args:
        index: Place in the cohort, from 0.
        scanner: Where the images are taken: the site's habits in structural images.
        anatomy_id: Whose anatomy is deformed.
        values: What `draw_newborns` returns for this newborn.
        head_scale: Size of the head relative to its anatomy.
        wall_shift: Outward shift of the ventricular wall in mm.
        thinning: Loss of cortical thickness in mm.
        white_change: Relative change of white matter.
        log_odds: True log odds of an adverse outcome.
    """

    index: int
    scanner: Scanner
    anatomy_id: str
    values: dict[str, float]
    head_scale: float
    wall_shift: float
    thinning: float
    white_change: float
    log_odds: float

    @property
    def participant_id(self) -> str:
        """Identifier within the cohort; it does not depend on the number of participants."""
        return f"sub-{self.index + 1:05d}"

    @property
    def pattern(self) -> str:
        """Pattern of injury: one of `PATTERNS`."""
        return PATTERNS[int(self.values["pattern"])]

    @property
    def probability(self) -> float:
        """Probability of an adverse outcome, given everything that makes it."""
        return round(float(expit(self.log_odds)), 6)

    @property
    def outcome(self) -> int:
        """1 where the outcome at two years is adverse."""
        return int(self.values["chance"] < self.probability)


def draw_newborns(normals: Floats) -> dict[str, Floats]:
    """Turn standard normal numbers into newborns.

    Args:
        normals: Independent numbers (`NUM_NORMALS`, N).

    Returns:
        By column of the cohort table, (N,): clinical values (complete), `pattern` (place in `PATTERNS`), `severity`,
        `deep_grey_injury`, `watershed_injury` (each 0 to 1), `asymmetry`, `latent_factor`, and `chance`, uniform:
        the outcome is adverse where it is below its probability. `missing_<column>` is 1 where the table has no value.
    """
    insult, factor = normals[0], np.round(normals[1], 4)
    depth = 0.75 * insult + 0.66 * normals[2]
    pattern = np.select([depth < -0.25, depth > 1.3], [0, 3], np.where(normals[3] < 0.1, 1, 2))
    severity = np.where(pattern == 0, 0.0, 0.2 + 0.8 * ndtr(1.2 * (depth - 0.5)))
    spared = 0.35 * normals[4].clip(0, 1)  # a pattern seldom leaves the other region alone
    deep_grey = severity * np.where(pattern >= 2, 1 - 0.3 * ndtr(normals[5]), spared)
    watershed = severity * np.where(pattern % 2 == 1, 1 - 0.3 * ndtr(normals[6]), spared)
    gestation = np.round((39.3 - 0.1 * insult + 1.4 * normals[7]).clip(35, 42), 1)
    sex = (normals[8] < 0.12 + 0.1 * insult).astype(np.float64)
    weight = 3280 + 170 * (gestation - 39.3) + 120 * sex - 50 * insult + 420 * normals[9]
    newborns = {
        "gestational_age": gestation,
        "birth_weight": np.round(weight.clip(1500, 5500), -1),
        "sex": sex,
        "apgar_5min": np.rint((4.8 - 1.2 * insult + 1.8 * normals[10]).clip(0, 10)),
        "cord_ph": np.round((7.05 - 0.09 * insult + 0.12 * normals[11]).clip(6.6, 7.4), 2),
        "day_of_life": np.rint(np.exp(np.log(4.5) - 0.08 * insult + 0.45 * normals[12])).clip(0, LATEST_DAY),
        "pattern": pattern.astype(np.float64),
        "severity": np.round(severity, 4),
        "deep_grey_injury": np.round(deep_grey, 4),
        "watershed_injury": np.round(watershed, 4),
        "asymmetry": np.round(0.25 * normals[13], 4),
        "latent_factor": factor,
        "chance": ndtr(normals[14]),
    }
    hidden = {
        f"missing_{name}": (ndtr(normals[15 + place]) < MISSING[name]) * 1.0 for place, name in enumerate(MISSING)
    }
    return newborns | hidden


def remaining_drop(day: float) -> float:
    """Return which share of the largest drop of ADC is left on a day of life; negative where ADC is above normal.

    >>> remaining_drop(3), remaining_drop(14)
    (1.0, -0.25)
    """
    return float(np.interp(day, _DAYS, _DROP))


def simulate(model: OutcomeModel, num_sites: int, num_draws: int = NUM_DRAWS, seed: int = 0) -> dict[str, Floats]:
    """Draw newborns, equally many at each site, with their log odds and outcomes.

    Returns:
        What `draw_newborns` returns, with `site` (place in the list), `log_odds`, `image` (what a perfect reader of the
        images would rank by: injury and factor), `injury` (its part without the factor) and `outcome`.
    """
    newborns = draw_newborns(np.random.default_rng(seed).standard_normal((NUM_NORMALS, num_draws)))
    site = np.arange(num_draws) % num_sites
    terms = model.terms(newborns, site)
    log_odds = model.log_odds(newborns, site)
    drawn = {"log_odds": log_odds, "image": terms["injury"] + terms["factor"], "injury": terms["injury"]}
    outcome = (newborns["chance"] < expit(log_odds)).astype(np.float64)
    return newborns | drawn | {"site": site.astype(np.float64), "outcome": outcome}

"""What a comparison can show, in numbers: shared by `plan` and by the dry runs of `crossval` and `sweep`."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from experiments.cli import WRONG_USAGE

if TYPE_CHECKING:
    from evaluation.power import Comparison
    from evaluation.power_models import ScoreModel

CORRELATIONS = (0.4, 0.6, 0.8)  # the power is shown over these, for nobody knows the correlation before
TYPICAL = {"auroc": 0.75, "accuracy": 0.7, "balanced_accuracy": 0.7, "sensitivity": 0.7, "specificity": 0.7}


class ExpectationError(ValueError):
    """An expectation that cannot be; says what can."""

    exit_code = WRONG_USAGE


def add_expectation_arguments(parser: argparse.ArgumentParser, title: str) -> None:
    """Add the options that say what is expected of a comparison."""
    group = parser.add_argument_group(title)
    group.add_argument("--value", type=float, metavar="V", help="expected metric of the reference arm")
    group.add_argument("--gain", type=float, metavar="G", help="how much better another arm is hoped to be (positive)")
    group.add_argument(
        "--sd",
        type=float,
        metavar="SD",
        help="mae: sd of the absolute errors (default: 0.76 of --value, normal errors)",
    )
    group.add_argument(
        "--correlation",
        type=float,
        metavar="R",
        help="correlation of two arms' scores for a participant, within a class (default: 0.6)",
    )
    group.add_argument(
        "--run-correlation",
        type=float,
        metavar="R",
        help="the same of two runs of one arm (default: half-way between --correlation and 1)",
    )


@dataclass(frozen=True)
class Expectation:
    """What is expected of a comparison, and what it can show.

    Args:
        metric: Name of the metric.
        comparison: Value, gain, sites, runs and correlations; the gain is 0 where none was named.
        notes: What was assumed for want of a word.
    """

    metric: str
    comparison: "Comparison"
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        arguments: argparse.Namespace,
        metric: str,
        sites: Sequence[Sequence[float]],
        num_runs: int,
        num_arms: int,
    ) -> "Expectation":
        """Return what the command line expects.

        Args:
            arguments: The parsed words of `add_expectation_arguments`.
            metric: Name of the metric.
            sites: Participants of each class at each test site.
            num_runs: Runs of each arm.
            num_arms: Arms, the reference among them.

        Raises:
            ExpectationError: A value cannot be.
        """
        from evaluation.power import CORRELATION, Comparison

        model = _model(metric, arguments)
        notes = []
        value = arguments.value
        if value is None:
            value = TYPICAL.get(metric, 1.0)
            notes.append(
                f"Assumed: the reference comes to {value:g}; name what you expect with --value."
                if metric in TYPICAL
                else "Assumed: an error of 1, so that gains are shares of it; name what you expect with --value."
            )
        correlation = CORRELATION if arguments.correlation is None else arguments.correlation
        comparison = Comparison(
            model,
            value,
            arguments.gain or 0.0,
            tuple(tuple(map(float, site)) for site in sites),
            num_runs,
            correlation,
            arguments.run_correlation,
            max(1, num_arms - 1),
        )
        found = cls(metric, comparison, tuple(notes))
        found.require_possible(arguments.gain)
        return found

    def require_possible(self, gain: float | None = None) -> None:
        """Refuse what cannot be.

        Args:
            gain: The gain that was named; that of the comparison by default.

        Raises:
            ExpectationError: A value, gain, correlation or site cannot be.
        """
        from evaluation.power import MIN_CLASS

        planned, metric = self.comparison, self.metric
        model, value = planned.model, planned.value
        if not model.can_be(value):
            wanted = "a number above 0" if model.task == "regression" else "0.5 to 1" if metric == "auroc" else "0 to 1"
            raise ExpectationError(f"A reference with {metric} {value:g} cannot be planned: --value is {wanted}.")
        if gain is not None and (not gain > 0 or not model.can_be(planned.better)):
            raise ExpectationError(
                f"A gain of {gain:g} over {metric} {value:g} cannot be: --gain is positive, whatever the metric, and "
                "ends before a perfect arm."
            )
        between, within = planned.correlation, planned.same_arm
        if not 0 <= between <= within <= 1 or between == 1:
            raise ExpectationError(
                f"Correlations of {between:g} between arms and {within:g} between runs of one arm cannot be: "
                "--correlation is 0 to less than 1, and --run-correlation no less and at most 1."
            )
        few = [site for site in planned.sites if min(site) < MIN_CLASS]
        if few or not planned.sites:
            counts = " and ".join(f"{count:g}" for count in few[0]) if few else "0"
            raise ExpectationError(
                f"A test site has {counts} participants (of each class), and a report leaves out sites with fewer than "
                f"{MIN_CLASS}. Plan more participants or fewer sites."
            )

    @property
    def label(self) -> str:
        """The metric in words."""
        from evaluation.tasks import metrics_of

        return metrics_of(self.comparison.model.task)[self.metric].label

    def at_correlations(self) -> dict[float, "Comparison"]:
        """Return the comparison at several correlations of the arms, the expected one among them."""
        known = sorted({*CORRELATIONS, self.comparison.correlation})
        runs = self.comparison.run_correlation
        return {
            one: replace(self.comparison, correlation=one, run_correlation=None if runs is None else max(runs, one))
            for one in known
        }

    def as_json(self) -> dict[str, Any]:
        """Return the JSON of `fontanel plan --json`."""
        planned = self.comparison
        low, high = planned.interval()
        shown = {one: _shown(at) for one, at in self.at_correlations().items()}
        return {
            "metric": self.metric,
            "value": planned.value,
            "interval": [low, high],
            "num_participants": round(planned.num_participants),
            "sites": [list(site) for site in planned.sites],
            "num_runs": planned.num_runs,
            "spread_of_runs": planned.spread_of_runs() if planned.num_runs > 1 else None,
            "gain": planned.gain or None,
            "correlation": planned.correlation,
            "run_correlation": planned.same_arm,
            "num_comparisons": planned.num_comparisons,
            "by_correlation": [{"correlation": one, **numbers} for one, numbers in shown.items()],
            **shown[planned.correlation],
            "notes": [*self.notes],
        }


def _shown(comparison: "Comparison") -> dict[str, Any]:
    """Return what a comparison can show."""
    named = comparison.gain > 0
    power = comparison.power() if named else None
    return {
        "power": power,
        "power_after_holm": comparison.power_after_holm() if named and comparison.num_comparisons > 1 else power,
        "detectable_gain": comparison.detectable_gain(),
        "needed_participants": comparison.needed_participants() if named else None,
    }


def _model(metric: str, arguments: argparse.Namespace) -> "ScoreModel":
    from evaluation.power_models import MODELS, ErrorModel

    if metric not in MODELS:
        raise ExpectationError(f"The power of the metric '{metric}' cannot be planned. There are: {', '.join(MODELS)}.")
    model = MODELS[metric]
    if arguments.sd is None:
        return model
    if not isinstance(model, ErrorModel) or not arguments.value or not 0 < arguments.sd < math.inf:
        raise ExpectationError("--sd is the standard deviation of the absolute errors of mae, and needs a --value.")
    return ErrorModel(arguments.sd / arguments.value)

"""What a comparison can show, in words: a table, a verdict, and what the numbers rest on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 80
LIKELY, UNLIKELY = 0.8, 0.5  # power


def print_expectation(found: Mapping[str, Any], label: str, task: str) -> None:
    """Print what `Expectation.as_json` gives.

    Args:
        found: The JSON.
        label: The metric in words.
        task: Kind of outcome.
    """
    from rich.console import Console

    console = Console(width=WIDTH)
    console.print(_table(found, label, task))
    for text in [*found["notes"], *verdict(found), *assumptions(found, task)]:
        console.print(text, highlight=False, markup=False)


def verdict(found: Mapping[str, Any]) -> list[str]:
    """Say plainly what can be shown and what cannot, and what would mend it."""
    number, least = found["num_participants"], found["detectable_gain"]
    most = (
        f"With {number:,} participants, no gain is told from none with a power of 80 %, not even that of a perfect arm."
        if least is None
        else f"With {number:,} participants, gains of {least:.3f} or more are told from none with a power of 80 %."
    )
    if found["gain"] is None:
        return [f"{most} Name the gain that you hope for with --gain."]
    gain, power, needed = found["gain"], found["power"], found["needed_participants"]
    if power >= LIKELY:
        return [f"A gain of {gain:g} can be shown: the power is {_percent(power)}. {most}"]
    odds = "will most likely not be told from none" if power < UNLIKELY else "may or may not be told from none"
    more = (
        "no number of participants would be enough"
        if needed is None
        else f"about {needed:,} participants would be enough"
    )
    larger = "" if least is None else f", or an arm that gains {least:.3f} with these"
    return [
        f"A gain of {gain:g} {odds}: the power is {_percent(power)}. {most}",
        f"What would mend it: {more} for a gain of {gain:g}{larger}. A result without a difference would not show that "
        "there is none.",
    ]


def assumptions(found: Mapping[str, Any], task: str) -> list[str]:
    """Say in a sentence or two what the numbers rest on and a user cannot know before."""
    model = "normal errors without bias" if task == "regression" else "scores that are normal within each class"
    runs = found["num_runs"]
    said = [
        f"The numbers rest on {model}, and on how much the scores of two arms correlate ({found['correlation']:g} "
        "assumed), which nobody knows before: a pilot tells, by the smallest detectable gain of its report."
    ]
    if runs > 1:
        said.append(
            f"Runs of one arm are taken to correlate by {found['run_correlation']:.2f} and to be equally good in "
            f"truth, which makes an sd between runs of {found['spread_of_runs']:.3f}; if a pilot's is larger, power is "
            "smaller."
        )
    else:
        said.append(
            "One run of each arm: that another training would have come out otherwise is in none of the numbers."
        )
    return said


def _table(found: Mapping[str, Any], label: str, task: str) -> "Table":
    from rich.table import Table

    sites, runs = len(found["sites"]), found["num_runs"]
    where = "one test site" if sites == 1 else f"mean over {sites} test sites"
    title = f"{label}, {where}, {runs} {'run' if runs == 1 else 'runs'} of each arm"
    low, high = found["interval"]
    numbers = [f"{found['num_participants']:,} participants{_classes(found, task)}"]
    numbers.append(f"expected: {found['value']:.3f}, 95 % interval {low:.3f} to {high:.3f}")
    by = found["by_correlation"]
    table = Table(title=f"{title}\n{numbers[0]}; {numbers[1]}", title_justify="left", width=WIDTH)
    table.add_column("correlation of the two arms' scores")
    for one in by:
        table.add_column(f"{one['correlation']:g}", justify="right")
    if found["gain"] is not None:
        table.add_row(f"power to tell a gain of {found['gain']:g} from none", *(_percent(one["power"]) for one in by))
        if found["num_comparisons"] > 1:
            text = f"  the same after Holm's adjustment for {found['num_comparisons']} arms, at least"
            table.add_row(text, *(_percent(one["power_after_holm"]) for one in by))
    table.add_row("smallest gain told with a power of 80 %", *(_gain(one["detectable_gain"]) for one in by))
    if found["gain"] is not None:
        text = f"participants that a gain of {found['gain']:g} needs"
        table.add_row(text, *(_count(one["needed_participants"]) for one in by))
    return table


def _classes(found: Mapping[str, Any], task: str) -> str:
    if task == "regression":
        return ""
    return f" ({round(sum(site[0] for site in found['sites'])):,} with the outcome)"


def _percent(power: float) -> str:
    return f"{100 * power:.0f} %"


def _gain(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _count(value: int | None) -> str:
    return "too many" if value is None else f"{value:,}"

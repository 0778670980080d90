"""Say what a comparison can show with so many participants, and what it costs.

Prints the interval to be expected of the metric, the power to tell a gain from none, the smallest gain that is told
with a power of 80 %, how many participants the gain needs, and the number of trainings. The test is the one that a
cross-validation reports: paired, on the same participants, averaged over test sites and runs.

Examples:
  fontanel plan --n 156 --prevalence 0.47 --metric auroc --value 0.75 --gain 0.03
  fontanel plan --n 156 --prevalence 0.47 --value 0.75 --gain 0.03 --protocol cross-site --num-sites 2 --seeds 3
  fontanel plan --n 300 --metric mae --value 7.7 --gain 0.8 --sd 6          errors in the unit of the target
  fontanel plan --config STUDY --value 0.75 --gain 0.03                     participants, sites, arms from the study
  fontanel plan --config STUDY --n 500 --value 0.75 --gain 0.03             the same, if there were 500 participants

With --config, one training is really begun, on this machine, and stopped after a few steps: hours and disk are
extrapolated from it. Every argument of the fit file may follow (--data.table my.tsv). Nothing is written but the cache.
Of a study that was begun, or of a sweep, --dry-run of crossval or sweep says the same.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from experiments.expectation import Expectation

PASSES_ON = True  # words this parser does not know belong to the configuration
DEFAULTS = {"protocol": "k-fold", "num_folds": 5, "num_repeats": 1, "seeds": 1, "arms": 2}
SEVERAL_SITES = ("cross-site", "multi-site")  # protocols that train on other sites
STUDY = {
    "protocol": "protocol",
    "num_folds": "num_folds",
    "num_repeats": "num_repeats",
    "seeds": "num_seeds",
    "num_inner_folds": "num_inner_folds",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel plan`."""
    from experiments.expectation import add_expectation_arguments
    from experiments.options import add_store_arguments

    parser.add_argument("--n", type=_number, metavar="N", help="participants who are tested, over all sites")
    parser.add_argument("--prevalence", type=_share, metavar="P", help="share of them with the outcome")
    parser.add_argument("--metric", metavar="NAME", help="auroc (default), mae, accuracy, balanced_accuracy, ...")
    add_expectation_arguments(parser, "what is expected")
    study = parser.add_argument_group("the study")
    study.add_argument(
        "--protocol",
        type=_protocol,
        metavar="NAME",
        help="same-site, multi-site, cross-site, k-fold (default) or external",
    )
    study.add_argument("--num-sites", type=_number, metavar="N", help="test sites, alike in size (default: 1)")
    study.add_argument("--num-folds", type=_number, metavar="K", help="folds (default: 5)")
    study.add_argument("--num-repeats", type=_number, metavar="N", help="draws of folds (default: 1)")
    study.add_argument(
        "--seeds", "--num-seeds", type=_number, metavar="N", help="trainings of each test set and arm (default: 1)"
    )
    study.add_argument("--arms", type=_number, metavar="N", help="arms, the reference among them (default: 2)")
    study.add_argument("--num-inner-folds", type=int, metavar="K", help="inner folds of each training (default: none)")
    study.add_argument("--tune-trials", type=int, default=0, metavar="N", help="tuning trials of each training")
    study.add_argument("--tune-folds", type=_number, default=3, metavar="K", help="inner folds of a trial (default: 3)")
    parser.add_argument("--config", type=Path, metavar="STUDY", help="study file, or a fit file: what is not said here")
    parser.add_argument("--no-time", action="store_true", help="with --config: train nothing, and give no hours")
    parser.add_argument("--num-workers", type=_number, default=1, metavar="N", help="jobs at once (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the plan as one JSON object")
    parser.add_argument("--allow-unverified", action="store_true", help="use a cohort without a fitting manifest")
    add_store_arguments(parser)
    parser.set_defaults(refuse=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Print what a comparison can show and what it costs."""
    if arguments.config is not None:
        return _planned_from_study(arguments)
    if arguments.rest:
        arguments.refuse(f"unknown words without a --config: {' '.join(arguments.rest)}")
    metric = arguments.metric or "auroc"
    missing = ["--n"] if arguments.n is None else []
    missing += ["--prevalence"] if arguments.prevalence is None and metric != "mae" else []
    if missing:
        arguments.refuse(f"without a --config, {' and '.join(missing)} must be given.")
    notes = _fill_in(arguments)
    from experiments.expectation import Expectation

    sites = equal_sites(arguments.n, arguments.num_sites, None if metric == "mae" else arguments.prevalence)
    found = Expectation.of(arguments, metric, sites, arguments.num_repeats * arguments.seeds, arguments.arms)
    _show(arguments, found, notes, _counted(arguments))
    return 0


def _fill_in(arguments: argparse.Namespace) -> list[str]:
    """Set what was not said, and return what a reader must know of it."""
    for name, value in DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    fewest = 2 if arguments.protocol in SEVERAL_SITES else 1
    if arguments.num_sites is None:
        arguments.num_sites = fewest
        return [] if fewest == 1 else [f"Assumed: {fewest} test sites, alike in size; say how many with --num-sites."]
    if arguments.num_sites < fewest:
        arguments.refuse(f"--protocol {arguments.protocol} needs {fewest} sites at least (--num-sites).")
    return []


def equal_sites(number: int, num_sites: int, prevalence: float | None) -> list[tuple[int, ...]]:
    """Divide participants among sites, each class as evenly as it can be.

    Args:
        number: Participants.
        num_sites: Sites.
        prevalence: Share of them with the outcome; None for a regression.

    >>> equal_sites(156, 2, 0.47), equal_sites(101, 2, None)
    ([(37, 41), (36, 42)], [(51,), (50,)])
    """
    events = 0 if prevalence is None else round(number * prevalence)
    even = [
        [count // num_sites + (place < count % num_sites) for place in range(num_sites)] for count in (number, events)
    ]
    if prevalence is None:
        return [(size,) for size in even[0]]
    return [(own, size - own) for size, own in zip(*even, strict=True)]


def _planned_from_study(arguments: argparse.Namespace) -> int:
    """Plan what a study and its cohort say, as far as the options do not say otherwise."""
    if arguments.arms is not None or arguments.num_sites is not None or arguments.tune_trials:
        arguments.refuse("with --config, the study says which arms and sites there are, and how arms are tuned.")
    from dataclasses import replace

    from experiments.costs import crossval_work
    from experiments.dry_run import expectation_of, time_crossval
    from experiments.expectation import ExpectationError
    from experiments.options import store_to_read
    from experiments.study import read_study
    from experiments.workplan import make_workplan
    from tracking.addresses import output_folder

    changes: dict[str, Any] = {
        theirs: value for ours, theirs in STUDY.items() if (value := getattr(arguments, ours)) is not None
    }
    if arguments.metric is not None:
        changes["primary_metric"] = arguments.metric
    study = replace(read_study(arguments.config), **changes).without_awaited()
    words = [*arguments.rest, *(["--data.allow_unverified", "true"] if arguments.allow_unverified else [])]
    with store_to_read(arguments) as store:
        plan = make_workplan(study, words, store, output_folder(arguments.output_dir))
        found, notes = expectation_of(plan, arguments)
        if found is None:
            raise ExpectationError(f"{study.name} cannot be planned. {' '.join(notes)}")
        timing = None if arguments.no_time else time_crossval(plan, words, store)
    known = found.comparison
    number = arguments.n or round(known.num_participants)
    if arguments.n is not None or arguments.prevalence is not None:
        share = arguments.prevalence
        if share is None and known.model.task == "binary":
            share = sum(site[0] for site in known.sites) / known.num_participants
        sites = equal_sites(number, len(known.sites), share)
        notes.append(
            f"Of the cohort, {known.num_participants:,.0f} are tested; {number:,} were asked for, in sites of one size."
        )
        found = replace(found, comparison=replace(known, sites=tuple(sites)))
    work = crossval_work(plan, arguments.num_workers).scaled(number / known.num_participants)
    _show(arguments, found, notes, work.as_json(timing), [] if timing is None else timing.said)
    return 0


def _show(
    arguments: argparse.Namespace,
    found: "Expectation",
    notes: "Sequence[str]",
    costs: dict[str, Any],
    said: "Sequence[str]" = (),
) -> None:
    from experiments.costs import print_costs
    from experiments.expectation_text import print_expectation

    found.require_possible()
    shows = found.as_json()
    shows["notes"] += notes
    if arguments.json:
        print(json.dumps({"shows": shows, "costs": costs}, indent=2))
        return
    print_expectation(shows, found.label, found.comparison.model.task)
    print()
    print_costs(costs, said)


def _counted(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return jobs and trainings, of a study that is not written yet."""
    from experiments.costs import num_test_sets

    cells = num_test_sets(arguments.protocol, arguments.num_sites, arguments.num_folds) * arguments.num_repeats
    jobs = cells * arguments.seeds * arguments.arms
    each = 1 + (arguments.num_inner_folds or 0) + arguments.tune_trials * arguments.tune_folds
    return {"jobs": jobs, "trainings": jobs * each, "at_once": arguments.num_workers}


def _protocol(word: str) -> str:
    from datamodules.protocols import PROTOCOLS

    if word not in PROTOCOLS:
        raise argparse.ArgumentTypeError(f"there is no protocol '{word}', but {', '.join(PROTOCOLS)}")
    return word


def _number(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"'{word}' is no number above 0")
    return int(word)


def _share(word: str) -> float:
    if not 0 < (share := float(word)) < 1:
        raise argparse.ArgumentTypeError(f"{word} does not lie between 0 and 1")
    return share

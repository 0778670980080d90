"""Look for leakage before anything is trained: who is tested was not seen, and no shortcut explains a score.

Examples:
  fontanel audit --config finetune.yaml --data.table my.tsv
  fontanel audit --config study.yaml --pretraining RUN --protocol cross-site
  fontanel audit --config finetune.yaml --pretraining best.ckpt other=foreign.ckpt --json

FILE is a fit file or a study file; pretrained weights that it names are looked at too. Images are preprocessed into the
cache, as a training would. A status is ok, warning (may explain a score), leak (invalidates a test) or unknown (could
not be looked at, which is not ok). Exit code 1 means that there is a leak.

What is warned of: site and label associated with p < 0.01 and at least weakly (Cramer's V 0.1, epsilon squared 0.01,
both bias-corrected); predicting the site from histograms, when its 95 % interval lies above chance; predicting the
label from headers, when that scores above the central 99 % of its permutations.

--json prints {"ok": bool, "findings": [{"check": TEXT, "status": STATUS, "found": TEXT, "numbers": {NAME: NUMBER or
null}, "advice": TEXT}]}; ok is false when there is a leak.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.options import add_configuration_arguments, add_store_arguments, configuration_words, open_store

if TYPE_CHECKING:
    from datamodules.base import BaseDataModule
    from evaluation.leakage import Finding
    from experiments.leakage import Pretraining
    from experiments.study import Study

PASSES_ON = True  # words this parser does not know belong to the configuration
HOLDOUT = "holdout"
NUM_PERMUTATIONS, FEWEST_PERMUTATIONS = 200, 199  # fewer have no central 99 %
STYLES = {"ok": "green", "warning": "yellow", "leak": "bold red", "unknown": "dim"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel audit`."""
    add_configuration_arguments(parser)
    parser.add_argument(
        "--pretraining",
        nargs="+",
        action="extend",
        default=[],
        metavar="RUN",
        help="pretrained weights: run id, run name, run folder or checkpoint file, also NAME=RUN",
    )
    parser.add_argument(
        "--protocol", metavar="NAME", help="who trains for whom (default: the study's; holdout for a fit file)"
    )
    parser.add_argument(
        "--permutations",
        type=int,
        default=NUM_PERMUTATIONS,
        metavar="N",
        help=f"permutations that show what chance gives (default: {NUM_PERMUTATIONS})",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run every check and return 1 when one of them found a leak."""
    from experiments.cli import WRONG_USAGE, complain
    from experiments.runtime import FontanelCLI

    if arguments.permutations < FEWEST_PERMUTATIONS:
        return complain(f"--permutations {arguments.permutations}: give at least {FEWEST_PERMUTATIONS}.", WRONG_USAGE)
    if not arguments.config and not arguments.help_all:
        return complain("name a fit file or a study file with --config.", WRONG_USAGE)
    study, sources = read_request(arguments)
    cli = FontanelCLI(configuration_words(arguments))
    sources += configured_sources(cli.resolved())
    pretrainings = [find_pretraining(source, arguments) for source in dict.fromkeys(sources)]
    findings = examine(cli.datamodule, study, pretrainings, arguments.permutations)
    is_clean = all(finding.status != "leak" for finding in findings)
    if arguments.json:
        print(json.dumps({"ok": is_clean, "findings": [finding.as_dict() for finding in findings]}))
    else:
        show(findings)
    return 0 if is_clean else 1


def read_request(arguments: argparse.Namespace) -> "tuple[Study | None, list[str]]":
    """Return the study that divides the cohort, None for the split of a fit file, and the weights that are named.

    In `arguments.config`, a study file is replaced by the fit file that it starts from.
    """
    from dataclasses import replace

    from experiments.study import read_study

    sources = list(arguments.pretraining)
    if not arguments.config:
        return None, sources
    study = read_study(Path(arguments.config[-1]))
    is_study = study.base != Path(arguments.config[-1]).resolve()
    arguments.config = [*arguments.config[:-1], str(study.base)]
    sources += [f"{arm.name}={arm.source}" for arm in study.arms if arm.source]
    protocol = arguments.protocol or (study.protocol if is_study else HOLDOUT)
    return (None if protocol == HOLDOUT else replace(study, protocol=protocol)), sources


def configured_sources(config: str) -> list[str]:
    """Return the checkpoints that a resolved fit file starts from."""
    from experiments.leakage import starting_points

    return starting_points(config)


def find_pretraining(source: str, arguments: argparse.Namespace) -> "Pretraining":
    """Follow RUN or NAME=RUN back to what it was trained on; the store is opened only for what is no file."""
    from experiments.leakage import read_pretraining
    from experiments.runtime import locate_weights

    def locate(reference: str) -> Path:
        path = Path(reference)
        return path if path.exists() else locate_weights(reference, open_store(arguments))

    name, named, reference = source.partition("=")
    if not named or Path(source).exists():
        name, reference = source, source
    return read_pretraining(reference, name=name, locate=locate)


def examine(
    datamodule: "BaseDataModule", study: "Study | None", pretrainings: "Sequence[Pretraining]", num_permutations: int
) -> "list[Finding]":
    """Run every check.

    Args:
        datamodule: The cohort.
        study: Its protocol divides the cohort; None takes the split of the fit file.
        pretrainings: Where pretrained weights come from.
        num_permutations: Permutations that show what chance gives.
    """
    from experiments import audit_checks
    from experiments.audit_facts import gather, intensity_features
    from experiments.audit_pretraining import check_pretraining

    facts = gather(datamodule, study)
    findings = [
        audit_checks.check_participants(facts),
        *audit_checks.check_groups(facts, datamodule.group_by),
        audit_checks.check_duplicates(facts),
    ]
    for pretraining in pretrainings:
        findings += check_pretraining(pretraining, datamodule, facts, everybody=study is not None)
    people = facts.participants()
    features = intensity_features(datamodule, people)
    site = audit_checks.check_site_from_intensities(people, features)
    findings.append(site)
    for target in datamodule.targets:
        known = people[target].notna().to_numpy()
        chosen = people[known]
        label = chosen[target].to_numpy(float)
        confounded = audit_checks.check_site_and_label(chosen, target, num_permutations)
        headers = audit_checks.check_label_from_headers(label, facts.headers(chosen), target, num_permutations)
        cheap = audit_checks.check_label_from_intensities(label, features[known], target, num_permutations)
        findings += [confounded, headers, audit_checks.warn_of_shortcut(confounded, site, cheap)]
    return findings


def show(findings: "list[Finding]") -> None:
    """Print a table on a terminal, and a line for each finding elsewhere."""
    if not sys.stdout.isatty():
        for finding in findings:
            print(f"{finding.status:<7}  {finding.check}: {finding.found} {finding.advice}".rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "", "found", "what to do")
    for finding in findings:
        status = Text(finding.status, style=STYLES[finding.status])
        table.add_row(Text(finding.check), status, Text(finding.found), Text(finding.advice))
    Console().print(table)

"""Compare arms (scratch, pretrained, baselines) on identical, frozen test participants, across sites and seeds.

Examples:
  fontanel crossval --config experiments/age2hie/crossval.yaml --protocol cross-site --pretrained pretrained=RUN
  fontanel crossval --config STUDY --arms scratch,pretrained,lesion-burden --num-seeds 3 --launcher processes
  fontanel crossval --config STUDY --protocol same-site --match-train-size
  fontanel crossval --config STUDY --launcher slurm                   with `slurm: {partition: gpu, time: 240}` in STUDY
  fontanel crossval --config finetune.yaml --protocol k-fold          a fit file is a study of one arm
  fontanel crossval --config STUDY --dry-run --value 0.75 --gain 0.03 --time     jobs, power and hours; nothing is kept

Protocols: same-site trains on the rest of a fold's own site; multi-site on that and all other sites; cross-site on the
other sites alone; k-fold on the rest of all sites; external on all sites but those of --external-sites. Fold f of a
site is the test set of the first three alike.

Every training is a job. After Ctrl-C, a kill or a failure, repeat the same command: what is finished is not done
again, what was interrupted goes on. Every argument of the fit file may follow (--data.table my.tsv); it holds for all
arms. What is decided before the first test score (metric, protocol, folds, configuration) is locked.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.study import Study

PASSES_ON = True  # words this parser does not know belong to the configuration
SETTINGS = (
    "protocol",
    "num_folds",
    "num_repeats",
    "num_seeds",
    "num_inner_folds",
    "val_fraction",
    "primary_metric",
    "label_fractions",
    "external_sites",
    "max_train_per_site",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel crossval` that are not part of a fit file."""
    from experiments.options import add_dry_run_arguments, add_store_arguments

    parser.add_argument("--config", type=Path, required=True, metavar="STUDY", help="study file, or a fit file")
    study = parser.add_argument_group("the study (each overrides the study file)")
    study.add_argument("--protocol", metavar="NAME", help="same-site, multi-site, cross-site, k-fold or external")
    study.add_argument("--arms", type=_names, metavar="A,B", help="run these arms of the study (default: all)")
    study.add_argument(
        "--pretrained",
        action="append",
        default=[],
        metavar="ARM=SOURCE",
        help="pretrained weights of an arm: run, registered model (models:/NAME@ALIAS) or file; may be repeated",
    )
    study.add_argument("--num-folds", type=int, metavar="K", help="folds of every site")
    study.add_argument("--num-repeats", type=int, metavar="N", help="draws of folds (cross-site: of validation parts)")
    study.add_argument("--num-seeds", type=int, metavar="N", help="trainings of each fold and arm")
    study.add_argument(
        "--num-inner-folds",
        type=int,
        metavar="K",
        help="folds within each training that choose "
        "threshold, temperature and number of epochs (default: the validation part does)",
    )
    study.add_argument("--val-fraction", type=float, metavar="SHARE", help="share of a training that chooses the model")
    study.add_argument("--match-train-size", action="store_true", help="equally large trainings in all protocols")
    study.add_argument("--max-train-per-site", type=int, metavar="N", help="train on at most N participants of a site")
    study.add_argument("--label-fractions", type=_numbers, metavar="A,B", help="train on these shares, such as 0.25,1")
    study.add_argument("--external-sites", type=_names, metavar="A,B", help="sites that the protocol external tests")
    study.add_argument("--primary-metric", metavar="NAME", help="the metric that decides (default: that of the task)")
    study.add_argument("--study", metavar="NAME", help="MLflow experiment (default: folder/name of the study file)")
    work = parser.add_argument_group("the work")
    work.add_argument("--launcher", default="inline", metavar="HOW", help="inline (default), processes, or slurm")
    work.add_argument("--num-workers", type=int, metavar="N", help="jobs at once (default: one per GPU, or per core)")
    work.add_argument("--num-threads", type=int, default=1, metavar="N", help="threads of each job (default: 1)")
    add_dry_run_arguments(parser)
    parser.add_argument("--allow-unverified", action="store_true", help="use a cohort without a fitting manifest")
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Plan, run what is left to do, and compare."""
    from experiments.campaign import Campaign
    from experiments.options import open_store, store_to_read

    study = configured_study(arguments)
    words = [*arguments.rest, *(["--data.allow_unverified", "true"] if arguments.allow_unverified else [])]
    if arguments.dry_run:
        from experiments.dry_run import show_crossval

        with store_to_read(arguments) as store:
            return show_crossval(study, words, store, arguments)
    campaign = Campaign.plan(study, words, open_store(arguments), arguments.num_threads)
    code = campaign.run(arguments.launcher, arguments.num_workers)
    if code == 0:
        print("Next:\n  fontanel ui")
    return code


def configured_study(arguments: argparse.Namespace) -> "Study":
    """Return the study of the command line: its file, and what the options change."""
    from dataclasses import replace

    from experiments.runtime import ConfigurationError
    from experiments.study import read_study

    study = read_study(arguments.config)
    changes = {name: value for name in SETTINGS if (value := getattr(arguments, name)) is not None}
    if arguments.match_train_size:
        changes["match_train_size"] = True
    if arguments.study is not None:
        changes["name"] = arguments.study
    sources = dict(pair.partition("=")[::2] for pair in arguments.pretrained)
    if not all(name and source for name, source in sources.items()):
        raise ConfigurationError("--pretrained takes ARM=SOURCE, such as --pretrained pretrained=RUN.")
    return replace(study, **changes).pretrain(sources).choose(arguments.arms)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in _names(text))

"""Train a model from a configuration file.

Examples:
  fontanel fit --config experiments/age2hie/phantom_pretrain.yaml
  fontanel fit --config experiments/age2hie/pretrain.yaml --data.table my.tsv --trainer.max_epochs 50
  fontanel fit --resume RUN                                   go on where a run was stopped, as if it never had been
  fontanel fit --resume RUN --trainer.max_epochs 100          train longer

Every key of the file is an argument too (--model.network.width 16). 'fontanel fit --help-all' lists them all, and
'fontanel fit --model.help lightning_modules.RegressionModule' those of one class. A configuration names classes that
are imported: treat a file from elsewhere as you would treat code.

Ctrl-C, SIGTERM and SIGUSR1 stop at the next batch, after a checkpoint; a second Ctrl-C quits at once.
"""

import argparse

PASSES_ON = True  # words this parser does not know belong to the configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel fit` that are not part of a fit file."""
    from experiments.options import STEP_TIMEOUT, add_configuration_arguments, add_store_arguments

    add_configuration_arguments(parser)
    parser.add_argument(
        "--study", metavar="NAME", help="MLflow experiment (default: folder/name of the configuration file)"
    )
    parser.add_argument(
        "--arm", default="scratch", metavar="NAME", help="which arm of the study this is (default: scratch)"
    )
    parser.add_argument(
        "--resume", metavar="RUN", help="continue a run that was stopped or died: run id, run name, or run folder"
    )
    parser.add_argument(
        "--step-timeout",
        type=float,
        default=STEP_TIMEOUT,
        metavar="SECONDS",
        help=f"with several processes: end all when none finishes a batch for so long (default: {STEP_TIMEOUT:.0f})",
    )
    parser.add_argument(
        "--pretraining-filter",
        metavar="CONDITION",
        help="train on the rows for which this holds, such as 'age <= 5' (the same as --data.rows)",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train or resume, keep the best checkpoint, export the weights, and name the next command."""
    from experiments.cli import WRONG_USAGE, complain
    from experiments.options import configuration_words, open_store
    from experiments.ranks import spread
    from experiments.runtime import FontanelCLI, study_name
    from experiments.training import ResumePoint, RunKey, Training

    words = configuration_words(arguments)
    if arguments.pretraining_filter is not None:
        words += ["--data.rows", arguments.pretraining_filter]
    if arguments.resume is not None and arguments.config:
        return complain("--resume takes the configuration of the run; leave --config out.", WRONG_USAGE)
    if not words and arguments.resume is None:
        example = "--config experiments/age2hie/phantom_pretrain.yaml"
        return complain(f"name a configuration, such as {example}.", WRONG_USAGE)
    if arguments.resume is None:
        store, point, cli = None, None, FontanelCLI(words)
    else:
        store = open_store(arguments)
        point = ResumePoint.of(arguments.resume, words, store)
        cli = point.rebuild()
    if arguments.print_config:
        print(cli.resolved(), end="")
        return 0
    if point is not None and point.is_done:
        print(f"Run {point.contract.run_id} is finished. To train on, give a larger --trainer.max_epochs.")
        return 0
    cli.datamodule.assign_splits()  # a cohort that is refused leaves no trace in the store
    store = store or open_store(arguments)
    if (code := spread("fit", arguments.words, cli, store, arguments.step_timeout)) is not None:
        return code
    if point is None:
        study = arguments.study or study_name(arguments.config)
        training = Training.start(cli, study=study, key=RunKey(arguments.arm, seed=cli.seed), store=store)
    else:
        training = Training.resume(cli, point, store)
    training.run()
    if training.speaks:
        run_id = training.run_id
        print(f"Run {run_id} of {training.contract.study}. Next:\n  fontanel test {run_id}\n  fontanel ui")
    return 0

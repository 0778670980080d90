"""Train a model from a configuration file.

Examples:
  fontanel fit --config experiments/age2hie/phantom_pretrain.yaml
  fontanel fit --config experiments/age2hie/pretrain.yaml --data.table my.tsv --trainer.max_epochs 50

Every key of the file is an argument too (--model.network.width 16). 'fontanel fit --help-all' lists them all, and
'fontanel fit --model.help lightning_modules.RegressionModule' those of one class. A configuration names classes that
are imported: treat a file from elsewhere as you would treat code.
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.runtime import FontanelCLI
    from tracking.store import Store

PASSES_ON = True  # words this parser does not know belong to the configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel fit` that are not part of a fit file."""
    from experiments.options import add_configuration_arguments, add_store_arguments

    add_configuration_arguments(parser)
    parser.add_argument(
        "--study", metavar="NAME", help="MLflow experiment (default: folder/name of the configuration file)"
    )
    parser.add_argument(
        "--arm", default="scratch", metavar="NAME", help="which arm of the study this is (default: scratch)"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, keep the best checkpoint, export the weights, and name the next command."""
    from experiments.cli import WRONG_USAGE, complain
    from experiments.options import configuration_words, open_store
    from experiments.runtime import FontanelCLI, study_name

    words = configuration_words(arguments)
    if not words:
        example = "--config experiments/age2hie/phantom_pretrain.yaml"
        return complain(f"name a configuration, such as {example}.", WRONG_USAGE)
    cli = FontanelCLI(words)
    if arguments.print_config:
        print(cli.resolved(), end="")
        return 0
    cli.datamodule.assign_splits()  # a cohort that is refused leaves no trace in the store
    study = arguments.study or study_name(arguments.config)
    run_id = train(cli, study=study, arm=arguments.arm, store=open_store(arguments))
    print(f"Run {run_id} of {study}. Next:\n  fontanel test {run_id}\n  fontanel ui")
    return 0


def train(cli: "FontanelCLI", *, study: str, arm: str, store: "Store") -> str:
    """Train the configured model in a run of its own and return its id.

    Args:
        cli: The configuration; its cohort is read and checked before a run exists.
        study: MLflow experiment.
        arm: Arm of the study.
        store: Where the run is kept.
    """
    from experiments.session import Session

    cli.datamodule.assign_splits()
    session = Session.start(cli, study=study, arm=arm, store=store)
    trainer = cli.make_trainer(session.logger, session.training_callbacks(cli.model))
    with session.closing():
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.config["ckpt_path"], weights_only=True)
        session.export(cli)
    return session.run_id

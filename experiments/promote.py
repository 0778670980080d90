"""Register the model of a run, and give it an alias: `models:/NAME@ALIAS` then stands for it everywhere.

Examples:
  fontanel promote RUN --alias champion                     registered under the name of its study
  fontanel promote RUN --name brain-age --alias champion
  fontanel fit --config finetune.yaml --model.transfer.source models:/brain-age@champion

An alias names one version; promoting another run moves it, and the earlier version stays.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fontanel promote`."""
    from experiments.options import add_store_arguments

    parser.add_argument("reference", metavar="RUN", help="run id, run name, or run folder")
    parser.add_argument("--alias", required=True, metavar="NAME", help="what this version is to be called")
    parser.add_argument("--name", metavar="NAME", help="name of the model (default: that of its study, / as -)")
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Register, set the alias, and print how to use it."""
    from experiments.options import open_store
    from experiments.runtime import BEST_CHECKPOINT, ConfigurationError, locate_checkpoint

    store = open_store(arguments)
    found = store.find_run(arguments.reference)
    if found.status != "FINISHED":
        raise ConfigurationError(f"Run {found.run_id} is {found.status}; only a finished training can be promoted.")
    locate_checkpoint(found.run_id, store)  # a run without weights is refused
    name = arguments.name or found.study.replace("/", "-")
    version = store.register_model(found.run_id, name, arguments.alias, BEST_CHECKPOINT)
    print(f"Version {version} of {name} is now {arguments.alias}: models:/{name}@{arguments.alias}")
    return 0

"""Evaluate a run or a configuration on held-out participants and sites.

Examples:
  fontanel test RUN                                  the run's own cohort and split
  fontanel test RUN --data.table other.tsv           another cohort: everyone the run did not train on
  fontanel test checkpoints/best.ckpt
  fontanel test --config FILE --ckpt_path best.ckpt

RUN is a run id (or its beginning), a run name, or a run's folder. Predictions, metrics with their intervals and the
report are added to the run.
"""

import argparse

PASSES_ON = True  # words this parser does not know belong to the configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel test`."""
    from experiments.options import add_assessment_arguments

    add_assessment_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Predict the held-out rows, store predictions, metrics and report, and print the metrics."""
    from experiments.scoring import assess

    return assess(arguments, "test")

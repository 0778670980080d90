"""Evaluate a run or a configuration on the validation part.

Examples:
  fontanel validate RUN                              the run's own cohort and split
  fontanel validate checkpoints/best.ckpt
  fontanel validate --config FILE --ckpt_path best.ckpt

RUN is a run id (or its beginning), a run name, or a run's folder. Predictions, metrics with their intervals and the
report are added to the run.
"""

import argparse

PASSES_ON = True  # words this parser does not know belong to the configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel validate`."""
    from experiments.options import add_assessment_arguments

    add_assessment_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Predict the validation rows, store predictions, metrics and report, and print the metrics."""
    from experiments.scoring import assess

    return assess(arguments, "validate")

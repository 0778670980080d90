"""Make a phantom cohort, train, evaluate and report, in about three minutes.

Everything lands in the output folder: the cohort, the MLflow store and the run with its report. The cohort is a
phantom: T1-like volumes with known age effects, from three sites with scanners of their own. It checks the software; it
is no evidence about brains.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluation.assessment import Assessment
    from experiments.session import Session

STUDY = "age2hie/phantom_pretrain"
SPLITS = {"test": "held-out participants", "external": "held-out site"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel quickstart`."""
    from experiments.options import add_store_arguments

    parser.add_argument(
        "--num-participants", type=int, default=320, metavar="N", help="size of the phantom cohort (default: 320)"
    )
    parser.add_argument("--max-epochs", type=int, metavar="N", help="epochs to train (default: as in the study's file)")
    parser.add_argument("--seed", type=int, default=0, help="seed of cohort, split and training (default: 0)")
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the whole road once and print what came out and what to type next."""
    from experiments import scoring
    from experiments.options import open_store
    from experiments.runtime import FontanelCLI, restore, scratch_folder
    from experiments.training import Training
    from tracking.store import output_folder

    folder = output_folder(arguments.output_dir)
    table = make_cohort(folder / "cohorts" / f"brain-age-n{arguments.num_participants}-s{arguments.seed}", arguments)
    cli = FontanelCLI(configuration_words(table, arguments))
    store = open_store(arguments)
    cli.datamodule.assign_splits()
    training = Training.start(cli, study=STUDY, arm="scratch", store=store)
    training.run()
    with scratch_folder() as scratch:
        restored = restore(training.run_id, [], store, scratch)
        restored.cli.datamodule.assign_splits()
        session = scoring.score(restored, "test", store)
    assert session is not None
    print_results(session)
    print("\nNext, open the report and compare runs in the MLflow UI:")
    print(f"  xdg-open {session.folder / 'report.html'}")
    print(f"  fontanel ui{'' if arguments.output_dir is None else f' --output-dir {arguments.output_dir}'}")
    if beats_the_mean(session.assessment("test")):
        return 0
    print("The model did not beat predict-the-mean on held-out participants: this installation trains badly.")
    return 1


def make_cohort(folder: Path, arguments: argparse.Namespace) -> Path:
    """Make and verify the phantom cohort, unless it is there already."""
    from experiments import make_cohort

    table = folder / "cohort.tsv"
    if not table.with_name("cohort.tsv.manifest.json").is_file():
        parser = argparse.ArgumentParser()
        make_cohort.add_arguments(parser)
        size, seed = str(arguments.num_participants), str(arguments.seed)
        words = ["brain-age", str(folder), "--num-participants", size, "--seed", seed, "--skull", "off"]
        words.append("--overwrite")  # what is there without a manifest was interrupted
        make_cohort.make(parser.parse_args(words))
    return table


def configuration_words(table: Path, arguments: argparse.Namespace) -> list[str]:
    """Return the words for the study's configuration."""
    config = Path(__file__).parent / "age2hie" / "phantom_pretrain.yaml"
    words = ["--config", str(config), "--data.table", str(table), "--seed_everything", str(arguments.seed)]
    words += ["--data.split_seed", str(arguments.seed), "--trainer.devices", "1"]
    if arguments.max_epochs is not None:
        words += ["--trainer.max_epochs", str(arguments.max_epochs)]
    return words


def beats_the_mean(result: "Assessment") -> bool:
    """Say whether the interval of the gain over predict-the-mean lies above zero."""
    return result.metrics["mae_gain"].low_above(0.0)


def print_results(session: "Session") -> None:
    """Print the mean absolute error of each split beside predict-the-mean."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Brain age on a phantom cohort: mean absolute error in years, with 95 % intervals")
    for column in ("", "participants", "model", "predict-the-mean", "gain"):
        table.add_column(column, justify="left" if column == "" else "right")
    for split, meaning in SPLITS.items():
        result = session.assessment(split)
        cells = [interval(result, name) for name in ("mae", "mae_predict_mean", "mae_gain")]
        table.add_row(meaning, str(result.num_participants), *cells)
    Console(width=100).print(table)


def interval(result: "Assessment", metric: str) -> str:
    """Return an estimate with its interval as text."""
    value = result.metrics[metric]
    if value.low is None or value.high is None:
        return f"{value.estimate:.1f}"
    return f"{value.estimate:.1f} [{value.low:.1f}, {value.high:.1f}]"

"""Does pretraining help? The whole question in small, on phantoms, in about five minutes.

A brain-age model is trained on a phantom cohort of adults and tested on held-out participants and at a site it never
saw. Then the outcome of phantom newborns after hypoxia-ischaemia is learned at one hospital and tested at the other,
both ways, from scratch and from the brain-age model, on the same participants. Everything lands in the output folder:
the cohorts, the MLflow store, every run, and the report. Repeat the command to go on where it was interrupted.

Phantoms check the software; they are no evidence about brains.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluation.assessment import Assessment
    from experiments.session import Session
    from tracking.store import Store

FOLDER = "age2hie"
PRETRAINING = "pretraining"  # arm of the first stage
PRETRAIN_EPOCHS, FINETUNE_EPOCHS = 32, 12  # fewer than in the files: the whole story within five minutes
SPLITS = {"test": "held-out participants", "external": "held-out site"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel quickstart`."""
    from experiments.options import add_store_arguments

    parser.add_argument("--num-adults", type=int, default=280, metavar="N", help="size of the T1 cohort (default: 280)")
    parser.add_argument(
        "--num-newborns", type=int, default=160, metavar="N", help="size of the clinical cohort (default: 160)"
    )
    parser.add_argument(
        "--max-epochs",
        type=int,
        metavar="N",
        help=f"epochs of every training (default: {PRETRAIN_EPOCHS} of brain age, {FINETUNE_EPOCHS} of the outcome)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of cohorts, splits and trainings (default: 0)")
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the whole story once and print what came out and what to type next."""
    from experiments.options import open_store
    from tracking.addresses import output_folder

    store = open_store(arguments)
    cohorts = output_folder(arguments.output_dir) / "cohorts"
    size, seed = arguments.num_adults, arguments.seed
    adults = make_cohort("brain-age", cohorts / f"brain-age-n{size}-s{seed}", size, seed, ["--skull", "off"])
    pretraining = pretrain(adults, arguments, store)
    size = arguments.num_newborns
    images = ["--images", "adc", "zadc"]
    newborns = make_cohort("hie-outcome", cohorts / f"hie-outcome-n{size}-s{seed}", size, seed, images)
    code = compare(newborns, pretraining, arguments, store)
    shown = "" if arguments.output_dir is None else f" --output-dir {arguments.output_dir}"
    print("Open the report, and compare runs in the MLflow UI:")
    print(f"  fontanel ui{shown}")
    if not beats_the_mean(pretraining.assessment("test")):
        print("The brain-age model did not beat predict-the-mean on held-out participants: this machine trains badly.")
        return 1
    return code


def make_cohort(phantom: str, folder: Path, size: int, seed: int, options: list[str]) -> Path:
    """Make and verify a phantom cohort, unless it is there already."""
    from experiments import make_cohort

    table = folder / "cohort.tsv"
    if not table.with_name("cohort.tsv.manifest.json").is_file():
        parser = argparse.ArgumentParser()
        make_cohort.add_arguments(parser)
        words = [phantom, str(folder), "--num-participants", str(size), "--seed", str(seed), *options]
        words += ["--shape", "32", "40", "32", "--overwrite"]  # what is there without a manifest was interrupted
        make_cohort.make(parser.parse_args(words))
    return table


def pretrain(table: Path, arguments: argparse.Namespace, store: "Store") -> "Session":
    """Train the brain-age model and test it, unless that is done; return its run."""
    from experiments.jobs import Job, run_job
    from experiments.session import REPORT, Session
    from experiments.training import RunKey
    from tracking.contract import read_contract

    words = ["--config", str(Path(__file__).parent / FOLDER / "phantom_pretrain.yaml"), "--data.table", str(table)]
    words += ["--seed_everything", str(arguments.seed), "--data.split_seed", str(arguments.seed)]
    words += ["--trainer.devices", "1", *epochs(arguments, PRETRAIN_EPOCHS)]
    key = RunKey(PRETRAINING, seed=arguments.seed)
    name = f"training-{arguments.max_epochs or PRETRAIN_EPOCHS}-epochs"
    job = Job(f"{FOLDER}/phantom_pretrain", tuple(words), table.parent / name, {}, key)
    job.prepare(None)
    run_job(job, store, quiet=False)
    session = Session.reopen(read_contract(store.folder(str(job.run_id))), store)
    if not (session.folder / REPORT).is_file():
        session.write_report()
    print_brain_age(session)
    return session


def compare(table: Path, pretraining: "Session", arguments: argparse.Namespace, store: "Store") -> int:
    """Fine-tune in both arms, cross-site, and print what pretraining gains."""
    from dataclasses import replace

    from experiments.campaign import Campaign
    from experiments.study import read_study

    study = read_study(Path(__file__).parent / FOLDER / "phantom_crossval.yaml")
    chosen = study.pretrain({"pretrained": pretraining.run_id}).choose(["scratch", "pretrained"])
    words = ["--data.table", str(table), "--data.split_seed", str(arguments.seed), "--seed_everything"]
    words += [str(arguments.seed), "--trainer.devices", "1", *epochs(arguments, FINETUNE_EPOCHS)]
    return Campaign.plan(replace(chosen, num_seeds=1), words, store, num_threads=2).run("inline", None)


def epochs(arguments: argparse.Namespace, usual: int) -> list[str]:
    """Return the words that set the number of epochs, and with it the course of the learning rate."""
    number = str(usual if arguments.max_epochs is None else arguments.max_epochs)
    return ["--trainer.max_epochs", number, "--model.scheduler.T_max", number]


def beats_the_mean(result: "Assessment") -> bool:
    """Say whether the interval of the gain over predict-the-mean lies above zero."""
    return result.metrics["mae_gain"].low_above(0.0)


def print_brain_age(session: "Session") -> None:
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

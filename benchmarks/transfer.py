"""Does brain age help to predict the outcome of newborns? On phantoms, where the answer can be known.

Several cohorts, each with a pretraining of its own: brain age, and the same images with shuffled ages (`permuted-age`).
The outcome depends on a hidden anatomical factor that age moves, too (shared factor on), or on the injury alone (off);
the images are the same. Trained on few newborns of one site, tested on many of the other, both ways, in all arms:

    python benchmarks/transfer.py --folder DIR

Printed: the AUROC of every arm beside the Bayes AUROC, and over cohorts the gain over `scratch` and over
`permuted-age`, with and without the factor, and their difference. A gain can stay without the factor, because anatomy
itself transfers; what age carries is the difference. Stop it when you like; the same command goes on.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from evaluation.gain import gains
from evaluation.predictions import read_predictions
from experiments.cli import main as fontanel
from tracking.store import Store

STUDY = Path(__file__).parent.parent / "experiments" / "age2hie"
ARMS = ("scratch", "pretrained", "permuted-age")
FACTORS = {"on": "cohort.tsv", "off": "cohort_shared-factor-off.tsv"}
SHAPE = ("32", "40", "32")
REFERENCES = ("scratch", "permuted-age")


def main() -> None:
    """Make cohorts, pretrain, compare, and print."""
    arguments = parse()
    rows = []
    for cohort in range(arguments.cohorts):
        folder = arguments.folder / f"cohort-{cohort}"
        newborns = make_cohorts(folder, cohort, arguments)
        pretrain(folder, cohort, arguments)
        for factor, table in FACTORS.items():
            cross_validate(folder, newborns / table, factor, arguments)
            found = compare(folder, newborns / table, cohort, factor)
            print(found.to_string(index=False, float_format="%.3f"), flush=True)
            rows.append(found)
    summarise(pd.concat(rows, ignore_index=True))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--cohorts", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--adults", type=int, default=400, help="participants of a pretraining")
    parser.add_argument("--train", type=int, default=80, help="newborns of a site that are trained on")
    parser.add_argument("--free", type=int, default=500, help="newborns of a site beyond those")
    parser.add_argument("--pretrain-epochs", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="trainings at once")
    return parser.parse_args()


def make_cohorts(folder: Path, cohort: int, arguments: argparse.Namespace) -> Path:
    """Make adults, newborns, and the second table of the newborns, unless they are there."""
    adults, newborns = folder / "adults", folder / "newborns"
    size = str(2 * (arguments.train + arguments.free))
    common = ["--seed", str(cohort), "--shape", *SHAPE]
    if not (adults / "cohort.tsv.manifest.json").is_file():
        number = str(arguments.adults)
        command("make-cohort", "brain-age", adults, "--num-participants", number, "--skull", "off", *common)
    images = ["--num-participants", size, "--images", "adc", "zadc"]
    if not (newborns / "cohort.tsv.manifest.json").is_file():
        command("make-cohort", "hie-outcome", newborns, *images, *common)
    if not (newborns / f"{FACTORS['off']}.manifest.json").is_file():
        again = [*images, *common, "--shared-factor", "off", "--reuse-images"]
        command("make-cohort", "hie-outcome", newborns, *again, overwrite=False)
    return newborns


def pretrain(folder: Path, cohort: int, arguments: argparse.Namespace) -> None:
    """Train on ages and on shuffled ages, side by side, unless it is done."""
    epochs = str(arguments.pretrain_epochs)
    words = ["--config", str(STUDY / "phantom_pretrain.yaml"), "--data.table", str(folder / "adults" / "cohort.tsv")]
    words += ["--data.held_out_sites", "[]", "--data.test_fraction", "0", "--seed_everything", str(cohort)]
    words += ["--trainer.max_epochs", epochs, "--model.scheduler.T_max", epochs, "--num_threads", "1"]
    words += ["--model.network.width", str(arguments.width), "--output-dir", str(folder / "outputs")]
    store_of(folder).answers()  # made here, so that two trainings do not both want to
    started = []
    for arm, extra in (("pretrained", []), ("permuted-age", ["--data.permute_targets", "true"])):
        mark = folder / f"{arm}.done"
        if not mark.is_file():
            program = [sys.executable, "-m", "experiments.cli", "fit", *words, "--arm", arm, *extra]
            started.append((mark, subprocess.Popen(program, env=os.environ | {"OMP_NUM_THREADS": "1"})))
            if arguments.workers == 1:
                started[-1][1].wait()
    for mark, process in started:
        if process.wait():
            raise SystemExit(f"the pretraining of {folder} failed; see above")
        mark.touch()


def cross_validate(folder: Path, table: Path, factor: str, arguments: argparse.Namespace) -> None:
    """Train on each site and test on the other, in every arm."""
    store = store_of(folder)
    words = ["--config", str(STUDY / "phantom_crossval.yaml"), "--study", f"benchmark/factor-{factor}"]
    words += ["--arms", ",".join(ARMS), "--num-seeds", str(arguments.seeds), "--data.table", str(table)]
    for arm in ("pretrained", "permuted-age"):
        words += ["--pretrained", f"{arm}={newest(store, arm)}"]
    words += ["--max-train-per-site", str(arguments.train), "--val-fraction", "0"]
    words += ["--trainer.max_epochs", str(arguments.epochs), "--model.scheduler.T_max", str(arguments.epochs)]
    words += ["--model.network.width", str(arguments.width), "--output-dir", str(folder / "outputs")]
    words += ["--launcher", "processes", "--num-workers", str(arguments.workers)]
    if fontanel(["crossval", *words]):
        raise SystemExit(f"the cross-validation of {table} failed; see above")


def store_of(folder: Path) -> Store:
    """Return the store of a cohort's runs, made where there is none."""
    (folder / "outputs").mkdir(parents=True, exist_ok=True)
    return Store(f"sqlite:///{folder / 'outputs' / 'mlflow.db'}", folder / "outputs")


def newest(store: Store, arm: str) -> str:
    """Return the newest pretraining of an arm."""
    studies = [experiment.experiment_id for experiment in store.client.search_experiments()]
    query = f"tags.arm = '{arm}' and tags.protocol = 'holdout' and attributes.status = 'FINISHED'"
    return str(store.client.search_runs(studies, query, order_by=["start_time DESC"])[0].info.run_id)


def compare(folder: Path, table: Path, cohort: int, factor: str) -> pd.DataFrame:
    """Return the AUROC of every arm, its gains, and the Bayes AUROC, for one cohort and condition."""
    (path,) = (folder / "outputs" / "crossval").glob(f"benchmark-factor-{factor}-*/predictions.parquet")
    held_out = read_predictions(path)
    values: dict[str, dict[str, float]] = {arm: {} for arm in ARMS}
    for reference in REFERENCES:
        for gain in gains(held_out, reference=reference, metric="auroc", num_replicates=0):
            if gain.site is None:
                values[gain.arm] |= {"auroc": gain.value.estimate, f"over {reference}": gain.gain.estimate}
    truth = json.loads(table.with_name(table.name.replace(".tsv", ".tsv.truth.json")).read_text(encoding="utf-8"))
    bayes = ", ".join(f"{name} {part['bayes_auroc']:.3f}" for name, part in truth["monte_carlo"].items())
    print(f"cohort {cohort}, shared factor {factor}: Bayes AUROC {bayes}")
    return pd.DataFrame([{"cohort": cohort, "factor": factor, "arm": arm, **found} for arm, found in values.items()])


def summarise(rows: pd.DataFrame) -> None:
    """Print means over cohorts with t intervals."""
    for factor, part in rows.groupby("factor", sort=False):
        for arm, found in part.groupby("arm", sort=False):
            gained = "; ".join(
                f"over {reference} {interval(found[f'over {reference}'])}"
                for reference in REFERENCES
                if reference != arm
            )
            print(f"factor {factor}, {arm}: AUROC {interval(found['auroc'])}; {gained}")
    for reference in REFERENCES:
        table = rows[rows["arm"] == "pretrained"].pivot_table(
            index="cohort", columns="factor", values=f"over {reference}"
        )
        print(
            f"gain of pretrained over {reference}, with the factor less without: {interval(table['on'] - table['off'])}"
        )


def interval(values: pd.Series) -> str:
    """Return a mean over cohorts with its 95 % t interval."""
    number, mean = len(values), float(values.mean())
    if number < 2:
        return f"{mean:+.3f} (one cohort)"
    half = stats.t.ppf(0.975, number - 1) * float(values.std(ddof=1)) / np.sqrt(number)
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


def command(verb: str, *words: object, overwrite: bool = True) -> None:
    """Run a verb of the command line."""
    if fontanel([verb, *map(str, words), *(["--overwrite"] if overwrite else [])]):
        raise SystemExit(f"fontanel {verb} failed; see above")


if __name__ == "__main__":
    main()

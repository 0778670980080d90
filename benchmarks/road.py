"""What each stop of the main road costs on one core: help, phantom, verification, preprocessing, cache, augmentation.

Run it on an idle machine: python benchmarks/road.py
Each figure is the best and the median of its rounds; rounds of the stops are interleaved.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from datamodules.augmentation import Augmentation
from datamodules.cache import VolumeCache
from datamodules.phantoms.brain_age import BrainAgePhantom
from datamodules.preprocessing import Preprocessing
from datamodules.verify import verify_cohort

NUM_PARTICIPANTS = 12
SMALL = Preprocessing(spacing=(5.0, 5.0, 5.0), shape=(32, 40, 32))


def stops(folder: Path) -> dict[str, tuple[Callable[[], object], int]]:
    """Return what is timed, and by how many items its time is divided."""
    phantom = BrainAgePhantom(num_participants=NUM_PARTICIPANTS, seed=0)
    table = phantom.write(folder / "cohort", num_workers=0)
    images = sorted((folder / "cohort" / "images").iterdir())
    warm = VolumeCache(folder / "warm", SMALL)
    batch = torch.randn(8, 1, *SMALL.shape)
    augment = Augmentation()

    def fresh_cohort() -> None:
        phantom.write(folder / "again", num_workers=0, overwrite=True)

    def preprocess() -> None:
        shutil.rmtree(folder / "cold", ignore_errors=True)
        cold = VolumeCache(folder / "cold", SMALL)
        for image in images:
            cold.get([image])

    def hit() -> None:
        for image in images:
            warm.get([image])

    hit()
    command = [sys.executable, "-m", "experiments.cli", "--help"]
    return {
        "fontanel --help": (lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), 1),
        "phantom volume 48x56x48, made, written and verified": (fresh_cohort, NUM_PARTICIPANTS),
        "verification of a volume 48x56x48": (lambda: verify_cohort(table), NUM_PARTICIPANTS),
        "preprocessing to 32x40x32, cache written": (preprocess, NUM_PARTICIPANTS),
        "cache hit": (hit, NUM_PARTICIPANTS),
        "augmentation of a sample 32x40x32": (lambda: augment(batch, list(range(8))), 8),
    }


def main() -> None:
    """Print milliseconds per item of every stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds (default: 7)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        timed = stops(Path(name))
        times: dict[str, list[float]] = {stop: [] for stop in timed}
        for _ in range(rounds):
            for stop, (work, count) in timed.items():
                start = time.perf_counter()
                work()
                times[stop].append((time.perf_counter() - start) / count * 1000)
    print(f"{'ms an item':<54} {'best':>8} {'median':>8}")
    for stop, values in times.items():
        print(f"{stop:<54} {min(values):8.2f} {statistics.median(values):8.2f}")


if __name__ == "__main__":
    main()

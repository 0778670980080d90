"""What a training sample costs from file to network: Fontanel beside torchio and MONAI, one thread, in one process.

Every arm reads the same images (phantom heads, int16, nii.gz) and applies the same list of operations to every sample.
Cold is the first epoch, with nothing cached; warm are the epochs after it, the arms in turns. `host share` is what is
left on the processor when the augmentation runs on a GPU: opening the cache and putting the batch together.

    python benchmarks/data_path.py [--rounds 5] [--images 4] [--shape 160 192 160]
"""

import argparse
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import SimpleITK as sitk  # noqa: N813 - the library's own idiom
import torch
from peers import (
    LISTS,
    CachedTorchio,
    Shape,
    monai_persistent,
    ours,
    preprocessing,
    reader,
    torchio_fixed,
    torchio_random,
    torchio_subjects,
)
from torch import Tensor
from torchio import Compose

from datamodules.augmentation import sample_key
from datamodules.base import BaseDataModule
from datamodules.cache import VolumeCache
from datamodules.phantoms.brain_age import BrainAgePhantom
from experiments.memory import keep_freed_memory

GATES = (  # list, what, against, times at least
    ("full", "Fontanel", "torchio", 10),
    ("light", "Fontanel", "torchio", 5),
    ("light", "Fontanel", "MONAI PersistentDataset", 2),
    ("full", "Fontanel", "Fontanel without numba", 2),
)
HOST_SHARE = 3.0  # ms, at most
HIT = 40  # times faster than computing, at least


class Ours:
    """Our datamodule's loader, one batch after the other in the calling thread, and augmentation on the CPU."""

    def __init__(self, table: Path, shape: Shape, kind: str, folder: Path, kernel: str) -> None:
        self.data = BaseDataModule(table, ["t1w"], preprocessing=preprocessing(shape), cache=folder, batch_size=1)
        self.data.setup("predict")
        self.augmentation = None if kernel == "device" else ours(shape, kind, kernel)
        self.batches: Iterator[dict] = iter(())
        self.epoch = 0

    def __call__(self, index: int) -> Tensor:
        if index == 0:
            loader = self.data.predict_dataloader()
            loader.reads_ahead = False
            self.batches = iter(loader)
            self.epoch += 1
        batch = next(self.batches)
        if self.augmentation is None:
            return batch["image"]
        key = sample_key(0, self.epoch, batch["image_id"][0])
        return self.augmentation(batch["image"], [key])


def make_arms(kind: str, table: Path, images: list[Path], shape: Shape, folder: Path) -> dict[str, Callable]:
    plain = torchio_subjects(images, Compose([torchio_fixed(shape), torchio_random(shape, kind)]))
    monai = monai_persistent(images, shape, kind, folder / "monai")
    return {
        "torchio": reader(plain, lambda subject: subject["image"].data),
        "torchio, deterministic part cached": reader(
            CachedTorchio(images, shape, kind, folder / "torchio"), lambda subject: subject["image"].data
        ),
        "MONAI PersistentDataset": reader(monai, lambda image: image),
        "Fontanel without numba": Ours(table, shape, kind, folder / "torch", "torch"),
        "Fontanel": Ours(table, shape, kind, folder / "fused", "fused"),
        "Fontanel, host share": Ours(table, shape, kind, folder / "device", "device"),
    }


def timed(arm: Callable[[int], Tensor], count: int, shape: Shape) -> float:
    """Return milliseconds a sample over one epoch."""
    start = time.perf_counter()
    for index in range(count):
        if arm(index).shape[-3:] != shape:
            raise RuntimeError("an arm gave another shape")
    return 1000 * (time.perf_counter() - start) / count


def compare_cache(images: list[Path], shape: Shape, folder: Path, rounds: int) -> float:
    """Print what an entry costs to compute and to open, and return the ratio."""
    computed, hits = [], []
    for _ in range(rounds):
        shutil.rmtree(folder, ignore_errors=True)
        cache = VolumeCache(folder, preprocessing(shape))
        for times in (computed, hits, hits):
            for image in images:
                start = time.perf_counter()
                cache.get([image])
                times.append(1000 * (time.perf_counter() - start))
        assert cache.build([]) == 0
    to_compute, to_open = statistics.median(computed), statistics.median(hits)
    print(f"\nCache: {to_compute:.0f} ms to compute an entry, {to_open:.2f} ms to open it")
    return to_compute / to_open


def main() -> None:
    """Print milliseconds a sample of every arm, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="warm epochs of every arm (default: 5)")
    parser.add_argument("--images", type=int, default=4, help="number of images (default: 4)")
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 192, 160), help="of a sample")
    arguments = parser.parse_args()
    shape = tuple(arguments.shape)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        native = tuple(size + 16 for size in shape)
        phantom = BrainAgePhantom(arguments.images, 0, shape=native, spacing=(1.1, 1.1, 1.1))
        table = phantom.write(folder / "cohort", num_workers=1)
        images = sorted((folder / "cohort" / "images").iterdir())
        warm: dict[tuple[str, str], float] = {}
        for kind, operations in LISTS.items():
            (folder / kind).mkdir()
            arms = make_arms(kind, table, images, shape, folder / kind)
            arms["Fontanel"](0)  # compiles, if nothing is compiled yet
            shutil.rmtree(folder / kind / "fused")
            cold = {arm: timed(read, len(images), shape) for arm, read in arms.items()}
            times: dict[str, list[float]] = {arm: [] for arm in arms}
            for _ in range(arguments.rounds):
                for arm, read in arms.items():
                    times[arm].append(timed(read, len(images), shape))
            print(f"\n{kind}: {operations}; {'x'.join(map(str, shape))}, {len(images)} images")
            print(f"{'ms a sample':36} {'cold':>8} {'warm':>8} {'range':>15}   torchio / this")
            for arm, values in times.items():
                warm[kind, arm] = statistics.median(values)
                spread = f"{min(values):.1f}-{max(values):.1f}"
                ratio = warm[kind, "torchio"] / warm[kind, arm]
                print(f"{arm:36} {cold[arm]:8.1f} {warm[kind, arm]:8.1f} {spread:>15} {ratio:8.1f}")
        ratio = compare_cache(images, shape, folder / "cache", arguments.rounds)
    print(f"\n{'gate':64} {'is':>6} {'':>9}")
    for kind, arm, peer, least in GATES:
        report(f"{arm} against {peer}, {kind} list, times", warm[kind, peer] / warm[kind, arm], least)
    report("opening a cache entry against computing it, times", ratio, HIT)
    report("host share, ms", max(warm[kind, "Fontanel, host share"] for kind in LISTS), HOST_SHARE, at_most=True)


def report(gate: str, value: float, limit: float, *, at_most: bool = False) -> None:
    """Print a figure beside its limit."""
    holds = value <= limit if at_most else value >= limit
    print(f"{gate:64} {value:6.1f} {'<=' if at_most else '>='} {limit:<4} {'held' if holds else 'NOT HELD'}")


if __name__ == "__main__":
    main()

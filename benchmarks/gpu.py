"""The data path on a machine with CUDA: host share, augmentation on the device, whole epochs, bf16 against float32.

Without CUDA it says so and measures nothing; --anyway runs it on the CPU, to see that it works.

    python benchmarks/gpu.py [--rounds 3] [--images 32] [--shape 160 192 160] [--width 32] [--batch-size 4]
"""

import argparse
import logging
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from epoch import Repeated, compare, fontanel_data, fontanel_module, now, train
from peers import LISTS, Shape, ours, torchio_fixed, torchio_random, torchio_subjects
from torchio import Compose

from datamodules.brain_age import BrainAgeDataModule
from datamodules.phantoms.brain_age import BrainAgePhantom
from experiments.memory import keep_freed_memory

WARM_UP, REPEATS = 3, 10
HOST_LIMIT, SHARE_LIMIT = 3.0, 0.05  # ms a sample; of a step


def median(work: Callable[[], object]) -> float:
    """Return milliseconds, the device waited for."""
    times = []
    for repeat in range(WARM_UP + REPEATS):
        start = now()
        work()
        if repeat >= WARM_UP:
            times.append(1000 * (now() - start))
    return statistics.median(times)


def per_sample(data: BrainAgeDataModule, shape: Shape, kind: str, device: str) -> float:
    """Print what a sample costs the host and the device beside torchio, and return the milliseconds of a batch."""
    loader = data.train_dataloader()
    loader.reads_ahead = False
    list(loader)  # entries are compared with their hashes
    start = time.perf_counter()
    num_samples = sum(len(batch["image_id"]) for batch in loader)
    host = 1000 * (time.perf_counter() - start) / num_samples
    batch = next(iter(loader))["image"].to(device)
    augment = ours(shape, kind)
    on_device = median(lambda: augment(batch, range(len(batch))))
    moved = median(lambda: batch.cpu().to(device)) / len(batch)
    files = [sample.files.images[0] for sample in data.part("train")[:2]]
    subjects = torchio_subjects(files, Compose([torchio_fixed(shape), torchio_random(shape, kind)]))
    start = time.perf_counter()
    for index in range(len(files)):
        _ = subjects[index]["image"].data
    peer = 1000 * (time.perf_counter() - start) / len(files)
    held = "held" if host <= HOST_LIMIT else "NOT HELD"
    print(f"\n{kind}, ms a sample: host {host:.2f} (<= {HOST_LIMIT}: {held}), there and back {moved:.2f},", end=" ")
    print(f"augmentation {on_device / len(batch):.2f}, torchio on the host {peer:.0f}")
    return on_device


def steps(data: BrainAgeDataModule, width: int, on_device: float) -> None:
    """Print the augmentation's share of a step, and what bf16 changes."""
    repeated = Repeated(data)
    taken = {}
    for precision in ("32-true", "bf16-mixed"):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        seconds, num_steps = train(fontanel_module(width), repeated, precision)
        taken[precision] = 1000 * seconds / num_steps
        memory = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else float("nan")
        share = on_device / (taken[precision] + on_device)
        held = "held" if share <= SHARE_LIMIT else "NOT HELD"
        print(f"{precision:10} {taken[precision]:8.1f} ms a step, {memory:.1f} GB;", end=" ")
        print(f"augmentation would be {100 * share:.1f} % of it (<= {100 * SHARE_LIMIT:.0f} %: {held})")
    print(f"bf16 is {taken['32-true'] / taken['bf16-mixed']:.2f} times faster than float32.")


def main() -> None:
    """Measure, or say that there is nothing to measure on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="trainings of every arm (default: 3)")
    parser.add_argument("--images", type=int, default=32, help="number of images (default: 32)")
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 192, 160), help="of a sample")
    parser.add_argument("--width", type=int, default=32, help="of the network (default: 32)")
    parser.add_argument("--batch-size", type=int, default=4, help="samples a step (default: 4)")
    parser.add_argument("--anyway", action="store_true", help="run on the CPU where there is no GPU")
    arguments = parser.parse_args()
    shape = tuple(arguments.shape)
    if not torch.cuda.is_available() and not arguments.anyway:
        print("No CUDA device here: nothing was run.")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(torch.cuda.get_device_name() if device == "cuda" else platform.processor(), "torch", torch.__version__)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        phantom = BrainAgePhantom(arguments.images, 0, shape=tuple(size + 16 for size in shape), spacing=(1.1,) * 3)
        table = phantom.write(Path(name) / "cohort")
        cache = Path(name) / "cache"
        for kind in LISTS:
            data = fontanel_data(table, shape, kind, cache, batch_size=arguments.batch_size)
            on_device = per_sample(data, shape, kind, device)
            steps(data, arguments.width, on_device)
            compare(table, cache, shape, kind, arguments.width, arguments.rounds, arguments.batch_size)


if __name__ == "__main__":
    main()

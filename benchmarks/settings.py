"""What the allocator and the number of threads do to a training step and to the augmentation on a CPU.

Settings are a process's own, so every arm is a process; the arms take turns.

    python benchmarks/settings.py [--rounds 3] [--threads 1 2]
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

ALLOCATORS = {
    "as it comes": {"THP_MEM_ALLOC_ENABLE": "0"},
    "huge pages": {"THP_MEM_ALLOC_ENABLE": "1"},
    "kept (ours)": {"THP_MEM_ALLOC_ENABLE": "0", "keep": "1"},
    "kept, huge pages": {"THP_MEM_ALLOC_ENABLE": "1", "keep": "1"},
}
STEPS = {"SFCN width 16, 8 x 32x40x32": (16, 8, (32, 40, 32)), "SFCN width 16, 2 x 64x64x64": (16, 2, (64, 64, 64))}


def measure(num_threads: int, repeats: int) -> None:
    """Print one line of medians in ms, and the largest resident size in MB."""
    import resource

    from experiments.memory import keep_freed_memory

    if "keep" in os.environ:
        keep_freed_memory()
    import torch

    from datamodules.augmentation import Augmentation
    from lightning_modules.networks.sfcn import SFCN

    torch.set_num_threads(num_threads)

    def median(work: Callable[[], object]) -> float:
        work()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(1000 * (time.perf_counter() - start))
        return statistics.median(times)

    def training_step(width: int, batch_size: int, shape: tuple[int, int, int]) -> Callable[[], None]:
        network = SFCN(width=width)
        optimizer = torch.optim.AdamW(network.parameters())
        batch = torch.randn(batch_size, 1, *shape)

        def step() -> None:
            optimizer.zero_grad()
            network(batch).mean().backward()
            optimizer.step()

        return step

    volume = torch.randn(1, 1, 160, 192, 160).half()
    found = []
    for kernel in ("torch", "fused"):
        augment = Augmentation(elastic=0.04, probability=1.0, spatial_probability=1.0, blur=0.0, kernel=kernel)
        found.append(median(lambda augment=augment: augment(volume, [1])))
    found.extend(median(training_step(*size)) for size in STEPS.values())
    print(*found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


def main() -> None:
    """Run the arms in turns and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="processes of every arm (default: 3)")
    parser.add_argument("--repeats", type=int, default=7, help="of each measurement in a process (default: 7)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of torch (default: 1 2)")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.repeats)
        return
    found: dict[tuple[int, str], list[list[float]]] = {}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "THP_"))}
    for _ in range(arguments.rounds):
        for num_threads in arguments.threads:
            for name, settings in ALLOCATORS.items():
                words = [__file__, "--measure", str(num_threads), "--repeats", str(arguments.repeats)]
                done = subprocess.run(
                    [sys.executable, *words], env=clean | settings, stdout=subprocess.PIPE, encoding="utf-8", check=True
                )
                found.setdefault((num_threads, name), []).append([float(word) for word in done.stdout.split()])
    columns = ["augmentation, torch", "augmentation, fused", *STEPS, "resident, MB"]
    print("ms, medians of", arguments.rounds, "processes;", "augmentation of 160x192x160, full list")
    for index, column in enumerate(columns):
        print(f"\n{column}")
        for (num_threads, name), rows in found.items():
            values = [row[index] for row in rows]
            spread = f"{min(values):.1f}-{max(values):.1f}"
            threads = "1 thread " if num_threads == 1 else f"{num_threads} threads"
            print(f"  {threads}  {name:26} {statistics.median(values):8.1f}   {spread}")


if __name__ == "__main__":
    main()

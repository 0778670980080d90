"""What `fontanel doctor` looks at in the machine and the packages: one function for each check."""

import importlib.metadata
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.checks import GIGABYTE, Check, size_text

if TYPE_CHECKING:
    import torch

LITTLE_SHARED_MEMORY = GIGABYTE  # bytes; a few batches of whole brains in float32 for each loader process
LITTLE_MEMORY = 4 * GIGABYTE  # bytes; the imports of a training alone take about one
REPEATS = 3  # of each convolution
MAIN_PACKAGES = ("torch", "pytorch-lightning", "mlflow", "torchio")  # whose versions are worth reading

PROC, CGROUP, SHARED_MEMORY = Path("/proc"), Path("/sys/fs/cgroup"), Path("/dev/shm")


def check_shared_memory() -> Check:
    """Look for room in what loader processes pass batches through."""
    if not SHARED_MEMORY.is_dir():
        return Check("shared memory", "not checked", f"there is no {SHARED_MEMORY} on this machine")
    usage = shutil.disk_usage(SHARED_MEMORY)
    found = f"{size_text(usage.free)} of {size_text(usage.total)} free in {SHARED_MEMORY}"
    if usage.free >= LITTLE_SHARED_MEMORY:
        return Check("shared memory", "ok", found)
    remedy = "use data.num_workers 0 or start the container with --shm-size=8g"
    return Check("shared memory", "warning", f"{found}: loader processes pass batches through it: {remedy}")


def check_memory() -> Check:
    """Look how much memory a training may take."""
    lines = (PROC / "meminfo").read_text(encoding="utf-8").splitlines()
    facts = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}
    available, limit = facts["MemAvailable"], memory_limit()
    found = f"{size_text(available)} of {size_text(facts['MemTotal'])} available"
    if limit is not None and limit < facts["MemTotal"]:
        found += f", but at most {size_text(limit)} for this control group (container or batch job)"
        available = min(available, limit)
    if available >= LITTLE_MEMORY:
        return Check("memory", "ok", found)
    return Check("memory", "warning", f"{found}. Use small batches and data.num_workers 0.")


def memory_limit() -> int | None:
    """Return the lowest limit in bytes of this process's control group and those above it, None without one."""
    limits = []
    for line in (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
        hierarchy, controllers, name = line.split(":", 2)
        if hierarchy == "0":
            top, file = CGROUP, "memory.max"
        elif "memory" in controllers.split(","):
            top, file = CGROUP / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = top / name.lstrip("/")
        for folder in (group, *group.parents):
            # A container sees the path of the host here, but its own group at the top: what is not there is skipped.
            if folder.is_relative_to(top) and (folder / file).is_file():
                limits.append((folder / file).read_text(encoding="utf-8").strip())
    return min((int(limit) for limit in limits if limit != "max"), default=None)


def check_devices() -> Check:
    """List the GPUs; a machine without one is as good."""
    import torch

    driver = _driver_version()
    if not torch.cuda.is_available():
        if driver is None:
            return Check("devices", "ok", "none: training runs on the CPU")
        built = f"torch {torch.__version__} (CUDA {torch.version.cuda or 'not built in'})"
        return Check("devices", "warning", f"training runs on the CPU: {built} cannot use the NVIDIA driver {driver}")
    gpus = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        gpus.append(f"{gpu.name}, {size_text(gpu.total_memory)}, capability {gpu.major}.{gpu.minor}")
    versions = f"driver {driver or 'unknown'}, CUDA {torch.version.cuda}"
    return Check("devices", "ok", f"{'; '.join(gpus)} ({versions})")


def _driver_version() -> str | None:
    try:
        text = (PROC / "driver" / "nvidia" / "version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", text)
    return found[1] if found else None


def check_numerics() -> Check:
    """Compare 3D convolutions in reduced precision with float32, on every kind of device."""
    from lightning_modules.numerics import TOLERANCE, conv3d_errors

    wrong, right = [], []
    for place, device, dtype in _precisions():
        name = {"bfloat16": "bf16", "float16": "fp16"}[str(dtype).removeprefix("torch.")]
        errors = conv3d_errors(device, dtype, repeats=REPEATS)
        if shapes := [str(shape) for shape, error in errors.items() if not error <= TOLERANCE]:
            wrong.append(
                f"{name} on {place} gives wrong Conv3d gradients or values for shapes {', '.join(shapes)}: "
                "keep trainer.precision 32-true here"
            )
        else:
            right.append(f"{name} on {place} computes Conv3d within {max(errors.values()):.1%} of float32")
    return Check("numerics", "warning" if wrong else "ok", "; ".join([*wrong, *right]))


def _precisions() -> "Iterator[tuple[str, torch.device, torch.dtype]]":
    """Yield what mixed precision there is: GPUs of one name compute alike."""
    import torch

    yield "this CPU", torch.device("cpu"), torch.bfloat16
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = {torch.cuda.get_device_name(index): index for index in reversed(range(count))}
    for name, index in gpus.items():
        for dtype in (torch.bfloat16, torch.float16):
            yield name, torch.device("cuda", index), dtype


def check_packages() -> Check:
    """Compare installed versions with what the project requires."""
    try:
        from packaging.requirements import Requirement

        required = [Requirement(text) for text in importlib.metadata.requires("fontanel") or []]
    except ImportError as error:  # PackageNotFoundError is one
        return Check("packages", "not checked", f"the requirements cannot be read: {error}")
    problems = []
    for requirement in required:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            version = _installed(requirement.name)
            if version is None:
                problems.append(f"{requirement.name} is missing")
            elif not requirement.specifier.contains(version, prereleases=True):
                problems.append(f"{requirement.name} is {version}, and {requirement.specifier} was tested")
    if problems:
        return Check("packages", "error", f"{'; '.join(problems)}. Repeat: python -m pip install -e .")
    return Check("packages", "ok", ", ".join(f"{name} {_installed(name)}" for name in MAIN_PACKAGES))


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

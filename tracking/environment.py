"""What a run was computed with: versions, machine, threads and commit, but nobody's name."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from tracking.redaction import redact_text

PACKAGES = (
    "fontanel",
    "torch",
    "pytorch-lightning",
    "torchio",
    "torchmetrics",
    "monai",
    "timm",
    "mlflow",
    "jsonargparse",
    "nibabel",
    "SimpleITK",
    "nilearn",
    "numba",
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "scikit-learn",
    "statsmodels",
    "safetensors",
)
# Only variables that change results or speed; never the whole environment.
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "THP_MEM_ALLOC_ENABLE",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTHONHASHSEED",
)
PROJECT = Path(__file__).resolve().parents[1]


def environment_facts() -> dict[str, Any]:
    """Return what results may depend on, as JSON types.

    Holds package versions, platform, processor count, threads, memory, GPUs and the commit of the project where it
    runs from a git checkout. Holds no host name, no user name and no path.
    """
    return {
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "platform": {"system": platform.system(), "release": platform.release(), "machine": platform.machine()},
        "processors": {"total": os.cpu_count(), "usable": len(os.sched_getaffinity(0)), "model": _processor_model()},
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": _threads(),
        "gpus": _gpus(),
        "variables": {name: redact_text(os.environ[name]) for name in VARIABLES if name in os.environ},
        "commit": _commit(PROJECT),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _threads() -> dict[str, int] | None:
    torch = sys.modules.get("torch")  # facts about a run without torch do not pay for its import
    if torch is None:
        return None
    return {"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()}


def _gpus() -> list[dict[str, Any]]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        {
            "name": device.name,
            "memory_gib": round(device.total_memory / 2**30, 1),
            "capability": f"{device.major}.{device.minor}",
            "cuda": torch.version.cuda,
        }
        for device in devices
    ]


def _commit(folder: Path) -> dict[str, Any] | None:
    """Return commit and cleanliness of a checkout; None for an installed package, even inside another repository."""
    if not (folder / ".git").exists():
        return None
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"id": commit, "modified": bool(status)} if commit and status is not None else None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, encoding="utf-8", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

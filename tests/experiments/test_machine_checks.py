import importlib.metadata
import os
import shutil
from argparse import Namespace
from collections import namedtuple

import numpy as np
import pytest
import torch

from experiments import checks, machine_checks
from lightning_modules import numerics

Usage = namedtuple("Usage", "total used free")
GB = 10**9


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("FONTANEL_CACHE", str(folder))
    return folder


def entry(cache, name, age=0):
    path = cache / "volumes" / name[:2] / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.zeros((1, 7, 8, 9), np.float16))
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_a_cache_that_is_not_there_yet_is_not_made(cache):
    check = checks.check_cache()
    assert (check.status, cache.exists()) == ("ok", False)
    assert "0 entries" in check.message


def test_a_whole_cache(cache):
    for name in ("aa1", "bb2"):
        entry(cache, name)
    check = checks.check_cache()
    assert check.status == "ok"
    assert "2 entries, 0 MB" in check.message
    assert "GB free" in check.message


BREAKERS = {
    "cut": lambda content: content[:-1],
    "cut in the header": lambda content: content[:40],
    "empty": lambda content: b"",
    "too long": lambda content: content + b"\0",
    "other magic": lambda content: b"X" + content[1:],
    "an archive": lambda content: b"PK\3\4" + content,
}


@pytest.mark.parametrize("how", BREAKERS)
def test_a_broken_entry_is_named(how, cache):
    entry(cache, "aa1")
    path = entry(cache, "bb2")
    path.write_bytes(BREAKERS[how](path.read_bytes()))
    check = checks.check_cache()
    assert check.status == "warning"
    assert "Broken: volumes/bb/bb2.npy. They" in check.message


def test_many_broken_entries_and_only_the_newest_are_looked_at(cache, monkeypatch):
    monkeypatch.setattr(checks, "MAXIMUM_ENTRIES", 7)
    for number in range(9):
        entry(cache, f"{number:02}x", age=number).write_bytes(b"")
        os.utime(cache / "volumes" / f"{number:02}" / f"{number:02}x.npy", (1e9 - number, 1e9 - number))
    message = checks.check_cache().message
    assert "00/00x.npy" in message
    assert "04/04x.npy and 2 more" in message


def test_a_cache_that_cannot_be_written(cache):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file")
    check = checks.check_cache()
    assert check.status == "error"
    assert "FONTANEL_CACHE" in check.message


@pytest.mark.parametrize(("free", "status"), [(5 * GB, "ok"), (5 * GB - 1, "warning"), (GB // 2 - 1, "error")])
def test_disk(free, status, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Usage(100 * GB, 0, free))
    check = checks.check_disk(Namespace(output_dir=tmp_path / "new" / "out"))
    assert check.status == status
    assert asked[0] == tmp_path
    assert ("--output-dir" in check.message) is (status != "ok")


@pytest.mark.parametrize(("free", "status"), [(GB, "ok"), (64 * 10**6, "warning")])
def test_shared_memory(free, status, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2 * GB, 0, free))
    check = machine_checks.check_shared_memory()
    assert check.status == status
    assert ("--shm-size=8g" in check.message) is (status == "warning")


def test_no_shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_checks, "SHARED_MEMORY", tmp_path / "absent")
    assert machine_checks.check_shared_memory().status == "not checked"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine of 64 GB, of which 32 are available, whose control groups are files to be written."""
    monkeypatch.setattr(machine_checks, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine_checks, "CGROUP", tmp_path / "cgroup")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\nHugePages_Total: 0\n")

    def write(groups, **limits):
        (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
        for name, limit in limits.items():
            path = tmp_path / "cgroup" / name.replace("__", "/").replace("memory_max", "memory.max")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(limit)

    return write


def test_memory_without_a_limit(system):
    system("0::/user\n", user__memory_max="max\n")
    check = machine_checks.check_memory()
    assert (check.status, check.message) == ("ok", "32.8 GB of 65.5 GB available")


def test_the_lowest_limit_of_the_groups_above_counts(system):
    system("0::/job/step\n", job__memory_max="8000000000\n", job__step__memory_max="max\n")
    assert machine_checks.memory_limit() == 8 * GB
    assert "at most 8.0 GB" in machine_checks.check_memory().message


def test_a_container_sees_its_own_group_at_the_top(system):
    system("0::/docker/abc\n", memory_max="2000000000\n")
    check = machine_checks.check_memory()
    assert check.status == "warning"
    assert "data.num_workers 0" in check.message


def test_control_groups_of_the_first_version(system, tmp_path):
    system("9:cpu:/x\n4:memory:/job\n0::/\n")
    (tmp_path / "cgroup" / "memory" / "job").mkdir(parents=True)
    (tmp_path / "cgroup" / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine_checks.check_memory().message == "32.8 GB of 65.5 GB available"
    (tmp_path / "cgroup" / "memory" / "job" / "memory.limit_in_bytes").write_text("6000000000\n")
    assert machine_checks.memory_limit() == 6 * GB


def test_no_gpu_is_fine(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine_checks, "PROC", tmp_path)
    assert machine_checks.check_devices().message == "none: training runs on the CPU"


VERSIONS = {
    "535.104.05": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC ...",
    "550.54.15": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build  (dvs)",
}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_driver_that_torch_cannot_use(version, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine_checks, "PROC", tmp_path)
    (tmp_path / "driver" / "nvidia").mkdir(parents=True)
    (tmp_path / "driver" / "nvidia" / "version").write_text(VERSIONS[version])
    check = machine_checks.check_devices()
    assert check.status == "warning"
    assert f"driver {version}" in check.message


@pytest.fixture
def gpus(monkeypatch):
    properties = namedtuple("Properties", "name total_memory major minor")("Card 80GB", 80 * GB, 9, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: properties.name)


def test_gpus_are_named(gpus):
    message = machine_checks.check_devices().message
    assert message.startswith("Card 80GB, 80.0 GB, capability 9.0; Card 80GB")
    assert "driver " in message


def test_numerics_of_the_cpu_and_of_each_kind_of_gpu(gpus, monkeypatch):
    asked = []

    def errors(device, dtype, repeats):
        asked.append((str(device), dtype))
        bad = 5.0 if device.type == "cpu" else 0.003
        return {numerics.ConvShape((4, 4, 4)): 0.003, numerics.ConvShape((2, 2, 1), 2): bad}

    monkeypatch.setattr(numerics, "conv3d_errors", errors)
    check = machine_checks.check_numerics()
    assert asked == [("cpu", torch.bfloat16), ("cuda:0", torch.bfloat16), ("cuda:0", torch.float16)]
    assert check.status == "warning"
    assert (
        "bf16 on this CPU gives wrong Conv3d gradients or values for shapes 2x2x1 with stride 2: keep" in check.message
    )
    assert "trainer.precision 32-true" in check.message
    assert "fp16 on Card 80GB computes Conv3d within 0.3% of float32" in check.message


@pytest.mark.parametrize("error", [float("nan"), float("inf"), 0.04])
def test_numerics_that_are_not_a_number_are_wrong(error, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(numerics, "conv3d_errors", lambda *_, **__: {numerics.ConvShape((2, 2, 2)): error})
    assert machine_checks.check_numerics().status == "warning"


def test_a_corrupted_convolution_is_reported(monkeypatch):
    right = torch.nn.functional.conv3d

    def wrong_gradient(image, weight, **options):
        if torch.is_autocast_enabled("cpu") and image.shape[2:] == (2, 3, 3):
            weight = 3 * weight - 2 * weight.detach()
        return right(image, weight, **options)

    monkeypatch.setattr(torch.nn.functional, "conv3d", wrong_gradient)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(numerics, "CHANNELS", (8, 16))
    check = machine_checks.check_numerics()
    assert check.status == "warning"
    assert "2x3x3" in check.message
    assert "8x8x8" not in check.message


def test_packages_are_as_required():
    check = machine_checks.check_packages()
    assert check.status == "ok"
    assert f"torch {torch.__version__.partition('+')[0]}" in check.message


def test_packages_that_are_not_as_required(monkeypatch):
    required = ["torch<2,>=1", "no-such-package>=1", 'only-elsewhere; sys_platform == "win32"', 'more; extra == "x"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: required)
    check = machine_checks.check_packages()
    assert check.status == "error"
    assert f"torch is {torch.__version__.partition('+')[0]}" in check.message
    assert "no-such-package is missing" in check.message
    assert "elsewhere" not in check.message
    assert "more" not in check.message


def test_a_checkout_that_is_not_installed(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    assert machine_checks.check_packages().status == "not checked"

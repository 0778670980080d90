"""The benchmarks still run; their figures mean nothing here."""

import subprocess
import sys

import pytest

TINY = ["--shape", "24", "28", "24"]
SMALL = ["--shape", "32", "36", "32", "--width", "1", "--rounds", "1"]


@pytest.mark.parametrize(
    ("script", "words", "last"),
    [
        pytest.param(
            "overhead",
            ["--rounds", "1", "--steps", "10"],
            "times less than Lightning + MLFlowLogger.",
            marks=pytest.mark.slow,
        ),
        ("road", ["--rounds", "1"], ""),
        pytest.param("data_path", ["--rounds", "1", "--images", "2", *TINY], "HELD", marks=pytest.mark.slow),
        pytest.param("epoch", ["--images", "4", *SMALL], "HELD).", marks=pytest.mark.slow),
        pytest.param("gpu", ["--anyway", "--images", "4", *SMALL], "HELD).", marks=pytest.mark.slow),
        pytest.param("memory", ["--epochs", "3", "--images", "12"], "HELD).", marks=pytest.mark.slow),
        pytest.param("sweep", ["--rounds", "1", "--trials", "8", "--empty", "2"], "of which", marks=pytest.mark.slow),
        pytest.param("settings", ["--rounds", "1", "--repeats", "1", "--threads", "1"], "", marks=pytest.mark.slow),
    ],
)
def test_one_round(script, words, last):
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}.py", *words], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().upper().endswith(last.upper())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_benchmark_of_transfer_ends_with_its_differences(tmp_path):
    sizes = ["--adults", "24", "--train", "10", "--free", "10", "--width", "2"]
    words = ["--folder", str(tmp_path), "--cohorts", "2", "--seeds", "1", "--pretrain-epochs", "1", "--epochs", "1"]
    command = [sys.executable, "benchmarks/transfer.py", *words, *sizes]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("with the factor less without") == 2
    assert "Bayes AUROC" in done.stdout

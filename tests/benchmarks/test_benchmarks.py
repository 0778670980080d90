"""The benchmarks still run; their figures mean nothing here."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("words", "last"),
    [
        (["benchmarks/overhead.py", "--rounds", "1", "--steps", "10"], "times less than Lightning + MLFlowLogger."),
        (["benchmarks/road.py", "--rounds", "1"], ""),
    ],
    ids=["overhead", "road"],
)
def test_one_round(words, last):
    done = subprocess.run([sys.executable, *words], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(last)

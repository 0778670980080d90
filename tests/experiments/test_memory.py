"""What the command line asks of the C library, seen in pages that the system had to zero."""

import json
import os
import platform
import subprocess
import sys

import pytest

PAGES = """
import json, resource, sys
import numpy as np
from experiments.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def churn():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(12_000_000, np.float32)  # more than glibc keeps of itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
churn()
print(json.dumps(churn()))
"""


def pages(*words, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    kept["NUMPY_MADVISE_HUGEPAGE"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", PAGES, *words], env=kept | environment, capture_output=True, encoding="utf-8", check=True
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc is left alone")
def test_freed_memory_is_not_asked_for_again():
    assert pages("plain") > 20_000
    assert pages("keep") < 500


def test_what_the_user_has_set_stays():
    assert pages("keep", MALLOC_TRIM_THRESHOLD_="131072") > 20_000

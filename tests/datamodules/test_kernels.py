"""The machine code of the augmentation is the same in every process."""

import os
import subprocess
import sys


def test_the_first_process_of_a_machine_computes_what_later_ones_do(tmp_path):
    program = """
import hashlib, numpy as np, torch
from datamodules.fused import augment_volume
from datamodules.geometry import Warp
from datamodules.intensity import Intensity
channel, out = torch.rand(20, 20, 20, generator=torch.Generator().manual_seed(0)), torch.empty(20, 20, 20)
intensity = Intensity(blur=0.6, gamma=1.2, noise=0.05, noise_seed=5)
augment_volume(channel, Warp(np.diag([1.02, 0.97, 1.0]), np.zeros(3)), intensity, out)
print(hashlib.sha256(out.numpy().tobytes()).hexdigest())
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, encoding="utf-8"
        )

    first = [start(), start()]
    said = {process.communicate()[0] for process in first} | {start().communicate()[0]}
    assert len(said) == 1
    assert len(said.pop()) == 65

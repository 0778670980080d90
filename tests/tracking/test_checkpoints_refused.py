import io
import os
import pickle
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tracking.checkpoints import AtomicCheckpointIO, CheckpointError, load_checkpoint, save_checkpoint


@pytest.mark.parametrize(
    "url", ["http://host/a.ckpt", "https://host/a.ckpt", "s3://b/a.ckpt", "file:///a.ckpt", "hf://a/b"]
)
def test_urls_are_refused(url: str) -> None:
    for reference in (url, Path(url)):
        with pytest.raises(CheckpointError, match="is a URL"):
            AtomicCheckpointIO().load_checkpoint(reference)
        with pytest.raises(CheckpointError, match="is a URL"):
            AtomicCheckpointIO().save_checkpoint({"epoch": 3}, reference)


class Payload:
    """An object whose unpickling makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.proof}",)


def zipped(payload: object) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {}, "x": payload}, buffer)
    return buffer.getvalue()


def legacy(payload: object) -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": payload}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("form", [zipped, legacy, pickle.dumps, partial(pickle.dumps, protocol=0)])
@pytest.mark.parametrize("variable", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_pickles_are_never_executed(
    form, variable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    target, proof = tmp_path / "evil.ckpt", tmp_path / "proof"
    target.write_bytes(form(Payload(proof)))
    with pytest.raises(CheckpointError):
        load_checkpoint(target)
    with pytest.raises(CheckpointError, match="weights_only=True"):
        AtomicCheckpointIO().load_checkpoint(target, weights_only=False)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Payload(proof)))
    assert proof.exists(), "the payload would have worked"


UNLOADABLE = [
    Path("a"),
    np.float32(1.5),
    np.arange(3),
    partial(max, 1),
    Fraction(1, 3),
    CheckpointError,
    range(3),
    np.dtype("f4"),
]


@pytest.mark.parametrize("value", [*UNLOADABLE, lambda: 0, open])
def test_what_could_not_be_loaded_again_is_not_saved(value: object, tmp_path: Path) -> None:
    path = tmp_path / "run" / "best.ckpt"
    save_checkpoint({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"hyper_parameters\.model\.1"):
        save_checkpoint({"epoch": 4, "hyper_parameters": {"model": ["fine", value]}}, path)
    assert load_checkpoint(path)["epoch"] == 3
    assert len(list(path.parent.iterdir())) == 2

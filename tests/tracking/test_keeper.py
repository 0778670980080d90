"""Which checkpoints a training keeps."""

import math
import time

import pytest
from pytorch_lightning import Callback

from tracking.checkpoints import load_checkpoint
from tracking.contract import newest_whole, read_contract

NAN = float("nan")


def step_of(path) -> int:
    return int(load_checkpoint(path)["global_step"])


def test_the_two_newest_and_the_best_are_kept(training) -> None:
    training.fit(epochs=4, scores=[3, 1, 2, 4])
    assert training.names() == ["best.ckpt", "step-00000012.ckpt", "step-00000016.ckpt"]
    assert [step_of(training.folder / name) for name in training.names()] == [8, 12, 16]
    assert [read_contract(training.folder / name).finished for name in training.names()] == [False, False, True]


@pytest.mark.parametrize(
    ("mode", "scores", "best"),
    [
        ("min", [3, 1, 2], 8),
        ("max", [3, 1, 2], 4),
        ("min", [2, 2, 2], 4),
        ("min", [NAN, 2, NAN], 8),
        ("max", [NAN, 2, NAN], 8),
        ("max", [math.inf, 1, 2], 12),
        ("min", [NAN, NAN, NAN], 12),
    ],
)
def test_the_best_validation_is_kept(mode: str, scores: list[float], best: int, training) -> None:
    training.fit(epochs=3, mode=mode, scores=scores)
    assert step_of(training.folder / "best.ckpt") == best
    finite = [score for score in scores if math.isfinite(score)]
    assert training.keeper.best_score == ((min if mode == "min" else max)(finite) if finite else None)


def test_without_a_validation_the_last_is_the_best(training) -> None:
    training.fit(epochs=2, validate=False)
    assert training.names() == ["best.ckpt", "step-00000004.ckpt", "step-00000008.ckpt"]
    assert step_of(training.folder / "best.ckpt") == 8


def test_a_resumed_training_remembers_the_best(training, resume) -> None:
    training.fit(epochs=2, scores=[1, 2])
    training.logger.close("FAILED")
    again = resume(training)
    again.fit(epochs=3, scores=[1, 2, 1.5], ckpt_path=training.folder / "step-00000008.ckpt")
    assert step_of(training.folder / "best.ckpt") == 4
    assert again.names() == ["best.ckpt", "step-00000008.ckpt", "step-00000012.ckpt"]


def test_checkpoints_of_later_steps_go_with_the_first_save(training, resume) -> None:
    training.fit(epochs=3)
    training.logger.close("FAILED")
    (training.folder / "step-00000012.ckpt").write_bytes(b"damaged")
    path, _, problems = newest_whole(training.logger.folder)
    assert (path.name, len(problems)) == ("step-00000008.ckpt", 1)
    again = resume(training)
    seen = []

    def look(module, loss):
        seen.append(again.names())
        return loss

    again.fit(epochs=3, ckpt_path=path, trouble=look)
    assert seen[0] == ["best.ckpt", "step-00000008.ckpt"]
    assert again.names() == ["best.ckpt", "step-00000008.ckpt", "step-00000012.ckpt"]
    assert newest_whole(training.logger.folder)[0].name == "step-00000012.ckpt"


class Places(Callback):
    """Writes down before which batch of its epoch each checkpoint is saved."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        self.found.append(trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1)


@pytest.mark.parametrize(("accumulated", "expected"), [(1, [0, 1, 2, 3]), (2, [0, 2]), (3, [0, 3]), (5, [0])])
def test_no_checkpoint_amid_accumulated_batches(accumulated: int, expected, training, monkeypatch) -> None:
    monkeypatch.setattr("tracking.keeper.INTERVAL", -1.0)  # always due
    places = Places()
    training.fit(epochs=1, validate=False, callbacks=[places], accumulate_grad_batches=accumulated)
    assert places.found[: len(expected)] == expected
    assert len(places.found) == len(expected) + 2, "and the end, which is the best, too"


def test_a_checkpoint_is_due_after_a_while(training, monkeypatch) -> None:
    monkeypatch.setattr("tracking.keeper.INTERVAL", 0.2)
    places = Places()

    def dawdle(module, loss):
        time.sleep(0.3 if module.global_step == 1 else 0)
        return loss

    training.fit(epochs=1, validate=False, callbacks=[places], trouble=dawdle)
    assert places.found[:2] == [0, 2]

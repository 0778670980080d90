"""A training whose loss or weights are no numbers any more stops, and saves nothing of it."""

import math

import pytest
import torch

from tracking.checkpoints import load_checkpoint
from tracking.keeper import NotFiniteError
from tracking.store import Store

NAN = float("nan")


def assert_finite(value: object) -> None:
    if isinstance(value, torch.Tensor):
        assert torch.isfinite(value).all()
    elif isinstance(value, dict):
        for item in value.values():
            assert_finite(item)
    elif isinstance(value, list | tuple):
        for item in value:
            assert_finite(item)


def assert_failed_and_finite(training, store: Store) -> None:
    assert training.logger.close("FAILED")
    assert store.client.get_run(training.logger.run_id).info.status == "FAILED"
    paths = [training.folder / name for name in training.names()]
    assert paths
    for path in paths:
        loaded = load_checkpoint(path)
        for key in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert_finite(loaded[key])


@pytest.mark.parametrize("bad", [NAN, math.inf])
@pytest.mark.parametrize("step", [0, 1, 3, 5, 7])
def test_a_loss_that_is_no_number_stops_within_one_step(step: int, bad: float, training, store: Store) -> None:
    def spoil(module, loss):
        return loss * bad if module.global_step == step else loss

    with pytest.raises(
        NotFiniteError, match=rf"The loss stopped being finite at step {step + 1} .*clip gradients"
    ) as caught:
        training.fit(epochs=2, trouble=spoil)
    assert training.trainer.global_step == step + 1
    assert f"The last good checkpoint is step-0000000{step // 4 * 4}.ckpt" in str(caught.value)
    assert_failed_and_finite(training, store)


@pytest.mark.parametrize("first", [True, False])
def test_a_bad_loss_among_accumulated_ones_is_noticed(first: bool, training, store: Store) -> None:
    count = 0

    def spoil(module, loss):
        nonlocal count
        count += 1
        return loss * NAN if count == (3 if first else 4) else loss

    with pytest.raises(NotFiniteError):
        training.fit(epochs=2, validate=False, trouble=spoil, accumulate_grad_batches=2)
    assert training.trainer.global_step == 2
    assert_failed_and_finite(training, store)


@pytest.mark.parametrize("what", ["weight", "buffer"])
@pytest.mark.parametrize("step", [1, 6])
def test_weights_that_are_no_numbers_are_not_saved(what: str, step: int, training, store: Store) -> None:
    def spoil(module, loss):
        if module.global_step == step:
            module.seen.fill_(NAN) if what == "buffer" else module.layer.bias.data.fill_(-math.inf)
        return loss.nan_to_num(0.0, 0.0, 0.0)

    with pytest.raises(NotFiniteError, match=r"The weights stopped being finite"):
        training.fit(epochs=3, trouble=spoil)
    assert training.trainer.global_step == (step // 4 + 1) * 4
    assert_failed_and_finite(training, store)

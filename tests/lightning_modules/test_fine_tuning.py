"""Transfers through a Trainer: what is frozen when, and the watch over it."""

from functools import partial

import pytest
import torch
from pytorch_lightning import Callback
from torch.utils.data import DataLoader

from lightning_modules.ledger import TransferError, TransferWarning
from lightning_modules.regression import RegressionModule
from lightning_modules.transfer import Transfer

AGES = [5.0, 12.0, 18.0, 25.0, 33.0, 40.0, 48.0, 60.0]
BLOCKS = ("first", "second")


def same(one: dict, other: dict, beginning: str = "") -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items() if name.startswith(beginning))


@pytest.mark.parametrize(
    ("strategy", "trained"),
    [
        ("full", [["first", "second"]] * 4),
        ("frozen", [[]] * 4),
        ("linear-probe", [[], [], ["first", "second"], ["first", "second"]]),
        ("gradual", [[], ["second"], ["first", "second"], ["first", "second"]]),
        ("discriminative", [["first", "second"]] * 4),
        ("l2-sp", [["first", "second"]] * 4),
    ],
)
def test_blocks_are_trained_in_their_epochs_and_rest_in_the_others(
    make_transfer, make_trainer, fake_data, diary, strategy, trained
):
    diary = diary()
    module = make_transfer(strategy, probe_epochs=2)
    trainer = make_trainer(max_epochs=4, callbacks=[diary])
    trainer.fit(module, datamodule=fake_data(AGES, batch_size=4))  # two batches, and a validation, an epoch
    assert diary.trained == diary.training == [names for names in trained for _ in range(2)]
    after = {name: value.clone() for name, value in module.network.state_dict().items()}
    for batch, (old, new) in enumerate(zip(diary.weights, [*diary.weights[1:], after], strict=True)):
        for name in BLOCKS:  # weights and running statistics alike
            assert same(old, new, name) == (name not in diary.trained[batch])
        assert not same(old, new, "head.weight")


def test_kept_statistics_stay_while_their_block_is_trained(make_transfer, make_trainer, fake_data):
    module = make_transfer(batch_norm="keep")
    before = {name: value.clone() for name, value in module.network.state_dict().items()}
    make_trainer(max_epochs=1).fit(module, datamodule=fake_data(AGES, batch_size=4))
    after = module.network.state_dict()
    assert not torch.equal(before["first.1.weight"], after["first.1.weight"])
    assert same({name: value for name, value in before.items() if "running" in name}, after)
    assert not module.network.first[1].training
    assert module.network.first[3].training


def test_training_without_its_weights_is_refused(make_transfer, make_trainer, fake_data):
    with pytest.raises(TransferError, match=r"is to start from .*source\.pt, and its weights were not loaded"):
        make_trainer(max_epochs=1).fit(make_transfer(load=False), datamodule=fake_data(AGES))


def test_transfers_that_do_not_do_what_they_seem_to_are_pointed_out(
    make_transfer, make_trainer, fake_data, staged_encoder, adam
):
    data = fake_data(AGES, batch_size=4)
    with pytest.warns(TransferWarning, match="2 epochs, transfer.strategy gradual never trains 1 of the 2 blocks"):
        make_trainer(max_epochs=2).fit(make_transfer("gradual"), datamodule=data)
    module = RegressionModule(staged_encoder(), adam, transfer=Transfer(strategy="frozen"))
    with pytest.warns(TransferWarning, match="no source: the training starts from scratch"):
        make_trainer(max_epochs=1).fit(module, datamodule=data)
    assert all(value.requires_grad for value in module.parameters())


class Meddler(Callback):
    """Change a weight or a mode behind the optimizer's back."""

    def __init__(self, place, change):
        setattr(self, place, lambda trainer, module, *batch: change(module.network))


@pytest.mark.parametrize(
    ("strategy", "place", "change", "message"),
    [
        (
            "frozen",
            "on_train_batch_start",
            lambda network: network.first[0].weight.data.add_(1e-6),
            "1 tensors of the network changed though frozen: first.0.weight",
        ),
        (
            "frozen",
            "on_train_batch_start",
            lambda network: network.second[1].train(),
            "3 tensors of the network changed though frozen: second.1.num_batches_tracked, second.1.running_mean",
        ),
        (
            "full",
            "on_train_batch_end",
            lambda network: network.first[1].weight.data.fill_(1.0),
            "1 tensors of the network did not change though trained.*: first.1.weight",
        ),
    ],
)
def test_first_steps_show_what_was_not_configured(
    make_transfer, make_trainer, fake_data, strategy, place, change, message
):
    trainer = make_trainer(max_epochs=2, callbacks=[Meddler(place, change)])
    with pytest.raises(TransferError, match=message):
        trainer.fit(make_transfer(strategy), datamodule=fake_data(AGES, batch_size=4))


def test_biases_before_normalisation_and_zero_rates_are_no_fault(source, staged_encoder, make_trainer, fake_data):
    warm_up = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: float(epoch > 0))
    for scheduler in (None, warm_up):
        network = staged_encoder()
        module = RegressionModule(network, partial(torch.optim.SGD, lr=1e-4), scheduler, transfer=Transfer(source))
        module.load_pretrained(source)
        before = network.first[0].bias.detach().clone()
        make_trainer(max_epochs=1).fit(module, datamodule=fake_data(AGES, batch_size=2))
        assert torch.equal(network.first[0].bias, before)
        assert module._first_steps is None


@pytest.mark.filterwarnings("ignore:.*never trains 1 of the 2 blocks")
@pytest.mark.parametrize(("strategy", "batch_norm"), [("gradual", "keep"), ("frozen", "recalibrate")])
def test_two_processes_train_as_one(make_transfer, make_trainer, fake_data, strategy, batch_norm):
    """Two epochs: in the second the block without dropout is trained, whose gradients all processes must share."""
    alone, together = (make_transfer(strategy, batch_norm=batch_norm) for _ in range(2))
    data = fake_data(AGES, batch_size=4)
    make_trainer(max_epochs=2, limit_val_batches=0).fit(alone, datamodule=data)

    def share_of_this_process():
        return DataLoader(data.samples()[torch.distributed.get_rank() :: 2], batch_size=2)

    data.train_dataloader = share_of_this_process
    options = {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}
    make_trainer(max_epochs=2, limit_val_batches=0, **options).fit(together, datamodule=data)
    source = make_transfer().network.state_dict()
    for name, value in alone.network.state_dict().items():
        if strategy == "gradual" or name.startswith("first"):  # deeper statistics depend on the batches before
            torch.testing.assert_close(together.network.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert same(source, alone.network.state_dict(), "first") == (strategy == "gradual")
    assert same(source, alone.network.state_dict(), "second.0") == (strategy == "frozen")

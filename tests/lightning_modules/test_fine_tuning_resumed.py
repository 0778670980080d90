"""A transfer that was stopped, at the start or in the middle of an epoch, goes on as if it never had been."""

from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback
from torch.utils.data import DataLoader

from lightning_modules.ledger import TransferError
from lightning_modules.transfer import Transfer
from tracking.checkpoints import AtomicCheckpointIO, load_checkpoint
from tracking.contract import CheckpointContract
from tracking.interruption import Interrupted
from tracking.keeper import CheckpointKeeper

AGES = [5.0, 12.0, 18.0, 25.0, 33.0, 40.0, 48.0, 60.0]
BLOCKS = ("first", "second")


class Loader(DataLoader):
    """A loader that can begin in the middle of an epoch."""

    start = 0

    def __iter__(self):
        batches = islice(super().__iter__(), self.start, None)
        self.start = 0
        return batches

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Stop(Callback):
    """Ask to stop before a step."""

    def __init__(self, keeper, step):
        self.keeper, self.step = keeper, step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.keeper.stop.requested = trainer.global_step == self.step


@pytest.fixture
def fit(make_trainer, fake_data, tmp_path):
    """Train for two epochs of two steps, or up to the given step, from the newest checkpoint there is."""

    def run(module, diary, stop=None, resume=False):
        data = fake_data(AGES, batch_size=4)
        folder = tmp_path / "checkpoints"
        logger = SimpleNamespace(checkpoint=lambda: 0, release=lambda offset: None)
        keeper = CheckpointKeeper(folder, CheckpointContract("", "run", "", "", {}), logger, "val/mae", "min")
        trainer = make_trainer(
            max_epochs=3, callbacks=[diary, Stop(keeper, stop), keeper], plugins=AtomicCheckpointIO()
        )

        def train_dataloader():
            loader = Loader(data.samples(), batch_size=4)
            loop = trainer.fit_loop
            loader.start = loop.epoch_loop.batch_progress.current.completed if loop.restarting else 0
            return loader

        data.train_dataloader = train_dataloader
        newest = max(folder.glob("step-*.ckpt")) if resume else None
        trainer.fit(module, datamodule=data, ckpt_path=newest, weights_only=True)

    return run


def same(one: dict, other: dict, beginning: str = "") -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items() if name.startswith(beginning))


@pytest.mark.parametrize(
    ("strategy", "stop"),
    [
        *(("frozen", 1), ("frozen", 3), ("linear-probe", 1), ("linear-probe", 3)),
        *(("gradual", 2), ("gradual", 3), ("discriminative", 1), ("l2-sp", 3)),
    ],
)
def test_resumed_training_is_the_same_training(make_transfer, diary, fit, strategy, stop):
    """Steps 1 and 3 are in the middle of an epoch, where Lightning begins none."""
    options = {"probe_epochs": 1, "batch_norm": "recalibrate"}
    whole, rest = diary(), diary()
    straight = make_transfer(strategy, **options)
    fit(straight, whole)
    with pytest.raises(Interrupted):
        fit(make_transfer(strategy, **options), diary(), stop)
    resumed = make_transfer(strategy, load=False, **options)
    fit(resumed, rest, resume=True)
    assert rest.trained == rest.training == whole.trained[stop:]
    assert same(straight.state_dict(), resumed.state_dict())
    assert same(whole.weights[stop], rest.weights[0])
    if strategy == "frozen":
        assert all(same(whole.weights[0], resumed.network.state_dict(), block) for block in BLOCKS)
    assert resumed.transfer_record == straight.transfer_record == straight.ledger.as_dict()


def test_starting_point_is_in_the_checkpoint_and_needed_to_go_on(make_transfer, diary, fit, tmp_path):
    for strategy in ("l2-sp", "full"):
        module = make_transfer(strategy)
        start = {name: value.clone() for name, value in module.network.named_parameters()}
        with pytest.raises(Interrupted):
            fit(module, diary(), stop=3)
        checkpoint = load_checkpoint(max((tmp_path / "checkpoints").glob("step-*.ckpt")))
        kept = checkpoint["transfer"]["starting_point"]
        assert same(kept, start)
        assert set(kept) == {name for name in start if strategy == "l2-sp" and not name.startswith("head")}
        assert not [name for name in checkpoint["state_dict"] if "start" in name]
        assert checkpoint["transfer"]["ledger"]["share"] == 1
    resumed = make_transfer("l2-sp", load=False)
    with pytest.raises(TransferError, match="has no starting point"):
        fit(resumed, diary(), resume=True)


def test_evaluation_needs_neither_source_nor_ledger(make_transfer, make_trainer, fake_data, diary, fit, tmp_path):
    module = make_transfer("l2-sp")
    fit(module, diary())
    restored = make_transfer("l2-sp", load=False)
    restored.transfer = Transfer(str(tmp_path / "gone.pt"), "l2-sp")
    checkpoint = {"ckpt_path": tmp_path / "checkpoints" / "best.ckpt", "weights_only": True}
    (results,) = make_trainer().test(restored, datamodule=fake_data(AGES), verbose=False, **checkpoint)
    assert results["test/mae"] > 0
    assert restored.starting_point == {}

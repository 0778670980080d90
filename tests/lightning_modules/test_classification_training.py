"""What may go wrong while a ClassificationModule trains: few labels, one class, a stop, processes, precision."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from evaluation.operating_point import choose_threshold
from lightning_modules.classification import TrainingLabels
from lightning_modules.networks import ModelError
from lightning_modules.operating_point import OperatingPointWarning
from tracking.checkpoints import AtomicCheckpointIO, load_checkpoint
from tracking.contract import BEST, CheckpointContract
from tracking.keeper import CheckpointKeeper

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
few = pytest.mark.filterwarnings("ignore:7 validation participants choose the threshold and")
SEVERITY = [5.0, 12.0, 18.0, 25.0, 33.0, 40.0, 48.0, 60.0]
DEATH = [0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0]


@pytest.fixture
def make_data(fake_data):
    """Trains on deaths, and validates on the labels given."""

    def make(validation=DEATH, training=DEATH):
        data = fake_data(SEVERITY)

        def part(labels, **options):
            samples = zip(data.samples(), labels, strict=True)
            return DataLoader([sample | {"target": {"outcome": torch.tensor(y)}} for sample, y in samples], **options)

        data.train_dataloader = lambda: part(training, batch_size=3)
        data.val_dataloader = lambda: part(validation, batch_size=4)
        data.target_values = lambda name: torch.tensor({"outcome": training}[name])
        return data

    return make


@pytest.fixture
def keeper(tmp_path):
    journal = SimpleNamespace(checkpoint=lambda: 0, release=lambda offset: None)
    contract = CheckpointContract("", "run", "study", "name", {}, [], {})
    return CheckpointKeeper(tmp_path, contract, journal, "val/auroc", "max")


def test_validation_of_one_class_is_said_and_survived(make_classifier, make_trainer, make_data, keeper, tmp_path):
    module = make_classifier()
    trainer = make_trainer(max_epochs=2, callbacks=[keeper], plugins=[AtomicCheckpointIO()])
    with pytest.warns(OperatingPointWarning, match="do not hold both classes of outcome") as caught:
        trainer.fit(module, datamodule=make_data(validation=[1.0] * 8))
    assert [warning.category for warning in caught].count(OperatingPointWarning) == 1  # not at every epoch
    assert trainer.callback_metrics["val/auroc"].isnan()
    assert trainer.callback_metrics["val/sensitivity"].isfinite()
    best = load_checkpoint(tmp_path / BEST)  # the last, for no validation chose one
    assert best["global_step"] == 6
    assert best["state_dict"]["operating_point.threshold"].tolist() == [0.5]
    assert module.describe_outputs()["outcome"]["reason"].startswith("labelled validation rows held one class")


def test_best_checkpoint_holds_the_operating_point_of_its_own_rows(
    make_classifier, make_trainer, make_data, keeper, tmp_path
):
    module = make_classifier(temperature=1.0)
    trainer = make_trainer(max_epochs=3, callbacks=[keeper], plugins=[AtomicCheckpointIO()])
    with pytest.warns(OperatingPointWarning, match="7 validation participants choose the threshold of outcome;"):
        trainer.fit(module, datamodule=make_data())
    weights = load_checkpoint(tmp_path / BEST)["state_dict"]
    module.load_state_dict(weights)
    (results,) = trainer.validate(module, datamodule=make_data(), verbose=False)
    assert results["val/auroc"] == keeper.best_score
    units = module.take_predictions().groupby("participant_id")[["target", "prediction"]].mean()
    expected = choose_threshold(units["target"], units["prediction"])
    assert weights["operating_point.threshold"].item() == pytest.approx(expected, rel=1e-6)


@few
def test_resumed_training_is_identical(make_classifier, make_trainer, make_data, tmp_path):
    whole, first, second = (make_classifier(class_weighting="balanced", label_smoothing=0.1) for _ in range(3))
    make_trainer(max_epochs=3).fit(whole, datamodule=make_data())
    trainer = make_trainer(max_epochs=2)
    trainer.fit(first, datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    trainer = make_trainer(max_epochs=3)
    trainer.fit(second, datamodule=make_data(), ckpt_path=tmp_path / "two.ckpt", weights_only=False)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())
    assert not torch.equal(first.operating_point.threshold, second.operating_point.threshold)


@few
def test_two_processes_choose_what_one_would(make_classifier, make_trainer, make_data):
    alone, together = (make_classifier(optimizer=lambda p: torch.optim.SGD(p, lr=0.0)) for _ in range(2))
    make_trainer(max_epochs=1).fit(alone, datamodule=make_data())
    data = make_data()
    whole = data.val_dataloader

    def share_of_this_process():
        return DataLoader(list(whole().dataset)[torch.distributed.get_rank() :: 2], batch_size=3)

    data.val_dataloader = share_of_this_process
    trainer = make_trainer(max_epochs=1, strategy="ddp_fork", devices=2, use_distributed_sampler=False)
    trainer.fit(together, datamodule=data)
    assert alone.operating_point.threshold.item() != 0.5
    for name, value in alone.operating_point.state_dict().items():
        torch.testing.assert_close(together.operating_point.state_dict()[name], value)


def test_batches_without_labels_train_nothing_and_break_nothing(make_classifier, make_trainer, make_data):
    module = make_classifier(threshold=0.4, temperature=2.0)  # nothing to choose, nothing to warn of
    before = {name: value.clone() for name, value in module.network.state_dict().items()}
    trainer = make_trainer(max_epochs=1, limit_train_batches=1)
    data = make_data(training=[float("nan")] * 3 + DEATH[3:])
    trainer.fit(module, datamodule=data)
    assert all(torch.equal(value, before[name]) for name, value in module.network.state_dict().items())
    rows = module.take_predictions()
    odds = np.log(rows["score_1"] / rows["score_0"])
    assert rows["prediction"].tolist() == pytest.approx((1 / (1 + np.exp(-odds / 2))).tolist())
    assert rows["threshold"].tolist() == pytest.approx([0.4] * 8)


def test_losses_stay_in_single_precision_and_certain_scores_stay_apart(make_classifier, make_data):
    module = make_classifier()
    batch = next(iter(make_data().val_dataloader()))
    with torch.autocast("cpu", torch.bfloat16):
        assert module.step(batch, "train").loss.dtype == torch.float32
        assert module.step(batch, "train").rows == {}
    half = make_classifier()
    half.network.bfloat16()
    output = half.step(batch | {"image": batch["image"].bfloat16()}, "val")
    assert (output.loss.dtype, output.rows["outcome"]["prediction"].dtype) == (torch.float32, torch.float64)
    with torch.no_grad():
        module.network.head.bias += 20  # the sigmoid is 1 in single precision
    rows = module.step(batch, "val").rows["outcome"]
    assert rows["prediction"].unique().tolist() == sorted(rows["prediction"].tolist())
    assert rows["prediction"].max() < 1


@dataclass
class Case:
    options: dict
    message: str
    training: tuple = tuple(DEATH)


@pytest.mark.parametrize(
    "case",
    [
        Case({"targets": ["a", "a"]}, "name one target or several different ones"),
        Case({"targets": ["outcome", "gcs"]}, r"monitor 'val/auroc' is not measured.*val/outcome/auroc"),
        Case({"monitor": "val/auc"}, r"choose one of val/loss, val/auroc"),
        Case({"monitor": "val/loss"}, "would keep the worst val/loss; set it to min"),
        Case({"monitor_mode": "min"}, "would keep the worst val/auroc; set it to max"),
        Case({"label_smoothing": 1.0}, "label_smoothing is 1"),
        Case({"class_weighting": [1.0, 2.0]}, "one positive number per target"),
        Case({"class_weighting": [-1.0]}, "one positive number per target"),
        Case({"targets": "gcs"}, "the datamodule reads no target 'gcs'"),
        Case({}, r"8 of 8 training labels of 'outcome' are 1", (1.0,) * 8),
        Case({}, r"2 of 8 training labels of 'outcome' are neither 0 nor 1 \(3, 15\)", (*DEATH[:6], 3.0, 15.0)),
    ],
)
def test_settings_and_labels_that_do_not_work_are_refused(make_classifier, make_trainer, make_data, case):
    with pytest.raises(ModelError, match=case.message):
        make_trainer(max_steps=1).fit(make_classifier(**case.options), datamodule=make_data(training=case.training))


def test_untrained_module_and_fit_without_datamodule_are_refused(make_classifier, make_trainer, make_data):
    with pytest.raises(ModelError, match="neither trained nor loaded from a checkpoint"):
        make_trainer().validate(make_classifier(), datamodule=make_data(), verbose=False)
    data = make_data()
    with pytest.raises(ModelError, match="got no datamodule with `target_values`"):
        make_trainer(max_steps=1).fit(make_classifier(), data.train_dataloader(), data.val_dataloader())
    assert not TrainingLabels(2).is_fitted

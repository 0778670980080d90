"""RegressionModule through a stock Trainer: it learns, in the target's unit, and runs from a checkpoint alone."""

import numpy as np
import pandas as pd
import pytest
import torch

from lightning_modules.networks import ModelError
from lightning_modules.networks.heads import SoftBinsConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
AGES = [5.0, 12.0, 18.0, 25.0, 33.0, 40.0, 48.0, 60.0]
NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "transform", "limit"),
    [
        ({"loss": "l1"}, "identity", 2),
        ({"loss": "huber"}, "log", 9),  # the network is linear, and brightness is linear in age, not in its logarithm
        ({"head": "soft_bins", "bins": SoftBinsConfig(0, 80, 4, 4)}, "identity", 3),
    ],
)
def test_overfits_eight_images_in_the_unit_of_the_target(
    make_module, make_trainer, fake_data, options, transform, limit
):
    data = fake_data(AGES, batch_size=8)
    data.target_transform = transform
    # The rate falls to zero, so that the last steps of the L1 loss do not hop around the optimum.
    module = make_module(**options, scheduler=lambda adam: torch.optim.lr_scheduler.CosineAnnealingLR(adam, 150))
    trainer = make_trainer(max_epochs=150, check_val_every_n_epoch=150, num_sanity_val_steps=0)
    trainer.fit(module, datamodule=data)
    metrics = trainer.callback_metrics
    assert metrics["val/mae"] < limit  # predicting the mean misses by 14.9 years
    assert metrics["val/pearson_r"] > 0.9
    assert {"train/loss", "val/loss", "val/rmse", "val/r2"} <= metrics.keys()
    with torch.no_grad():
        ages = module.eval()(torch.stack([sample["image"] for sample in data.samples()]))
    rows = module.take_predictions()
    assert ages.tolist() == pytest.approx(rows["prediction"].tolist(), abs=1e-3)
    assert rows["target"].tolist() == AGES
    assert rows["baseline"].tolist() == pytest.approx([np.mean(AGES)] * 8)


def test_test_and_predict_need_the_checkpoint_only(make_module, make_trainer, fake_data, tmp_path):
    module = make_module()
    data = fake_data(AGES)
    data.target_transform = "log"
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    restored = make_module(log_shift=0.0)
    trainer = make_trainer()
    checkpoint = {"ckpt_path": tmp_path / "last.ckpt", "weights_only": True}
    (results,) = trainer.test(restored, dataloaders=data.loader(), verbose=False, **checkpoint)
    tested = restored.take_predictions()
    mae = (
        tested.groupby("participant_id")["prediction"].mean() - tested.groupby("participant_id")["target"].mean()
    ).abs()
    assert results["test/mae"] == pytest.approx(mae.mean(), rel=1e-5)
    (batch, *_) = trainer.predict(restored, dataloaders=fake_data(AGES, is_labelled=False).loader())
    predicted = restored.take_predictions()
    assert batch["age"].tolist() == predicted["prediction"].tolist()[:3]
    assert predicted["target"].isna().all()
    pd.testing.assert_frame_equal(predicted.drop(columns="target"), tested.drop(columns="target"))


def test_module_without_training_has_no_unit(make_module, make_trainer, fake_data):
    with pytest.raises(ModelError, match="neither trained nor loaded from a checkpoint"):
        make_trainer().predict(make_module(), dataloaders=fake_data(AGES).loader())


def test_unlabelled_images_are_predicted_and_change_no_weight(make_module, make_trainer, fake_data):
    module = make_module(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    data = fake_data([*AGES[:3], NAN, NAN, NAN])
    make_trainer(max_steps=1, limit_val_batches=0).fit(module, datamodule=data)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    _, unlabelled = data.loader()
    optimizer = module.configure_optimizers()
    optimizer.zero_grad()
    output = module.step(unlabelled, "train")
    output.loss.backward()
    optimizer.step()
    assert (output.loss.item(), output.num_labelled.item()) == (0, 0)
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    trainer = make_trainer()
    trainer.validate(module, datamodule=data, verbose=False)
    assert len(module.take_predictions()) == 6


def test_loss_of_an_epoch_is_the_mean_over_labels(make_module, make_trainer, fake_data):
    module = make_module()
    data = fake_data([*AGES[:5], NAN, NAN, 60.0])
    make_trainer(max_epochs=1).fit(module, datamodule=data)
    trainer = make_trainer()
    (results,) = trainer.validate(module, datamodule=data, verbose=False)
    rows = module.take_predictions().dropna(subset="target")
    errors = (rows["prediction"] - rows["target"]).abs() / module.scaling.sd.item()
    assert results["val/loss"] == pytest.approx(errors.mean(), rel=1e-4)
    with pytest.raises(ModelError, match="none of the 3 val rows has a target"):
        trainer.validate(module, dataloaders=fake_data([NAN] * 3).loader())


@pytest.mark.parametrize(
    ("options", "transform", "message"),
    [
        ({"head": "soft_bins"}, "log", "soft_bins.*target_transform='log'; set target_transform identity"),
        ({"head": "soft_bins", "bins": SoftBinsConfig(0, 40)}, "identity", "2 training targets lie outside the bins"),
        ({"target": "gcs"}, "identity", "no target 'gcs' .it has: age"),
    ],
)
def test_settings_that_do_not_fit_the_cohort_are_refused(
    make_module, make_trainer, fake_data, options, transform, message
):
    data = fake_data(AGES)
    data.target_transform = transform
    data.target_values = lambda name: data.targets
    with pytest.raises(ModelError, match=message):
        make_trainer(max_steps=1).fit(make_module(**options), datamodule=data)


def test_fit_without_a_datamodule_is_refused(make_module, make_trainer, fake_data):
    with pytest.raises(ModelError, match="target_values"):
        make_trainer(max_steps=1).fit(make_module(), fake_data(AGES).loader(), fake_data(AGES).loader())

"""What every task shares: rows, optimizer groups, schedulers, and gathering over processes."""

from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_modules.base import BaseModule, StepOutput
from lightning_modules.regression import RegressionModule

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")


class TwoClasses(BaseModule):
    """Scores of three levels, as a classification has them."""

    def __init__(self, network, optimizer, **options):
        super().__init__(network, optimizer, **options)
        network.reset_head(3)
        self.configure_losses()
        self.configure_metrics()

    def configure_losses(self):
        self.loss = torch.nn.MSELoss()

    def configure_metrics(self):
        self.metrics = {"level": lambda target, prediction: {"count": float(len(target))}}

    def describe_outputs(self):
        return {"level": {"kind": "multiclass"}}

    def forward(self, image):
        return self.network(image)

    def step(self, batch, stage):
        scores = self.network(batch["image"]).softmax(dim=1)
        target = batch["target"]["age"]
        rows = {"target": target, "prediction": scores[:, 2], "scores": scores, "baseline": torch.zeros(len(target))}
        return StepOutput(self.loss(scores[:, 2], target), torch.tensor(len(target)), {"level": rows})


def test_rows_carry_identity_and_scores_and_are_taken_once(tiny_encoder, make_trainer, fake_data, adam):
    module = TwoClasses(tiny_encoder(), adam)
    data = fake_data([1.0, 0.0, 2.0, 1.0])
    trainer = make_trainer()
    trainer.validate(module, datamodule=data, verbose=False)
    (results,) = trainer.validate(module, datamodule=data, verbose=False)
    assert results["val/count"] == 3  # four images of three participants
    rows = module.take_predictions()
    assert list(rows.columns) == [
        *("dataset", "participant_id", "session_id", "image_id", "site", "output", "target", "prediction"),
        *("score_0", "score_1", "score_2", "baseline"),
    ]
    assert rows["image_id"].tolist() == ["p0_0", "p0_1", "p1_2", "p2_3"]
    assert rows["site"].tolist() == ["site0", "site1", "site0", "site1"]
    assert rows["target"].tolist() == [1.0, 0.0, 2.0, 1.0]
    assert rows[["score_0", "score_1", "score_2"]].sum(axis=1).tolist() == pytest.approx([1.0] * 4)
    assert len(module.take_predictions()) == 0
    assert "prediction" in module.take_predictions().columns


def test_images_that_a_sampler_handed_out_twice_count_once(tiny_encoder, make_trainer, fake_data, adam):
    module = TwoClasses(tiny_encoder(), adam)
    samples = fake_data([1.0, 0.0, 2.0]).samples()
    make_trainer().validate(module, dataloaders=DataLoader([*samples, *samples], batch_size=4), verbose=False)
    assert len(module.take_predictions()) == 3


def test_weight_decay_spares_norm_and_bias_on_request(tiny_encoder):
    optimizer = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    (group,) = RegressionModule(tiny_encoder(), optimizer).configure_optimizers().param_groups
    assert group["weight_decay"] == 0.1
    assert len(group["params"]) == 4
    module = RegressionModule(tiny_encoder(), optimizer, decay_norm_and_bias=False)
    decayed, spared = module.configure_optimizers().param_groups
    assert [parameter.ndim for parameter in decayed["params"]] == [2, 5]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert [parameter.ndim for parameter in spared["params"]] == [1, 1]


@pytest.mark.parametrize(
    ("scheduler", "rate"),
    [
        (partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5), 0.25),
        (partial(torch.optim.lr_scheduler.ReduceLROnPlateau, threshold=1e9, patience=0, factor=0.1), 0.01),
    ],
)
def test_schedulers_step_once_per_epoch_and_see_the_monitored_metric(
    tiny_encoder, make_trainer, fake_data, scheduler, rate
):
    module = RegressionModule(tiny_encoder(), partial(torch.optim.SGD, lr=1.0), scheduler)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(module, datamodule=fake_data([1.0, 2.0, 3.0, 4.0]))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate)


def test_two_processes_give_the_metrics_of_one(tiny_encoder, make_trainer, fake_data, adam):
    torch.manual_seed(0)
    module = RegressionModule(tiny_encoder(), adam)
    module.scaling.fit(torch.tensor([10.0, 20.0, 60.0]), "identity")
    data = fake_data([5.0, 12.0, 18.0, 25.0, 33.0, 40.0, 48.0])
    (alone,) = make_trainer().validate(module, datamodule=data, verbose=False)

    def share_of_this_process():
        return DataLoader(data.samples()[torch.distributed.get_rank() :: 2], batch_size=3)

    data.val_dataloader = share_of_this_process
    trainer = make_trainer(strategy="ddp_fork", devices=2, use_distributed_sampler=False)
    (together,) = trainer.validate(module, datamodule=data, verbose=False)
    assert together == pytest.approx(alone, rel=1e-5)

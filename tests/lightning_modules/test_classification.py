"""ClassificationModule through a stock Trainer: it learns, and runs at its operating point from a checkpoint alone."""

import pandas as pd
import pytest
import torch
from pytorch_lightning import Callback
from torch.utils.data import DataLoader

from evaluation.operating_point import choose_threshold, fit_temperature
from lightning_modules.classification import WATCHED, ClassificationModule
from lightning_modules.networks import ModelError
from lightning_modules.operating_point import PRIOR_SD

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* validation participants choose the"),
]
NAN = float("nan")
SEVERITY = [5.0, 12.0, 18.0, 25.0, 33.0, 40.0, 48.0, 60.0]  # brightness of the images; p0 has the first two
DEATH = [0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0]


@pytest.fixture
def binary_data(fake_data):
    def make(severity=SEVERITY, labelled=True, **labels):
        labels = labels or {"outcome": DEATH}
        data = fake_data(severity, batch_size=3)
        plain = data.samples

        def samples():
            known = [{name: torch.tensor(values[i]) for name, values in labels.items()} for i in range(len(severity))]
            return [sample | {"target": known[i] if labelled else {}} for i, sample in enumerate(plain())]

        data.samples = samples
        data.target_values = lambda name: torch.tensor(labels[name])
        return data

    return make


class KeepEpochs(Callback):
    """Saves where the keeper of a run saves its best."""

    def __init__(self, folder):
        self.folder, self.metrics = folder, []

    def on_validation_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt", weights_only=True)
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")})


def test_learns_and_writes_rows_at_its_operating_point(make_classifier, make_trainer, binary_data):
    data = binary_data()
    module = make_classifier(class_weighting="balanced")
    trainer = make_trainer(max_epochs=60, check_val_every_n_epoch=60, num_sanity_val_steps=0)
    trainer.fit(module, datamodule=data)
    metrics = trainer.callback_metrics
    assert metrics["val/auroc"] == pytest.approx(11 / 12)  # brightness says no more: seven participants, one pair wrong
    assert {f"val/{name}" for name in WATCHED} <= set(metrics)
    rows = module.take_predictions()
    threshold = module.operating_point.threshold.item()
    assert rows["threshold"].tolist() == [threshold] * 8
    assert rows["decision"].tolist() == (rows["prediction"] >= threshold).astype(int).tolist()
    assert rows[["score_0", "score_1"]].sum(axis=1).tolist() == pytest.approx([1.0] * 8)
    assert rows["target"].tolist() == DEATH
    assert rows["baseline"].tolist() == [0.5] * 8
    with torch.no_grad():
        images = torch.stack([sample["image"] for sample in data.samples()])
        assert module.eval()(images)[:, 0].tolist() == pytest.approx(rows["prediction"].tolist(), abs=1e-6)
        assert module.network(images)[:, 0].sigmoid().tolist() == pytest.approx(rows["score_1"].tolist(), abs=1e-6)
    units = rows.groupby("participant_id")[["target", "score_1", "prediction"]].mean()
    temperature = fit_temperature(units["target"], units["score_1"], PRIOR_SD)
    assert module.operating_point.temperature.item() == pytest.approx(temperature, rel=1e-5)
    assert threshold == pytest.approx(choose_threshold(units["target"], units["prediction"]), rel=1e-5)


def test_every_checkpoint_applies_the_operating_point_of_its_epoch(
    make_classifier, make_trainer, binary_data, tmp_path, tiny_encoder, adam
):
    keeper = KeepEpochs(tmp_path)
    module = make_classifier()
    make_trainer(max_epochs=3, num_sanity_val_steps=2, callbacks=[keeper]).fit(module, datamodule=binary_data())
    kept = keeper.metrics[-3:]  # after the sanity check
    points = []
    for epoch in range(3):
        path = tmp_path / f"{epoch}.ckpt"
        loaded = ClassificationModule.load_from_checkpoint(
            path, network=tiny_encoder(), optimizer=adam, weights_only=True
        )
        trainer = make_trainer()
        (results,) = trainer.validate(loaded, datamodule=binary_data(), verbose=False)
        assert results == pytest.approx(kept[epoch], rel=1e-5)
        before = {name: value.clone() for name, value in loaded.state_dict().items()}
        trainer.test(loaded, datamodule=binary_data(SEVERITY[::-1]), verbose=False)  # a cohort where all is other
        tested = loaded.take_predictions()
        trainer.predict(loaded, dataloaders=binary_data(SEVERITY[::-1], labelled=False).loader())
        predicted = loaded.take_predictions()
        assert predicted["target"].isna().all()
        pd.testing.assert_frame_equal(predicted.drop(columns="target"), tested.drop(columns="target"))
        assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
        points.append(loaded.describe_outputs()["outcome"])
    assert len({(point["threshold"], point["temperature"]) for point in points}) == 3
    assert points[-1] == module.describe_outputs()["outcome"]
    assert (points[0]["num_validation_participants"], points[0]["small"], points[0]["kind"]) == (7, True, "binary")


def test_loss_of_an_epoch_is_weighted_by_the_training_labels(make_classifier, make_trainer, binary_data):
    labels = [0.0, 0.0, 0.0, NAN, 0.0, 0.0, 1.0, 1.0]
    module = make_classifier(class_weighting="balanced", optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    data = binary_data(outcome=labels)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, datamodule=data)
    assert module.labels.describe(0) == pytest.approx({"prevalence": 2 / 7, "positive_weight": 2.5})
    rows = module.take_predictions()
    assert rows["baseline"].tolist() == pytest.approx([2 / 7] * 8)
    known = rows[rows["target"].notna()]
    score = torch.tensor(known["score_1"].to_numpy())
    reference = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.5))(
        score.logit(), torch.tensor(known["target"].to_numpy())
    )
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(reference.item(), rel=1e-5)
    module = make_classifier(class_weighting=[4.0])
    make_trainer(max_steps=1, limit_val_batches=0).fit(module, datamodule=data)
    assert "were none" in module.describe_outputs()["outcome"]["reason"]
    assert module.labels.positive_weight.tolist() == [4.0]
    assert module.state_dict()["labels.positive_weight"].tolist() == [4.0]


def test_several_targets_with_missing_labels(make_classifier, make_trainer, binary_data):
    deaf = [NAN, NAN, 1.0, 0.0, NAN, 1.0, 1.0, NAN]
    module = make_classifier(targets=["death", "deaf"], monitor="val/death/auroc", threshold=[0.3, 0.6])
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, datamodule=binary_data(death=DEATH, deaf=deaf))
    metrics = trainer.callback_metrics
    assert {"val/loss", "val/death/auroc", "val/deaf/auroc", "val/deaf/brier"} <= set(metrics)
    rows = module.take_predictions()
    assert rows["output"].value_counts().to_dict() == {"death": 8, "deaf": 8}
    constant = rows.groupby("output")[["threshold", "baseline"]].agg(["min", "max"])
    assert constant.loc["death"].tolist() == pytest.approx([0.3, 0.3, 0.5, 0.5])
    assert constant.loc["deaf"].tolist() == pytest.approx([0.6, 0.6, 0.75, 0.75])
    part = rows[rows["output"] == "deaf"].set_index("image_id")
    assert part["target"].tolist() == pytest.approx(deaf, nan_ok=True)
    brier = ((part["prediction"] - part["target"]) ** 2).mean()
    assert metrics["val/deaf/brier"].item() == pytest.approx(brier, rel=1e-5)
    facts = module.describe_outputs()
    assert [facts[name]["logit"] for name in ("death", "deaf")] == [0, 1]
    assert [facts[name]["num_validation_participants"] for name in ("death", "deaf")] == [7, 4]
    loader = DataLoader(binary_data(death=[NAN] * 8, deaf=deaf).samples(), batch_size=2)
    output = module.step(next(iter(loader)), "train")  # neither image has a label
    output.loss.backward()
    assert (output.loss.item(), output.num_labelled.item()) == (0, 0)
    assert all(parameter.grad.abs().sum() == 0 for parameter in module.parameters())
    with pytest.raises(ModelError, match=r"p2 has death 2, and a binary target"):
        trainer.validate(module, datamodule=binary_data(death=[*DEATH[:3], 2.0] * 2, deaf=deaf), verbose=False)

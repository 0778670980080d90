"""Running statistics measured anew: against a direct computation, over processes, and without augmentation."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_modules.ledger import TransferError
from lightning_modules.normalisation import Moments, recalibrate, running_norms

AGES = [5.0, 12.0, 18.0, 25.0, 33.0, 40.0, 48.0, 60.0]


def test_moments_add_up_over_batches_and_processes():
    torch.manual_seed(0)
    features = torch.randn(10, 3, 4, 5, 6) * 2 + 100
    parts = [Moments.of(part) for part in features.split([3, 1, 6])]
    totals = iter([sum(p.num for p in parts), sum(p.num * p.mean for p in parts)])
    together = parts[0] + parts[1] + parts[2]
    flat = features.double().movedim(1, 0).flatten(1)
    for moments in (together, Moments.of(features)):
        torch.testing.assert_close(moments.mean, flat.mean(dim=1))
        torch.testing.assert_close(moments.squares / (moments.num - 1), flat.var(dim=1), rtol=1e-5, atol=0)
    mean = together.mean
    squares = [p.squares + p.num * (p.mean - mean) ** 2 for p in parts]
    whole = parts[0].reduced(lambda value: next(totals, sum(squares)))
    torch.testing.assert_close(whole.mean, together.mean)
    torch.testing.assert_close(whole.squares, together.squares)


def test_statistics_are_those_of_the_images(staged_encoder):
    torch.manual_seed(0)
    network = staged_encoder().train()
    network.second[1].eval()
    weights = {name: value.clone() for name, value in network.named_parameters()}
    images = torch.randn(8, 1, 7, 8, 9) + 3
    assert recalibrate(network, images.split([6, 2])) == len(running_norms(network)) == 2
    with torch.no_grad():
        seen = network.first[0](images).movedim(1, 0).flatten(1)
        norm = torch.nn.BatchNorm3d(3)  # the second layer's input, normalised by each batch, and nothing dropped
        norm.load_state_dict(network.first[1].state_dict())
        deep = torch.cat([network.second[0](norm(network.first[0](part)).relu()) for part in images.split([6, 2])])
    for layer, values in ((network.first[1], seen), (network.second[1], deep.movedim(1, 0).flatten(1))):
        torch.testing.assert_close(layer.running_mean, values.mean(dim=1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.running_var, values.var(dim=1), rtol=1e-4, atol=1e-6)
        assert layer.num_batches_tracked == 0
        assert not layer._forward_pre_hooks
    assert all(torch.equal(value, weights[name]) for name, value in network.named_parameters())
    assert network.first[1].training
    assert not network.second[1].training
    with pytest.raises(TransferError, match="saw no training image"):
        recalibrate(network, [])


class Augmented:
    """A cohort whose training images are changed on the device, as an augmentation does."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "image": batch["image"] * 50} if self.trainer.training else batch


def test_new_trainings_begin_with_the_statistics_of_their_images(make_transfer, make_trainer, fake_data, diary):
    class Data(Augmented, fake_data):
        pass

    data, seen = Data(AGES, batch_size=4), diary()
    module, direct = make_transfer(batch_norm="recalibrate"), make_transfer().network
    make_trainer(max_epochs=1, callbacks=[seen]).fit(module, datamodule=data)
    recalibrate(direct, torch.stack([sample["image"] for sample in data.samples()]).split(4))
    for name, value in direct.state_dict().items():
        assert name.startswith("head") or torch.equal(seen.weights[0][name], value)
    assert not torch.equal(seen.weights[0]["first.1.running_mean"], seen.weights[1]["first.1.running_mean"])


def test_images_that_are_changed_where_they_are_read_are_refused(make_transfer, make_trainer, fake_data):
    class Transformed(Dataset):
        def __init__(self, samples):
            self.samples, self.transform = samples, torch.abs

        def __len__(self):
            return len(self.samples)

        def __getitem__(self, index):
            return self.samples[index]

    data = fake_data(AGES)
    data.train_dataloader = lambda: DataLoader(Transformed(data.samples()), batch_size=4)
    with pytest.raises(TransferError, match=r"data\.torchio_transforms change them where they are read"):
        make_trainer(max_epochs=1).fit(make_transfer(batch_norm="recalibrate"), datamodule=data)

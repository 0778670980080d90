"""Batches that are read ahead, in a thread or by processes, and changed by torchio on the way."""

import threading
import time

import numpy as np
import pytest
import torch
import torchio as tio

from datamodules import dataset as dataset_module
from datamodules.augmentation import Augmentation
from datamodules.brain_age import BrainAgeDataModule
from datamodules.cohort import CohortError
from datamodules.preprocessing import Preprocessing, PreprocessingError

SMALL = Preprocessing(spacing=(4.0, 4.0, 4.0), shape=(20, 18, 16))
ARTEFACTS = [tio.RandomMotion(degrees=10, p=0.5), tio.RandomGhosting(p=0.5), tio.RandomSpike(p=1.0)]


def training(table, **options):
    data = BrainAgeDataModule(table=table, preprocessing=SMALL, batch_size=4, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def images(loader, epoch=0):
    loader.keys.set_epoch(epoch)
    return {
        (image_id, int(occurrence)): image
        for batch in loader
        for image_id, occurrence, image in zip(batch["image_id"], batch["occurrence"], batch["image"], strict=True)
    }


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_reading_ahead_changes_neither_order_nor_content(tiny_cohort):
    ahead = training(tiny_cohort).train_dataloader()
    beside = training(tiny_cohort).train_dataloader()
    beside.reads_ahead = False
    for epoch in range(2):
        for loader in (ahead, beside):
            loader.keys.set_epoch(epoch)
        pairs = list(zip(ahead, beside, strict=True))
        assert len(pairs) == len(ahead) > 2
        for one, other in pairs:
            assert one["image_id"] == other["image_id"]
            assert torch.equal(one["image"], other["image"])
    assert not readers()


def test_batches_are_read_while_one_is_worked_on(tiny_cohort, monkeypatch):
    fetched = []
    collate = dataset_module.collate
    monkeypatch.setattr(
        "datamodules.base.collate", lambda items: fetched.append(threading.current_thread()) or collate(items)
    )
    batches = iter(training(tiny_cohort).train_dataloader())
    next(batches)
    limit = time.monotonic() + 10
    while len(fetched) < 1 + dataset_module.READ_AHEAD and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(fetched) == 1 + dataset_module.READ_AHEAD
    assert threading.main_thread() not in fetched
    assert len(readers()) == 1
    batches.close()  # a training that stops in the middle
    assert not readers()


def test_an_error_of_the_reader_arrives_where_batches_are_asked_for(tiny_cohort, monkeypatch):
    data = training(tiny_cohort)
    loader = data.train_dataloader()

    def broken(*_, **__):
        raise PreprocessingError("a scan is gone")

    monkeypatch.setattr(data.cache, "load", broken)
    with pytest.raises(PreprocessingError, match="a scan is gone"):
        next(iter(loader))
    assert not readers()


def test_the_training_draws_alone_from_the_global_generator(tiny_cohort):
    def drawn(data):
        torch.default_generator.manual_seed(5)
        return [torch.rand(3) for _ in data.train_dataloader()]

    plain, changed = drawn(training(tiny_cohort)), drawn(training(tiny_cohort, torchio_transforms=ARTEFACTS))
    assert all(torch.equal(one, other) for one, other in zip(plain, changed, strict=True))


def test_torchio_changes_training_images_by_their_keys(tiny_cohort):
    data = training(tiny_cohort, torchio_transforms=ARTEFACTS)
    loader = data.train_dataloader()
    assert not loader.reads_ahead, "torchio draws from the generator of the training"
    first, plain = images(loader), images(training(tiny_cohort).train_dataloader())
    assert all(not torch.equal(first[key], plain[key]) for key in first)
    assert all(image.dtype == torch.float16 and image.isfinite().all() for image in first.values())
    assert same(images(data.train_dataloader()), first)
    other = training(tiny_cohort, torchio_transforms=ARTEFACTS, seed=1).train_dataloader()
    for others in (images(loader, epoch=1), images(other)):
        shared = first.keys() & others.keys()
        assert shared
        assert not any(torch.equal(others[key], first[key]) for key in shared)
    val, plain_val = images(data.val_dataloader()), images(training(tiny_cohort).val_dataloader())
    assert same(val, plain_val)


def test_processes_give_what_the_training_process_gives(tiny_cohort):
    alone = images(training(tiny_cohort, torchio_transforms=ARTEFACTS).train_dataloader())
    loader = training(tiny_cohort, torchio_transforms=ARTEFACTS, num_workers=2).train_dataloader()
    assert same(images(loader), alone)
    assert not same(images(loader, epoch=1), alone)


@pytest.mark.parametrize(
    "transform", [tio.CropOrPad((8, 8, 8)), tio.Lambda(lambda image: image * 1e6)], ids=["cropped", "too large"]
)
def test_what_does_not_fit_where_the_image_was_is_refused(tiny_cohort, transform):
    loader = training(tiny_cohort, torchio_transforms=[transform]).train_dataloader()
    with pytest.raises(CohortError, match="torchio_transforms: tiny/sub-"):
        next(iter(loader))


@pytest.mark.parametrize(("augmentation", "kernel"), [(None, "none"), ("torch", "torch"), ("fused", "fused")])
def test_a_training_goes_on_with_the_kernel_it_began_with(tiny_cohort, augmentation, kernel):
    options = {} if augmentation is None else {"augmentation": Augmentation(kernel=augmentation)}
    loader = training(tiny_cohort, **options).train_dataloader()
    state = loader.state_dict()
    assert state["kernel"] == kernel
    loader.load_state_dict(state)
    with pytest.raises(CohortError, match=f"kernel other then, {kernel} now"):
        loader.load_state_dict(state | {"kernel": "other"})


def test_an_evaluation_sees_the_window_in_the_middle(tiny_cohort):
    data = training(tiny_cohort, augmentation=Augmentation(crop=(12, 10, 9)))
    whole = next(iter(data.val_dataloader()))
    seen = data.on_after_batch_transfer(whole, 0)
    assert seen["image"].dtype == torch.float32
    assert torch.equal(seen["image"], whole["image"][:, :, 4:16, 4:14, 3:12].float())
    corner = torch.tensor([4.0, 4, 3, 1], dtype=torch.float64)
    for before, after in zip(whole["affine"], seen["affine"], strict=True):
        assert torch.equal(after[:3, :3], before[:3, :3])
        torch.testing.assert_close(after[:, 3], before @ corner)
    assert data.data_contract()["crop"] == [12, 10, 9]
    sample = data.part("val")[0]
    data.augmentation = None
    full = data.to_native(np.asarray(whole["image"][0, 0], np.float32), sample)
    data.augmentation = Augmentation(crop=(12, 10, 9))
    window = data.to_native(seen["image"][0, 0].numpy(), sample)
    inside = data.to_native(np.ones((12, 10, 9), np.float32), sample) > 0.999
    assert 0.05 < inside.mean() < 0.9
    np.testing.assert_allclose(window[inside], full[inside], atol=1e-3)


def test_a_crop_that_does_not_fit_is_refused_at_once(tiny_cohort):
    with pytest.raises(ValueError, match=r"crop \(32, 10, 9\) does not fit"):
        BrainAgeDataModule(table=tiny_cohort, preprocessing=SMALL, augmentation=Augmentation(crop=(32, 10, 9)))

"""The order of samples: a function of seed and epoch, the same for any number of ranks."""

from collections import Counter

import pytest

from datamodules.dataset import KeySampler


def keys(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_the_order_depends_on_seed_and_epoch_alone():
    first = keys(KeySampler(50, seed=1, shuffle=True), 3)
    again = KeySampler(50, seed=1, shuffle=True)
    keys(again, 0)
    assert keys(again, 3) == first
    assert keys(again, 4) != first
    assert keys(KeySampler(50, seed=2, shuffle=True), 3) != first


def test_training_sees_each_sample_once_an_epoch_but_for_an_incomplete_batch():
    sampler = KeySampler(33, shuffle=True, batch_size=8)
    indices = [key.position for key in keys(sampler, 0)]
    assert len(indices) == len(set(indices)) == len(sampler) == 32


def test_a_cohort_smaller_than_a_batch_is_one_batch():
    assert len(keys(KeySampler(5, shuffle=True, batch_size=8), 0)) == 5


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_out_the_batches_of_one_process(world_size):
    alone = keys(KeySampler(32, seed=7, shuffle=True, batch_size=8), 2)
    ranks = [
        keys(KeySampler(32, seed=7, shuffle=True, batch_size=8, rank=rank, world_size=world_size), 2)
        for rank in range(world_size)
    ]
    for step in range(4):
        mine = 8 // world_size
        together = [key for rank in ranks for key in rank[step * mine : (step + 1) * mine]]
        assert sorted(together) == sorted(alone[step * 8 : (step + 1) * 8])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_neither_pads_nor_drops(world_size):
    samplers = [KeySampler(33, batch_size=8, rank=rank, world_size=world_size) for rank in range(world_size)]
    indices = [key.position for sampler in samplers for key in sampler]
    assert sorted(indices) == list(range(33))
    assert [len(sampler) for sampler in samplers] == [len(list(sampler)) for sampler in samplers]


def test_weights_draw_with_replacement_and_number_the_draws():
    sampler = KeySampler(4, seed=5, shuffle=True, weights=[1, 1, 1, 97], batch_size=4)
    drawn = [key for epoch in range(50) for key in keys(sampler, epoch)]
    counts = Counter(key.position for key in drawn)
    assert counts[3] / len(drawn) == pytest.approx(0.97, abs=0.05)
    first_epoch = keys(sampler, 0)
    assert len(set(first_epoch)) == len(first_epoch), "two draws of one sample differ in their occurrence"


def test_ranks_agree_on_the_occurrence_of_a_draw():
    weights = [1, 0, 0, 0]
    ranks = [KeySampler(4, shuffle=True, weights=weights, batch_size=4, rank=rank, world_size=2) for rank in (0, 1)]
    assert sorted(key.occurrence for sampler in ranks for key in sampler) == [0, 1, 2, 3]

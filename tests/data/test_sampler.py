"""Batch composition, compared with brute force."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from fcos_recipe.data.sampler import TrainBatches


def deal(length, batch_size, ranks, epochs, **arguments):
    """[epoch][rank] -> list of batches."""
    samplers = [
        TrainBatches(length, batch_size, rank=rank, ranks=ranks, **arguments)
        for rank in range(ranks)
    ]
    return [[s.batches(epoch) for s in samplers] for epoch in range(epochs)]


def sizes(length, seed=0):
    return np.random.default_rng(seed).integers(200, 640, (length, 2))


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("length", [24, 57, 160])
def test_groups_use_every_image_once_per_epoch(length, batch_size, ranks):
    dealt = deal(length, batch_size, ranks, 7, group_by_aspect=True, sizes=sizes(length))
    used = Counter()
    sampler = TrainBatches(
        length, batch_size, ranks=ranks, group_by_aspect=True, sizes=sizes(length)
    )
    for epoch, by_rank in enumerate(dealt):
        assert {len(batches) for batches in by_rank} == {sampler.steps(epoch)}
        assert all(len(batch) == batch_size for batches in by_rank for batch in batches)
        used.update(i for batches in by_rank for batch in batches for i in batch)
        assert set(used[i] for i in range(length)) <= {epoch, epoch + 1}
    steps = [len(by_rank[0]) for by_rank in dealt]
    assert max(steps) - min(steps) <= 1
    assert sum(steps) == 7 * length // (batch_size * ranks)


@pytest.mark.parametrize("group_by_aspect", [False, True])
def test_a_function_of_seed_and_epoch(group_by_aspect):
    arguments = dict(group_by_aspect=group_by_aspect, sizes=sizes(50))
    sampler = TrainBatches(50, 4, seed=5, **arguments)
    later = sampler.batches(3)
    assert later == TrainBatches(50, 4, seed=5, **arguments).batches(3)
    orders = [sampler.batches(2), later, TrainBatches(50, 4, seed=6, **arguments).batches(3)]
    assert len({json.dumps(order) for order in orders}) == 3


@pytest.mark.parametrize("group_by_aspect", [False, True])
def test_stream_starts_anywhere(group_by_aspect):
    sampler = TrainBatches(50, 4, group_by_aspect=group_by_aspect, sizes=sizes(50))
    whole = [[(epoch, i) for i in batch] for epoch in range(4) for batch in sampler.batches(epoch)]
    assert list(islice(sampler.stream(0), len(whole))) == whole
    skipped = sampler.steps(0) + 5
    assert list(islice(sampler.stream(1, 5), len(whole) - skipped)) == whole[skipped:]


@pytest.mark.stock
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("length", "ranks"), [(57, 1), (57, 2), (57, 8), (64, 8), (3, 8)])
def test_without_groups_seed_0_is_paddles_order(length, ranks, shuffle, drop_last):
    paddle_io = pytest.importorskip("paddle.io")
    for rank in range(ranks):
        stock = paddle_io.DistributedBatchSampler(
            range(length), 2, num_replicas=ranks, rank=rank, shuffle=shuffle, drop_last=drop_last
        )
        ours = TrainBatches(length, 2, shuffle=shuffle, drop_last=drop_last, rank=rank, ranks=ranks)
        for epoch in range(3):
            stock.set_epoch(epoch)
            assert ours.batches(epoch) == list(stock)
            assert ours.steps(epoch) == len(stock)


def padding(image_sizes, batch_size, ranks, group_by_aspect, stride, epochs=5):
    """Padded pixels per real pixel after the headline's resize."""
    scale = np.minimum(800 / image_sizes.min(axis=1), 1333 / image_sizes.max(axis=1))
    resized = np.round(image_sizes * scale[:, None])
    real = padded = 0
    for by_rank in deal(
        len(resized), batch_size, ranks, epochs, group_by_aspect=group_by_aspect, sizes=image_sizes
    ):
        for batch in (b for batches in by_rank for b in batches):
            real += resized[batch].prod(axis=1).sum()
            padded += (np.ceil(resized[batch].max(axis=0) / stride) * stride).prod() * len(batch)
    return padded / real


@pytest.mark.parametrize(
    ("batch_size", "ranks", "most"), [(2, 1, 1.05), (2, 8, 1.05), (8, 1, 1.08)]
)
def test_groups_save_padding_on_coco_sizes(shared, batch_size, ranks, most):
    image_sizes = np.array(
        [
            (image["height"], image["width"])
            for split in ("train", "val")
            for image in json.loads(
                (shared / f"data/coco_mini/annotations/instances_{split}2017.json").read_text()
            )["images"]
        ]
    )
    assert padding(image_sizes, batch_size, ranks, True, 32) <= most
    assert padding(image_sizes, batch_size, ranks, False, 128) > 1.3


def test_groups_mix():
    """Partners change from epoch to epoch, also where no two images have one shape."""
    image_sizes = np.stack([np.full(200, 480), np.linspace(400, 800, 200).astype(int)], axis=1)
    sampler = TrainBatches(200, 2, group_by_aspect=True, sizes=image_sizes)
    pairs = Counter(frozenset(b) for epoch in range(20) for b in sampler.batches(epoch))
    assert len(pairs) > 1000  # of 2000 batches
    first = [sampler.batches(epoch)[0][0] for epoch in range(20)]
    assert len(set(first)) > 10  # and batches come in any order


def test_too_few_images_make_no_step():
    for by_rank in deal(10, 2, 8, 5, group_by_aspect=True, sizes=sizes(10)):
        assert by_rank == [[]] * 8


def test_unknown_sizes_group_as_squares():
    batches = TrainBatches(10, 2, group_by_aspect=True, sizes=np.zeros((10, 2), int)).batches(0)
    assert sorted(i for b in batches for i in b) == list(range(10))


@pytest.mark.parametrize("group_by_aspect", [False, True])
@pytest.mark.parametrize("ranks", [1, 3])
def test_repeated_images_are_used_as_often_as_their_factor(ranks, group_by_aspect):
    repeats = np.random.default_rng(4).choice([1.0, 1.0, 1.3, 2.75, 6.0], 41)
    length, epochs = int(np.ceil(repeats.sum())), 240
    arguments = dict(repeats=repeats, sizes=sizes(41), group_by_aspect=group_by_aspect, seed=9)
    scaled = repeats * length / repeats.sum()
    used, union = np.zeros((epochs, 41), int), []
    for epoch, by_rank in enumerate(deal(41, 1, ranks, epochs, **arguments)):
        images = [i for batches in by_rank for batch in batches for i in batch]
        union.append(Counter(images))
        used[epoch] = np.bincount(np.array(images) % 41, minlength=41)
    # what does not fill a step of all ranks is dropped or waits for the next epoch
    assert abs(used.sum(axis=1) - length).max() < ranks
    if ranks == 1:
        assert {*used.sum(axis=1)} == {length}
        assert (used >= np.floor(scaled)).all() and (used <= np.ceil(scaled)).all()
        assert all(set(counter.values()) == {1} for counter in union)  # each has its address
    assert np.abs(used.mean(axis=0) - scaled).max() < 0.15
    one = [Counter(i for batch in b[0] for i in batch) for b in deal(41, 1, 1, 3, **arguments)]
    if not group_by_aspect and ranks == 1:
        assert one == union[:3]


def test_the_union_of_the_ranks_is_that_of_one_card():
    repeats = np.random.default_rng(4).uniform(1, 3, 60)
    arguments = dict(repeats=repeats, seed=2, drop_last=False)
    counted = [
        [Counter(i for batches in by_rank for batch in batches for i in batch)
         for by_rank in deal(60, 2, ranks, 4, **arguments)]
        for ranks in (1, 2, 4)
    ]  # fmt: skip
    for one, *others in zip(*counted):
        for other in others:  # a few images are repeated to give each rank as many
            assert other >= one and sum((other - one).values()) < 4

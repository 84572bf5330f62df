import itertools

import numpy as np
import pytest

from ccnet_cli.datasets.sampling import Batches, permutation


def stream(count, batch, seed, steps):
    """The definition, written the long way: whole epochs in a row, cut into batches."""
    everything = []
    for epoch in range(steps * batch // count + 1):
        everything += [(epoch, int(index)) for index in permutation(count, seed, epoch)]
    return [everything[step * batch : (step + 1) * batch] for step in range(steps)]


@pytest.mark.parametrize("count", [1, 2, 5, 7, 24, 25])
@pytest.mark.parametrize("batch", [1, 4, 8])
def test_batches_cut_the_stream_of_epochs(count, batch):
    assert list(Batches(count, batch, 3, steps=30)) == stream(count, batch, 3, 30)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_ranks_share_each_batch_in_order(world):
    ranks = [list(Batches(25, 8, 0, rank, world, steps=12)) for rank in range(world)]
    assert all(len(share) == 8 // world for rank in ranks for share in rank)
    joined = [list(itertools.chain(*shares)) for shares in zip(*ranks, strict=True)]
    assert joined == stream(25, 8, 0, 12)


@pytest.mark.parametrize("start", [0, 1, 3, 11, 12, 20])
def test_a_resume_continues_the_stream(start):
    batches = Batches(25, 8, 0, start_step=start, steps=12)
    assert list(batches) == stream(25, 8, 0, 12)[start:]
    assert len(batches) == max(12 - start, 0)
    assert list(batches) == list(batches)


@pytest.mark.parametrize("first", [0, 7, 50])
def test_a_resume_with_another_batch_continues_at_its_position(first):
    everything = [item for batch in stream(25, 1, 0, 200) for item in batch]
    batches = list(Batches(25, 6, 0, rank=1, world_size=2, start_step=4, steps=9, first=first))
    assert batches == [everything[first + 6 * step + 3 : first + 6 * step + 6] for step in range(5)]


def test_every_sample_comes_once_an_epoch_in_another_order_each_time():
    items = [item for batch in Batches(24, 8, 5, steps=9) for item in batch]
    orders = [[index for epoch, index in items if epoch == wanted] for wanted in range(3)]
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert permutation(24, 6, 0).tolist() != orders[0]


def test_an_epoch_far_away_is_reached_at_once():
    assert len(next(iter(Batches(1000, 8, 0, start_step=10**9, steps=10**9 + 1)))) == 8


def test_the_order_stays_what_it_was():
    assert permutation(10, 0, 0).tolist() == [8, 0, 5, 7, 4, 6, 9, 2, 1, 3]


def test_the_order_is_not_made_of_the_augmentation_s_numbers():
    from ccnet_cli.datasets.transforms import generator

    assert generator(0, 4, 0).permutation(50).tolist() != permutation(50, 0, 4).tolist()
    assert np.array_equal(permutation(50, 0, 4), permutation(50, 0, 4))


@pytest.mark.parametrize(
    "wrong", [(0, 8, 0, 0, 1), (5, 0, 0, 0, 1), (5, 8, 0, 0, 3), (5, 8, 0, 2, 2), (5, 8, 0, -1, 2)]
)
def test_shares_that_do_not_come_out_even_are_refused(wrong):
    with pytest.raises(ValueError, match="samples"):
        Batches(*wrong)

"""The order of training: every item once an epoch, mixtures by their shares, and all of it from any place on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meanaudio.data.order import BLOCK, Epochs, Mixed, epoch_order


@settings(max_examples=60)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 5))
def test_every_item_comes_once_an_epoch_whatever_the_batch_size(count, batch_size, seed):
    steps = -(-3 * count // batch_size)
    flat = [i for step in range(steps) for i in epoch_order(count, batch_size, step, seed)]
    assert len(flat) == steps * batch_size
    for epoch in range(3):
        assert sorted(flat[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_the_order_is_a_pure_function_that_seed_and_epoch_change():
    orders = {(seed, step): tuple(epoch_order(64, 64, step, seed)) for seed in range(3) for step in range(3)}
    assert len(set(orders.values())) == 9
    torch.manual_seed(5)
    assert tuple(epoch_order(64, 64, 2, 1)) == orders[1, 2]


@settings(max_examples=30)
@given(
    counts=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    first=st.integers(0, 10**8),
    split=st.integers(0, 700),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_a_mixture_can_be_entered_anywhere(counts, first, split, seed, data):
    weights = data.draw(st.lists(st.floats(0.01, 1), min_size=len(counts), max_size=len(counts)))
    order = Mixed(counts, [w / sum(weights) for w in weights], seed)
    whole = order.take(first, 700)
    assert order.take(first, split) + order.take(first + split, 700 - split) == whole
    assert Mixed(counts, order.shares, seed).take(first, 700) == whole


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.7, 0.2, 0.1), (0.97, 0.03), (1.0,)])
def test_sets_get_their_shares_and_each_goes_through_its_own_epochs(shares):
    counts = (50, 331, 7)[: len(shares)]
    starts = np.cumsum((0, *counts))
    flat = np.array(Mixed(counts, shares, 3).take(0, 4 * BLOCK))
    for k, share in enumerate(shares):
        mine = flat[(flat >= starts[k]) & (flat < starts[k + 1])] - starts[k]
        for blocks in range(1, 5):
            until = flat[: blocks * BLOCK]
            assert abs(((until >= starts[k]) & (until < starts[k + 1])).sum() - share * blocks * BLOCK) <= len(shares)
        for epoch in range(len(mine) // counts[k]):
            assert sorted(mine[epoch * counts[k] : (epoch + 1) * counts[k]]) == list(range(counts[k]))


def test_no_rank_of_a_batch_always_has_the_same_set():
    flat = np.array(Mixed((100, 100), (0.5, 0.5), 0).take(0, 2 * BLOCK)).reshape(-1, 8)
    for ranks in (2, 4):
        shares = [(flat[:, rank::ranks] < 100).mean() for rank in range(ranks)]
        assert all(0.4 < share < 0.6 for share in shares)


def test_epochs_keep_one_order_and_share_none():
    order = Epochs(10, 0)
    first = order.take(0, 10)
    first[0] = 99
    assert sorted(order.take(0, 10)) == list(range(10))

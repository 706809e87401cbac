"""The rows of every optimizer step, on any number of ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Subset

from lit_sft.data.encoded_rows import EncodedRows
from lit_sft.data.windows import WindowSampler, list_lengths


@given(
    num_rows=st.integers(1, 60),
    per_rank=st.integers(1, 8),
    world_size=st.integers(1, 4),
    epoch=st.integers(0, 3),
    longest=st.sampled_from([None, 1, 5, 500]),
)
def test_ranks_share_each_window_without_overlap_or_loss(
    num_rows, per_rank, world_size, epoch, longest
):
    size = per_rank * world_size
    lengths = longest and [1 + row * row % longest for row in range(num_rows)]

    def windows(rank, world):
        more = {"rank": rank, "world_size": world, "lengths": lengths}
        sampler = WindowSampler(num_rows, size, seed=7, **more)
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
        return list(sampler)

    alone = windows(0, 1)
    shares = [windows(rank, world_size) for rank in range(world_size)]
    for step, window in enumerate(alone):
        own = [share[step] for share in shares]
        assert sorted(row for rows in own for row in rows) == sorted(window)
        assert max(map(len, own)) - min(map(len, own)) <= 1
        if lengths:
            tokens = [sum(lengths[row] for row in rows) for rows in own]
            assert max(tokens) - min(tokens) <= max(lengths[row] for row in window)
            assert all(rows == [row for row in window if row in rows] for rows in own)
    assert sorted(row for window in alone for row in window) == list(range(num_rows))
    assert all(len(window) == size for window in alone[:-1])


@pytest.mark.parametrize("change", [{"seed": 8}, {"epoch": 1}])
def test_seed_and_epoch_each_change_the_order(change):
    def order(seed=7, epoch=0):
        sampler = WindowSampler(40, 4, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order() == order()
    assert order() != order(**change)


def test_without_a_seed_the_order_is_the_files():
    assert list(WindowSampler(5, 2, seed=None)) == [[0, 1], [2, 3], [4]]


def test_lengths_are_those_of_encoded_rows_and_of_a_part_of_them():
    none = np.array([], dtype=np.int64)
    rows = EncodedRows(np.arange(6), np.ones(6, bool), np.array([0, 2, 5, 6]), none, none, none)
    assert list_lengths(rows) == [2, 3, 1]
    assert list_lengths(Subset(rows, [2, 0])) == [1, 2]
    assert list_lengths(Subset([[1], [2, 3]], [0])) is None

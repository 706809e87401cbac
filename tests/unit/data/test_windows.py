"""The rows of every optimizer step, on any number of ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_sft.data.windows import WindowSampler


@given(
    num_rows=st.integers(1, 60),
    per_rank=st.integers(1, 8),
    world_size=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_ranks_share_each_window_without_overlap_or_loss(num_rows, per_rank, world_size, epoch):
    size = per_rank * world_size

    def windows(rank, world):
        sampler = WindowSampler(num_rows, size, seed=7, rank=rank, world_size=world)
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
        return list(sampler)

    alone = windows(0, 1)
    shares = [windows(rank, world_size) for rank in range(world_size)]
    for step, window in enumerate(alone):
        together = [row for share in shares for row in share[step]]
        assert sorted(together) == sorted(window)
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

"""A small model takes few threads, and what the user has set stands."""

import pytest
import torch

from lit_sft.model.threads import SAID_BY_USER, count_threads, limit_threads


@pytest.fixture(autouse=True)
def eight_threads(monkeypatch):
    """Eight threads and no wishes of a user; afterwards as before."""
    for name in SAID_BY_USER:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("width", "available", "threads"),
    [(64, 64, 1), (256, 2, 1), (512, 64, 2), (1024, 64, 8), (3072, 64, 64), (3072, 0, 1)],
)
def test_they_grow_with_the_model(width, available, threads):
    assert count_threads(width, available) == threads


def test_ranks_share_the_cores_and_inherit_the_number(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "x")  # so that what is set here is taken back
    monkeypatch.delenv("OMP_NUM_THREADS")
    limit_threads(width=3072, processes=2)
    assert torch.get_num_threads() == 4
    limit_threads(width=256, processes=1)
    assert torch.get_num_threads() == 4  # what the first has set now stands like a user's


@pytest.mark.parametrize("name", SAID_BY_USER)
def test_what_the_user_has_set_stands(monkeypatch, name):
    monkeypatch.setenv(name, "8")
    limit_threads(width=64, processes=1)
    assert torch.get_num_threads() == 8
    monkeypatch.delenv(name)
    limit_threads(width=64, processes=1)
    assert torch.get_num_threads() == 1


def test_a_user_who_has_set_fewer_keeps_them():
    torch.set_num_threads(2)
    limit_threads(width=4096, processes=1)
    assert torch.get_num_threads() == 2

"""Loader processes that are killed at the worst moment."""

import multiprocessing
import os
import signal
import sys

import pytest
from torch.utils.data import Dataset

from lit_sft.data.windows import WindowLoader


class KilledWhileItAsks(Dataset):
    """Whose worker is killed while it asks the event of all workers whether to end."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, number: int) -> int:
        if number == 3:
            frame = sys._getframe()
            while "done_event" not in frame.f_locals:
                frame = frame.f_back
            if condition := getattr(frame.f_locals["done_event"], "_cond", None):
                condition.acquire()
            os.kill(os.getpid(), signal.SIGKILL)
        return number


@pytest.fixture
def deadline():
    def end(*_):
        raise TimeoutError("the loader waits for a worker that is gone")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["fork", "spawn"])
def start_method(request):
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed_while_it_asks_is_told(deadline, start_method, workers):
    loader = WindowLoader(KilledWhileItAsks(), batch_size=None, num_workers=workers)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid"):
        list(loader)


def test_a_context_that_is_given_is_kept(start_method):
    context = multiprocessing.get_context("fork")
    loader = WindowLoader(range(5), batch_size=None, num_workers=1, multiprocessing_context=context)
    assert list(loader) == [0, 1, 2, 3, 4]
    assert loader.multiprocessing_context is context

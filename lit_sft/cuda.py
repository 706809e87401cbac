"""How all that is captured as CUDA graphs is captured."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch

OWN = "thread_local"
"""What a capture forbids, it forbids this thread alone: NCCL has one that asks the device how far
it has come, and so has the loader."""


@contextmanager
def trying_out(device: torch.device, pool: Any = None) -> Iterator[None]:
    """Run what is to be captured as it is first, where it will be captured.

    Args:
        device: Where it runs.
        pool: The memory of graphs that were captured before, or None. Between two replays it is
            free, and to try takes none besides.
    """
    side = _capture_stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(side), _allocating_in(pool, device):
            yield
    finally:
        torch.cuda.current_stream(device).wait_stream(side)


class _Pool(NamedTuple):
    """Stands for a `torch.cuda.MemPool`, whose graphs hold it."""

    id: Any


@contextmanager
def _allocating_in(pool: Any, device: torch.device) -> Iterator[None]:
    if pool is None:
        yield
        return
    torch.cuda.empty_cache()  # meanwhile, torch gives nothing back to the device
    in_pool: Any = torch.cuda.use_mem_pool  # of this thread: see `differentiate_here`
    with in_pool(_Pool(pool), device):
        yield


def differentiate_here() -> AbstractContextManager[None]:
    """Run backward passes in this thread.

    Another thread has memory of its own, and for its products cuBLAS keeps 32 MiB more.
    """
    return torch.autograd.set_multithreading_enabled(False)


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, pool: Any, device: torch.device) -> Iterator[None]:
    """Capture what is run in this context, without running it.

    Args:
        graph: What is to be replayed.
        pool: The memory of graphs that were captured before, or None.
        device: Where it runs.
    """
    before = torch.cuda.current_stream(device)
    try:
        with torch.cuda.graph(graph, pool, _capture_stream(device), OWN):
            yield
    finally:
        torch.cuda.set_stream(before)  # torch leaves its own where a capture cannot be ended


def count_unused_bytes(device: torch.device) -> int:
    """Return what a device could still give to what is no graph, once all that is spare is back."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def renew_random_state(device: torch.device) -> None:
    """Give a device's generator another state: one that a capture has broken off stays in it."""
    generator = torch.cuda.default_generators[device.index or 0]
    generator.graphsafe_set_state(torch.Generator(device).graphsafe_get_state())


def warn_of_no_graphs(what: str, reason: str) -> None:
    """Say that nothing is captured any more.

    Args:
        what: Could not be captured.
        reason: Why; its first line is told.
    """
    warnings.warn(
        "from here on there are no CUDA graphs, which is slower and gives the same numbers: "
        f"{what} could not be captured ({(reason.splitlines() or [''])[0]:.200})",
        stacklevel=3,
    )


@cache
def _capture_stream(device: torch.device) -> Any:
    """Return the `torch.cuda.Stream` of a device that graphs are tried out and captured on.

    There is one: cuBLAS keeps 64 MiB to work in for every stream that it has ever been used on, by
    the setting that gives the same bits twice.
    """
    make: Any = torch.cuda.Stream
    return make(device)

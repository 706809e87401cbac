"""How all that is captured as CUDA graphs is captured."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch

OWN = "thread_local"
"""What a capture forbids, it forbids this thread alone: NCCL has one that asks the device how far
it has come, and so has the loader."""


@contextmanager
def trying_out(side: Any, pool: Any = None) -> Iterator[None]:
    """Run what is to be captured as it is first, where it will be captured.

    Args:
        side: As `make_capture_stream` makes it.
        pool: The memory of graphs that were captured before, or None. Between two replays it is
            free, and to try takes none besides.
    """
    side.wait_stream(torch.cuda.current_stream(side.device))
    try:
        with torch.cuda.stream(side), _allocating_in(pool, side.device):
            yield
    finally:
        torch.cuda.current_stream(side.device).wait_stream(side)


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
def capturing(graph: torch.cuda.CUDAGraph, pool: Any, side: Any) -> Iterator[None]:
    """Capture what is run in this context, without running it.

    Args:
        graph: What is to be replayed.
        pool: The memory of graphs that were captured before, or None.
        side: As `make_capture_stream` makes it.
    """
    before = torch.cuda.current_stream(side.device)
    try:
        with torch.cuda.graph(graph, pool, side, OWN):
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


def make_capture_stream(device: torch.device) -> Any:
    """Return a `torch.cuda.Stream` to try out and capture those graphs on that end together.

    cuBLAS keeps 64 MiB to work in for every stream that it has ever been used on, by the setting
    that gives the same bits twice, so graphs share one where they can. After torch 2.11, the end
    of a graph takes that memory from all others of its stream (pytorch/pytorch#193402): those of
    answers, which end while training goes on, are captured on another than those of training.
    """
    make: Any = torch.cuda.Stream
    return make(device)

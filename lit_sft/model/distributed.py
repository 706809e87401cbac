"""Sums over ranks, and what each draws. A single process pays nothing, and need not know."""

import zlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


def sum_over_ranks(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, of its shape and dtype, on its device."""
    if _is_distributed():
        value = value.clone()
        distributed.all_reduce(value)
    return value


def max_over_ranks(value: int, device: torch.device) -> int:
    """Return the largest value that any rank has."""
    if not _is_distributed():
        return value
    largest = torch.tensor(value, device=device)
    distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    return int(largest.item())


def gather_over_ranks(mine: list[T]) -> list[T]:
    """Return the values of all ranks, those of the first one first; they must be picklable."""
    if not _is_distributed():
        return mine
    everyone: list[list[T]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(everyone, mine)
    return [value for part in everyone for value in part]


def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Let all ranks have, in place, what the first one has: cards of two kinds draw differently."""
    if _is_distributed():
        for tensor in tensors:
            distributed.broadcast(tensor.detach(), 0)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Add up the gradients of all ranks in place, in one flat transfer.

    A rank without rows in a short last window has no gradients, and adds zeros.
    """
    if not _is_distributed():
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def without_sync(model: nn.Module | None) -> AbstractContextManager[None]:
    """Keep DDP from averaging gradients in every backward: the window sums them once at its end."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


@rank_zero_only
def say_once(text: str) -> None:
    """Print a line on the first rank."""
    print(text, flush=True)


def seed_step(seed: int, step: int, rank: int) -> int:
    """Return 32 bits, all that the CPU generator reads, from seed, step and rank.

    What dropout draws then depends on no history: a resumed run draws what the uninterrupted one
    drew, and an evaluation in between changes nothing.
    """
    return zlib.crc32(f"{seed} {step} {rank}".encode())


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()

"""What a CPU's kernels take: they are generated for each shape, and most of them kept.

In bfloat16, on a CPU that has it, this is more than the activations of a small model: oneDNN keeps
1,024 matrix products (`ONEDNN_PRIMITIVE_CACHE_CAPACITY`), and torch all those within attention, by
which the head is computed, too. Passes of packed rows hardly ever have as many tokens as another.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

import psutil
import torch

from lit_sft.plan.operations import Operation, Shape, run_once

CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
TRIED, STRIDE = 8, 7
"""Sizes that are tried behind a first one, and how far they are from each other, in tokens."""
BEYOND = 1.25
"""Sizes of passes from which on products take no more, by those that fill oneDNN's cache: 76 by 60
on an EPYC with AVX512-BF16. Some kernels are never given back."""
PRODUCTS = ("mm", "addmm", "addmm_")


def measure_kernels(
    operations: Iterable[Operation],
    tokens: int,
    sizes: int,
    head: Callable[[int], object],
    device: torch.device,
) -> int:
    """Return the bytes of the kernels that a run will have generated at its end.

    Args:
        operations: Of a pass.
        tokens: Of that pass.
        sizes: How many passes with other numbers of tokens there will be.
        head: Computes the loss of a pass with so many tokens less.
        device: Only a CPU's kernels count.
    """
    if device.type != "cpu":
        return 0
    products = [x for x in operations if x.function.overloadpacket.__name__ in PRODUCTS]
    most = int(os.environ.get(CAPACITY, "1024")) / max(1, len(products)) * BEYOND

    def multiply(less: int) -> None:
        for operation in products:
            run_once(_resize(operation, tokens, tokens - less), device)

    return int(min(sizes, most) * _measure_growth(multiply) + sizes * _measure_growth(head))


def _measure_growth(compute: Callable[[int], object]) -> float:
    """Return the bytes by which a process grows with each new size that it computes with."""
    compute(1)
    before: int = psutil.Process().memory_info().rss
    for step in range(1, TRIED + 1):
        compute(1 + STRIDE * step)
    grown: int = psutil.Process().memory_info().rss - before
    return max(0, grown) / TRIED


def _resize(operation: Operation, size: int, other: int) -> Operation:
    args = tuple(_put(value, size, other) for value in operation.args)
    return Operation(operation.function, args, operation.kwargs)


def _put(value: Any, size: int, other: int) -> Any:
    """Return a value with one size in place of another; strides stay, as do what they leave out."""
    if isinstance(value, Shape):
        return Shape(
            tuple(other if n == size else n for n in value.size), value.stride, value.dtype
        )
    return value

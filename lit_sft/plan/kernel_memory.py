"""What a CPU's kernels take: they are generated for each shape, and most of them kept.

In bfloat16, on a CPU that has it, this is more than the activations of a small model: oneDNN keeps
1,024 matrix products (`ONEDNN_PRIMITIVE_CACHE_CAPACITY`), and torch all those within attention, by
which the head is computed, too. Passes of packed rows hardly ever have as many tokens as another.
"""

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import psutil
import torch

from lit_sft.plan.operations import Operation, Shape, read_clock, run_once

CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
TRIED, STRIDE = 8, 7
"""Sizes that are tried behind a first one, and how far they are from each other, in tokens."""
BEYOND = 1.25
"""Sizes of passes from which on products take no more, by those that fill oneDNN's cache: 76 by 60
on an EPYC with AVX512-BF16. Some kernels are never given back."""
PRODUCTS = ("mm", "addmm", "addmm_")


class Kernels(NamedTuple):
    """What kernels take that are generated for a shape."""

    bytes: int
    """Of all that are kept at the end."""
    seconds: float
    """To generate those of a pass, of a size that has not been seen."""


def measure_kernels(
    operations: Iterable[Operation],
    tokens: int,
    sizes: int,
    head: Callable[[int], object],
    device: torch.device,
) -> Kernels:
    """Return what the kernels take that a run will have generated at its end.

    Args:
        operations: Of a pass.
        tokens: Of that pass.
        sizes: How many passes with other numbers of tokens there will be.
        head: Computes the loss of a pass with so many tokens less.
        device: Only a CPU's kernels count.
    """
    if device.type != "cpu":
        return Kernels(0, 0.0)
    products = [x for x in operations if x.function.overloadpacket.__name__ in PRODUCTS]
    most = int(os.environ.get(CAPACITY, "1024")) / max(1, len(products)) * BEYOND

    def multiply(less: int) -> None:
        for operation in products:
            run_once(_resize(operation, tokens, tokens - less), device)

    of_products, of_head = _measure_growth(multiply, device), _measure_growth(head, device)
    taken = min(sizes, most) * of_products.bytes + sizes * of_head.bytes
    return Kernels(int(taken), of_products.seconds + of_head.seconds)


def _measure_growth(compute: Callable[[int], object], device: torch.device) -> Kernels:
    """Return what a process takes more for each new size that it computes with."""
    compute(1)
    before: int = psutil.Process().memory_info().rss
    seconds = 0.0
    for step in range(1, TRIED + 1):
        begun = read_clock(device)
        compute(1 + STRIDE * step)
        once = read_clock(device)
        compute(1 + STRIDE * step)
        seconds += (once - begun) - (read_clock(device) - once)
    grown: int = psutil.Process().memory_info().rss - before
    return Kernels(max(0, grown) // TRIED, max(0.0, seconds) / TRIED)


def _resize(operation: Operation, size: int, other: int) -> Operation:
    args = tuple(_put(value, size, other) for value in operation.args)
    return Operation(operation.function, args, operation.kwargs)


def _put(value: object, size: int, other: int) -> object:
    """Return a value with one size in place of another; strides stay, as do what they leave out."""
    if isinstance(value, Shape):
        return Shape(
            tuple(other if n == size else n for n in value.size), value.stride, value.dtype
        )
    return value

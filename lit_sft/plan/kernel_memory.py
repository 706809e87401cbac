"""What a CPU's kernels take: they are generated for each shape, and most of them kept.

In bfloat16, on a CPU that has it, this is more than the activations of a small model: oneDNN keeps
up to 1,024 kernels of matrix products (`ONEDNN_PRIMITIVE_CACHE_CAPACITY`). Passes of packed rows hardly ever have the same number of tokens twice.
"""

import os
from collections.abc import Iterable
from typing import Any

import psutil
import torch

from lit_sft.plan.operations import Operation, Shape, run_once

CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
TRIED = 4
"""Shapes that are tried, behind a first one."""
BEYOND = 1.25
"""Sizes of passes from which on a process grows no more, by those that fill oneDNN's cache: 76 by 60
on an EPYC with AVX512-BF16. Some kernels are never given back."""
PRODUCTS = ("mm", "addmm", "addmm_")


def measure_kernels(
    operations: Iterable[Operation],
    tokens: int,
    sizes: int,
    device: torch.device,
) -> int:
    """Return the bytes of the kernels that a run will have generated at its end.

    Args:
        operations: Of a pass.
        tokens: Of that pass.
        sizes: How many passes with other numbers of tokens there will be.
        device: Only a CPU's kernels count.
    """
    if device.type != "cpu":
        return 0
    products = [x for x in operations if x.function.overloadpacket.__name__ in PRODUCTS]
    most = int(os.environ.get(CAPACITY, "1024")) / max(1, len(products)) * BEYOND
    made = min(sizes, most) * _measure_growth(products, tokens)
    return int(made)


def _measure_growth(operations: list[Operation], size: int) -> float:
    """Return the bytes by which a process grows with each new size of some operations."""
    before = 0
    for step in range(TRIED + 1):
        for operation in operations:
            run_once(_resize(operation, size, size - 1 - step), torch.device("cpu"))
        if step == 0:
            before = psutil.Process().memory_info().rss
    return max(0, psutil.Process().memory_info().rss - before) / TRIED


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

"""What all that is captured as CUDA graphs shares."""

from functools import cache
from typing import Any

import torch

OWN = "thread_local"
"""What a capture forbids, it forbids this thread alone: NCCL has one that asks the device how far
it has come, and so has the loader."""


@cache
def capture_stream(device: torch.device) -> Any:
    """Return the `torch.cuda.Stream` of a device that graphs are tried out and captured on.

    There is one: cuBLAS keeps 64 MiB to work in for every stream that it has ever been used on, by
    the setting that gives the same bits twice.
    """
    make: Any = torch.cuda.Stream
    return make(device)

"""How much memory a run holds."""

import resource
import sys

import psutil
import torch

GIB = 2**30


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory held so far, in GiB: the device's on CUDA, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / GIB


def free_memory_bytes(device: torch.device) -> int:
    """Return the memory that a device could still give; on a CPU, the machine's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    return int(psutil.virtual_memory().available)

"""How much memory a run holds."""

import resource
import sys
from pathlib import Path

import psutil
import torch

GIB = 2**30


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory held so far, in GiB: the device's on CUDA, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / GIB


def free_memory_bytes(device: torch.device) -> float:
    """Return the memory that a device could still give; on a CPU, the machine's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    return min(int(psutil.virtual_memory().available), _free_in_container())


def _free_in_container() -> float:
    """Return what is left below the limit of a Linux control group; infinite without one."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{x}").read_text() for x in ("max", "current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # no such file, or the limit reads "max"
        return float("inf")

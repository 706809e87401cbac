"""What the device computes with: its native precision, and as many CPU threads as pay.

Both hold unless the user has said otherwise.
"""

import os
import platform
import time
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lit_sft.errors import require

PRECISIONS = ("bf16-mixed", "32-true")
ALIASES = {"bf16": "bf16-mixed", "32": "32-true"}
"""Lightning's own short names."""
PrecisionName = Literal["auto", "bf16-mixed", "32-true", "bf16", "32", 32]
"""What the command line takes."""
SAID_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WEIGHTS_A_THREAD = 2**17
"""What a thread needs of a square layer to be worth waiting for. At a width of 256, on two
busy cores, one thread trains 1.6 times as fast as two."""


class Device(NamedTuple):
    """What a precision is chosen for."""

    name: str
    """As a message calls it."""
    is_cpu: bool
    has_bf16: bool
    """Whether it multiplies matrices of bfloat16 natively."""


def choose_precision(device: Device) -> tuple[str, str]:
    """Return the precision that a device computes natively, and why in words."""
    if device.has_bf16:
        return "bf16-mixed", f"{device.name} computes bf16 natively"
    lacks = (
        "emulates bf16, which is many times slower" if device.is_cpu else "has no bf16 arithmetic"
    )
    return "32-true", f"{device.name} {lacks}"


def require_precision(precision: str | int, device: Device) -> str:
    """Return a precision that was asked for by its full name.

    Args:
        precision: One of `PRECISIONS` or of `ALIASES`.
        device: What is to compute in it. A CPU emulates what it lacks; a GPU is refused.

    Raises:
        InputError: If the trainer has no such precision, or the device lacks it.
    """
    name = ALIASES.get(str(precision), str(precision))
    require(
        name in PRECISIONS,
        f"trainer.precision must be {' or '.join(PRECISIONS)}, or auto for what the device "
        f"computes natively, got {precision}",
    )
    require(
        name != "bf16-mixed" or device.has_bf16 or device.is_cpu,
        f"trainer.precision: {device.name} has no bf16 arithmetic; use 32-true",
    )
    return name


def compute_dtype(precision: str) -> torch.dtype:
    """Return the dtype that one of Lightning's precisions computes in."""
    return torch.bfloat16 if precision.startswith("bf16") else torch.float32


def describe_device(device: torch.device) -> Device:
    """Ask torch what a device computes natively."""
    if device.type == "cpu":
        return Device("this CPU", is_cpu=True, has_bf16=_cpu_has_bf16())
    if device.type != "cuda":
        return Device(f"the device {device}", is_cpu=False, has_bf16=False)
    major, minor = torch.cuda.get_device_capability(device)
    name = f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"
    # Not `torch.cuda.is_bf16_supported`: it asks the current card, and to change that costs the
    # card memory in every rank.
    return Device(name, is_cpu=False, has_bf16=bool(torch.version.hip) or major >= 8)


def find_device(accelerator: object) -> torch.device:
    """Return what a trainer will run on, before there is one.

    Args:
        accelerator: As `lightning.Trainer` takes it; of several GPUs, the oldest decides.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        cards = range(torch.cuda.device_count())
        return torch.device("cuda", min(cards, key=torch.cuda.get_device_capability))
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def count_devices(accelerator: object, devices: Any) -> int:
    """Return how many devices of a machine a trainer will run on, before there is one.

    Args:
        accelerator: As `lightning.Trainer` takes it.
        devices: Likewise; 1 of what it will refuse.
    """
    kinds = {"cpu": CPUAccelerator, "cuda": CUDAAccelerator, "mps": MPSAccelerator}
    kind = kinds[find_device(accelerator).type]
    if devices == "auto":
        return kind.auto_device_count()
    try:
        found = kind.parse_devices(devices)
    except (MisconfigurationException, TypeError, ValueError):
        return 1
    return found if isinstance(found, int) else len(found or [0])


def tell_if_emulated(precision: str, device: torch.device) -> None:
    """Say that this CPU emulates the bf16 that a run asks for, and how much slower it is."""
    described = describe_device(device)
    if precision == "bf16-mixed" and described.is_cpu and not described.has_bf16:
        _tell_of_emulation()


def measure_slowdown(rows: int = 512, width: int = 256, seconds: float = 0.1) -> float:
    """Return how many times as long a linear layer takes in bf16 as in fp32, on this CPU.

    Args:
        rows: Of the input, float `[rows, width]`.
        width: Of the layer's weight, `[width, width]`.
        seconds: For how long each is tried; the fastest counts, as another process may come in
            between.
    """
    fastest = []
    for dtype in (torch.bfloat16, torch.float32):
        x, weight = torch.ones(rows, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
        times: list[float] = []
        while sum(times) < seconds:
            started = time.perf_counter()
            nn.functional.linear(x, weight)
            times.append(time.perf_counter() - started)
        fastest.append(min(times))
    return fastest[0] / fastest[1]


def count_threads(width: int, available: int) -> int:
    """Return how many threads pay.

    It is a function of the model alone, not of the load: another number rounds otherwise, and a run
    that is resumed must not.

    Args:
        width: The model's hidden size.
        available: How many there could be.
    """
    return max(1, min(available, width * width // WEIGHTS_A_THREAD))


def limit_threads(width: int, processes: int) -> None:
    """Let torch use as many threads as pay, in this process and in the ranks that it launches.

    Args:
        width: The model's hidden size.
        processes: Ranks on this machine, which share its cores.
    """
    if any(name in os.environ for name in SAID_BY_USER):
        return
    threads = count_threads(width, torch.get_num_threads() // processes)
    torch.set_num_threads(threads)
    if processes > 1:  # the other ranks inherit it, and Lightning sets no number of its own
        os.environ["OMP_NUM_THREADS"] = str(threads)


@cache  # once a process, however often it trains
@rank_zero_only
def _tell_of_emulation() -> None:
    print(
        "precision bf16-mixed: this CPU emulates bf16, and a layer took "
        f"{measure_slowdown():.0f} times as long as in fp32; trainer.precision=auto takes 32-true",
        flush=True,
    )


def _cpu_has_bf16() -> bool:
    """Return whether oneDNN has a bf16 product, and does not emulate it.

    It also has one for AVX512 alone, in fp32 arithmetic; on x86 the CPU is asked too.
    `ONEDNN_MAX_CPU_ISA` counts: it is how another machine is tried.
    """
    has_onednn: Any = torch.backends.mkldnn.is_available
    if not has_onednn():
        return False
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not is_x86 or (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )

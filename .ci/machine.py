"""Print what the tests run on, in three lines: how fast they are depends on little else."""

import os
import platform
from pathlib import Path

import torch

from lit_sft.model.device import choose_precision, describe_device, find_device

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe_processor() -> str:
    """Return the model of the CPU, its cores and which of `FLAGS` it has."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    entries = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    has = set(entries.get("flags", "").split())
    flags = ", ".join(f"{flag} {'yes' if flag in has else 'no'}" for flag in FLAGS)
    model = entries.get("model name", platform.processor() or platform.machine())
    return f"{model}, {os.cpu_count()} cores; {flags}"


def describe_torch() -> str:
    """Return what torch makes of it, with the limits that the environment sets."""
    is_native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{torch.__version__}, {device}: {torch.backends.cpu.get_cpu_capability()} kernels, "
        f"bf16 {'native' if is_native else 'emulated'}, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    print("processor:", describe_processor())
    print("torch:", describe_torch())
    precision, reason = choose_precision(describe_device(find_device("auto")))
    print(f"precision: {precision}, as {reason}", flush=True)

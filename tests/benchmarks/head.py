"""The fused head against the plain one and torch's own chunked one: CPU seconds and memory.

    PYTHONPATH=. python tests/benchmarks/head.py

Each arm runs in a process of its own, forward and backward, on one thread.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

STATES, WIDTH, VOCABULARY, REPEATS = 1600, 256, 128_256, 5


def run(arm: str, dtype_name: str) -> None:
    """Print the CPU seconds of the fastest of a few runs, and the MiB above what stood before."""
    import torch
    from torch.nn import LinearCrossEntropyOptions, functional

    from lit_sft.model.fast.cross_entropy import fused_cross_entropy
    from lit_sft.model.fast.embedding import TokenRows

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = getattr(torch, dtype_name)
    weight = (torch.randn(VOCABULARY, WIDTH) * 0.02).to(dtype)
    hidden = torch.randn(STATES, WIDTH).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (STATES,))
    losses = {
        "fused": lambda: fused_cross_entropy(hidden, targets, TokenRows(weight, (), weight[:0])),
        "torch, chunked": lambda: functional.linear_cross_entropy(
            hidden, weight, targets, reduction="sum", options=LinearCrossEntropyOptions()
        ),
        "plain": lambda: functional.cross_entropy(
            (hidden @ weight.T).float(), targets, reduction="sum"
        ),
    }
    seconds = []
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = read_peak()
    for _ in range(REPEATS):
        started = time.process_time()
        losses[arm]().backward()
        seconds.append(time.process_time() - started)
    print(
        f"| {arm} | {dtype_name} | {min(seconds):.2f} | {read_peak() - before:,.0f} |", flush=True
    )


def read_peak() -> float:
    """Return the most memory held, in MiB."""
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(*sys.argv[1:])
    else:
        print("| head | dtype | CPU s | MiB |\n|---|---|---|---|", flush=True)
        for dtype_name in ("bfloat16", "float32"):
            for arm in ("fused", "torch, chunked", "plain"):
                subprocess.run([sys.executable, __file__, arm, dtype_name], check=True)

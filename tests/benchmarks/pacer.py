"""Measure segments of optimizer steps from within the process that takes them."""

import ctypes
import gc
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torch import nn


class Pacer:
    """Measure segments of steps: CPU seconds, peak memory, and the parts of a step."""

    def __init__(self, pipe: Connection, segments: list[int]) -> None:
        self.pipe, self.segments, self.steps = pipe, list(segments), 0
        self.parts: dict[str, float] = {}
        self.loaded_bytes = 0
        self.started = 0.0

    def begin(self, model: nn.Module) -> None:
        """Call when the model is loaded, before the first step."""
        self.dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
        for dropout in self.dropouts:
            self.dropout_rate, dropout.p = dropout.p, 0.0
        trim_heap()
        self.loaded_bytes = read_memory("VmRSS")
        self._wait()

    def end_step(self, loss: float | None, grad_norm: float | None) -> None:
        """Call after every optimizer step."""
        self.steps += 1
        if self.steps < self.segments[0]:
            return
        seconds = time.process_time() - self.started
        self.pipe.send(
            {
                "seconds": seconds / self.steps,
                "peak_bytes": read_memory("VmHWM") - self.loaded_bytes,
                "parts": {name: spent / self.steps for name, spent in self.parts.items()},
                "loss": loss,
                "grad_norm": grad_norm,
            }
        )
        for dropout in self.dropouts:
            dropout.p = self.dropout_rate
        self.segments.pop(0)
        if self.segments:
            self._wait()

    def clock(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, its CPU seconds added to a part of the step."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.parts[part] = self.parts.get(part, 0.0) + time.process_time() - start

        return timed

    def _wait(self) -> None:
        self.pipe.recv()
        self.steps, self.parts = 0, {}
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
        self.started = time.process_time()


def read_memory(name: str) -> int:
    """Return one of the sizes of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def trim_heap() -> None:
    """Give what loading has left behind back to the system, or it would hide in later peaks."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)

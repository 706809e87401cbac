"""The figures of a run: rates and peak memory of a step, losses of a split and its sources."""

import resource
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_sft.model.distributed import sum_over_ranks

GIB = 2**30


class StepClock:
    """Times a training step from the end of what followed the one before.

    Evaluations, checkpoints and what callbacks do between two steps are not counted.
    """

    def __init__(self) -> None:
        self._asked_at = self._began_at = time.perf_counter()

    def wait(self) -> None:
        """Note that from now on nothing but the next window is missing."""
        self._asked_at = time.perf_counter()

    def begin(self) -> None:
        """Note that the window is there."""
        self._began_at = time.perf_counter()

    def figures(self, tokens: Tensor, supervised: Tensor) -> dict[str, Tensor | float]:
        """Return what to log of a step that ends now.

        Args:
            tokens: float32 of shape `[]`, over all ranks; it may stay on its device.
            supervised: Likewise, of those that carry loss.
        """
        seconds = time.perf_counter() - self._asked_at
        return {
            "train/tokens_per_second": tokens / seconds,
            "train/supervised_tokens_per_second": supervised / seconds,
            "train/loader_wait_seconds": self._began_at - self._asked_at,
        }


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory held so far, in GiB: the device's on CUDA, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / GIB


class EvalLoss:
    """Sums of losses and of supervised tokens, over windows, sources and ranks."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}

    def add(self, source: int, loss: Tensor, tokens: Tensor) -> None:
        """Add a window, empty or not: every rank has to know the same sources.

        Args:
            source: The number of its loader.
            loss: float32 scalar, the sum over the window.
            tokens: float32 scalar, the supervised ones.
        """
        sums = torch.stack([loss, tokens]).double()
        self._sums[source] = self._sums.get(source, 0) + sums

    def take(self, name: str, sources: Sequence[str]) -> dict[str, Tensor]:
        """Return the means over all supervised tokens, and begin anew.

        Args:
            name: Of the mean over all.
            sources: Names of the loaders; empty where there is one that needs none.
        """
        sums = {source: sum_over_ranks(self._sums[source]) for source in sorted(self._sums)}
        self._sums = {}
        loss, tokens = torch.stack(list(sums.values())).sum(0)
        means = {f"{name}/{sources[i]}": x[0] / x[1] for i, x in sums.items() if sources and x[1]}
        return {name: loss / tokens} | means

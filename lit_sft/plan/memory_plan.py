"""The peak of memory of a run, by part, before its weights are loaded."""

from collections.abc import Sequence
from typing import NamedTuple

import psutil
import torch

from lit_sft.model.stored_base import StoredBase

PAGE = 4096
"""Bytes of which a process is given all, once it writes to one."""
LOOKED_AT = 2**20
"""Bytes of a tensor behind which the process is looked at."""


class MemoryPlan(NamedTuple):
    """Bytes by part. What is trained stands beside the base for all of the run."""

    process: int
    """On a CPU, what the process takes with its libraries and the rows."""
    base: StoredBase
    cached: int
    """The 4-bit weights, dequantised for good; codes and scales are gone then. 0 without."""
    trained: int
    """Of the adapter and the trained rows, in float32."""
    gradients: int
    states: int
    """Of the optimizer."""
    paged: bool
    """Whether these lie in pages that need not be on the device."""
    pages: int
    """On a CPU, of the files of the weights, which are mapped and not given back."""
    activations: int
    """Of the pass with the most tokens: what its layers hold at their peak."""
    kept: int
    """What they keep of it for the backward pass."""
    scattered: int
    """On a CPU, what the process holds besides, as memory is given back in pieces."""
    head: int
    """Of the loss of that pass, beside what its layers keep."""
    cache: int
    """Keys and values of the largest batch of answers."""
    answering: int
    """What reading its prompts takes besides."""
    kernels: int
    """Of a CPU, generated for each shape."""
    adds_up: bool
    """Whether what answers take stays with the process when a step begins, as on a CPU."""

    @property
    def weights(self) -> int:
        """Of the base."""
        packed = self.cached or self.base.codes + self.base.scales
        return packed + self.base.embeddings + self.base.others

    @property
    def lasting(self) -> int:
        """What is there all the time, from the first step on."""
        states = 0 if self.paged else self.states
        trained = self.trained + self.gradients + states
        return self.process + self.pages + self.weights + trained + self.kernels

    @property
    def step(self) -> int:
        """The most that a step holds besides."""
        return max(self.activations, self.kept + self.head) + self.scattered

    @property
    def answers(self) -> int:
        """The most that an evaluation holds besides."""
        return self.cache + self.answering

    @property
    def peak(self) -> int:
        """The most at once: in a step, or while the model answers."""
        return self.lasting + self.step + self.beside_step

    @property
    def beside_step(self) -> int:
        """What answers add to the peak of a step."""
        return self.answers if self.adds_up else max(0, self.answers - self.step)


def measure_process(device: torch.device) -> int:
    """Return the bytes of this process, which count on a CPU alone."""
    return int(psutil.Process().memory_info().rss) if device.type == "cpu" else 0


def repeat_history(histories: Sequence[Sequence[tuple[int, int]]], device: torch.device) -> int:
    """Return by how much this process grows where it holds what some passes hold, empty.

    On a CPU, memory that is given back in pieces is not all used again. It is given back here.

    Args:
        histories: As `Noted` keeps them, a pass each.
        device: On others, 0 is returned: what they count are tensors.
    """
    if device.type != "cpu":
        return 0
    before = highest = measure_process(device)
    for history in histories:
        held: dict[int, torch.Tensor] = {}
        for number, size in history:
            if size < 0:
                held.pop(number, None)
                continue
            held[number] = torch.empty(size, dtype=torch.uint8)
            held[number][::PAGE] = 1
            if size >= LOOKED_AT:
                highest = max(highest, measure_process(device))
    return highest - before


def count_batch_rows(prompts: list[int], max_new_tokens: int, max_batch_tokens: int) -> int:
    """Return the rows of the first batch of answers, as `generate_greedy` cuts it.

    Args:
        prompts: Tokens of each, the longest first.
        max_new_tokens: Of an answer.
        max_batch_tokens: Of the batch.
    """
    if not prompts:
        return 0
    return min(len(prompts), max(1, max_batch_tokens // (prompts[0] + max_new_tokens)))

"""What is done for speed alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Speed:
    """Switches of what makes a step faster, each of which can be had without the others.

    Args:
        fused_head: Loss and gradient of the head at once, without logits, see
            `lit_sft.model.fast.cross_entropy`.
        fused_lora: The update of a LoRA layer as one function, see `lit_sft.model.fast.lora`. Its
            dropout draws from the same distribution as PEFT's, but not the same numbers.
        flat_optimizer: The adapter as one buffer, see `lit_sft.model.fast.flat_parameters`.
        compile: Whether `torch.compile` makes the kernels of a layer. On a GPU that waits for
            Python it more than doubles the speed, after a minute at the start; numbers are rounded
            otherwise. Two such runs have the same bits, and so has a resumed one.
    """

    fused_head: bool = True
    fused_lora: bool = True
    flat_optimizer: bool = True
    compile: bool = False


def compile_layers(layers: Iterable[Any]) -> None:
    """Let `torch.compile` make the kernels of layers, for any number of tokens.

    Under deterministic algorithms no kernel is chosen by how long it takes, which two processes
    may judge differently.
    """
    import torch._inductor.config as known

    options = {}
    if torch.are_deterministic_algorithms_enabled() and hasattr(known, "deterministic"):
        options = {"deterministic": True}
    for layer in layers:
        layer.compile(dynamic=True, options=options)

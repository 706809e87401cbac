"""Optimizers by name, and the schedule of the learning rate."""

import math
from collections.abc import Callable, Iterable
from typing import Literal, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from lit_sft.errors import InputError, suggest

OptimizerName = Literal["paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "adamw"]


def build_optimizer(
    name: OptimizerName,
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
) -> Optimizer:
    """Return an AdamW over the parameters.

    Args:
        name: `paged_*` and `*_8bit` are bitsandbytes', whose pages exist on CUDA alone; `adamw` is
            torch's, fused.
        parameters: Those to train.
        learning_rate: The peak, which a schedule scales.
        weight_decay: Decoupled (Loshchilov and Hutter, 2019).

    Raises:
        InputError: If there is no optimizer of that name.
    """
    if name == "adamw":
        return torch.optim.AdamW(
            parameters, lr=learning_rate, weight_decay=weight_decay, fused=True
        )
    if name not in get_args(OptimizerName):
        known = get_args(OptimizerName)
        raise InputError(f"unknown optimizer {name!r}; use one of {known}.{suggest(name, known)}")
    from bitsandbytes.optim import adamw

    kind: Callable[..., Optimizer] = {
        "paged_adamw_32bit": adamw.PagedAdamW32bit,
        "paged_adamw_8bit": adamw.PagedAdamW8bit,
        "adamw_8bit": adamw.AdamW8bit,
    }[name]
    return kind(parameters, lr=learning_rate, weight_decay=weight_decay)


def count_steps(max_steps: int, max_epochs: int | None, steps_per_epoch: float) -> int:
    """Return after how many optimizer steps a run ends, as Lightning counts.

    Args:
        max_steps: -1 for no limit.
        max_epochs: None or -1 for no limit.
        steps_per_epoch: Infinite where the loader has no length.

    Raises:
        InputError: If it never ends, which a cosine schedule cannot do without.
    """
    limits: list[float] = [max_steps] if max_steps > 0 else []
    if max_epochs is not None and max_epochs > 0:
        limits.append(max_epochs * steps_per_epoch)
    total = min(limits, default=math.inf)
    if total == math.inf:
        raise InputError("a cosine schedule needs an end: set trainer.max_steps or max_epochs")
    return int(total)


def cosine_with_warmup(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the factor of the peak learning rate at an optimizer step.

    It rises linearly from 0 over the warmup and falls as half a cosine to 0 at `total_steps`, as
    `transformers.get_cosine_schedule_with_warmup` does.
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))

"""The learning rate as a pure function of the optimizer step."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lit_sft.errors import InputError, require

Kind = Literal["cosine", "linear", "constant", "warmup_stable_decay"]


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes from its peak to the end of the run.

    Args:
        kind: `cosine`, `linear` and `constant` as transformers' schedules of these names with a
            warmup; `warmup_stable_decay` stays at the peak and falls as half a cosine at the end
            (Hu et al., 2024, MiniCPM), as transformers' `get_wsd_schedule` does.
        warmup_steps: Optimizer steps over which it rises from 0; above 0, `warmup_ratio` is not
            looked at.
        min_lr_ratio: The share of the peak to which it falls, rather than to 0.
        decay_ratio: The share of all optimizer steps over which `warmup_stable_decay` falls.
    """

    kind: Kind = "cosine"
    warmup_steps: int = 0
    min_lr_ratio: float = 0.0
    decay_ratio: float = 0.1

    def __post_init__(self) -> None:
        kinds = ", ".join(get_args(Kind))
        require(
            self.kind in get_args(Kind), f"schedule.kind must be one of {kinds}, got {self.kind!r}"
        )
        require(
            self.warmup_steps >= 0,
            f"schedule.warmup_steps must not be negative, got {self.warmup_steps}",
        )
        for name in ("min_lr_ratio", "decay_ratio"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"schedule.{name} must be in [0, 1], got {value}")
        require(
            not (self.min_lr_ratio and self.kind == "constant"),
            "schedule.min_lr_ratio: a constant learning rate falls to nothing; leave it at 0",
        )

    def factor(self, step: int, warmup_ratio: float, total_steps: int) -> float:
        """Return the factor of the peak learning rate at an optimizer step, from 0 to 1.

        Args:
            step: Counted from 0.
            warmup_ratio: The share of all steps that warm up, where `warmup_steps` is 0.
            total_steps: Of the run.
        """
        warmup = self.warmup_steps or round(warmup_ratio * total_steps)
        if step < warmup:
            return step / warmup
        left = self._share_left(step, warmup, total_steps)
        return max(0.0, left * (1.0 - self.min_lr_ratio) + self.min_lr_ratio)

    def _share_left(self, step: int, warmup: int, total_steps: int) -> float:
        """Return how far it is from the floor, from 1 to 0, behind the warmup."""
        if self.kind == "constant":
            return 1.0
        start = warmup
        if self.kind == "warmup_stable_decay":
            start = max(warmup, total_steps - round(self.decay_ratio * total_steps))
            if step < start:
                return 1.0
        progress = (step - start) / max(1, total_steps - start)
        if self.kind == "linear":
            return max(0.0, 1.0 - progress)
        if self.kind == "warmup_stable_decay" and progress >= 1.0:
            return 0.0
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


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

"""How long a run will take from here, by its last steps and its last evaluation."""

import math
from collections import deque
from statistics import median

STEPS = 50
"""Whose median is taken: one that compiles, or waits for a disk, says nothing of the others."""


class Pace:
    """The seconds of the last steps, and of the last evaluation."""

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=STEPS)
        self._evaluation = 0.0

    def add_step(self, seconds: float) -> None:
        """Note how long a step took, with the wait for its rows and without evaluations."""
        self._steps.append(seconds)

    def add_evaluation(self, seconds: float) -> None:
        """Note how long an evaluation took."""
        self._evaluation = seconds

    def seconds_for(self, steps: int, evaluations: int) -> float | None:
        """Return how long so many steps and evaluations will take; None before the first step."""
        if not self._steps:
            return None
        return median(self._steps) * steps + self._evaluation * evaluations


def count_evaluations(step: int, total: int, every: float) -> tuple[int, int]:
    """Return how many evaluations are left, and the steps to the next one.

    Args:
        step: Optimizer steps taken.
        total: Of the whole run; behind the last one there is an evaluation in any case.
        every: Steps from one to the next; infinite where that is not known.
    """
    if step >= total:
        return 0, 0
    if not math.isfinite(every) or every < 1:
        return 1, total - step
    whole = int(every)
    upcoming = min(total, (step // whole + 1) * whole)
    return total // whole - step // whole + (total % whole > 0), upcoming - step


def format_seconds(seconds: float) -> str:
    """Return a duration in the two units that matter, such as `3 min 12 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"

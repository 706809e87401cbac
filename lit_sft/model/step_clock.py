"""How long a step takes, with what it waited for the loader."""

import time

from torch import Tensor


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
            tokens: float32 scalar, over all ranks; it may stay on its device.
            supervised: Likewise, of those that carry loss.
        """
        seconds = time.perf_counter() - self._asked_at
        return {
            "train/tokens_per_second": tokens / seconds,
            "train/supervised_tokens_per_second": supervised / seconds,
            "train/loader_wait_seconds": self._began_at - self._asked_at,
        }

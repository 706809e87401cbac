"""The loss over a whole split, and over each of its sources."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_sft.model.distributed import sum_over_ranks


class EvalLoss:
    """Sums of losses and of supervised tokens, over windows, sources and ranks."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}

    def add(self, source: int, loss: Tensor, tokens: Tensor) -> None:
        """Add a window, empty or not: every rank has to know the same sources.

        Args:
            source: The number of its loader.
            loss: Scalar, the sum over the window.
            tokens: Scalar, the supervised ones.
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

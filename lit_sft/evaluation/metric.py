"""GSM8K exact match as a torchmetrics metric."""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_sft.errors import require
from lit_sft.evaluation.grading import extract_flexible, extract_reference, extract_strict


class GSM8KExactMatch(Metric):
    """The share of answers whose final number is that of the reference, strict and flexible.

    Its four counts are int64 scalars and are summed over ranks, so that the shares are those of all
    rows together, however unevenly the ranks were fed.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    strict_correct: Tensor
    flexible_correct: Tensor
    unanswered: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("strict_correct", "flexible_correct", "unanswered", "total"):
            self.add_state(name, default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Grade predictions against references at the same positions.

        Args:
            predictions: What the model said, `[rows]`.
            references: Solutions that end in `#### number`, or the numbers alone, `[rows]`.

        Raises:
            InputError: If the lengths differ or a reference has no answer; then nothing is counted.
        """
        require(
            len(predictions) == len(references),
            f"got {len(predictions)} predictions for {len(references)} references",
        )
        expected = [extract_reference(reference) for reference in references]
        strict = [extract_strict(prediction) for prediction in predictions]
        flexible = [extract_flexible(prediction) for prediction in predictions]
        self.strict_correct += sum(map(operator.eq, strict, expected))
        self.flexible_correct += sum(map(operator.eq, flexible, expected))
        self.unanswered += strict.count(None)
        self.total += len(expected)

    def compute(self) -> dict[str, Tensor]:
        """Return shares of all rows graded so far, float32 scalars; NaN if there were none.

        Returns:
            `exact_match` (strict), `exact_match_flexible`, and `no_answer`: the share without a
            strict answer, which counts as wrong.
        """
        return {
            "exact_match": self.strict_correct / self.total,
            "exact_match_flexible": self.flexible_correct / self.total,
            "no_answer": self.unanswered / self.total,
        }

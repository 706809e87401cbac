"""Exact match: graded answers, their counts over all ranks, and the interval of their share."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_sft.errors import InputError
from lit_sft.evaluation.proportions import wilson_interval

SHARES = ("exact_match", "no_answer", "unfinished")
"""What is told of answers, each a share of all."""


class Answer(NamedTuple):
    """One graded answer."""

    row: int
    """Its number within the split."""
    question: str
    reference: str
    output: str
    grade: bool | None
    """None where no answer was found, which counts as wrong."""
    finished: bool
    """Whether the model stopped by itself, rather than at the token limit."""

    @property
    def verdict(self) -> str:
        """`right`, `wrong` or `no answer`."""
        return name_verdict(self.grade)


def name_verdict(grade: bool | None) -> str:
    """Return a grade in words: `right`, `wrong`, or `no answer` for None."""
    return "no answer" if grade is None else "right" if grade else "wrong"


class ExactMatch(Metric):
    """The share of answers that are right, of those without an answer and of those without an end.

    Its four counts are int64 scalars, summed over ranks, so that the shares are those of all rows
    together, however unevenly the ranks were fed.

    Args:
        with_interval: Whether `compute` gives the 95 % interval of the exact match, too.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    total: Tensor
    right: Tensor
    no_answer: Tensor
    unfinished: Tensor

    def __init__(self, with_interval: bool = False) -> None:
        super().__init__()
        self.with_interval = with_interval
        for name in ("total", "right", "no_answer", "unfinished"):
            self.add_state(name, default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, grades: Sequence[bool | None], finished: Sequence[bool]) -> None:
        """Count graded answers.

        Args:
            grades: Of each answer, `[rows]`; None where none was found, which counts as wrong.
            finished: Whether the model stopped by itself, `[rows]`.

        Raises:
            InputError: If the lengths differ; then nothing is counted.
        """
        if len(grades) != len(finished):
            raise InputError(f"got {len(grades)} grades for {len(finished)} answers")
        self.total += len(grades)
        self.right += sum(map(bool, grades))
        self.no_answer += sum(grade is None for grade in grades)
        self.unfinished += sum(not is_finished for is_finished in finished)

    def compute(self) -> dict[str, float]:
        """Return shares of all answers counted so far, on all ranks; NaN if there were none.

        Returns:
            `exact_match`, `no_answer` and `unfinished`, each between 0 and 1; with the interval,
            also `exact_match_low` and `exact_match_high`.
        """
        total, right = int(self.total), int(self.right)
        counts = (right, int(self.no_answer), int(self.unfinished))
        shares = {
            name: count / total if total else math.nan
            for name, count in zip(SHARES, counts, strict=True)
        }
        if self.with_interval:
            low, high = wilson_interval(right, total) if total else (math.nan, math.nan)
            shares |= {"exact_match_low": low, "exact_match_high": high}
        return shares


def format_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Return columns of figures side by side as plain text, such as before and after.

    Args:
        columns: The figures of each column by name; all have the first one's names.
    """
    names = list(next(iter(columns.values())))
    width = max(map(len, names))
    lines = [" " * width + "".join(f"{heading:>10}" for heading in columns)]
    for name in names:
        values = "".join(f"{column[name]:>10.4f}" for column in columns.values())
        lines.append(f"{name:<{width}}{values}")
    return "\n".join(lines)

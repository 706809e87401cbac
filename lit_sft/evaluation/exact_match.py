"""Exact match and F1: graded answers, their counts over all ranks, and intervals of the figures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_sft.errors import InputError, require
from lit_sft.evaluation.intervals import mean_interval, wilson_interval
from lit_sft.evaluation.verdicts import name_verdict
from lit_sft.types import Grade, Prompt

FIGURES = ("exact_match", "f1", "no_answer", "unfinished")
"""What is told of answers: of the first two, what the graders give."""


class Answer(NamedTuple):
    """One graded answer."""

    row: int
    """Its number within the split."""
    question: str
    reference: str
    output: str
    grade: Grade
    """None where no answer was found, which counts as wrong."""
    finished: bool
    """Whether the model stopped by itself, rather than at the token limit."""
    source: str = ""
    """The task of a mixture that the row is from."""

    @property
    def verdict(self) -> str:
        """`right`, `wrong`, `no answer`, or `f1` and a figure."""
        return name_verdict(self.grade)

    def describe(self) -> dict[str, Any]:
        """Return it as plain values, the verdict in words."""
        return {
            "row": self.row,
            "question": self.question,
            "reference": self.reference,
            "output": self.output,
            "verdict": self.verdict,
            "finished": self.finished,
        }


def make_answer(
    prompt: Prompt, output: str, grade: Grade, finished: bool, source: str = ""
) -> Answer:
    """Return an answer beside the question and the reference of its conversation."""
    said = {message["role"]: message["content"] for message in prompt.messages}
    question, reference = said.get("user", ""), said.get("assistant", "")
    return Answer(prompt.row, question, reference, output, grade, finished, source)


class ExactMatch(Metric):
    """The share of answers that are right, of those without an answer and of those without an end.

    Grades that are floats are no verdicts: `f1` is their mean, and `exact_match` that of the
    others. The counts are int64 scalars and the two sums float64, all added up over the ranks, so
    that the figures are those of all rows together, however unevenly the ranks were fed.

    Args:
        with_interval: Whether `compute` gives the 95 % intervals of exact match and F1, too.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    total: Tensor
    right: Tensor
    no_answer: Tensor
    unfinished: Tensor
    scored: Tensor
    score_sum: Tensor
    square_sum: Tensor

    def __init__(self, with_interval: bool = False) -> None:
        super().__init__()
        self.with_interval = with_interval
        for name in ("total", "right", "no_answer", "unfinished", "scored"):
            self.add_state(name, default=torch.tensor(0), dist_reduce_fx="sum")
        for name in ("score_sum", "square_sum"):
            zero = torch.tensor(0.0, dtype=torch.float64)
            self.add_state(name, default=zero, dist_reduce_fx="sum")

    def update(self, grades: Sequence[Grade], finished: Sequence[bool]) -> None:
        """Count graded answers.

        Args:
            grades: Of each answer, `[rows]`; None where none was found, which counts as wrong.
            finished: Whether the model stopped by itself, `[rows]`.

        Raises:
            InputError: If the lengths differ, or a float is not from 0 to 1; then nothing is
                counted.
        """
        if len(grades) != len(finished):
            raise InputError(f"got {len(grades)} grades for {len(finished)} answers")
        scores = [grade for grade in grades if isinstance(grade, float)]
        for score in scores:
            require(0 <= score <= 1, f"a grade that is a float must be from 0 to 1, got {score}")
        self.total += len(grades)
        self.scored += len(scores)
        self.score_sum += math.fsum(scores)
        self.square_sum += math.fsum(score * score for score in scores)
        self.right += sum(bool(grade) for grade in grades if not isinstance(grade, float))
        self.no_answer += sum(grade is None for grade in grades)
        self.unfinished += sum(not is_finished for is_finished in finished)

    def compute(self) -> dict[str, float]:
        """Return the figures of all answers counted so far, on all ranks; NaN if there were none.

        Returns:
            `exact_match` if there were verdicts, `f1` if there were floats, `no_answer` and
            `unfinished`, each between 0 and 1; with the interval, also `exact_match_low`,
            `exact_match_high` and the like of `f1`.
        """
        total, right, scored = int(self.total), int(self.right), int(self.scored)
        judged, score_sum = total - scored, float(self.score_sum)
        figures: dict[str, float] = {}
        intervals: dict[str, tuple[float, float]] = {}
        if judged or not scored:
            figures["exact_match"] = right / judged if judged else math.nan
            nothing = (math.nan, math.nan)
            intervals["exact_match"] = wilson_interval(right, judged) if judged else nothing
        if scored:
            figures["f1"] = score_sum / scored
            intervals["f1"] = mean_interval(score_sum, float(self.square_sum), scored)
        for name in ("no_answer", "unfinished"):
            figures[name] = int(getattr(self, name)) / total if total else math.nan
        for name, (low, high) in intervals.items() if self.with_interval else ():
            figures |= {f"{name}_low": low, f"{name}_high": high}
        return figures


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

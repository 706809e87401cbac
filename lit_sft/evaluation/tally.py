"""What graded answers add up to. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lit_sft.evaluation.grading import wilson_interval


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
        return "no answer" if self.grade is None else "right" if self.grade else "wrong"


class Tally(NamedTuple):
    """Counts that add up over ranks."""

    total: int
    right: int
    no_answer: int
    unfinished: int

    def as_shares(self) -> dict[str, float]:
        """Return `exact_match`, `no_answer` and `unfinished`, each between 0 and 1."""
        return {
            "exact_match": self.right / self.total,
            "no_answer": self.no_answer / self.total,
            "unfinished": self.unfinished / self.total,
        }

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the exact match."""
        return wilson_interval(self.right, self.total)


def count_answers(answers: Sequence[Answer]) -> Tally:
    """Count graded answers."""
    return Tally(
        total=len(answers),
        right=sum(bool(answer.grade) for answer in answers),
        no_answer=sum(answer.grade is None for answer in answers),
        unfinished=sum(not answer.finished for answer in answers),
    )


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

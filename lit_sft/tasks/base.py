"""The one abstract class of the package: a data set that can be chatted about."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lit_sft.errors import InputError
from lit_sft.types import Grade, Message, Split

Row = Mapping[str, Any]
NamedRow = tuple[str, Row]
"""A row and what to call it in an error, such as `"train row 17"`."""

HOW_TO_GRADE = (
    "name a task that does in GenerationEval.task, or give it a grader (--data.task.grader number, "
    "for one, of a ChatFile) or a method grade(row, text)"
)


class ChatTask(ABC):
    """Rows, how a row reads as a conversation, and, optionally, how an answer is graded."""

    @abstractmethod
    def rows(self, split: Split) -> Sequence[Row] | None:
        """Return the rows of `"train"`, `"val"` or `"test"`, or None where there is no such split.

        Without a `val` split, the data module holds a fixed slice of `train` out for validation.
        """

    @abstractmethod
    def messages(self, row: Row) -> list[Message]:
        """Return the conversation of one row; its assistant turns are what training learns."""

    def grade(self, row: Row, text: str) -> Grade:
        """Return whether `text` answers `row`. Optional: only graded evaluation calls it.

        None says that no answer was found in `text`. It counts as wrong, and is counted separately;
        a task that cannot tell the two apart returns True or False alone. A float from 0 to 1 says
        how much of the answer is right, and goes into the mean `f1` rather than `exact_match`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not grade answers")

    def grader_name(self) -> str | None:
        """Return what tables call the way of grading, or None if answers cannot be graded."""
        return None if type(self).grade is ChatTask.grade else type(self).__name__

    def mixed_tasks(self) -> "Mapping[str, ChatTask]":
        """Return the tasks that this one mixes, by name; none for a task with rows of its own."""
        return {}

    def mix(self, split: Split, parts: Mapping[str, Sequence[NamedRow]]) -> Sequence[NamedRow]:
        """Return what a split holds of the rows of the mixed tasks, named after these."""
        raise NotImplementedError(f"{type(self).__name__} mixes no tasks")

    def source_of(self, row: Row) -> str:
        """Return the name of the mixed task that a row is from; empty where there are none."""
        return ""

    def list_sources(self, rows: Sequence[NamedRow]) -> list[str]:
        """Return the name of the mixed task that each row is from; empty where there are none."""
        return []

    def describe(self) -> str:
        """Return what to tell the user of how the rows are read, once they are; empty for nothing.

        Printed once, with the ledger of the splits.
        """
        return ""


def name_graders(task: ChatTask) -> dict[str, str | None]:
    """Return what `grader_name` says, by source; that of a task that mixes none is empty."""
    return {name: one.grader_name() for name, one in (task.mixed_tasks() or {"": task}).items()}


def list_chosen_graders(task: ChatTask) -> str:
    """Return the graders that options name, in order; empty for none, as where classes grade."""
    chosen = [getattr(one, "grader", None) for one in task.mixed_tasks().values() or [task]]
    return ", ".join(grader for grader in chosen if isinstance(grader, str))


def read_text(row: Row, column: str) -> str:
    """Return the string in a column of a row.

    Raises:
        InputError: If the column is missing or holds something other than a string.
    """
    if column not in row:
        raise InputError(f"there is no column {column!r}; the columns are {', '.join(row)}")
    value = row[column]
    if not isinstance(value, str):
        raise InputError(
            f"column {column!r} must hold a string, but holds {type(value).__name__} {value!r:.60}"
        )
    return value

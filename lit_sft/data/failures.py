"""What is wrong with the rows of a split, told in one line: each reason once, with its rows."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from lit_sft.errors import InputError
from lit_sft.types import Message

NAMED_ROWS = 3
"""Rows named for each reason."""
TOLD_REASONS = 4
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
"""What differs in two messages of one reason."""


class Failure(NamedTuple):
    """A row that cannot be trained on."""

    name: str
    """Such as `train row 17`."""
    reason: str


class FailedRows(InputError):  # noqa: N818 (it is about rows, not about an error)
    """Some rows cannot be read, or their masks not be proven.

    Args:
        failures: Of which there is one at least.
        total: Rows that were looked at.
        readable: The conversations of the others, with their names.
    """

    def __init__(
        self,
        failures: Sequence[Failure],
        total: int,
        readable: Sequence[tuple[str, list[Message]]] = (),
    ) -> None:
        super().__init__(describe_failures(failures, total))
        self.failures, self.total, self.readable = failures, total, readable


def describe_failures(failures: Sequence[Failure], total: int) -> str:
    """Return the first failure, and, if there are more, all reasons with counts and first rows."""
    name, reason = failures[0]
    if len(failures) == 1:
        return f"{name}: {reason}" if name else reason
    groups: dict[str, list[Failure]] = defaultdict(list)
    for failure in failures:
        groups[QUOTED.sub("…", failure.reason)].append(failure)
    (_, *like_it), *others = groups.values()
    told = [f"{len(like_it):,} more so ({_list_names(like_it)})"] if like_it else []
    told += [
        f"{len(rows):,} otherwise ({_list_names(rows)}: {rows[0].reason:.160})"
        for rows in others[: TOLD_REASONS - 1]
    ]
    rest = sum(map(len, others[TOLD_REASONS - 1 :]))
    told += [f"{rest:,} for {len(others) - TOLD_REASONS + 1} more reasons"] if rest else []
    return f"{name}: {reason} [{len(failures):,} of {total:,} rows fail: {'; '.join(told)}]"


def name_error(name: str, error: InputError) -> Failure:
    """Return the failure of a row, whose name an error may open with."""
    return Failure(name, str(error).removeprefix(f"{name}: "))


def _list_names(rows: Sequence[Failure]) -> str:
    return ", ".join(row.name for row in rows[:NAMED_ROWS]) + ", …" * (len(rows) > NAMED_ROWS)

"""The rows of a split: which of a task they are, under what names, and what is wrong with some."""

import random
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lit_sft.data.encode import naming
from lit_sft.errors import InputError, require
from lit_sft.tasks.base import ChatTask, NamedRow, Row
from lit_sft.tasks.row_sequences import describe_place, hash_contents, join_hashes
from lit_sft.types import Message, Split, ValRows

HELD_OUT_SEED = 0
"""Fixed, so that runs with different seeds are validated on the same rows."""

MOST_VAL_ROWS = 256
"""That `data.val_rows: auto` takes."""

SAMPLE_ROWS = 1024
"""Rows of a stream that are encoded before training: for the ledger, and to find mistakes early."""

NAMED_ROWS = 3
"""Rows named for each reason."""
TOLD_REASONS = 4
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
"""What differs in two messages of one reason."""

Conversation = tuple[str, list[Message]]
"""A row's messages under the row's name."""


class Failure(NamedTuple):
    """A row that cannot be trained on."""

    name: str
    """Such as `train row 17`, of several files `train row 17 (b.jsonl row 2)`."""
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
        readable: Sequence[Conversation] = (),
    ) -> None:
        super().__init__(describe_failures(failures, total))
        self.failures, self.total, self.readable = failures, total, readable


class MissingSplit(InputError):  # noqa: N818 (to some callers it is none)
    """A task has no rows for a split."""


class AllBut(Sequence[int]):
    """The numbers below a count but for some, in order, without a list of them.

    Args:
        count: Of all numbers.
        left_out: In rising order.
    """

    def __init__(self, count: int, left_out: Sequence[int]) -> None:
        self._len = count - len(left_out)
        # How many numbers stand before each that is left out.
        self.before = [number - i for i, number in enumerate(left_out)]

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._len:
            raise IndexError(index)
        return int(index) + bisect_right(self.before, index)


class SplitRows(Sequence[NamedRow]):
    """The rows of a split under their names, each read when it is asked for.

    Args:
        split: Whose rows they are in the task.
        rows: As the task has them.
        numbers: Which of them, in rising order.
    """

    def __init__(self, split: Split, rows: Sequence[Row], numbers: Sequence[int]) -> None:
        self.split, self.rows, self.numbers = split, rows, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        number = self.numbers[index]
        return self._name(number, self.rows[number])

    def __iter__(self) -> Iterator[NamedRow]:
        """Read from front to back, which is faster, where most rows are asked for."""
        if len(self) < len(self.rows) / 2:
            yield from (self[index] for index in range(len(self)))
            return
        numbers = iter(self.numbers)
        wanted = next(numbers, None)
        for number, row in enumerate(self.rows):
            if number == wanted:
                yield self._name(number, row)
                wanted = next(numbers, None)

    def hash_contents(self) -> str | None:
        """Return a hash of all rows of the task's split, and of how many are held out of them."""
        return join_hashes([hash_contents(self.rows)], str(len(self)))

    def _name(self, number: int, row: Row) -> NamedRow:
        place = describe_place(self.rows, number)
        return f"{self.split} row {number}{f' ({place})' if place else ''}", row


def read_split(
    task: ChatTask, split: Split, val_rows: ValRows, most: int = MOST_VAL_ROWS
) -> Sequence[NamedRow]:
    """Return the rows of a split under their names.

    Args:
        task: Where the rows come from.
        split: `"val"` is a fixed slice of `train`, which `"train"` then lacks, where the task has
            no rows of its own for it.
        val_rows: How many rows `"val"` has at most; `auto` is a tenth of `train`, or all rows of a
            `"val"` that there is, and no more than `most`.
        most: See above.

    Raises:
        MissingSplit: If the split has no rows.
        InputError: If it cannot be read, or `val_rows` leaves none to train on.
    """
    if task.mixed_tasks():
        return _mix(task, split, val_rows, most)
    if split == "test":
        return _read(task, "test")
    if task.rows("val") is not None:
        most = most if val_rows == "auto" else val_rows
        return _read(task, "train") if split == "train" else _read(task, "val", most)
    rows = _read(task, "train").rows
    count = min(most, max(1, len(rows) // 10)) if val_rows == "auto" else val_rows
    require(
        count < len(rows),
        f"data.val_rows={val_rows} leaves nothing to train on: train has {len(rows)} rows; "
        "lower it, or set it to 0 to train without validation",
    )
    held_out = sorted(random.Random(HELD_OUT_SEED).sample(range(len(rows)), count))
    return SplitRows("train", rows, held_out if split == "val" else AllBut(len(rows), held_out))


def take_sample(rows: Sequence[NamedRow]) -> list[NamedRow]:
    """Return up to `SAMPLE_ROWS` rows, evenly spread from the first to the last."""
    numbers = np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE_ROWS)).astype(int)
    return [rows[number] for number in numbers]


def read_conversations(task: ChatTask, rows: Sequence[NamedRow]) -> list[Conversation]:
    """Return the messages of every row under its name.

    Raises:
        FailedRows: If the task cannot read some rows; the message names them.
    """
    conversations: list[Conversation] = []
    failures = []
    for name, row in rows:
        try:
            conversations.append((name, task.messages(row)))
        except InputError as error:
            failures.append(name_error(name, error))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            reason = f"{type(task).__name__} cannot read it ({type(error).__name__}: {error})"
            failures.append(Failure(name, reason))
    if failures:
        raise FailedRows(failures, len(rows), conversations)
    return conversations


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


def _read(task: ChatTask, split: Split, max_rows: int | None = None) -> SplitRows:
    try:
        rows = task.rows(split)
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise MissingSplit(str(error)) from error.__cause__
        raise
    if not rows:
        raise MissingSplit(f"the {split} split of {type(task).__name__} has no rows")
    return SplitRows(split, rows, range(len(rows))[:max_rows])


def _mix(mixture: ChatTask, split: Split, val_rows: ValRows, most: int) -> Sequence[NamedRow]:
    parts, tasks = {}, mixture.mixed_tasks()
    share = val_rows if val_rows == "auto" else -(-val_rows // len(tasks))
    for name, task in tasks.items():
        with naming(name):
            try:
                parts[name] = read_split(task, split, share, -(-most // len(tasks)))
            except MissingSplit:
                if split != "test":  # not every task has one to test on
                    raise
    if not parts:
        raise MissingSplit(f"no task of the mixture has a {split} split")
    return mixture.mix(split, parts)


def _list_names(rows: Sequence[Failure]) -> str:
    return ", ".join(row.name for row in rows[:NAMED_ROWS]) + ", …" * (len(rows) > NAMED_ROWS)

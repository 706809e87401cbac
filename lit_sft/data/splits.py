"""Which rows of a task belong to which split, and what to call them."""

import random
from collections.abc import Sequence

from lit_sft.data.encode import naming
from lit_sft.errors import InputError, require
from lit_sft.tasks.base import ChatTask, Row
from lit_sft.types import Message, Split

HELD_OUT_SEED = 0
"""Fixed, so that runs with different seeds are validated on the same rows."""

NamedRow = tuple[str, Row]
"""A row and what to call it in an error, such as `"train row 17"`."""
Conversation = tuple[str, list[Message]]
"""A row's messages under the row's name."""


class MissingSplit(InputError):  # noqa: N818 (to some callers it is none)
    """A task has no rows for a split."""


def read_split(task: ChatTask, split: Split, val_rows: int) -> list[NamedRow]:
    """Return the rows of a split under their names.

    Args:
        task: Where the rows come from.
        split: `"val"` is a fixed slice of `train`, which `"train"` then lacks, where the task has
            no rows of its own for it.
        val_rows: How many rows `"val"` has at most.

    Raises:
        MissingSplit: If the split has no rows.
        InputError: If it cannot be read, or `val_rows` leaves none to train on.
    """
    if split == "test":
        return _read(task, "test")
    if task.rows("val") is not None:
        return _read(task, "train") if split == "train" else _read(task, "val")[:val_rows]
    rows = _read(task, "train")
    require(
        val_rows < len(rows),
        f"data.val_rows={val_rows} leaves nothing to train on: train has {len(rows)} rows",
    )
    held_out = set(random.Random(HELD_OUT_SEED).sample(range(len(rows)), val_rows))
    return [row for i, row in enumerate(rows) if (i in held_out) == (split == "val")]


def read_conversations(task: ChatTask, rows: Sequence[NamedRow]) -> list[Conversation]:
    """Return the messages of every row under its name.

    Raises:
        InputError: If the task cannot read a row; the message names it.
    """
    conversations = []
    for name, row in rows:
        with naming(name):
            try:
                conversations.append((name, task.messages(row)))
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                reason = f"{type(error).__name__}: {error}"
                raise InputError(f"{type(task).__name__} cannot read it ({reason})") from error
    return conversations


def _read(task: ChatTask, split: Split) -> list[NamedRow]:
    try:
        rows = task.rows(split)
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise MissingSplit(str(error)) from error.__cause__
        raise
    if not rows:
        raise MissingSplit(f"the {split} split of {type(task).__name__} has no rows")
    return [(f"{split} row {number}", row) for number, row in enumerate(rows)]

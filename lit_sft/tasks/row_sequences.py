"""Rows put together and cut without a copy, and the hash of what they hold.

A part of a split is written as `datasets` writes it: `train[:1000]`, `train[10%:]`. The hash of
rows is the same wherever their files lie, and another if one byte of them is.
"""

import hashlib
import json
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, islice
from typing import Any, NamedTuple, TypeVar

from lit_sft.errors import InputError, require
from lit_sft.tasks.arrow_rows import ArrowRows
from lit_sft.types import Split

Item = TypeVar("Item")


class Joined(Sequence[Item]):
    """The items of several sequences, one after the other; what is lazy stays lazy.

    Args:
        parts: Each with its items.
        names: Of the parts, such as files, if they have any.
    """

    def __init__(self, parts: Sequence[Sequence[Item]], names: Sequence[str] = ()) -> None:
        self.parts, self.names = parts, names
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: Any) -> Any:
        part, within = self.locate(int(index))
        return self.parts[part][within]

    def __iter__(self) -> Iterator[Item]:
        return chain.from_iterable(self.parts)

    def hash_contents(self) -> str | None:
        """Return a hash of all rows, as the function of this name has it."""
        return join_hashes(map(hash_contents, self.parts))

    def locate(self, index: int) -> tuple[int, int]:
        """Return in which part an item is, and where within it.

        Raises:
            IndexError: If there is no such item.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self.ends, index)
        return part, index - (self.ends[part - 1] if part else 0)

    def describe_place(self, index: int) -> str:
        """Return the name of the part that an item is in, and where; nothing if it has none."""
        part, within = self.locate(index)
        inner = describe_place(self.parts[part], within)
        return f"{self.names[part]} row {within}" if self.names else inner


class SlicedRows(Sequence[Item]):
    """Some of the rows of a sequence, each read when it is asked for.

    Args:
        rows: Of which.
        start: The first.
        stop: Behind the last.
    """

    def __init__(self, rows: Sequence[Item], start: int, stop: int) -> None:
        self.rows, self.start, self.stop = rows, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.rows[self.start + int(index)]

    def __iter__(self) -> Iterator[Item]:
        return islice(self.rows, self.start, self.stop)

    def describe_place(self, index: int) -> str:
        """Return where an item stands in the rows that these are of, as `describe_place` does."""
        return describe_place(self.rows, self.start + index)

    def hash_contents(self) -> str | None:
        """Return a hash of all rows that these are of, and which they are."""
        return join_hashes([hash_contents(self.rows)], f"{self.start}:{self.stop}")


def describe_place(rows: Sequence[object], index: int) -> str:
    """Return the file that a row of several files stands in, and where; nothing of one alone."""
    return str(rows.describe_place(index)) if hasattr(rows, "describe_place") else ""


def hash_contents(rows: Sequence[object]) -> str | None:
    """Return a SHA-256 over all rows, in hexadecimal; None where only reading each would tell.

    Args:
        rows: Those that stay on the disk know their own hash, by a method of this function's name;
            those of a list are hashed as JSON. Of another sequence nothing is known.
    """
    datasets = sys.modules.get("datasets")  # a row of it cannot be there before it is
    if datasets is not None and isinstance(rows, datasets.Dataset):
        rows = ArrowRows(rows)
    if hasattr(rows, "hash_contents"):
        known: str | None = rows.hash_contents()
        return known
    if not isinstance(rows, list | tuple):
        return None
    digest = hashlib.sha256()
    try:
        for row in rows:
            digest.update(json.dumps(row).encode() + b"\n")
    except (TypeError, ValueError):  # an object that JSON has no words for
        return None
    return digest.hexdigest()


def join_hashes(hashes: Iterable[str | None], how: str | bytes = "") -> str | None:
    """Return a hash of rows that are put together of others, or None if one of theirs is unknown.

    Args:
        hashes: In order.
        how: They are put together, where their order does not say it.
    """
    known = list(hashes)
    if None in known:
        return None
    digest = hashlib.sha256(" ".join(map(str, known)).encode() + b"\n")
    digest.update(how.encode() if isinstance(how, str) else how)
    return digest.hexdigest()


class Slice(NamedTuple):
    """Rows of a split, from one to another."""

    split: str
    start: int
    stop: int
    """Behind the last."""


def is_sliced(name: str) -> bool:
    """Return whether a split's name asks for a part of it, or for several."""
    return "[" in name or "+" in name


def read_slices(name: str, lengths: Mapping[str, int]) -> list[Slice]:
    """Return the parts that a name asks for, in order.

    Args:
        name: Such as `train[:1000]+validation`.
        lengths: Rows of each split.

    Raises:
        InputError: If it cannot be read, or names no split.
    """
    from datasets import ReadInstruction

    try:
        parts = ReadInstruction.from_spec(name).to_absolute(dict(lengths))
    except (ValueError, AssertionError, KeyError) as error:
        raise InputError(
            f"task.splits: {name!r} is no part of {', '.join(lengths)}, such as 'train[:1000]' or "
            f"'train[:10%]' ({error})"
        ) from error
    ends = [lengths[part.splitname] if part.to is None else part.to for part in parts]
    found = [
        Slice(part.splitname, part.from_ or 0, end) for part, end in zip(parts, ends, strict=True)
    ]
    require(all(x.stop > x.start for x in found), f"task.splits: {name!r} holds no rows")
    repeated = [x for i, x in enumerate(found) if any(count_shared(x, y) for y in found[:i])]
    require(not repeated, f"task.splits: {name!r} holds rows twice")
    return found


def count_shared(one: Slice, other: Slice) -> int:
    """Return how many rows two slices have in common."""
    shared = min(one.stop, other.stop) - max(one.start, other.start)
    return max(0, shared) if one.split == other.split else 0


def require_apart(slices: Mapping[Split, Sequence[Slice]]) -> None:
    """Raise `InputError` if rows to be trained on are held out, too.

    Args:
        slices: Of each of `train`, `val` and `test` that there is.
    """
    held_out_splits: tuple[Split, ...] = ("val", "test")
    for held_out in held_out_splits:
        for ours in slices.get("train", ()):
            for other in slices.get(held_out, ()):
                shared = count_shared(ours, other)
                require(
                    not shared,
                    f"task.splits: train and {held_out} share {shared:,} rows of {ours.split!r}",
                )

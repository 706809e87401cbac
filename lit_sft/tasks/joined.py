"""Sequences of rows end to end, without a copy."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import Any

from lit_sft.tasks.contents import hash_contents, join_hashes


class Joined(Sequence[Any]):
    """The items of several sequences, one after the other; what is lazy stays lazy.

    Args:
        parts: Each with its items.
    """

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self.parts = parts
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: Any) -> Any:
        part, within = self.locate(int(index))
        return self.parts[part][within]

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self.parts)

    def hash_contents(self) -> str | None:
        """Return a hash of all rows, as `lit_sft.tasks.contents` has it."""
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

"""All rows of a split, encoded, as flat arrays: `EncodedRows`, and `encode_rows` that makes them.

A row costs five bytes a token, in memory that loader workers share. There is no torch here, which
takes a second to import: `lit-sft inspect` does without it.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from lit_sft.data.row_policy import Fitted, RowPolicy, describe_overlength, encode_to_fit
from lit_sft.data.splits import Conversation, FailedRows, Failure, name_error
from lit_sft.errors import InputError
from lit_sft.types import IGNORE_INDEX, Example

CHUNK_ROWS = 1024
"""Rows encoded at once: enough to share the costs of a call, few enough to hold as Python lists.

The tokenizer splits them over all cores, unless `TOKENIZERS_PARALLELISM` forbids it.
"""
LARGE_SET_ROWS = 50_000
"""Rows from which on encoding takes long enough to show a bar."""
EXAMINED_ROWS = 8192
"""Rows that are looked at one by one once one has failed, from its chunk on: for some seconds."""


class EncodedRows:
    """The kept rows of a split, as `Example`s by position.

    Args:
        input_ids: int32 `[all_tokens]`, the rows end to end.
        supervised: bool `[all_tokens]`, where a label is not `IGNORE_INDEX`.
        offsets: int64 `[kept + 1]`, where each row starts, and the end of the last.
        dropped: int64 `[dropped]`, the positions of the rows that were left out, among those given:
            they are too long, or hold a mark of turns, with `on_marker="drop"`, or a bad call, with
            `on_bad_call="drop"`.
        truncated: int64 `[truncated]`, the positions of the rows that were cut, likewise.
        whole_lengths: int64 `[dropped + truncated]`, in tokens, of the dropped rows and then of the
            truncated ones.
        lost: By field, such as `assistant.thinking`, int64 `[turns]`: for each turn that has lost
            it, the position of its row among those given.
        marked: By mark of turns, such as `### Response:`, int64 `[rows]`: the positions of the rows
            that hold it as plain text.
        bad_calls: By tool and what is wrong, such as `add: undeclared`, likewise.

    Raises:
        ValueError: If the arrays do not fit each other.
    """

    def __init__(
        self,
        input_ids: np.ndarray,
        supervised: np.ndarray,
        offsets: np.ndarray,
        dropped: np.ndarray,
        truncated: np.ndarray,
        whole_lengths: np.ndarray,
        lost: Mapping[str, np.ndarray] | None = None,
        marked: Mapping[str, np.ndarray] | None = None,
        bad_calls: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        if not len(input_ids) == len(supervised) == offsets[-1] or (np.diff(offsets) < 0).any():
            raise ValueError("the arrays of the encoded rows do not fit each other")
        self.input_ids, self.supervised, self.offsets = input_ids, supervised, offsets
        self.dropped, self.truncated, self.whole_lengths = dropped, truncated, whole_lengths
        self.lost, self.marked = dict(lost or {}), dict(marked or {})
        self.bad_calls = dict(bad_calls or {})

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Example:
        start, stop = self.offsets[index : index + 2].tolist()
        ids = self.input_ids[start:stop]
        labels = np.where(self.supervised[start:stop], ids, IGNORE_INDEX)
        return Example(ids.tolist(), labels.tolist())

    def lengths(self) -> list[int]:
        """Return the number of tokens of each kept row."""
        lengths: list[int] = np.diff(self.offsets).tolist()
        return lengths

    def num_supervised(self) -> int:
        """Return the number of tokens that carry loss, over all kept rows."""
        return int(self.supervised.sum())

    def find_unfit(self) -> list[tuple[int, int]]:
        """Return the position and the length in tokens of every row left out or cut, in order."""
        positions = [*self.dropped.tolist(), *self.truncated.tolist()]
        return sorted(zip(positions, self.whole_lengths.tolist(), strict=True))


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], policy: RowPolicy
) -> EncodedRows:
    """Encode conversations, and do with each as the policy says.

    Raises:
        FailedRows: If the mask of some rows cannot be proven; the message names them.
        InputError: If every row is left out, or, with `on_overlength="error"`, if any is too long.
    """
    gathered = _GatheredRows(policy)
    for first in _track(range(0, len(conversations), CHUNK_ROWS), len(conversations)):
        names, chats = zip(*conversations[first : first + CHUNK_ROWS], strict=True)
        try:
            fitted = encode_to_fit(tokenizer, chats, names, policy)
        except InputError:
            failures = _find_failures(tokenizer, conversations[first:], policy)
            if not failures:
                raise
            raise FailedRows(failures, len(conversations)) from None
        gathered.add(first, fitted)
    gathered.check([name for name, _ in conversations])
    return gathered.flatten()


def hash_rows(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a SHA-256 over the rows that a run trains on, in hexadecimal.

    It is all that a resumed run must agree in: a new release of a library changes the run only
    where it gives other tokens.

    Args:
        arrays: `input_ids`, `supervised` and `offsets` of `EncodedRows`, among others.
    """
    digest = hashlib.sha256()
    for name, dtype in (("input_ids", "<i4"), ("supervised", "?"), ("offsets", "<i8")):
        digest.update(np.ascontiguousarray(arrays[name], dtype=dtype).data)
    return digest.hexdigest()


class _GatheredRows:
    """What becomes of rows, gathered a chunk at a time; only flat arrays are held of the tokens."""

    def __init__(self, policy: RowPolicy) -> None:
        self.policy = policy
        self.ids, self.labels = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
        self.lengths: list[int] = []
        self.dropped: dict[int, int] = {}
        self.truncated: dict[int, int] = {}
        self.lost: dict[str, list[int]] = defaultdict(list)
        self.marked: dict[str, list[int]] = defaultdict(list)
        self.bad_calls: dict[str, list[int]] = defaultdict(list)

    def add(self, first: int, fitted: Sequence[Fitted]) -> None:
        """Take the rows from position `first` on."""
        for position, (example, length, fields, markers, bad) in enumerate(fitted, start=first):
            if length > self.policy.max_length or example is None:
                (self.truncated if example else self.dropped)[position] = length
            for marker in markers:
                self.marked[marker].append(position)
            for kind in bad:
                self.bad_calls[kind].append(position)
            for field in fields:
                self.lost[field.name].append(position)
        kept = [row.example for row in fitted if row.example]
        self.lengths += [len(example.input_ids) for example in kept]
        self.ids.append(_join([example.input_ids for example in kept]))
        self.labels.append(_join([example.labels for example in kept]))

    def check(self, names: Sequence[str]) -> None:
        """Raise `InputError` if a row is too long and must not be, or if none is left."""
        max_length = self.policy.max_length
        overlength = [(names[i], n) for i, n in self.dropped.items() if n > max_length]
        if overlength and self.policy.on_overlength == "error":
            raise InputError(
                f"{describe_overlength(overlength, max_length)}; raise it, or set "
                "data.on_overlength to drop, truncate_prompt or truncate"
            )
        if self.lengths:
            return
        all_rows = f"all {len(self.dropped)} rows, from {names[0]} on, are"
        others = len(self.dropped) - len(overlength)
        if not others:
            raise InputError(
                f"{all_rows} longer than data.max_length={max_length} tokens; raise it"
            )
        raise InputError(
            f"{all_rows} left out: {others} hold "
            f"{', '.join(map(repr, sorted([*self.marked, *self.bad_calls])))}; set "
            f"{'data.on_marker' if self.marked else 'data.on_bad_call'} to keep"
        )

    def flatten(self) -> EncodedRows:
        """Return the rows end to end."""
        unfit = [*self.dropped.values(), *self.truncated.values()]
        return EncodedRows(
            input_ids=np.concatenate(self.ids),
            supervised=np.concatenate(self.labels) != IGNORE_INDEX,
            offsets=np.cumsum([0, *self.lengths], dtype=np.int64),
            dropped=np.array(list(self.dropped), dtype=np.int64),
            truncated=np.array(list(self.truncated), dtype=np.int64),
            whole_lengths=np.array(unfit, dtype=np.int64),
            lost=_sort(self.lost),
            marked=_sort(self.marked),
            bad_calls=_sort(self.bad_calls),
        )


def _find_failures(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], policy: RowPolicy
) -> list[Failure]:
    """Return the rows, of the first `EXAMINED_ROWS`, that cannot be encoded."""
    failures = []
    for name, chat in conversations[:EXAMINED_ROWS]:
        try:
            encode_to_fit(tokenizer, [chat], [name], policy)
        except InputError as error:
            failures.append(name_error(name, error))
    return failures


def _track(chunks: Sequence[int], rows: int) -> Iterable[int]:
    console = Console(stderr=True)
    return track(chunks, f"encoding {rows:,} rows", console=console, disable=rows < LARGE_SET_ROWS)


def _sort(positions: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
    return {name: np.array(positions[name], dtype=np.int64) for name in sorted(positions)}


def _join(rows: Sequence[Sequence[int]]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=sum(map(len, rows)))

"""The one way of a split's rows: read, compared, encoded, measured. There is no torch here."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lit_sft.data.duplicates import Repeat, drop_repeats, find_repeats
from lit_sft.data.encoded_rows import EncodedRows, load_or_encode
from lit_sft.data.failures import FailedRows, Failure, describe_failures
from lit_sft.data.fingerprint import hash_rows
from lit_sft.data.ledger import (
    Ledger,
    Notes,
    group_by_source,
    make_ledger,
    make_notes,
)
from lit_sft.data.options import DataOptions
from lit_sft.data.splits import (
    Conversation,
    MissingSplit,
    NamedRow,
    read_conversations,
    read_split,
    take_sample,
)
from lit_sft.errors import InputError, require
from lit_sft.tasks.row_sequences import hash_contents
from lit_sft.types import Split


class Stream(NamedTuple):
    """Rows of `train` that stay where they are, of which a sample is prepared."""

    rows: Sequence[NamedRow]
    contents: str | None
    """A hash of all of them; None where it cannot be known."""


@dataclass(frozen=True)
class PreparedSplit:
    """The rows of a split as a run sees them."""

    names: list[str]
    """Of the rows that were encoded, in order, those that were left out included."""
    encoded: EncodedRows
    ledger: Ledger
    notes: Notes
    request: str
    """Of what was asked to be encoded, as `hash_request` gives it."""
    fingerprint: str
    """Of what came out, as `hash_rows` gives it."""
    repeats: Mapping[Split, Sequence[Repeat]]
    """Of `train`: the rows that ask what others ask, by the split that those are in."""
    sources: Mapping[str, np.ndarray]
    """Of a mixture: int64 `[rows]`, the positions of the kept rows of each source."""
    stream: Stream | None = None

    def list_kept(self) -> list[str]:
        """Return the names of the kept rows, by their positions in `encoded`."""
        left_out = set(self.encoded.dropped.tolist())
        return [name for i, name in enumerate(self.names) if i not in left_out]


@dataclass
class Findings:
    """What ends a run, collected by whoever wants to see all of it, and the rows as texts."""

    missing: dict[Split, str] = field(default_factory=dict)
    """Splits that the task has not, and what it said when asked."""
    rows: dict[Split, Sequence[NamedRow]] = field(default_factory=dict)
    conversations: dict[Split, list[Conversation]] = field(default_factory=dict)
    """Of the rows that can be read, duplicates and all."""
    repeats: dict[Split, list[Repeat]] = field(default_factory=dict)
    """Of `train`, as `PreparedSplit` has them."""
    failures: list[tuple[Split, Failure]] = field(default_factory=list)
    """Rows that cannot be read, or whose masks not be proven."""

    def add(self, split: Split, error: FailedRows) -> None:
        """Note the rows of an error."""
        self.failures += [(split, failure) for failure in error.failures]


def prepare_splits(
    data: DataOptions, splits: Iterable[Split], findings: Findings | None = None
) -> dict[Split, PreparedSplit]:
    """Read, compare, encode and measure splits.

    Args:
        data: The task, and what is asked of its rows.
        splits: `train` is compared with the others, and with `val` in any case.
        findings: Takes what would otherwise be raised of single rows, and of splits but `train`
            that are missing. A split of which nothing is left is then left out.

    Raises:
        InputError: If a split has no rows, a row cannot be read, or its mask cannot be proven.
    """
    rows = _read_splits(data, splits, findings)
    stream = None
    if data.streaming and "train" in rows:
        # From the hash on, they must not change. Who only looks needs none.
        contents = hash_contents(rows["train"]) if findings is None else None
        stream = Stream(rows["train"], contents)
        rows["train"] = take_sample(stream.rows)
    chats = {split: _read_texts(data, split, rows[split], findings) for split in rows}
    repeats: dict[Split, list[Repeat]] = {}
    if "train" in chats and (stream is None or findings is not None):
        repeats = find_repeats(chats["train"], _list_held_out(data, chats, findings))
    if findings is not None:
        findings.rows, findings.conversations, findings.repeats = rows, chats, repeats
    prepared: dict[Split, PreparedSplit] = {}
    for split in rows:
        own = repeats if split == "train" else {}
        unique = _remove_repeats(chats[split], own) if data.dedup else chats[split]
        encoded = _encode(data, split, unique, len(chats[split]), findings)
        if encoded is None:
            continue
        removed = len(chats[split]) - len(unique)
        # Of failed rows nobody asks for the source.
        sources = data.task.list_sources(rows[split]) if findings is None else []
        unique_sources = drop_repeats(sources, own) if removed else sources
        prepared[split] = _measure(
            data,
            split,
            *encoded,
            removed,
            unique_sources,
            own,
            stream if split == "train" else None,
        )
    return prepared


def _read_splits(
    data: DataOptions, splits: Iterable[Split], findings: Findings | None
) -> dict[Split, Sequence[NamedRow]]:
    rows: dict[Split, Sequence[NamedRow]] = {}
    for split in splits:
        try:
            rows[split] = read_split(data.task, split, data.val_rows)
        except MissingSplit as error:
            if findings is None or split == "train":
                raise
            findings.missing[split] = str(error)
    return rows


def _read_texts(
    data: DataOptions, split: Split, rows: Sequence[NamedRow], findings: Findings | None
) -> list[Conversation]:
    """Return the conversations of rows; if some cannot be read, look at the others, too."""
    try:
        return read_conversations(data.task, rows)
    except FailedRows as error:
        if findings is not None:
            findings.add(split, error)
            return list(error.readable)
        failures = list(error.failures)
        try:
            _load_or_encode(data, error.readable)
        except FailedRows as further:
            failures += further.failures
        except InputError:
            pass  # all are too long, say
        raise FailedRows(failures, error.total) from None


def _list_held_out(
    data: DataOptions, chats: Mapping[Split, list[Conversation]], findings: Findings | None
) -> dict[Split, list[Conversation]]:
    """Return what `train` is compared with; `test` may be a download that a run does not need."""
    if findings is not None:
        return {split: chats[split] for split in chats if split != "train"}
    held_out: dict[Split, list[Conversation]] = {}
    if data.val_rows:
        held_out["val"] = chats.get("val") or _read_again(data, "val")
    if data.dedup:
        with suppress(MissingSplit):
            held_out["test"] = _read_again(data, "test")
    return held_out


def _read_again(data: DataOptions, split: Split) -> list[Conversation]:
    return read_conversations(data.task, read_split(data.task, split, data.val_rows))


def _remove_repeats(
    rows: list[Conversation], repeats: Mapping[Split, Sequence[Repeat]]
) -> list[Conversation]:
    unique = drop_repeats(rows, repeats)
    require(
        bool(unique) or not rows,
        "data.dedup leaves nothing to train on: every row is a duplicate",
    )
    return unique


def _encode(
    data: DataOptions,
    split: Split,
    conversations: Sequence[Conversation],
    num_read: int,
    findings: Findings | None,
) -> tuple[EncodedRows, str, list[str]] | None:
    """Return encoded rows, their request and names; where failures are collected, of the others."""
    while conversations:
        try:
            encoded, request = _load_or_encode(data, conversations)
            return encoded, request, [name for name, _ in conversations]
        except FailedRows as error:  # of the first of a large set; the next round tells the next
            if findings is None:
                raise
            findings.add(split, error)
            failed = {failure.name for failure in error.failures}
            conversations = [row for row in conversations if row[0] not in failed]
        except InputError as error:  # such as that all others are too long
            failures = [x for at, x in findings.failures if at == split] if findings else []
            if not failures:
                raise
            told = describe_failures(failures, num_read)
            raise InputError(f"{told}; of the others: {error}") from error
    return None


def _load_or_encode(
    data: DataOptions, conversations: Sequence[Conversation]
) -> tuple[EncodedRows, str]:
    return load_or_encode(
        *(data.tokenizer, conversations, data.max_length, data.on_overlength),
        *(data.cache_dir, data.on_lost_field, data.on_marker),
    )


def _measure(
    data: DataOptions,
    split: Split,
    encoded: EncodedRows,
    request: str,
    names: list[str],
    removed: int,
    sources: Sequence[str],
    repeats: Mapping[Split, Sequence[Repeat]],
    stream: Stream | None,
) -> PreparedSplit:
    of_all = f" of {len(stream.rows)} rows" if stream else ""
    return PreparedSplit(
        names=names,
        encoded=encoded,
        ledger=make_ledger(split, encoded, data.padded_rows, removed),
        notes=make_notes(split, encoded, names, data.max_length, data.on_marker),
        request=request + of_all,
        fingerprint=hash_rows(vars(encoded)) + of_all,
        repeats=repeats,
        sources=group_by_source(sources, encoded) if sources else {},
        stream=stream,
    )

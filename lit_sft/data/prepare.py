"""The one way of a split's rows: read, compared, encoded, measured. There is no torch here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lit_sft.data.duplicates import (
    Repeat,
    drop_repeats,
    find_repeats,
    format_repeats,
    read_held_out,
)
from lit_sft.data.encoded_rows import EncodedRows, hash_rows
from lit_sft.data.ledger import (
    Ledger,
    Notes,
    format_ledgers,
    format_sources,
    group_by_source,
    make_ledger,
    make_notes,
)
from lit_sft.data.options import DataOptions
from lit_sft.data.splits import (
    Conversation,
    FailedRows,
    Failure,
    MissingSplit,
    describe_failures,
    read_conversations,
    read_split,
    take_sample,
)
from lit_sft.data.token_cache import load_or_encode
from lit_sft.errors import InputError
from lit_sft.tasks.base import NamedRow
from lit_sft.tasks.row_sequences import hash_contents
from lit_sft.types import Split


class Stream(NamedTuple):
    """Rows of `train` that stay where they are, of which a sample is prepared."""

    rows: Sequence[NamedRow]
    contents: str | None
    """A hash of all of them; None where it cannot be known, or nobody trains on them."""


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
    """Of `train`, or its sample: the rows that ask what others ask, by the split of those."""
    sources: Mapping[str, np.ndarray]
    """Of a mixture: int64 `[rows]`, the positions of the kept rows of each source. Empty where
    rows have failed: nobody trains on the others."""
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
    if "train" in chats:
        repeats = find_repeats(chats["train"], read_held_out(data, chats))
    if findings is not None:
        findings.rows, findings.conversations, findings.repeats = rows, chats, repeats
    prepared: dict[Split, PreparedSplit] = {}
    for split in rows:
        is_train = split == "train"
        own = (repeats, stream) if is_train else ({}, None)
        if found := _encode_and_measure(data, split, rows[split], chats[split], *own, findings):
            prepared[split] = found
    return prepared


def describe_splits(splits: Mapping[Split, PreparedSplit], is_deduped: bool) -> list[str]:
    """Return what a user should know of splits before they are trained on, in pieces of text."""
    texts = [format_ledgers([one.ledger for one in splits.values()])]
    notes = zip(*(one.notes for one in splits.values()), strict=True)
    texts += [note for kind in notes for note in kind]
    if train := splits.get("train"):
        if train.stream is None:
            texts.append(format_repeats(train.repeats, is_deduped))
        else:
            rows, sample = len(train.stream.rows), train.ledger.rows
            texts.append(
                f"train is streamed: of its {rows:,} rows, these are the figures of {sample:,}"
                + ("" if train.stream.contents else ", which alone are compared when the run is "
                "resumed")
            )  # fmt: skip
    texts += [
        format_sources(split, one.encoded, one.sources)
        for split, one in splits.items()
        if one.sources
    ]
    return texts


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
            load_or_encode(data.tokenizer, error.readable, data.policy, data.cache_dir)
        except FailedRows as further:
            failures += further.failures
        except InputError:
            pass  # all are too long, say
        raise FailedRows(failures, error.total) from None


def _encode_and_measure(
    data: DataOptions,
    split: Split,
    rows: Sequence[NamedRow],
    chats: list[Conversation],
    repeats: Mapping[Split, Sequence[Repeat]],
    stream: Stream | None,
    findings: Findings | None,
) -> PreparedSplit | None:
    """Return a split whose conversations are read, or None where not one can be encoded."""
    unique = drop_repeats(chats, repeats) if data.dedup else chats
    encoded_and_named = _encode(data, split, unique, len(chats), findings)
    if encoded_and_named is None:
        return None
    encoded, request, names = encoded_and_named
    removed = len(chats) - len(unique)
    sources: list[str] = []
    if len(names) + removed == len(rows):
        sources = data.task.list_sources(rows)
        sources = drop_repeats(sources, repeats) if removed else sources
    of_all = f" of {len(stream.rows)} rows" if stream else ""
    return PreparedSplit(
        names=names,
        encoded=encoded,
        ledger=make_ledger(split, encoded, data.padded_rows, removed),
        notes=make_notes(split, encoded, names, data.policy),
        request=request + of_all,
        fingerprint=hash_rows(vars(encoded)) + of_all,
        repeats=repeats,
        sources=group_by_source(sources, encoded) if sources else {},
        stream=stream,
    )


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
            encoded, request = load_or_encode(
                data.tokenizer, conversations, data.policy, data.cache_dir
            )
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

"""Read and encode all splits as a run would, and go on where a run would stop."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lit_sft.data.duplicates import Repeat, find_repeats
from lit_sft.data.encode import encode_chat
from lit_sft.data.encoded_rows import EncodedRows
from lit_sft.data.failures import FailedRows, describe_failures
from lit_sft.data.failures import Failure as RowFailure
from lit_sft.data.messages import list_markers
from lit_sft.data.prepare import ChatRows
from lit_sft.data.splits import (
    Conversation,
    MissingSplit,
    NamedRow,
    read_conversations,
    read_split,
    take_sample,
)
from lit_sft.data.tokenizer import hash_template
from lit_sft.errors import InputError, require
from lit_sft.inspect.report import (
    LISTED,
    Failure,
    Report,
    SplitReport,
    TokenRow,
    measure_split,
    read_tokens,
    summarize_repeats,
)
from lit_sft.types import Split

FIRST_ROWS = 3
"""Shown where no row is asked for."""


class Choice(NamedTuple):
    """Which rows to show: one by number, some at random, or the first."""

    split: Split = "train"
    row: int | None = None
    """The number that an error gives, as in `train row 17`."""
    random: int | None = None


class _Split(NamedTuple):
    """The rows of a split that can be read."""

    conversations: list[Conversation]
    removed: int
    """Of them, the duplicates that training does not see."""
    encoded: EncodedRows | None
    """Without what was removed or failed; None if nothing is left."""
    names: list[str]
    """Of the rows that were encoded, dropped ones included."""


def inspect_data(data: ChatRows, choice: Choice) -> Report:
    """Read, prove and measure all splits.

    Rows whose proof fails are collected; whatever else would end a run ends this too.

    Raises:
        InputError: If `train` cannot be read, or there is no row such as the one asked for.
    """
    failures: list[Failure] = []
    rows, missing = _read_splits(data)
    chats = {split: _read_each(data, split, named, failures) for split, named in rows.items()}
    held_out: dict[Split, list[Conversation]] = {x: chats[x] for x in chats if x != "train"}
    repeats = find_repeats(chats["train"], held_out)
    splits = {split: _encode_split(data, split, chats[split], repeats, failures) for split in chats}
    return Report(
        task=data.task.describe() or f"{type(data.task).__module__}.{type(data.task).__qualname__}",
        tokenizer=str(data.tokenizer_path),
        template_sha256=hash_template(data.tokenizer),
        max_length=data.max_length,
        batch_size=data.batch_size,
        dedup=data.dedup,
        splits={
            split: _measure_split(data, split, found.encoded, found, rows[split])
            for split, found in splits.items()
            if found.encoded
        },
        missing=missing,
        repeats=summarize_repeats(repeats, [_first_question(c) for c in chats["train"]]),
        num_failures=len(failures),
        failures=failures[:LISTED],
        rows=_show_rows(data, choice, splits, failures),
    )


def _read_splits(data: ChatRows) -> tuple[dict[Split, Sequence[NamedRow]], dict[Split, str]]:
    train = read_split(data.task, "train", data.val_rows)
    rows: dict[Split, Sequence[NamedRow]] = {
        "train": take_sample(train) if data.streaming else train
    }
    missing: dict[Split, str] = {}
    others: tuple[Split, ...] = ("val", "test") if data.val_rows else ("test",)
    for split in others:
        try:
            rows[split] = read_split(data.task, split, data.val_rows)
        except MissingSplit as error:
            missing[split] = str(error)
    return rows, missing


def _read_each(
    data: ChatRows, split: Split, rows: Sequence[NamedRow], failures: list[Failure]
) -> list[Conversation]:
    """Return the conversations of all rows, or, if one cannot be read, of the others."""
    try:
        return read_conversations(data.task, rows)
    except FailedRows as error:
        failures += [Failure(split, *failure) for failure in error.failures]
        return list(error.readable)


def _encode_split(
    data: ChatRows,
    split: Split,
    conversations: list[Conversation],
    repeats: Mapping[Split, Sequence[Repeat]],
    failures: list[Failure],
) -> _Split:
    unique = data.remove_repeats(conversations, repeats) if split == "train" else conversations
    try:
        encoded, names = _encode_each(data, split, unique, failures)
    except InputError as error:  # such as that all others are too long
        failed = [RowFailure(x.row, x.reason) for x in failures if x.split == split]
        if not failed:
            raise
        told = describe_failures(failed, len(conversations))
        raise InputError(f"{told}; of the others: {error}") from error
    return _Split(conversations, len(conversations) - len(unique), encoded, names)


def _measure_split(
    data: ChatRows,
    split: Split,
    encoded: EncodedRows,
    found: _Split,
    rows: Sequence[NamedRow],
) -> SplitReport:
    return measure_split(
        data.measure(split, encoded, found.removed),
        encoded,
        found.names,
        _count_sources(data, rows),
        data.batch_size,
        data.max_length,
        data.seed,
    )


def _encode_each(
    data: ChatRows, split: Split, conversations: Sequence[Conversation], failures: list[Failure]
) -> tuple[EncodedRows | None, list[str]]:
    """Encode all rows, or, if the proof of one fails, the others, under their names."""
    proven = list(conversations)
    encoded: EncodedRows | None = None
    while proven and encoded is None:
        try:
            encoded, _ = data.encode(proven)
        except FailedRows as error:  # of the first of a large set; the next round tells the next
            failures += [Failure(split, *failure) for failure in error.failures]
            failed = {failure.name for failure in error.failures}
            proven = [row for row in proven if row[0] not in failed]
    return encoded, [name for name, _ in proven]


def _count_sources(data: ChatRows, rows: Sequence[NamedRow]) -> dict[str, int]:
    """Count rows by what the task's `source_of(row)` says, if it has several sources."""
    source_of = getattr(data.task, "source_of", None)
    return dict(Counter(source_of(row) for _, row in rows)) if source_of else {}


def _first_question(conversation: Conversation) -> str:
    messages = conversation[1]
    asked = [m["content"] for m in messages if isinstance(m, dict) and m.get("role") == "user"]
    return str(asked[0]) if asked else ""


def _show_rows(
    data: ChatRows,
    choice: Choice,
    splits: dict[Split, _Split],
    failures: Sequence[Failure],
) -> list[TokenRow]:
    require(choice.split in splits, f"--split: there is no {choice.split} split to show rows of")
    chosen = splits[choice.split]
    dropped = set(chosen.encoded.dropped.tolist()) if chosen.encoded else set()
    cut = chosen.encoded.truncated.tolist() if chosen.encoded else []
    truncated = {chosen.names[position] for position in cut}
    kept = [name for position, name in enumerate(chosen.names) if position not in dropped]
    names = kept[:FIRST_ROWS]
    if choice.random is not None:
        drawn = random.Random(data.seed).sample(range(len(kept)), min(choice.random, len(kept)))
        names = [kept[position] for position in sorted(drawn)]
    if choice.row is not None:
        found = {x: [name for name, _ in splits[x].conversations] for x in splits}
        for failure in failures:
            found[failure.split].append(failure.row)
        names = _find_rows(choice.row, choice.split, found)
    positions = {name: position for position, name in enumerate(kept)}
    messages = dict(chosen.conversations)
    reasons = {failure.row: failure.reason for failure in failures if failure.split == choice.split}
    shown = []
    for name in names:
        if chosen.encoded and name in positions:
            note = "truncated" if name in truncated else ""
            example = chosen.encoded[positions[name]]
        elif name in reasons:
            shown.append(TokenRow(choice.split, name, f"fails: {reasons[name]}", [], [], [], []))
            continue
        else:
            example = encode_chat(data.tokenizer, messages[name], data.on_lost_field)
            is_long = len(example.input_ids) > data.max_length
            note = "dropped: longer than data.max_length" if is_long else "removed: a duplicate"
            if (
                not is_long
                and data.on_marker == "drop"
                and list_markers(data.tokenizer, messages[name])
            ):
                note = "dropped: holds a mark of turns"
        shown.append(read_tokens(data.tokenizer, choice.split, name, example, note))
    return shown


def _find_rows(number: int, split: Split, names: Mapping[Split, Sequence[str]]) -> list[str]:
    """Return the names of the rows that errors call by a number: one of each source."""
    ending = f" row {number}"
    matching = {x: dict.fromkeys(n for n in names[x] if n.endswith(ending)) for x in names}
    found = {x: list(rows) for x, rows in matching.items() if rows}
    if split not in found:
        hint = "".join(f"; {rows[0]} is in the split {x}" for x, rows in found.items())
        raise InputError(f"--row: there is no{ending} in the split {split}{hint}")
    return found[split]

"""Read and encode all splits as a run would, and go on where a run would stop."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lit_sft.data.encode import encode_chat
from lit_sft.data.messages import list_markers
from lit_sft.data.options import DataOptions
from lit_sft.data.prepare import Findings, PreparedSplit, prepare_splits
from lit_sft.data.splits import Conversation
from lit_sft.data.tokenizer import hash_template
from lit_sft.data.tool_schemas import find_bad_calls
from lit_sft.errors import InputError, require
from lit_sft.inspect.row_report import (
    LISTED,
    FailedRow,
    Report,
    TokenRow,
    measure_split,
    read_tokens,
    summarize_repeats,
)
from lit_sft.tasks.base import ChatTask, NamedRow
from lit_sft.types import Example, Message, Split

FIRST_ROWS = 3
"""Shown where no row is asked for."""


class Choice(NamedTuple):
    """Which rows to show: one by number, some at random, or the first."""

    split: Split = "train"
    row: int | None = None
    """The number that an error gives, as in `train row 17`."""
    random: int | None = None


def inspect_data(data: DataOptions, choice: Choice) -> Report:
    """Read, prove and measure all splits.

    Rows whose proof fails are collected; whatever else would end a run ends this too.

    Raises:
        InputError: If `train` cannot be read, or there is no row such as the one asked for.
    """
    findings = Findings()
    splits: tuple[Split, ...] = ("train", "val", "test") if data.val_rows else ("train", "test")
    prepared = prepare_splits(data, splits, findings)
    failures = [FailedRow(split, *failure) for split, failure in findings.failures]
    return Report(
        task=data.task.describe() or f"{type(data.task).__module__}.{type(data.task).__qualname__}",
        tokenizer=str(data.tokenizer_path),
        template_sha256=hash_template(data.tokenizer),
        max_length=data.max_length,
        batch_size=data.batch_size,
        dedup=data.dedup,
        splits={
            split: measure_split(
                *(found.ledger, found.encoded, found.names),
                _count_sources(data, findings.rows[split]),
                *(data.batch_size, data.max_length, data.seed),
            )
            for split, found in prepared.items()
        },
        missing=findings.missing,
        repeats=summarize_repeats(
            findings.repeats, [_first_question(x) for x in findings.conversations["train"]]
        ),
        num_failures=len(failures),
        failures=failures[:LISTED],
        rows=_show_rows(data, choice, prepared, findings),
    )


def _count_sources(data: DataOptions, rows: Sequence[NamedRow]) -> dict[str, int]:
    """Count rows by what the task's `source_of(row)` says, if it has several sources."""
    task = data.task
    if type(task).source_of is ChatTask.source_of:
        return {}
    return dict(Counter(task.source_of(row) for _, row in rows))


def _first_question(conversation: Conversation) -> str:
    messages = conversation[1]
    asked = [m["content"] for m in messages if isinstance(m, dict) and m.get("role") == "user"]
    return str(asked[0]) if asked else ""


def _show_rows(
    data: DataOptions,
    choice: Choice,
    prepared: Mapping[Split, PreparedSplit],
    findings: Findings,
) -> list[TokenRow]:
    split, found = choice.split, findings.conversations
    require(split in found, f"--split: there is no {split} split to show rows of")
    seen = prepared.get(split)
    kept = seen.list_kept() if seen else []
    positions = {name: position for position, name in enumerate(kept)}
    truncated = {seen.names[row] for row in seen.encoded.truncated.tolist()} if seen else set()
    reasons = {failure.name: failure.reason for at, failure in findings.failures if at == split}
    messages = dict(found[split])

    def show(name: str) -> TokenRow:
        if seen and name in positions:
            example = seen.encoded[positions[name]]
            note = "truncated" if name in truncated else ""
        elif name in reasons:
            return TokenRow(split, name, f"fails: {reasons[name]}", [], [], [], [])
        else:
            example, note = _encode_unseen(data, messages[name])
        return read_tokens(data.tokenizer, split, name, example, note, messages[name])

    return [show(name) for name in _choose_rows(choice, kept, data.seed, findings)]


def _choose_rows(choice: Choice, kept: list[str], seed: int, findings: Findings) -> list[str]:
    if choice.row is not None:
        names = {split: [name for name, _ in x] for split, x in findings.conversations.items()}
        for split, failure in findings.failures:
            names[split].append(failure.name)
        return _find_rows(choice.row, choice.split, names)
    if choice.random is not None:
        count = min(choice.random, len(kept))
        drawn = random.Random(seed).sample(range(len(kept)), count)
        return [kept[position] for position in sorted(drawn)]
    return kept[:FIRST_ROWS]


def _encode_unseen(data: DataOptions, messages: list[Message]) -> tuple[Example, str]:
    """Encode a row that training does not see, and say why it does not."""
    policy = data.policy
    example = encode_chat(data.tokenizer, messages, policy.on_lost_field, policy.learn_thoughts)
    if len(example.input_ids) > data.max_length:
        return example, "dropped: longer than data.max_length"
    marks = list_markers(data.tokenizer, messages, example.input_ids)
    if policy.on_marker == "drop" and marks:
        return example, "dropped: holds a mark of turns"
    bad = find_bad_calls(messages)
    if policy.on_bad_call == "drop" and bad:
        return example, f"dropped: the call of {bad[0].tool!r} {bad[0].reason}"
    return example, "removed: a duplicate"


def _find_rows(number: int, split: Split, names: Mapping[Split, Sequence[str]]) -> list[str]:
    """Return the names of the rows that errors call by a number: one of each source."""
    called = f" row {number} "  # the file of it may stand behind
    matching = {x: dict.fromkeys(n for n in names[x] if called in f"{n} ") for x in names}
    found = {x: list(rows) for x, rows in matching.items() if rows}
    if split not in found:
        hint = "".join(f"; {rows[0]} is in the split {x}" for x, rows in found.items())
        raise InputError(f"--row: there is no row {number} in the split {split}{hint}")
    return found[split]

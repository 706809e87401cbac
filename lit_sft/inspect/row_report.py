"""What `lit-sft inspect` found, as plain values. Pure: text, page and JSON are written from it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from lit_sft.data.calls import list_call_texts
from lit_sft.data.control_tokens import find_control_tokens, plain_backend
from lit_sft.data.duplicates import Repeat
from lit_sft.data.encoded_rows import EncodedRows
from lit_sft.data.ledger import Ledger, find_quantile, measure_padding
from lit_sft.data.tool_schemas import find_bad_calls
from lit_sft.tasks.tool_turns import normalize_calls
from lit_sft.types import IGNORE_INDEX, Example, Message, Split

VERSION = 1
"""Of the JSON; raised when a field changes its meaning or goes."""
LISTED = 100
"""Rows named one by one in a list; all are counted."""
BINS = 12
PERCENTILES = {
    "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99
}  # fmt: skip
UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no character yet."""


@dataclass(frozen=True)
class TokenRow:
    """One row, token by token. All lists have the length of `input_ids`."""

    split: str
    name: str
    note: str
    """Why training does not see the row, empty where it does."""
    input_ids: list[int]
    targets: list[int]
    """Shifted, as the loss takes them: what each position must predict, or `IGNORE_INDEX`."""
    texts: list[str]
    """What each token adds to the text; of a character of several tokens, all at the first."""
    control: list[bool]
    """Whether a token is one that the template wrote, and no text can."""
    calls: list[str] = field(default_factory=list)
    """Of the row's messages, each as a line: whose, what is called, and what is wrong with it."""

    def supervised(self) -> list[bool]:
        """Return whether each token is predicted by the position before it, under loss."""
        return [False, *(target != IGNORE_INDEX for target in self.targets[:-1])]

    def spans(self) -> list[tuple[int, int]]:
        """Return the first and the last position of each run that carries loss."""
        spans: list[tuple[int, int]] = []
        for position, target in enumerate(self.targets):
            if target != IGNORE_INDEX:
                follows = bool(spans) and spans[-1][1] == position - 1
                spans[-1:] = (
                    [(spans[-1][0], position)] if follows else [*spans[-1:], (position,) * 2]
                )
        return spans


@dataclass(frozen=True)
class Bin:
    """Rows of `first` to `last` tokens, both included."""

    first: int
    last: int
    rows: int


@dataclass(frozen=True)
class SplitReport:
    """One split: its ledger, and what a ledger has no room for. Lengths are in tokens."""

    ledger: Ledger
    percentiles: dict[str, int]
    histogram: list[Bin]
    padding: dict[str, float]
    """The share of padding by the way of batching, between 0 and 1."""
    sources: dict[str, int]
    """Rows by where they come from; empty where the task has one source."""
    too_long: list[str]
    """The names of the first rows that were dropped for their length."""


@dataclass(frozen=True)
class RepeatedRow:
    """A row of `train` whose question another row asks too."""

    row: str
    original: str
    is_exact: bool
    question: str


@dataclass(frozen=True)
class Repeats:
    """The rows of `train` that repeat rows of one split."""

    rows: int
    exact: int
    """Of them, those with the same answer too."""
    examples: list[RepeatedRow]


@dataclass(frozen=True)
class FailedRow:
    """A row that cannot be read, or whose mask cannot be proven."""

    split: Split
    row: str
    reason: str


@dataclass(frozen=True)
class Report:
    """All that `lit-sft inspect` says."""

    task: str
    tokenizer: str
    template_sha256: str
    max_length: int
    batch_size: int
    dedup: bool
    splits: dict[Split, SplitReport]
    missing: dict[Split, str]
    """Splits that the task has not, and what it said when asked."""
    repeats: dict[Split, Repeats]
    """By the split whose rows are repeated; `train` for earlier rows of its own."""
    num_failures: int
    failures: list[FailedRow]
    """The first of them."""
    rows: list[TokenRow]

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {"version": VERSION, "ok": not self.num_failures, **asdict(self)}


def measure_split(
    ledger: Ledger,
    encoded: EncodedRows,
    names: Sequence[str],
    sources: dict[str, int],
    batch_size: int,
    max_length: int,
    seed: int,
) -> SplitReport:
    """Measure an encoded split that has at least one row.

    Args:
        ledger: Its figures.
        encoded: Its rows.
        names: Of the rows that were encoded, dropped ones included.
        sources: Rows by source.
        batch_size: Rows of a padded batch.
        max_length: Of a row; what a batch may be padded to.
        seed: Of the one shuffle that padding in random order is measured on.
    """
    lengths = encoded.lengths()
    ranked = sorted(lengths)
    shuffled = np.random.default_rng(seed).permutation(lengths).tolist()
    return SplitReport(
        ledger=ledger,
        percentiles={
            "min": ranked[0],
            **{name: find_quantile(ranked, share) for name, share in PERCENTILES.items()},
            "max": ranked[-1],
        },
        histogram=count_lengths(lengths),
        padding={
            "padding_free": 0.0,
            "padded, in file order": measure_padding(lengths, batch_size),
            "padded, in random order": measure_padding(shuffled, batch_size),
            "padded to max_length": 1 - sum(lengths) / (len(lengths) * max_length),
        },
        sources=sources,
        too_long=[names[position] for position in encoded.dropped[:LISTED]],
    )


def count_lengths(lengths: Sequence[int]) -> list[Bin]:
    """Return a histogram of at most `BINS` bins, whose width is 1, 2 or 5 times a power of ten."""
    widths = (base * 10**power for power in range(19) for base in (1, 2, 5))
    width = next(width for width in widths if max(lengths) < BINS * width)
    counts = np.bincount(np.asarray(lengths) // width).tolist()
    first = next(number for number, rows in enumerate(counts) if rows)
    return [
        Bin(number * width, (number + 1) * width - 1, rows)
        for number, rows in enumerate(counts)
        if number >= first
    ]


def summarize_repeats(
    repeats: Mapping[Split, Sequence[Repeat]], questions: Sequence[str]
) -> dict[Split, Repeats]:
    """Count the rows of `train` that repeat others, and show the first of them.

    Args:
        repeats: As `lit_sft.data.duplicates.find_repeats` returns them.
        questions: Of all rows of `train`, to show.
    """
    return {
        split: Repeats(
            rows=len(found),
            exact=sum(repeat.is_exact for repeat in found),
            examples=[
                RepeatedRow(x.row, x.original, x.is_exact, questions[x.position])
                for x in found[:LISTED]
            ],
        )
        for split, found in repeats.items()
    }


def read_tokens(
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    name: str,
    example: Example,
    note: str = "",
    messages: Sequence[Message] = (),
) -> TokenRow:
    """Return a row token by token, with the labels shifted as `sum_cross_entropy` shifts them."""
    control = find_control_tokens(tokenizer).ids
    return TokenRow(
        split=split,
        name=name,
        note=note,
        input_ids=example.input_ids,
        targets=[*example.labels[1:], IGNORE_INDEX],
        texts=decode_each(plain_backend(tokenizer), example.input_ids),
        control=[token in control for token in example.input_ids],
        calls=list_calls(messages),
    )


def list_calls(messages: Sequence[Message]) -> list[str]:
    """Return the calls of a conversation, a line each, such as `message 1 calls add({"a": 1})`."""
    bad = {(call.turn, call.number): call.reason for call in find_bad_calls(messages)}
    lines = []
    for turn, message in enumerate(messages):
        normal = {"tool_calls": normalize_calls(message.get("tool_calls"))}
        for number, (name, arguments) in enumerate(list_call_texts(normal)):
            line = f"message {turn} calls {name}({json.dumps(arguments, ensure_ascii=False)})"
            line += " (not learnt)" if message.get("weight") == 0 else ""
            reason = bad.get((turn, number))
            lines.append(line + (f", which {reason}" if reason else ""))
    return lines


def decode_each(backend: Tokenizer, input_ids: Sequence[int]) -> list[str]:
    """Return what each token adds to the text that its row decodes to.

    The token before is decoded with it: alone, a decoder of the SentencePiece kind would strip the
    space that a token begins with.
    """
    texts: list[str] = []
    begin, before = 0, 0
    while begin < len(input_ids):
        context = backend.decode(list(input_ids[before:begin]), skip_special_tokens=False)
        for end in range(begin + 1, len(input_ids) + 1):
            text = backend.decode(list(input_ids[before:end]), skip_special_tokens=False)
            if not text.endswith(UNFINISHED):
                break
        texts += [text[len(context) :], *[""] * (end - begin - 1)]
        before, begin = begin, end
    return texts

"""Rows with more tokens than a row may have: dropped, or cut where that is asked for."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from lit_sft.data.control_tokens import plain_backend
from lit_sft.data.encode import encode_and_report, encode_chat, naming
from lit_sft.data.lost_fields import LostField, OnLostField
from lit_sft.data.messages import OnMarker, list_markers, refuse_markers, refuse_silence
from lit_sft.types import IGNORE_INDEX, Example, Message

OnOverlength = Literal["drop", "error", "truncate_prompt", "truncate"]
NAMED_ROWS = 5


class Fitted(NamedTuple):
    """What became of a row."""

    example: Example | None
    """At most `max_length` tokens; None where the row is left out."""
    length: int
    """Tokens of the whole row; at least so many, where its text alone is too long."""
    lost: Sequence[LostField] = ()
    """What the template does not write of a row that is not left out."""
    markers: Sequence[str] = ()
    """Marks of turns that the row holds as plain text."""


def encode_to_fit(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    names: Sequence[str],
    max_length: int,
    on_overlength: OnOverlength,
    on_lost_field: OnLostField = "error",
    on_marker: OnMarker = "keep",
) -> list[Fitted]:
    """Encode conversations whole, with the mask proven, and fit the longer ones.

    Args:
        tokenizer: As for `encode_chats`.
        conversations: Likewise.
        names: Likewise.
        max_length: In tokens.
        on_overlength: `truncate_prompt` is `shorten_prompt`, `truncate` is `cut_end`; otherwise a
            longer row is left out, and one whose text alone is too long for any tokens is not
            even encoded: 50 MB would take a minute.
        on_lost_field: As for `encode_chat`.
        on_marker: Whether a row that holds a mark of turns as plain text is kept, left out, or an
            error.

    Raises:
        InputError: As `encode_chats`, and for an empty answer that would be learnt; a row that is
            left out has to be sound, too, if it is encoded.
    """
    for name, messages in zip(names, conversations, strict=True):
        with naming(name):
            refuse_silence(messages)
    hopeless: dict[int, int] = {}
    if on_overlength in ("drop", "error"):
        hopeless = _find_hopeless(tokenizer, conversations, max_length)
    rows = [i for i in range(len(conversations)) if i not in hopeless]
    texts = [conversations[i] for i in rows]
    encoded = iter(encode_and_report(tokenizer, texts, [names[i] for i in rows], on_lost_field))
    fitted = []
    for row, (name, messages) in enumerate(zip(names, conversations, strict=True)):
        if row in hopeless:
            fitted.append(Fitted(None, hopeless[row]))
            continue
        whole, lost = next(encoded)
        example: Example | None = whole
        markers = list_markers(tokenizer, messages, whole.input_ids)
        with naming(name):
            refuse_markers(markers, on_marker)
        if len(whole.input_ids) > max_length:
            example = None
            if on_overlength == "truncate":
                example = cut_end(whole, max_length)
            elif on_overlength == "truncate_prompt":
                with naming(name):
                    example = shorten_prompt(tokenizer, messages, whole, max_length)
        if markers and on_marker == "drop":
            example = None
        fitted.append(Fitted(example, len(whole.input_ids), lost if example else (), markers))
    return fitted


def cut_end(whole: Example, max_length: int) -> Example | None:
    """Return the first `max_length` tokens, or None where the assistant says none of them.

    An answer that is cut loses its stop token with its end, so that nobody learns to stop there.
    """
    ids, labels = whole.input_ids[:max_length], whole.labels[:max_length]
    return Example(ids, labels) if any(x != IGNORE_INDEX for x in labels) else None


def shorten_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    whole: Example,
    max_length: int,
) -> Example | None:
    """Take the first words off the longest turns that are not learnt, until the conversation fits.

    Such turns are cut to one length, so that short questions stay whole; what stands nearest to the
    answer stays. System turns and supervised answers are never cut. The shorter conversation is
    rendered, encoded and proven like any other.

    Args:
        tokenizer: As for `encode_chat`.
        messages: The conversation.
        whole: It, encoded.
        max_length: In tokens.

    Returns:
        None where nothing would be left of a turn.
    """
    example = whole
    while (excess := len(example.input_ids) - max_length) > 0:
        shorter = _cap_turns(tokenizer, messages, excess)
        if shorter is None:
            return None
        messages, example = shorter, encode_chat(tokenizer, shorter, "drop")
    return example


def describe_overlength(rows: Sequence[tuple[str, int]], max_length: int) -> str:
    """Say how many rows are too long, and which are the first.

    Args:
        rows: The name and the length in tokens of each, not empty.
        max_length: In tokens.
    """
    first = ", ".join(f"{name} ({length:,})" for name, length in rows[:NAMED_ROWS])
    more = ", …" if len(rows) > NAMED_ROWS else ""
    noun = "row" if len(rows) == 1 else "rows"
    return f"{len(rows):,} {noun} over data.max_length={max_length} tokens: {first}{more}"


def _find_hopeless(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], max_length: int
) -> dict[int, int]:
    """Return the rows whose text does not fit into `max_length` of the longest tokens there are."""
    longest = _find_longest_token(tokenizer)
    hopeless = {}
    for row, messages in enumerate(conversations):
        turns = messages if isinstance(messages, list | tuple) else []
        texts = [str(turn.get("content", "")).strip() for turn in turns if isinstance(turn, dict)]
        length = sum(map(len, texts)) // longest
        if length > max_length:
            hopeless[row] = length
    return hopeless


@lru_cache(maxsize=8)
def _find_longest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the characters of the longest token; a byte of it may be less than a character."""
    return max(map(len, tokenizer.get_vocab()))


def _cap_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], excess: int
) -> list[Message] | None:
    """Leave the last tokens of every turn that may be cut: as many as make `excess` go in all."""
    backend = plain_backend(tokenizer)
    backend.encode_special_tokens = True  # what a message spells is text
    ends = [
        [end for _, end in backend.encode(x["content"], add_special_tokens=False).offsets]
        if x["role"] in ("user", "tool") or (x["role"] == "assistant" and x.get("weight") == 0)
        else []
        for x in messages
    ]
    lengths = [len(places) for places in ends]
    caps = range(max(lengths) + 1)
    cap = bisect_right(caps, -excess, key=lambda cap: -sum(max(0, n - cap) for n in lengths)) - 1
    if cap < 1:
        return None
    return [
        {**x, "content": x["content"][max(1, places[-cap - 1]) :]} if len(places) > cap else x
        for x, places in zip(messages, ends, strict=True)
    ]

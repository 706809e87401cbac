"""What becomes of a row, once it is encoded: kept, left out, or cut to what a row may have."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from lit_sft.data.control_tokens import plain_backend
from lit_sft.data.encode import EncodedChat, encode_and_report, encode_chat, naming
from lit_sft.data.lost_fields import LostField, OnLostField
from lit_sft.data.message_checks import refuse_silence
from lit_sft.data.messages import OnMarker, list_markers, refuse_markers
from lit_sft.data.tool_schemas import OnBadCall, find_bad_calls, refuse_bad_calls
from lit_sft.types import IGNORE_INDEX, Example, Message

OnOverlength = Literal["drop", "error", "truncate_prompt", "truncate"]
NAMED_ROWS = 5


@dataclass(frozen=True)
class RowPolicy:
    """What a row may have and hold, and what becomes of one that does not keep to it."""

    max_length: int
    """In tokens."""
    on_overlength: OnOverlength = "drop"
    """Of a longer row: `truncate_prompt` is `shorten_prompt`, `truncate` is `cut_end`; otherwise it
    is left out."""
    on_lost_field: OnLostField = "error"
    """Whether what the template does not write of a message is an error, or left out."""
    on_marker: OnMarker = "keep"
    """Whether a row that holds a mark of turns as plain text is kept, left out, or an error."""
    on_bad_call: OnBadCall = "keep"
    """Whether a row that calls what its tools do not allow is kept, left out, or an error."""
    learn_thoughts: bool = True
    """Whether the thoughts before an answer carry loss."""

    def describe_choices(self) -> dict[str, object]:
        """Return what gives other rows than by default, by the names of the options."""
        choices = dict.fromkeys(("on_marker", "on_bad_call"), "drop")
        chosen: dict[str, Any] = {k: x for k, x in choices.items() if getattr(self, k) == x}
        return chosen if self.learn_thoughts else chosen | {"learn_thoughts": False}


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
    bad_calls: Sequence[str] = ()
    """Calls that its tools do not allow, each as the tool and what is wrong, in few words."""


def encode_to_fit(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    names: Sequence[str],
    policy: RowPolicy,
) -> list[Fitted]:
    """Encode conversations whole, with the mask proven, and do with each as the policy says.

    Args:
        tokenizer: As for `encode_chats`.
        conversations: Likewise.
        names: Likewise.
        policy: Where it leaves longer rows out, one whose text alone is too long for any tokens is
            not even encoded: 50 MB would take a minute.

    Raises:
        InputError: As `encode_chats`, and for an empty answer that would be learnt; a row that is
            left out has to be sound, too, if it is encoded.
    """
    rows = list(zip(names, conversations, strict=True))
    for name, messages in rows:
        with naming(name):
            refuse_silence(messages)
    hopeless: dict[int, int] = {}
    if policy.on_overlength in ("drop", "error"):
        hopeless = _find_hopeless(tokenizer, conversations, policy.max_length)
    hopeful = [row for number, row in enumerate(rows) if number not in hopeless]
    texts, named = [messages for _, messages in hopeful], [name for name, _ in hopeful]
    learns = policy.learn_thoughts
    encoded = iter(encode_and_report(tokenizer, texts, named, policy.on_lost_field, learns))
    fitted = []
    for number, (name, messages) in enumerate(rows):
        if number in hopeless:
            fitted.append(Fitted(None, hopeless[number]))
            continue
        with naming(name):
            fitted.append(_apply_policy(tokenizer, messages, next(encoded), policy))
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
    learn_thoughts: bool = True,
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
        learn_thoughts: As `RowPolicy` has it.

    Returns:
        None where nothing would be left of a turn.
    """
    example = whole
    while (excess := len(example.input_ids) - max_length) > 0:
        shorter = _cap_turns(tokenizer, messages, excess)
        if shorter is None:
            return None
        messages, example = shorter, encode_chat(tokenizer, shorter, "drop", learn_thoughts)
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


def _apply_policy(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    whole: EncodedChat,
    policy: RowPolicy,
) -> Fitted:
    """Return what becomes of a conversation that is encoded whole."""
    markers = list_markers(tokenizer, messages, whole.example.input_ids)
    refuse_markers(markers, policy.on_marker)
    bad = find_bad_calls(messages)
    refuse_bad_calls(bad, policy.on_bad_call)
    example: Example | None = whole.example
    length = len(whole.example.input_ids)
    if length > policy.max_length:
        example = None
        if policy.on_overlength == "truncate":
            example = cut_end(whole.example, policy.max_length)
        elif policy.on_overlength == "truncate_prompt":
            example = shorten_prompt(
                tokenizer, messages, whole.example, policy.max_length, policy.learn_thoughts
            )
    if (markers and policy.on_marker == "drop") or (bad and policy.on_bad_call == "drop"):
        example = None
    kinds = sorted({f"{call.tool}: {call.kind}" for call in bad}) if bad else ()
    return Fitted(example, length, whole.lost if example else (), markers, kinds)


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

"""Rows with more tokens than a row may have: dropped, or cut where that is asked for."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from lit_sft.data.encode import encode_chat, encode_chats, naming, plain_backend
from lit_sft.types import IGNORE_INDEX, Example, Message

OnOverlength = Literal["drop", "error", "truncate_prompt", "truncate"]
NAMED_ROWS = 5


class Fitted(NamedTuple):
    """What became of a row."""

    example: Example | None
    """At most `max_length` tokens; None where the row is left out."""
    length: int
    """Tokens of the whole row."""


def encode_to_fit(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    names: Sequence[str],
    max_length: int,
    on_overlength: OnOverlength,
) -> list[Fitted]:
    """Encode conversations whole, with the mask proven, and fit the longer ones.

    Args:
        tokenizer: As for `encode_chats`.
        conversations: Likewise.
        names: Likewise.
        max_length: In tokens.
        on_overlength: `truncate_prompt` is `shorten_prompt`, `truncate` is `cut_end`; otherwise a
            longer row is left out.

    Raises:
        InputError: As `encode_chats`; a long row, too, has to be sound.
    """
    fitted = []
    examples = encode_chats(tokenizer, conversations, names)
    for name, messages, whole in zip(names, conversations, examples, strict=True):
        example: Example | None = whole
        if len(whole.input_ids) > max_length:
            example = None
            if on_overlength == "truncate":
                example = cut_end(whole, max_length)
            elif on_overlength == "truncate_prompt":
                with naming(name):
                    example = shorten_prompt(tokenizer, messages, whole, max_length)
        fitted.append(Fitted(example, len(whole.input_ids)))
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
    """Shorten what is not learnt, from its oldest words on, until the conversation fits.

    The start of the first unsupervised turn goes first, so that what stands nearest to the last
    answer stays. System turns and supervised answers stay whole, and a turn that is emptied keeps
    its place: the conversation is rendered, encoded and proven again.

    Args:
        tokenizer: As for `encode_chat`.
        messages: The conversation.
        whole: It, encoded.
        max_length: In tokens.

    Returns:
        None where it does not fit, or only with all of the unsupervised turns emptied.
    """
    shown = list(messages)
    example = whole
    while any(_may_shorten(message) and message["content"] for message in shown):
        excess = len(example.input_ids) - max_length
        if excess <= 0:
            return example
        shown = _drop_first_tokens(tokenizer, shown, excess)
        example = encode_chat(tokenizer, shown)
    return None


def describe_overlength(rows: Sequence[tuple[str, int]], max_length: int) -> str:
    """Say how many rows are too long, and which are the first.

    Args:
        rows: The name and the length in tokens of each, not empty.
        max_length: In tokens.
    """
    first = ", ".join(f"{name} ({length:,})" for name, length in rows[:NAMED_ROWS])
    more = ", …" if len(rows) > NAMED_ROWS else ""
    return f"{len(rows):,} over data.max_length={max_length} tokens: {first}{more}"


def _may_shorten(message: Message) -> bool:
    role = message["role"]
    return role in ("user", "tool") or (role == "assistant" and message.get("weight") == 0)


def _drop_first_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], count: int
) -> list[Message]:
    """Take at least one character, and about `count` tokens, off the turns that may shorten."""
    backend = plain_backend(tokenizer)
    shorter: list[Message] = []
    for message in messages:
        content = message["content"]
        if count > 0 and content and _may_shorten(message):
            offsets = backend.encode(content, add_special_tokens=False).offsets[:count]
            count -= len(offsets)
            end = max(1, offsets[-1][1]) if offsets else len(content)
            message = {**message, "content": content[end:]}
        shorter.append(message)
    return shorter

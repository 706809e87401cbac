"""Messages to token ids and labels, with the loss mask proven for every row.

The way of a row, a file a step:

    messages         what it has to be before a template sees it
    control_tokens   the tokens that no message may write, broken up where one is spelt
    chat_template    the template renders it, within `template_limits`
    render           where in the text the assistant speaks, by `answers`
    lost_fields      what a message holds and the template left out
    encode           text to tokens; the spans found in them, decoded and compared
    disguise         the same turns with harmless text, to compare with
    forgery          the control tokens compared with those that the template itself writes

A row for which any of this fails is an error, never a silent mask.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from lit_sft.data.answers import RenderedChat, Span
from lit_sft.data.chat_template import find_pieces
from lit_sft.data.control_tokens import (
    BREAKER,
    find_control_tokens,
    find_token,
    join_cuts,
    plain_backend,
    tokenize_chats,
)
from lit_sft.data.forgery import prove_control_tokens
from lit_sft.data.lost_fields import LostField, OnLostField, find_lost_fields, refuse_lost_fields
from lit_sft.data.render import (
    render_conversation,
    render_prompt,
)
from lit_sft.data.template_limits import limit_memory
from lit_sft.errors import InputError
from lit_sft.types import IGNORE_INDEX, Example, Message

LIMITED_ROWS = 16
"""Rows that share a bound on memory, which takes as long to set as a short row to render."""


class EncodedChat(NamedTuple):
    """A conversation as tokens, and what of it is not among them."""

    example: Example
    lost: list[LostField]


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    on_lost_field: OnLostField = "error",
    learn_thoughts: bool = True,
) -> Example:
    """Encode a conversation, and prove that exactly the assistant's words carry loss.

    Args:
        tokenizer: A fast tokenizer with a chat template, as `load_tokenizer` returns it.
        messages: Turns in order; any number of them may be the assistant's. A control token that
            one of them spells is encoded as the text that it is. The first has the `tools`.
        on_lost_field: Whether what the template does not write is an error, or left out.
        learn_thoughts: Whether the thoughts before an answer carry loss, too.

    Returns:
        `input_ids [tokens]` and unshifted `labels [tokens]`: the assistant's turns with the stop
        token of each, `IGNORE_INDEX` elsewhere.

    Raises:
        InputError: If a message is malformed, the template refuses or rewrites the conversation,
            leaves out a field of a message, a turn ends without a stop token, or a span does not
            decode to what was said.
    """
    return encode_and_report(tokenizer, [messages], [""], on_lost_field, learn_thoughts)[0].example


def encode_chats(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    names: Sequence[str] | None = None,
) -> list[Example]:
    """Encode conversations as `encode_chat` does, at a fraction of the cost of one at a time.

    Args:
        tokenizer: As for `encode_chat`.
        conversations: All are held in memory, as text and as tokens.
        names: What to call each in an error.

    Raises:
        InputError: As `encode_chat`, opening with the name of the first row that fails.
    """
    names = names or [""] * len(conversations)
    return [chat.example for chat in encode_and_report(tokenizer, conversations, names, "error")]


def encode_and_report(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    names: Sequence[str],
    on_lost_field: OnLostField,
    learn_thoughts: bool = True,
) -> list[EncodedChat]:
    """Encode conversations as `encode_chats` does, with what the template does not write of each.

    Raises:
        InputError: As `encode_chats`.
    """
    chats, pieces, lost = [], [], []
    rows = list(zip(names, conversations, strict=True))
    for first in range(0, len(rows), LIMITED_ROWS):
        with limit_memory():
            for name, messages in rows[first : first + LIMITED_ROWS]:
                with naming(name):
                    chat = render_conversation(tokenizer, messages, learn_thoughts)
                    own = find_pieces(tokenizer, chat)
                    fields = find_lost_fields(tokenizer, chat, is_whole=own is not None)
                    refuse_lost_fields(fields, on_lost_field)
                chats.append(chat)
                pieces.append(own)
                lost.append(fields)
    encodings = tokenize_chats(tokenizer, chats)

    examples: list[Example] = []
    spoken: list[list[int]] = []
    for name, chat, own, encoding in zip(names, chats, pieces, encodings, strict=True):
        input_ids = join_cuts(tokenizer, chat, encoding)
        labels = [IGNORE_INDEX] * len(input_ids)
        with naming(name):
            prove_control_tokens(tokenizer, chat, own, encoding, input_ids)
            for span in chat.spans:
                place = _find_tokens(encoding, span, chat.cuts)
                labels[place] = input_ids[place]
                spoken.append(input_ids[place])
        examples.append(Example(input_ids, labels))
    _prove_spans(tokenizer, chats, names, spoken)
    return [EncodedChat(*pair) for pair in zip(examples, lost, strict=True)]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Encode what comes before the answer that ends a conversation, ready for the model to answer.

    Returns:
        Token ids `[tokens]`, rendered by the same template as training, generation prompt included.

    Raises:
        InputError: If a message is malformed, or the template refuses the conversation.
    """
    chat = render_prompt(tokenizer, messages)
    encoding = tokenize_chats(tokenizer, [chat])[0]
    input_ids: list[int] = encoding.ids
    prove_control_tokens(tokenizer, chat, find_pieces(tokenizer, chat), encoding, input_ids)
    return input_ids


@contextmanager
def naming(row: str) -> Iterator[None]:
    """Open the errors of a block with the name of a row, where it has one."""
    try:
        yield
    except InputError as error:
        raise (type(error)(f"{row}: {error}") if row else error) from error.__cause__


def _find_tokens(encoding: Encoding, span: Span, cuts: Sequence[int]) -> slice:
    """Return the tokens of a span and its stop token, as they stand without those of `cuts`."""
    first, last = (find_token(encoding, place, cuts) for place in span)
    if first is None or last is None:
        raise InputError("the tokenizer drops characters at the edge of an assistant turn")
    return slice(first, last + 1)


def _prove_spans(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[RenderedChat],
    names: Sequence[str],
    spoken: Sequence[list[int]],
) -> None:
    """Compare the tokens of all spans, in order, with what the assistant said."""
    backend = plain_backend(tokenizer)
    control = find_control_tokens(tokenizer)
    texts = backend.decode_batch([ids[:-1] for ids in spoken], skip_special_tokens=False)
    found = iter(zip(texts, spoken, strict=True))
    for name, chat in zip(names, chats, strict=True):
        for span in chat.spans:
            decoded, ids = next(found)
            said = chat.text[span.start : span.stop]
            said = said.replace(BREAKER, "") if chat.is_broken_up else said
            # A decoder of the SentencePiece kind drops one space in front.
            forms = (said, said.removeprefix(" "))
            same = decoded in forms or decoded in [_normalize(backend, form) for form in forms]
            if not same or ids[-1] not in control.ids:
                reason = (
                    f"the supervised tokens decode to {decoded!r:.120} before token {ids[-1]}, but "
                    f"the assistant said {said!r:.120} before a stop token; if the answer starts "
                    "or ends with white space, strip it"
                )
                raise InputError(f"{name}: {reason}" if name else reason)


def _normalize(backend: Tokenizer, text: str) -> str:
    """Return `text` as the tokenizer reads it, such as in Unicode's composed form."""
    normalized: str = backend.normalizer.normalize_str(text) if backend.normalizer else text
    return normalized

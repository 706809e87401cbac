"""Messages to token ids and labels, with the loss mask proven for every row.

`render` says where in the text the assistant speaks. Here the text becomes tokens, the spans are
found in them by character offsets, decoded again and compared with what the assistant said. A row
for which any of this fails is an error, never a silent mask.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from tokenizers import AddedToken, Encoding, Tokenizer, normalizers
from transformers import PreTrainedTokenizerBase

from lit_sft.data.answers import Span
from lit_sft.data.control_tokens import BREAKER, find_control_tokens
from lit_sft.data.lost import LostField, OnLostField, find_lost_fields, refuse_lost_fields
from lit_sft.data.render import (
    RenderedChat,
    render_conversation,
    render_prompt,
)
from lit_sft.errors import InputError, require
from lit_sft.types import IGNORE_INDEX, Example, Message

CUT = "\ufdd1"
"""Parts the tokens of a prompt from those that follow: another unused code point."""


class EncodedChat(NamedTuple):
    """A conversation as tokens, and what of it is not among them."""

    example: Example
    lost: list[LostField]


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    on_lost_field: OnLostField = "error",
) -> Example:
    """Encode a conversation, and prove that exactly the assistant's words carry loss.

    Args:
        tokenizer: A fast tokenizer with a chat template, as `load_tokenizer` returns it.
        messages: Turns in order; any number of them may be the assistant's. A control token that
            one of them spells is encoded as the text that it is.
        on_lost_field: Whether what the template does not write is an error, or left out.

    Returns:
        `input_ids [tokens]` and unshifted `labels [tokens]`: the assistant's turns with the stop
        token of each, `IGNORE_INDEX` elsewhere.

    Raises:
        InputError: If a message is malformed, the template refuses or rewrites the conversation,
            leaves out a field of a message, a turn ends without a stop token, or a span does not
            decode to what was said.
    """
    return encode_and_report(tokenizer, [messages], [""], on_lost_field)[0].example


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
) -> list[EncodedChat]:
    """Encode conversations as `encode_chats` does, with what the template does not write of each.

    Raises:
        InputError: As `encode_chats`.
    """
    chats, lost = [], []
    for name, messages in zip(names, conversations, strict=True):
        with naming(name):
            chat = render_conversation(tokenizer, messages)
            fields = find_lost_fields(tokenizer, chat)
            refuse_lost_fields(fields, on_lost_field)
        chats.append(chat)
        lost.append(fields)
    encodings = _tokenize(tokenizer, chats)

    examples: list[Example] = []
    spoken: list[list[int]] = []
    for name, chat, encoding in zip(names, chats, encodings, strict=True):
        input_ids = _join_cuts(tokenizer, chat, encoding)
        labels = [IGNORE_INDEX] * len(input_ids)
        with naming(name):
            _check_control_ids(tokenizer, chat, input_ids)
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
    input_ids: list[int] = _tokenize(tokenizer, [chat])[0].ids
    _check_control_ids(tokenizer, chat, input_ids)
    return input_ids


def plain_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the tokenizer beneath, without what an earlier call left set in it."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False
    return backend


@contextmanager
def naming(row: str) -> Iterator[None]:
    """Open the errors of a block with the name of a row, where it has one."""
    try:
        yield
    except InputError as error:
        raise (type(error)(f"{row}: {error}") if row else error) from error.__cause__


def _tokenize(tokenizer: PreTrainedTokenizerBase, chats: Sequence[RenderedChat]) -> list[Encoding]:
    texts = [_mark_cuts(chat) for chat in chats]
    readers = [(bool(chat.cuts), chat.is_broken_up) for chat in chats]
    encodings: list[Encoding | None] = [None] * len(chats)
    for kind in set(readers):
        rows = [row for row, own in enumerate(readers) if own == kind]
        reader = _reader_of_marked_text(tokenizer, *kind) if any(kind) else plain_backend(tokenizer)
        found = reader.encode_batch([texts[row] for row in rows], add_special_tokens=False)
        for row, encoding in zip(rows, found, strict=True):
            encodings[row] = encoding
    return [encoding for encoding in encodings if encoding is not None]


def _mark_cuts(chat: RenderedChat) -> str:
    """Return the text with a `CUT` at each place where two tokens have to part."""
    if not chat.cuts:
        return chat.text
    require(CUT not in chat.text, f"a message holds U+{ord(CUT):X}; remove it")
    edges = [0, *chat.cuts, len(chat.text)]
    return CUT.join(chat.text[start:stop] for start, stop in pairwise(edges))


@lru_cache(maxsize=4)
def _reader_of_marked_text(
    tokenizer: PreTrainedTokenizerBase, has_cuts: bool, is_broken_up: bool
) -> Tokenizer:
    """Return a copy that knows `CUT` or drops `BREAKER`.

    A `CUT` parts text as any control token does: what follows is read as it would be generated. A
    `BREAKER` is dropped after control tokens are found, before text is read.
    """
    reader = Tokenizer.from_str(plain_backend(tokenizer).to_str())
    if has_cuts:
        reader.add_special_tokens([AddedToken(CUT, normalized=False)])
    if is_broken_up:
        own = [reader.normalizer] if reader.normalizer else []
        reader.normalizer = normalizers.Sequence([normalizers.Replace(BREAKER, ""), *own])
    return reader


def _join_cuts(
    tokenizer: PreTrainedTokenizerBase, chat: RenderedChat, encoding: Encoding
) -> list[int]:
    """Return the token ids without those of `CUT`."""
    input_ids: list[int] = encoding.ids
    if not chat.cuts:
        return input_ids
    cut = _reader_of_marked_text(tokenizer, True, chat.is_broken_up).token_to_id(CUT)
    return [token for token in input_ids if token != cut]


def _check_control_ids(
    tokenizer: PreTrainedTokenizerBase, chat: RenderedChat, input_ids: list[int]
) -> None:
    control = find_control_tokens(tokenizer)
    if input_ids[:2] == [control.bos_id, control.bos_id]:
        raise InputError(f"the chat template writes the BOS token {tokenizer.bos_token!r} twice")
    if chat.is_broken_up:
        written = len(control.pattern.findall(chat.text))
        read = sum(token in control.ids for token in input_ids)
        require(
            read == written,
            f"a message spells control tokens that the tokenizer obeys: the template wrote "
            f"{written}, and {read} came out; remove them",
        )


def _find_tokens(encoding: Encoding, span: Span, cuts: Sequence[int]) -> slice:
    """Return the tokens of a span and its stop token, as they stand without those of `cuts`.

    A character of several tokens begins at the first of them, which `char_to_token` returns.
    """
    passed = bisect_right(cuts, span.start)
    first = encoding.char_to_token(span.start + passed)
    last = encoding.char_to_token(span.stop + passed)
    if first is None or last is None:
        raise InputError("the tokenizer drops characters at the edge of an assistant turn")
    return slice(first - passed, last - passed + 1)


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

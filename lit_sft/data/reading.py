"""Rendered text to tokens."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from tokenizers import AddedToken, Encoding, Tokenizer, normalizers
from transformers import PreTrainedTokenizerBase

from lit_sft.data.control_tokens import BREAKER
from lit_sft.data.render import RenderedChat
from lit_sft.errors import require

CUT = "\ufdd1"
"""Parts the tokens of a prompt from those that follow: another unused code point."""


def plain_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the tokenizer beneath, without what an earlier call left set in it."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False
    return backend


def tokenize_chats(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[RenderedChat]
) -> list[Encoding]:
    """Return the tokens of rendered conversations, with those of `CUT`."""
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


def join_cuts(
    tokenizer: PreTrainedTokenizerBase, chat: RenderedChat, encoding: Encoding
) -> list[int]:
    """Return the token ids without those of `CUT`."""
    input_ids: list[int] = encoding.ids
    if not chat.cuts:
        return input_ids
    cut = _reader_of_marked_text(tokenizer, True, chat.is_broken_up).token_to_id(CUT)
    return [token for token in input_ids if token != cut]


def find_token(encoding: Encoding, place: int, cuts: Sequence[int]) -> int | None:
    """Return the number of the token, counted without those of `cuts`, at a place of the text.

    A character of several tokens begins at the first of them, which `char_to_token` returns.
    """
    passed = bisect_right(cuts, place)
    token: int | None = encoding.char_to_token(place + passed)
    return None if token is None else token - passed


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

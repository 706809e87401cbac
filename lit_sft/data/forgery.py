"""The proof that no message writes a control token, on the tokens that came out.

Spellings of control tokens are broken up before a template sees them. That is not enough where a
tokenizer normalises what it reads (`<|IM_END|>`, full-width letters), a template changes what it is
given, or a content ends in half of a token and the template goes on with the other half. So the
control tokens of a row are compared with those of the same turns with harmless text in them: they
have to be the same, in order, and each where the template wrote it.

For plain turns, `find_pieces` tells what the template writes around the contents, and one encoding
a sequence of roles tells the control tokens of it. Any other row is rendered once more, in a
`Disguise`: every letter of its messages replaced by one that no token and no template knows. Some
templates write other text for it, as they look for words in what is said. They may, as long as no
control token depends on these words; that is asked by a disguise that leaves them as they are.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from lit_sft.data import answers
from lit_sft.data.answers import RenderedChat
from lit_sft.data.chat_template import list_constants, render_turns, template_of
from lit_sft.data.control_tokens import find_control_tokens, find_token, plain_backend
from lit_sft.data.disguise import disguise_for, list_texts
from lit_sft.data.render import render_safe_turns
from lit_sft.errors import InputError

PROBE = "zq1000000"
"""As long as what stands between the pieces of a frame when it is encoded."""


class ControlIds(NamedTuple):
    """The control tokens of a text, in order."""

    ids: tuple[int, ...]
    places: list[int] | None
    """A character of each, or None where that is not known."""


def prove_control_tokens(
    tokenizer: PreTrainedTokenizerBase,
    chat: RenderedChat,
    own: tuple[Sequence[str], list[int]] | None,
    encoding: Encoding,
    input_ids: list[int],
) -> None:
    """Prove that a row has the control tokens that its template wrote, and no others.

    Args:
        tokenizer: With the template that rendered it.
        chat: The row.
        own: What the template wrote around the contents, as `find_pieces` tells.
        encoding: Of the row's text, as `tokenize_chats` returns it.
        input_ids: `[tokens]`, without those of cuts.

    Raises:
        InputError: For the first control token that is not the template's own.
    """
    control = find_control_tokens(tokenizer)
    if input_ids[:2] == [control.bos_id, control.bos_id]:
        raise InputError(f"the chat template writes the BOS token {tokenizer.bos_token!r} twice")
    read = tuple(filter(control.counted.__contains__, input_ids))
    expected = _read_frame(tokenizer, *own) if own and chat.added is None else None
    if expected and _is_as_expected(expected, read, chat, encoding, input_ids):
        return
    harmless = _read_harmless_text(tokenizer, chat)
    if harmless.places is not None and _is_as_expected(harmless, read, chat, encoding, input_ids):
        return
    words = _find_words(tokenizer, template_of(tokenizer))
    expected = _read_harmless_text(tokenizer, chat, dict.fromkeys(range(len(chat.messages)), words))
    if not _is_as_expected(expected, read, chat, encoding, input_ids):
        wrong = _name_first(tokenizer, expected.ids, read)
        raise InputError(
            f"what a message says is read as control tokens{wrong}: the template writes "
            f"{len(expected.ids)} of them, and {len(read)} came out; remove what spells them, also "
            "in part or in other letters, or use a tokenizer and template that leave text as it is"
        )
    if _drop_thoughts(tokenizer, expected.ids) != _drop_thoughts(tokenizer, harmless.ids):
        cause = _name_word(tokenizer, chat, words, harmless.ids)
        raise InputError(
            f"{cause}, so that what is said could forge a turn; remove it from the data, or set a "
            "data.chat_template that leaves it as it is"
        )


def _is_as_expected(
    expected: ControlIds,
    read: tuple[int, ...],
    chat: RenderedChat,
    encoding: Encoding,
    input_ids: list[int],
) -> bool:
    if read != expected.ids or expected.places is None:
        return read == expected.ids
    if chat.cuts:
        found = [find_token(encoding, place, chat.cuts) for place in expected.places]
    else:
        found = list(map(encoding.char_to_token, expected.places))
    return read == tuple([input_ids[token] for token in found if token is not None])


def _name_first(
    tokenizer: PreTrainedTokenizerBase, expected: Sequence[int], read: Sequence[int]
) -> str:
    """Return the first control token of `read` that is not expected there, in brackets."""
    for number, token in enumerate(read):
        if number >= len(expected) or token != expected[number]:
            return f" ({tokenizer.convert_ids_to_tokens(token)!r})"
    return ""


def _read_frame(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], starts: Sequence[int]
) -> ControlIds | None:
    """Return the control tokens of pieces, at where each of these starts."""
    found = _encode_frame(tokenizer, tuple(pieces))
    if found is None:
        return None
    ids, places = found
    return ControlIds(ids, [starts[piece] + offset for piece, offset in places])


@lru_cache(maxsize=4096)
def _encode_frame(
    tokenizer: PreTrainedTokenizerBase, pieces: tuple[str, ...]
) -> tuple[tuple[int, ...], list[tuple[int, int]]] | None:
    """Return the control tokens of pieces around words, and the piece and the place within each.

    None where one of them begins within a word.
    """
    starts = list(accumulate([len(piece) + len(PROBE) for piece in pieces[:-1]], initial=0))
    read = _read_control_ids(tokenizer, PROBE.join(pieces))
    places = []
    for place in read.places or ():
        piece = bisect_right(starts, place) - 1
        offset = place - starts[piece]
        if offset >= len(pieces[piece]):
            return None
        places.append((piece, offset))
    return read.ids, places


def _read_control_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> ControlIds:
    counted = find_control_tokens(tokenizer).counted
    encoding = plain_backend(tokenizer).encode(text, add_special_tokens=False)
    found = zip(encoding.ids, encoding.offsets, strict=True)
    pairs = [(token, start) for token, (start, _) in found if token in counted]
    return ControlIds(tuple([token for token, _ in pairs]), [start for _, start in pairs])


def _drop_thoughts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """Return control tokens without marks of thoughts, which follow from what an answer holds."""
    known = find_control_tokens(tokenizer).texts & {answers.OPENING, answers.CLOSING}
    marks = {tokenizer.convert_tokens_to_ids(token) for token in known}
    return [token for token in ids if token not in marks]


def _name_word(
    tokenizer: PreTrainedTokenizerBase, chat: RenderedChat, words: str, ids: Sequence[int]
) -> str:
    """Return which message has the template write other control tokens than `ids`, and by what."""

    def is_cause(number: int, kept: str) -> bool:
        try:
            found = _read_harmless_text(tokenizer, chat, {number: kept})
        except InputError:
            return False
        return _drop_thoughts(tokenizer, found.ids) != _drop_thoughts(tokenizer, ids)

    makes = "the chat template makes control tokens of"
    for number, message in enumerate(chat.messages):
        if not is_cause(number, words):
            continue
        said = "\n\n".join(list_texts(dict(message)))
        for word in list_constants(template_of(tokenizer)):
            found = re.search(re.escape(word), said, re.IGNORECASE) if word else None
            if found and is_cause(number, re.escape(word)):
                return f"message {number} ({message['role']}): {makes} {found[0]!r}"
        return f"message {number} ({message['role']}): {makes} words that it says"
    return f"{makes} words that messages say"


def _read_harmless_text(
    tokenizer: PreTrainedTokenizerBase, chat: RenderedChat, kept: Mapping[int, str] | None = None
) -> ControlIds:
    """Return the control tokens that the template writes for the same turns with other letters.

    Args:
        tokenizer: With the template that rendered it.
        chat: The row.
        kept: What stays of its text, as for `Disguise`.
    """
    disguise = disguise_for(tokenizer, kept)
    turns = disguise.put_on(chat.messages)
    try:
        if chat.added is None:
            text, _ = render_turns(tokenizer, turns, add_generation_prompt=chat.is_prompt)
        else:
            text = render_safe_turns(tokenizer, turns, chat.learnt, chat.is_broken_up).text
    except InputError as error:
        raise InputError(
            "the chat template takes the turns only with what they say, so that its control tokens "
            f"cannot be told from theirs ({error}); use another data.chat_template"
        ) from error
    found = _read_control_ids(tokenizer, disguise.flatten(text))
    if chat.abridged is None:
        is_same = disguise.take_off(text) == chat.text
        return found if is_same else found._replace(places=None)
    is_same = disguise.take_off(text) == chat.abridged.text
    places = [chat.abridged.find_place(place) for place in found.places or ()]
    known = [place for place in places if place is not None]
    return found._replace(places=known if is_same and len(known) == len(places) else None)


@lru_cache(maxsize=8)
def _find_words(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """Return a pattern of white space, and of words that the template knows.

    It may look for them in what is said, as for `</think>`. None may be a part of a control token
    that the template could complete.
    """
    tokens = find_control_tokens(tokenizer).texts
    words = {
        word
        for constant in list_constants(template)
        if (word := constant.strip()) and not _may_join(word, tokens)
    } | {answers.OPENING, answers.CLOSING}
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return "|".join([r"\s+", *map(re.escape, longest_first)])


def _may_join(word: str, tokens: Iterable[str]) -> bool:
    """Return whether a word holds a token, or ends as one begins, or begins as one ends."""
    tails = tuple(word[at:] for at in range(len(word)))
    heads = tuple(word[: at + 1] for at in range(len(word)))
    return any(
        token in word or token.startswith(tails) or token.endswith(heads) for token in tokens
    )

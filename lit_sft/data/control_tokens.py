"""Text to tokens (`tokenize_chats`), and the tokens that no message may write.

Those are found here, and broken up where a message spells one; what breaks them up is taken out
when the text is read into tokens, which is why both stand in one file.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from tokenizers import AddedToken, Encoding, Tokenizer, normalizers
from transformers import PreTrainedTokenizerBase

from lit_sft.data import answers
from lit_sft.data.answers import RenderedChat
from lit_sft.data.chat_template import opens_thoughts, render_turns, template_of
from lit_sft.errors import InputError, require
from lit_sft.types import Message

BREAKER = "\ufdd0"
"""Stands inside a control token that a message spells: a code point that Unicode keeps unused."""
ESCAPED = re.compile(r'["\x00-\x1f]|\\{2}')
"""In the pattern of control tokens, what JSON would escape: `re.escape` puts one backslash."""
CUT = "\ufdd1"
"""Parts the tokens of a prompt from those that follow: another unused code point."""

ASK: dict[str, Any] = {"role": "user"}
SAY: dict[str, Any] = {"role": "assistant"}
CALLS: dict[str, Any] = {
    **SAY,
    "tool_calls": [
        {"type": "function", "id": "zq5000000", "function": {"name": "zq5", "arguments": {}}}
    ],
}
SHAPES: Sequence[Sequence[dict[str, Any]]] = (
    (ASK, SAY, ASK),
    (ASK, SAY),
    ({"role": "system"}, ASK, SAY, ASK),
    (ASK, SAY, {"role": "tool"}, SAY, ASK),
    (ASK, CALLS, {"role": "tool", "name": "zq5", "tool_call_id": "zq5000000"}, SAY, ASK),
    (ASK, dict.fromkeys(answers.KEYS, "zqt") | SAY),
)
"""Conversations that show what a template writes around turns. Some refuse some of them."""


class ControlTokens(NamedTuple):
    """The tokens that no message may write."""

    pattern: re.Pattern[str]
    """Matches one, the longest first."""
    stops: re.Pattern[str]
    """Matches those that may end a turn: they are marked special."""
    texts: frozenset[str]
    counted: frozenset[int]
    """Their ids, but for that of what no token stands for, which any text may be read as."""
    ids: frozenset[int]
    bos_id: int | None


def find_control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """Return the special tokens of a tokenizer, which must not change from then on.

    Some tokenizers do not mark as special what parts their turns, such as DeepSeek's: whatever
    token the template writes around the turns of some conversations is one of them, but for what an
    answer may say itself: marks of thoughts, and those around a call.
    """
    template = tokenizer.chat_template
    return _find_control_tokens(
        tokenizer, template.get("default") if isinstance(template, dict) else template
    )


def forget_control_tokens() -> None:
    """Have the control tokens of tokenizers found anew that have been changed."""
    _find_control_tokens.cache_clear()


@lru_cache(maxsize=8)
def _find_control_tokens(tokenizer: PreTrainedTokenizerBase, template: str | None) -> ControlTokens:
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special}
    special |= set(tokenizer.all_special_tokens)
    others = {token.content for token in added} - special - {answers.OPENING, answers.CLOSING}
    turn_marks = _find_turn_marks(tokenizer, others) if template and others else set()
    vocabulary = tokenizer.get_vocab()
    tokens = special | turn_marks
    ids = frozenset(vocabulary[token] for token in tokens)
    unknown = {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id}
    return ControlTokens(
        pattern=_match_any(tokens),
        stops=_match_any(special),
        texts=frozenset(tokens),
        counted=ids - unknown,
        ids=ids,
        bos_id=tokenizer.bos_token_id,
    )


def _match_any(tokens: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _find_turn_marks(tokenizer: PreTrainedTokenizerBase, tokens: set[str]) -> set[str]:
    """Return those of some tokens that the template writes around turns.

    A token of white space, as Gemma has, is text wherever it stands.
    """
    any_token = _match_any(token for token in tokens if any(map(str.isalnum, token)))
    around_thoughts = re.compile(rf"(?:{any_token.pattern})?\s*zqt\s*(?:{any_token.pattern})?")
    marks: set[str] = set()
    for turns in SHAPES:
        written = _render_words(tokenizer, turns)
        found = set(any_token.findall(around_thoughts.sub("", written)))
        if CALLS in turns:
            before = _render_words(tokenizer, turns[: turns.index(CALLS) + 1])
            found -= set(any_token.findall(before))
        marks |= found
    return marks


def _render_words(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, object]]) -> str:
    """Return what the template writes of some turns, each of which says a word.

    Before the first question stands no mark of a turn, but maybe a default system prompt, which is
    left out. Nothing is returned if the template refuses the turns.
    """
    messages: list[Any] = [{"content": f"zq{number}", **turn} for number, turn in enumerate(turns)]
    try:
        text, _ = render_turns(tokenizer, messages, turns[-1] is ASK)
    except InputError:
        return ""
    return text.partition("zq0")[2] if turns[0] is ASK else text


def break_up_control_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> Sequence[Message]:
    """Return `messages` itself, or, where they spell control tokens, a copy with `BREAKER`s."""
    control = find_control_tokens(tokenizer).pattern
    if not any(len(x) > 2 or control.search(x["content"]) for x in messages):
        return messages
    is_opened = opens_thoughts(tokenizer, template_of(tokenizer))
    safe = [_break_up_message(message, control, is_opened) for message in messages]
    if safe == list(messages):
        return messages
    return safe


def _break_up_message(message: Message, control: re.Pattern[str], is_opened: bool) -> Message:
    """Break up all but the marks around the thoughts that an answer opens with, which are its own.

    Some tokenizers count these marks among their special tokens.
    """
    tools = message.get("tools")
    if tools is None or ESCAPED.search(control.pattern) or control.search(_spell(tools)):
        safe: Message = _break_up(message, control)
    else:  # most of the text of a row, in one look
        safe = _break_up({key: x for key, x in message.items() if key != "tools"}, control)
        safe["tools"] = tools
    if message["role"] == "assistant" and (block := answers.match_own(message, is_opened)):
        content = message["content"]
        safe["content"] = (
            content[: block.start(1)]
            + _break_up(block[1], control)
            + content[block.end(1) : block.end()]
            + _break_up(content[block.end() :], control)
        )
    return safe


def _spell(tools: object) -> str:
    """Return tools as one text, whose JSON escapes nothing that a control token has."""
    text = json.dumps(tools, ensure_ascii=False, default=repr)
    require(BREAKER not in text, f"a message holds U+{ord(BREAKER):X}; remove it")
    return text


def _break_up(value: object, control: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        require(BREAKER not in value, f"a message holds U+{ord(BREAKER):X}; remove it")
        return control.sub(lambda found: found[0][0] + BREAKER + found[0][1:], value)
    if isinstance(value, dict):
        return {_break_up(k, control): _break_up(entry, control) for k, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_break_up(entry, control) for entry in value]
    return value


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
    """Return the tokens of rendered conversations, `[chats]`, with those of `CUT`."""
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
    """Return the token ids of a conversation, `[tokens]`, without those of `CUT`."""
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

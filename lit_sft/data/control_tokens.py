"""The tokens that no message may write, and how those are broken up that one spells."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from lit_sft.data import answers
from lit_sft.data.chat_template import opens_thoughts, render_turns, template_of
from lit_sft.errors import InputError, require
from lit_sft.types import Message

BREAKER = "\ufdd0"
"""Stands inside a control token that a message spells: a code point that Unicode keeps unused."""

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


def _render_words(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, Any]]) -> str:
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
    safe: Message = _break_up(message, control)
    if message["role"] == "assistant" and (block := answers.match_own(message, is_opened)):
        content = message["content"]
        safe["content"] = (
            content[: block.start(1)]
            + _break_up(block[1], control)
            + content[block.end(1) : block.end()]
            + _break_up(content[block.end() :], control)
        )
    return safe


def _break_up(value: Any, control: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        require(BREAKER not in value, f"a message holds U+{ord(BREAKER):X}; remove it")
        return control.sub(lambda found: found[0][0] + BREAKER + found[0][1:], value)
    if isinstance(value, dict):
        return {_break_up(k, control): _break_up(entry, control) for k, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_break_up(entry, control) for entry in value]
    return value

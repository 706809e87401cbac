"""The tokens that no message may write, and how those are broken up that one spells."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from lit_sft.data import answers
from lit_sft.data.template import opens_thoughts, render_turns, template_of
from lit_sft.errors import InputError, require
from lit_sft.types import Message

BREAKER = "\ufdd0"
"""Stands inside a control token that a message spells: a code point that Unicode keeps unused."""


class ControlTokens(NamedTuple):
    """The tokens that no message may write."""

    pattern: re.Pattern[str]
    """Matches one, the longest first."""
    stops: re.Pattern[str]
    """Matches those that may end a turn: they are marked special."""
    ids: frozenset[int]
    bos_id: int | None


def find_control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """Return the special tokens of a tokenizer, which must not change from then on.

    Some tokenizers do not mark as special what parts their turns, such as DeepSeek's: whatever
    token the template writes between plain turns is one of them, but for the marks of thoughts.
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
    written = _render_plain_turns(tokenizer) if template and others else ""
    tokens = special | {token for token in others if token in written}
    vocabulary = tokenizer.get_vocab()
    ids = frozenset(vocabulary[token] for token in tokens)
    return ControlTokens(_match_any(tokens), _match_any(special), ids, tokenizer.bos_token_id)


def _match_any(tokens: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _render_plain_turns(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what the template writes after a first question: no system prompt is part of it."""
    words = [("user", "zq1"), ("assistant", "zq2"), ("user", "zq3")]
    messages: list[Any] = [{"role": role, "content": word} for role, word in words]
    try:
        text, _ = render_turns(tokenizer, messages, add_generation_prompt=True)
    except InputError:
        return ""
    return text.partition("zq1")[2]


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

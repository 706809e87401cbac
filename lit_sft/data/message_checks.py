"""What a message has to be before a template sees it, and what of it a template is given."""

from collections.abc import Sequence
from typing import Any

from lit_sft.data.answers import BLOCK, CLOSING, KEYS, OPENING
from lit_sft.data.tool_schemas import check_calls, check_tools
from lit_sft.errors import InputError, require, suggest
from lit_sft.tasks.tool_turns import normalize_calls
from lit_sft.types import MEANING, ROLES, Message


def check_messages(messages: Sequence[Message], is_prompt: bool = False) -> None:
    """Raise `InputError` unless a user and the assistant speak, all in strings of Unicode.

    Args:
        messages: Turns in order.
        is_prompt: Whether the model is to answer, so that no answer has to be there.
    """
    if not isinstance(messages, list | tuple):
        raise InputError(f"expected a list of messages, got {type(messages).__name__}")
    for number, message in enumerate(messages):
        where = f"message {number}"
        if not isinstance(message, dict) or not message.keys() >= {"role", "content"}:
            raise InputError(f"{where}: expected {{'role': …, 'content': …}}, got {message!r:.80}")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            hint = suggest(str(role), ROLES)
            raise InputError(f"{where}: unknown role {role!r}; use one of {ROLES}.{hint}")
        if not isinstance(content, str):
            raise InputError(
                f"{where} ({role}): content must be a string, got {type(content).__name__}"
            )
        if not content.isascii():
            _check_unicode(content, f"{where} ({role})")
        if len(message) == 2:
            continue
        if message.get("weight") is not None:
            _check_weight(role, message["weight"], f"{where} ({role})")
        if message.get("tool_calls"):
            check_calls(role, message["tool_calls"], f"{where} ({role})")
        if message.get("tools"):
            require(number == 0, f"{where} ({role}): tools have to stand at the first message")
            check_tools(message["tools"])
    roles = {message["role"] for message in messages}
    require(
        is_prompt or "assistant" in roles,
        "there is no answer: the conversation has no assistant turn, so nothing to learn",
    )
    require("user" in roles, "the conversation has no user turn, so nothing to answer")


def strip_keys(messages: Sequence[Message]) -> Sequence[Message]:
    """Return messages as a template expects them.

    They have no weights, no keys that hold nothing, and calls with their arguments as objects.
    """
    if all(len(message) == 2 for message in messages):
        return messages
    plain: Any = [
        {key: value for key, value in message.items() if key != "weight" and value is not None}
        for message in messages
    ]
    for message in plain:
        if calls := message.pop("tool_calls", None):  # some templates take an empty list for a call
            message["tool_calls"] = normalize_calls(calls)
    return list(plain)


def _check_unicode(content: str, where: str) -> None:
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: character {error.start} is half of a surrogate pair "
            f"({content[error.start]!r}), which no tokenizer can read; repair or remove it"
        ) from error


def _check_weight(role: str, weight: object, where: str) -> None:
    allowed = (0, 1) if role == "assistant" else (0,)
    if weight not in allowed:
        raise InputError(
            f"{where}: weight must be 0 (only show the turn) or, for an assistant turn, 1 (learn "
            f"it), got {weight!r:.40}"
        )


def refuse_silence(messages: Sequence[Message]) -> None:
    """Raise `InputError` for an empty answer, which may be a missing cell.

    So is one that says nothing behind its thoughts, or whose thoughts were cut off. Messages that
    are malformed pass, which `check_messages` tells of.
    """
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") != "assistant":
            continue
        if message.get("weight") != 0 and (lack := _find_lack(message)):
            raise InputError(
                f"message {number} (assistant): {lack}; remove the row, or give the turn weight 0"
            )


def _find_lack(message: Message) -> str:
    """Return why a turn teaches no answer, or an empty string."""
    content = str(message.get("content") or "").strip()
    says = {key: x for key, x in message.items() if MEANING.search(key) and str(x or "").strip()}
    if not content and not says:
        return "the answer is empty, and silence would be learnt"
    if content.startswith(OPENING) and CLOSING not in content:
        return f"its thoughts begin ({OPENING}) and never end, and to stop there would be learnt"
    block = BLOCK.match(content)
    if not (says.keys() - set(KEYS) or content[block.end() if block else 0 :].strip()):
        return "there is no answer behind the thoughts, and silence would be learnt"
    return ""

"""Turns as published rows write them, to messages. Pure."""

import re
from collections.abc import Mapping
from typing import Any

from lit_sft.errors import InputError
from lit_sft.tasks.tool_turns import CALL_ROLES, normalize_calls, parse_json, read_calls
from lit_sft.types import Message

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "developer": "system",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
"""Other names of the roles, as ShareGPT and OpenAI have used them."""
MARKS = (
    "weight", "train", "training", "trainable", "loss", "loss_weight", "loss_scale",
    "output_with_loss",
)  # fmt: skip
"""Whether a turn is learnt, as OpenAI, Axolotl, ms-swift and XTuner write it."""
MARKLIKE = re.compile(r"loss|train|learn|mask|weight")
"""In the names of other keys that may say so."""
PART_TYPES = (None, "text", "input_text", "output_text")
PARTIAL_MARKS = ("train_detail", "training_detail")
"""Which characters of a turn are learnt, as Axolotl writes it."""


def read_turns(value: object, column: str) -> list[Message]:
    """Return turns written as `role`/`content`, as `from`/`value`, or as `input`/`output` pairs.

    Strings alone are the user's and the assistant's in turn.

    Their other keys stay. A list of text parts as content is joined. Keys that hold None are left
    out: that is how tables write a key that a turn does not have. A list that a table holds as JSON
    is read.

    Raises:
        InputError: If there are no turns, or one has no role or no text; the message counts them.
    """
    value = parse_json(value)
    if not (isinstance(value, list) and value):
        raise InputError(f"column {column!r} must hold a list of messages, but holds {value!r:.60}")
    turns: list[Message] = []
    if all(isinstance(turn, str) for turn in value):  # as LIMA has them
        roles = ("user", "assistant")
        return [{"role": roles[number % 2], "content": turn} for number, turn in enumerate(value)]
    for number, turn in enumerate(value):
        if not isinstance(turn, dict):
            raise InputError(f"{column}[{number}]: expected a message, got {turn!r:.60}")
        where = f"{column}[{number}]"
        is_pair = "output" in turn and not {"role", "from"} & turn.keys()
        for read in _read_pair(turn, where) if is_pair else [_read_turn(turn, where)]:
            _append_turn(turns, read, is_call=_names_call(turn))
    return turns


def read_history(value: object, column: str) -> list[Message]:
    """Return earlier turns: `[question, answer]` pairs, or turns as `read_turns` reads them.

    Raises:
        InputError: If they are neither.
    """
    value = parse_json(value)
    if not isinstance(value, list):
        raise InputError(f"column {column!r} must hold a list of turns, but holds {value!r:.60}")
    turns: list[Message] = []
    for number, pair in enumerate(value):
        if isinstance(pair, dict):
            return read_turns(value, column)
        if not (isinstance(pair, list) and [type(side) for side in pair] == [str, str]):
            raise InputError(
                f"{column}[{number}]: expected a question and its answer, got {pair!r:.60}"
            )
        turns += _make_pair(*pair)
    return turns


def add_system(turns: list[Message], system: str, column: str) -> list[Message]:
    """Return turns that open with the system prompt of a column.

    Raises:
        InputError: If they open with another.
    """
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *turns]
    if turns[0]["content"] != system:
        raise InputError(
            f"column {column!r} holds a system prompt, and the first turn is another; keep one"
        )
    return turns


def mark_all_but_last(messages: list[Message]) -> list[Message]:
    """Give every assistant turn but the last a weight of 0, unless it has one of its own."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    unlearnt = turns[:-1]
    return [
        {"weight": 0, **message} if i in unlearnt else message for i, message in enumerate(messages)
    ]


def is_missing(value: object) -> bool:
    """Return whether a value says nothing; tables hold an empty list or object as text."""
    return value in (None, "", [], {}, "[]", "{}", "null")


def _make_pair(asked: str, answered: str) -> list[Message]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def _read_pair(turn: Mapping[str, object], where: str) -> list[Message]:
    """Read a system prompt, if there is one, what is asked and what is answered."""
    turns: list[Message] = []
    for key, role in (("system", "system"), ("input", "user"), ("output", "assistant")):
        if key == "system" and is_missing(turn.get(key)):
            continue
        content = _join_parts(turn.get(key), f"{where} ({key})")
        if content or key != "input":  # without one, the assistant speaks first, or goes on
            turns.append({"role": role, "content": content})
    others = {k: x for k, x in turn.items() if k not in ("system", "input", "output")}
    turns[-1] = _read_turn({**turns[-1], **others}, where)
    return turns


def _read_turn(turn: Mapping[str, object], where: str) -> Message:
    others = {key: entry for key, entry in turn.items() if entry is not None}
    role = others.pop("role", None) or others.pop("from", None)
    content = others.pop("content", None)
    value = others.pop("value", None)
    content = value if content is None else content
    if value is not None and value != content:
        raise InputError(f"{where}: both 'content' and 'value' hold a text; keep one")
    if not isinstance(role, str):
        raise InputError(f"{where}: there is no role; the keys are {', '.join(turn)}")
    role = ROLES.get(role, role)
    where = f"{where} ({role})"
    others |= _read_weight(others, where)
    call = parse_json(others.get("function_call"))
    if is_missing(others.get("tool_calls")) and isinstance(call, dict) and call:
        del others["function_call"]  # OpenAI's form of before
        others["tool_calls"] = [call]
    if "tool_calls" in others:
        others["tool_calls"] = normalize_calls(others["tool_calls"])
    if content is None and role == "assistant" and {"tool_calls", "refusal"} & others.keys():
        content = ""  # OpenAI leaves it out where the assistant only calls a tool, or refuses
    message: Message = {"role": role, "content": _join_parts(content, where)}
    message.update(others)  # type: ignore[typeddict-item]  # whatever other keys a data set has
    return message


def _names_call(turn: Mapping[str, object]) -> bool:
    """Return whether the role of a turn says that its content is a call."""
    return (turn.get("role") or turn.get("from")) in CALL_ROLES


def _append_turn(turns: list[Message], turn: Message, is_call: bool) -> None:
    """Add a turn; what a role calls a call, as JSON, is one of the assistant's turn before it.

    As ms-swift and LLaMA-Factory write them: a turn each call, behind what is said with them.
    """
    calls = read_calls(turn["content"]) if is_call else None
    if calls is None:
        turns.append(turn)
        return
    before = turns[-1] if turns and turns[-1]["role"] == "assistant" else None
    if before is None or before.get("weight") != turn.get("weight"):
        turns.append({**turn, "content": "", "tool_calls": calls})
        return
    turns[-1] = {**before, "tool_calls": [*before.get("tool_calls", []), *calls]}


def _read_weight(others: dict[str, Any], where: str) -> dict[str, int]:
    """Take what marks a turn as learnt or not out of its keys, and return it as OpenAI's weight."""
    for key in PARTIAL_MARKS:
        if others.get(key):
            raise InputError(
                f"{where}: {key!r} marks parts of a turn, which are learnt or not as a whole here; "
                "split the turn, or remove the key"
            )
    marks = {key: others.pop(key) for key in MARKS if key in others}
    for key, mark in marks.items():
        if mark not in (0, 1):  # as are False, True, 0.0 and 1.0
            raise InputError(
                f"{where}: {key} must be 0 or false (only show the turn), or 1 or true (learn it), "
                f"got {mark!r:.40}"
            )
    for key, mark in others.items():
        if MARKLIKE.search(key) and isinstance(mark, bool | int | float):
            raise InputError(
                f"{where}: {key!r} may say whether the turn is learnt, and is unknown here; write "
                "it as a weight of 0 or 1, or remove it"
            )
    learnt = {int(mark) for mark in marks.values()}
    if len(learnt) > 1:
        raise InputError(f"{where}: {' and '.join(marks)} contradict each other")
    return {"weight": learnt.pop()} if learnt else {}


def _join_parts(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InputError(f"{where}: content must be a string, but is {content!r:.60}")
    texts = []
    for part in content:
        text, others = part, {}
        if isinstance(part, dict):
            text = part.get("text")
            others = {k: x for k, x in part.items() if not (k in ("type", "text") or is_missing(x))}
            others |= {} if part.get("type") in PART_TYPES else {"type": part["type"]}
        if not isinstance(text, str) or others:
            raise InputError(f"{where}: content may hold parts of text alone, but has {part!r:.90}")
        texts.append(text)
    return "".join(texts)

"""Rows to messages, in the formats that chat data sets are published in. Pure."""

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

from lit_sft.errors import InputError, require
from lit_sft.tasks.base import Row, read_text
from lit_sft.types import Message

FormatName = Literal[
    "auto", "messages", "sharegpt", "alpaca", "prompt_completion", "question_answer"
]
COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "question_answer": ("question", "answer"),
}
"""What a row of each format has at least: its turns, or what is asked and what is answered."""
MEANINGFUL = {
    "system": "a system prompt; set the task's `columns` to {system: system} to read it",
    "history": "earlier turns; write rows of `messages` to have them read",
    "tools": "the tools that may be called",
    "functions": "the functions that may be called",
}
"""Columns that published rows of every format may have, and that nothing here reads unasked."""
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "developer": "system",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""Other names of the roles, as ShareGPT and OpenAI have used them."""


class Format(NamedTuple):
    """How a row reads as a conversation."""

    name: str
    columns: tuple[str, ...]
    """One that holds the turns, or one that asks and one that answers."""


def recognise_format(row: Row) -> Format:
    """Return the one format whose columns a row has.

    Raises:
        InputError: If there is none, or more than one; the message shows the columns.
    """
    found = [name for name in COLUMNS if row.keys() >= set(COLUMNS[name])]
    shown = f"the columns {', '.join(map(repr, row))}" if row else "no columns"
    require(
        bool(found),
        f"the row has {shown}, which are no known format; set the task's `columns` to "
        "{prompt: …, answer: …} or {messages: …}, with the names of your columns",
    )
    require(
        len(found) == 1,
        f"the row has {shown}, which may be {' or '.join(found)}; set the task's `format` to one "
        "of them",
    )
    return Format(found[0], COLUMNS[found[0]])


def choose_format(name: str, columns: Mapping[str, str]) -> Format | None:
    """Return the format that two options ask for, or None where the rows have to tell.

    Args:
        name: A key of `COLUMNS`, or `auto`.
        columns: Which columns are the `prompt` and the `answer`, or the `messages`; `system` is
            none of the format's business.

    Raises:
        InputError: If the options contradict each other.
    """
    named = {key: column for key, column in columns.items() if key != "system"}
    if not named:
        require(
            name in ("auto", *COLUMNS), f"task.format: {name!r} is none of {', '.join(COLUMNS)}"
        )
        return None if name == "auto" else Format(name, COLUMNS[name])
    require(
        named.keys() in ({"prompt", "answer"}, {"messages"}),
        "task.columns takes `prompt` and `answer`, or `messages`, and in both cases `system`; got "
        f"{', '.join(columns)}",
    )
    require(name == "auto", f"task.columns says how rows read; leave out task.format={name}")
    sides = [side for side in ("prompt", "answer", "messages") if side in named]
    return Format("task.columns", tuple(named[side] for side in sides))


def refuse_unread_columns(row: Row, read: Collection[str | None]) -> None:
    """Raise `InputError` if a column that is not read says something to the model.

    Args:
        row: In a format that was recognised.
        read: The columns that are.
    """
    for column, meaning in MEANINGFUL.items():
        value = row.get(column)
        # Tables hold an empty list as text.
        if value and value not in ("[]", "{}", "null") and column not in read:
            raise InputError(
                f"column {column!r} is not read, but holds {meaning}; to leave it out, name what "
                "to read: the task's `columns: {messages: …}` or `{prompt: …, answer: …}`"
            )


def read_conversation(row: Row, layout: Format) -> list[Message]:
    """Return the turns of a row.

    Raises:
        InputError: If a column is missing, or holds something else.
    """
    if missing := [column for column in layout.columns if column not in row]:
        raise InputError(
            f"there is no column {missing[0]!r}, which {layout.name} needs; the columns are "
            f"{', '.join(row)}. All rows must have one format: convert this one, or remove it"
        )
    if len(layout.columns) == 1:
        return read_turns(row[layout.columns[0]], layout.columns[0])
    asked, answered = layout.columns
    turns = _read_side(row, asked, "user")
    if layout.name == "alpaca" and row.get("input"):
        turns[-1]["content"] += "\n" + read_text(row, "input")
    return turns + _read_side(row, answered, "assistant")


def read_turns(value: Any, column: str) -> list[Message]:
    """Return turns written as `role`/`content` or as `from`/`value`, with their other keys.

    A list of text parts as content is joined. Keys that hold None are left out: that is how tables
    write a key that a turn does not have.

    Raises:
        InputError: If there are no turns, or one has no role or no text; the message counts them.
    """
    require(
        isinstance(value, list) and bool(value),
        f"column {column!r} must hold a list of messages, but holds {value!r:.60}",
    )
    return [_read_turn(turn, f"{column}[{number}]") for number, turn in enumerate(value)]


def mark_all_but_last(messages: list[Message]) -> list[Message]:
    """Give every assistant turn but the last a weight of 0, unless it has one of its own."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    unlearnt: Any = {"weight": 0}
    return [
        unlearnt | message if i in turns[:-1] else message for i, message in enumerate(messages)
    ]


def _read_side(row: Row, column: str, role: str) -> list[Message]:
    if isinstance(row[column], list):
        return read_turns(row[column], column)
    return [{"role": role, "content": read_text(row, column)}]


def _read_turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise InputError(f"{where}: expected a message, got {turn!r:.60}")
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
    if content is None and role == "assistant" and "tool_calls" in others:
        content = ""  # OpenAI leaves it out where the assistant only calls a tool
    message: Any = {"role": role, "content": _join_parts(content, f"{where} ({role})"), **others}
    return message


def _join_parts(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InputError(f"{where}: content must be a string, but is {content!r:.60}")
    texts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in content]
    for part, text in zip(content, texts, strict=True):
        if not isinstance(text, str):
            raise InputError(f"{where}: content may hold parts of text alone, but has {part!r:.60}")
    return "".join(texts)

"""Rows to messages, in the formats that chat data sets are published in. Pure."""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from lit_sft.errors import InputError, require
from lit_sft.tasks.base import Row, read_text
from lit_sft.tasks.tool_turns import TOOL_COLUMNS, add_tools
from lit_sft.tasks.turns import MARKS, add_system, is_missing, read_history, read_turns
from lit_sft.types import Message

FormatName = Literal[
    "auto",
    "messages",
    "sharegpt",
    "conversation",
    "alpaca",
    "dolly",
    "query_response",
    "question_response",
    "prompt_completion",
    "prompt_response",
    "question_answer",
    "input_output",
]
COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "conversation": ("conversation",),
    "alpaca": ("instruction", "output"),
    "dolly": ("instruction", "response"),
    "query_response": ("query", "response"),
    "question_response": ("question", "response"),
    "prompt_completion": ("prompt", "completion"),
    "prompt_response": ("prompt", "response"),
    "question_answer": ("question", "answer"),
    "input_output": ("input", "output"),
}
"""What a row of each format has at least: its turns, or what is asked and what is answered."""
CONTEXTS = ("input", "context")
"""Columns of what an instruction is about, which stands below it."""
SYSTEMS = ("system", "system_prompt")
"""Columns of system prompts, in rows of every format."""
BESIDE = ("system", "tools")
"""What the option `columns` may name beside the turns."""
UNREAD = {
    "history": "earlier turns; write rows of `messages` to have them read",
    "images": "pictures, and this trains on text",
    "image": "a picture, and this trains on text",
    "audios": "sound, and this trains on text",
    "audio": "sound, and this trains on text",
    "videos": "films, and this trains on text",
    "video": "a film, and this trains on text",
}
"""Columns that say something to a model, and that nothing here reads unless a format does."""
NO_SFT = "which DPO trains on; set the task's `columns` to learn the chosen ones"
OTHER_KINDS = {
    ("chosen", "rejected"): f"preferences (a chosen and a rejected answer), {NO_SFT}",
    ("completions", "labels"): "labelled steps, which train a reward model",
    ("text",): "plain text without turns, which pre-training takes; set the task's `columns` if "
    "another column asks",
}
"""Columns of data sets that are no conversations, and what they hold."""


class Format(NamedTuple):
    """How a row reads as a conversation."""

    name: str
    columns: tuple[str, ...]
    """One that holds the turns, or one that asks and one that answers."""

    def reads(self, row: Row) -> set[str]:
        """Return the columns of a row that are read, if they hold something."""
        found = set(self.columns)
        if self.name in COLUMNS:  # else the task's own columns say what to read
            found |= {
                *SYSTEMS,
                *TOOL_COLUMNS,
                *(CONTEXTS if self.columns[0] == "instruction" else ()),
            }
            found |= {"history"} if len(self.columns) == 2 else set()
        return found & row.keys()


def recognise_format(row: Row) -> Format:
    """Return the one format whose columns a row has; of a prompt alone, one that begins so.

    Raises:
        InputError: If there is none, or more than one; the message shows the columns.
    """
    found = [name for name in COLUMNS if row.keys() >= set(COLUMNS[name])]
    if "instruction" in row and "input_output" in found:
        found.remove("input_output")  # its input belongs to the instruction
    shown = f"the columns {', '.join(map(repr, row))}" if row else "no columns"
    if not found:
        found = _complete(row)
    for columns, meaning in OTHER_KINDS.items() if not found else ():
        require(not row.keys() >= set(columns), f"the row has {shown}: {meaning}")
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


def recognise_rows(rows: Iterable[Row]) -> Format:
    """Return the format of the first row that has all columns of one; else that of the first.

    Raises:
        InputError: As `recognise_format` of the first row, if none has a format.
    """
    found: list[Format] = []
    failed: list[InputError] = []
    for row in rows:
        try:
            layout = recognise_format(row)
        except InputError as error:
            failed.append(error)
            continue
        if row.keys() >= set(layout.columns):
            return layout
        found.append(layout)
    if not found:
        raise failed[0]
    return found[0]


def choose_format(name: str, columns: Mapping[str, str]) -> Format | None:
    """Return the format that two options ask for, or None where the rows have to tell.

    Args:
        name: A key of `COLUMNS`, or `auto`.
        columns: Which columns are the `prompt` and the `answer`, or the `messages`; `system` and
            `tools` are none of the format's business.

    Raises:
        InputError: If the options contradict each other.
    """
    named = {key: column for key, column in columns.items() if key not in BESIDE}
    if not named:
        require(
            name in ("auto", *COLUMNS), f"task.format: {name!r} is none of {', '.join(COLUMNS)}"
        )
        return None if name == "auto" else Format(name, COLUMNS[name])
    require(
        named.keys() in ({"prompt", "answer"}, {"messages"}),
        "task.columns takes `prompt` and `answer`, or `messages`, and beside them `system` and "
        "`tools`; got "
        f"{', '.join(columns)}",
    )
    require(name == "auto", f"task.columns says how rows read; leave out task.format={name}")
    sides = [side for side in ("prompt", "answer", "messages") if side in named]
    return Format("task.columns", tuple(named[side] for side in sides))


def refuse_unread_columns(row: Row, layout: Format) -> None:
    """Raise `InputError` if a column that is not read says something to the model.

    Args:
        row: In a format that was recognised.
        layout: Which tells what is read.
    """
    _refuse_verdicts(row)
    read = layout.reads(row)
    about = "what the question is about; write rows of `messages` to have it read"
    unread = UNREAD | (dict.fromkeys(CONTEXTS, about) if len(layout.columns) == 2 else {})
    for column, meaning in unread.items():
        if column not in read and not is_missing(row.get(column)):
            raise InputError(
                f"column {column!r} is not read, but holds {meaning}; to leave it out, name what "
                "to read: the task's `columns: {messages: …}` or `{prompt: …, answer: …}`"
            )


def read_conversation(row: Row, layout: Format) -> list[Message]:
    """Return the turns of a row, without an answer where that is missing: a prompt to predict from.

    Raises:
        InputError: If a column is missing, or holds something else.
    """
    read, asked = layout.reads(row), layout.columns[0]
    if asked not in row:
        raise InputError(
            f"there is no column {asked!r}, which {layout.name} needs; the columns are "
            f"{', '.join(row)}. All rows must have one format: convert this one, or remove it"
        )
    if len(layout.columns) == 1:
        turns = read_turns(row[asked], asked)
    else:
        turns = _read_sides(row, layout, read)
    systems = [column for column in SYSTEMS if column in read and not is_missing(row[column])]
    if len(systems) > 1:
        raise InputError(f"both {' and '.join(map(repr, systems))} hold a text; keep one")
    turns = add_system(turns, read_text(row, systems[0]), systems[0]) if systems else turns
    for column in (x for x in TOOL_COLUMNS if x in read and not is_missing(row[x])):
        turns = add_tools(turns, row[column], column)
    return turns


def _refuse_verdicts(row: Row) -> None:
    """Raise `InputError` for a row that says of itself that it, or an answer in it, is bad."""
    for column in ("label", "kto_tag"):
        if str(row.get(column)).lower() in ("true", "false", "0", "1"):
            raise InputError(
                f"column {column!r} labels answers good and bad, which KTO trains on; remove the "
                "bad ones, and the column"
            )
    is_pair = not is_missing(row.get("rejected")) and "messages" not in row
    if is_pair or not is_missing(row.get("rejected_response")):
        raise InputError(f"the row holds preferences (a rejected answer), {NO_SFT}")
    unlearnt = [x for x in MARKS if row.get(x) in (0, "false", "False")]
    if unlearnt:
        raise InputError(
            f"column {', '.join(map(repr, unlearnt))} says that the row is not to be learnt; "
            "remove the row, or name what to read with the task's `columns`"
        )


def _complete(row: Row) -> list[str]:
    """Return a format whose answer alone a row lacks, if all that begin so ask in one column."""
    asked = {columns[0]: name for name, columns in COLUMNS.items() if columns[0] in row}
    if "instruction" in asked:
        asked.pop("input", None)
    if len(asked) != 1 or any(set(columns) <= row.keys() for columns in OTHER_KINDS):
        return []
    (column,) = asked
    return [name for name, columns in COLUMNS.items() if columns[0] == column][:1]


def _read_sides(row: Row, layout: Format, read: set[str]) -> list[Message]:
    asked, answered = layout.columns
    turns = _read_side(row, asked, "user")
    for context in CONTEXTS:
        if context in read and context != asked and not is_missing(row[context]):
            turns[-1]["content"] += "\n" + read_text(row, context)
    if "history" in read and not is_missing(row["history"]):
        turns = read_history(row["history"], "history") + turns
    if row.get(answered) in (None, "", []):  # an empty cell of a table
        return [{**x, "weight": 0} if x["role"] == "assistant" else x for x in turns]
    return turns + _read_side(row, answered, "assistant")


def _read_side(row: Row, column: str, role: str) -> list[Message]:
    if isinstance(row[column], list):
        return read_turns(row[column], column)
    return [{"role": role, "content": read_text(row, column)}]

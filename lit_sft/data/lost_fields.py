"""What a message holds and the chat template does not write.

The mask is proven on what was rendered; a field that the template leaves out would be lost under
it. Whether a template writes a field is asked, not read out of its program: the field is replaced
by a word that stands nowhere else, and looked for in what the template makes of that. Turns of role
and content alone are spared the question by `find_pieces`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from lit_sft.data.answers import KEYS as THOUGHTS
from lit_sft.data.answers import RenderedChat
from lit_sft.data.chat_template import render_turns
from lit_sft.errors import InputError
from lit_sft.types import MEANING, Message

OnLostField = Literal["error", "drop"]

CALLS = re.compile(r"calls?$")
"""In the names of fields that hold calls."""
OPENING_THOUGHTS = re.compile(r"(\s*(?:<think>)?)(.*?)</think>", re.DOTALL)
"""Thoughts before an answer; some templates open them in the prompt."""
LINKS = ("id", "type", "index")
"""Keys of a tool call that say nothing by themselves."""


class LostField(NamedTuple):
    """A field that has a value, and that the template does not write."""

    turn: int
    """The number of its message."""
    role: str
    field: str
    is_learnt: bool
    """Whether it is of an assistant turn that carries loss."""
    is_alone: bool
    """Whether the turn has no content beside it."""

    @property
    def name(self) -> str:
        """What a ledger calls it, such as `assistant.reasoning_content`."""
        return f"{self.role}.{self.field}"


class _Leaf(NamedTuple):
    """A text within a field, and the word that stands for it when the template is asked."""

    turn: int
    field: str
    text: str
    probe: str
    is_thought: bool


def find_lost_fields(
    tokenizer: PreTrainedTokenizerBase, chat: RenderedChat, is_whole: bool = False
) -> list[LostField]:
    """Return the fields of a rendered conversation that are not in its text.

    A field is written if the template writes what stands in its place, and the field's own words
    are in the text; so are thoughts that are learnt behind a prompt that opens them. The content of
    a turn that carries loss is proven elsewhere. Two things are no loss: the thoughts of a turn
    that is only shown, where those of the last turn alone are written or opened by the prompt, as
    a server would; and a tool turn's name or id that its place among the calls says.

    Args:
        tokenizer: With the template that rendered it.
        chat: As `render_conversation` returns it.
        is_whole: Whether every content is known to be in its text, as `find_pieces` tells.
    """
    if is_whole and (
        max(map(len, chat.messages)) == 2 or not any(map(_list_fields, chat.messages))
    ):
        return []
    messages, leaves = _replace_fields(chat)
    shown = _try_to_render(tokenizer, messages)
    text = chat.text.casefold()
    lost = {}
    for leaf in leaves:
        # Where a template refuses the words that stand for a field, its own have to do.
        is_written = (shown is None or leaf.probe in shown) and _has_words(text, leaf.text)
        if is_written or (leaf.is_thought and _is_thought_of(tokenizer, chat, messages, leaf)):
            continue
        message = chat.messages[leaf.turn]
        lost[leaf.turn, leaf.field] = LostField(
            *(leaf.turn, message["role"], leaf.field, leaf.turn in chat.learnt),
            is_alone=not (message["content"].strip() or message.get("tool_calls")),
        )
    return list(lost.values())


def _is_thought_of(
    tokenizer: PreTrainedTokenizerBase,
    chat: RenderedChat,
    messages: Sequence[Message],
    leaf: _Leaf,
) -> bool:
    """Return whether thoughts that the template does not write here were there at their time."""
    if leaf.turn in chat.learnt:
        return leaf.text.strip() == chat.added
    # A prompt that opens the thoughts had them follow, when it was this turn's.
    so_far = messages[: leaf.turn + 1]
    return bool(chat.cuts) or leaf.probe in (_try_to_render(tokenizer, so_far) or "")


def refuse_lost_fields(lost: Sequence[LostField], on_lost_field: OnLostField) -> None:
    """Raise `InputError` for the first field that may not be lost.

    Of a turn that carries loss, a call never may, nor what stands without content: without it, the
    turn would teach to say nothing.
    """
    for found in lost:
        what = f"message {found.turn} ({found.role}): the chat template does not write its"
        if found.is_learnt and (found.is_alone or CALLS.search(found.field)):
            raise InputError(
                f"{what} {found.field}, so that the turn would be learnt as silence; give it "
                "weight 0, or set a data.chat_template that writes it"
            )
        if on_lost_field != "drop":
            raise InputError(
                f"{what} {found.field}, which would be lost; set a data.chat_template that writes "
                "it, remove it from the data, or set data.on_lost_field to drop, which leaves it "
                "out and counts it"
            )


def _list_fields(message: Message) -> list[str]:
    """Return the keys of a message, beside role and content, that say something to the model."""
    return sorted(key for key in message if MEANING.search(key))


class _StandIns:
    """Words that stand for the texts of a conversation, each nowhere else in it.

    Args:
        text: The conversation as the template writes it.
    """

    def __init__(self, text: str) -> None:
        self.leaves: list[_Leaf] = []
        self.first = 10**6
        while f"zq{self.first}" in text.casefold():
            self.first += 10**3

    def put(self, turn: int, field: str, text: str, is_thought: bool = False) -> str:
        """Return a word of nine letters and digits, as Mistral wants the id of a call to be."""
        probe = f"zq{self.first + len(self.leaves)}"
        self.leaves.append(_Leaf(turn, field, text, probe, is_thought))
        return probe

    def put_all(
        self, value: object, turn: int, field: str, within_arguments: bool = False
    ) -> object:
        """Return the value of a field with all that has to be found in it replaced."""
        if isinstance(value, dict):
            replaced = {}
            for key, entry in value.items():
                if key in LINKS and not within_arguments:
                    replaced[key] = entry
                    continue
                name = self.put(turn, field, str(key)) if within_arguments else key
                inside = within_arguments or key == "arguments"
                replaced[name] = self.put_all(entry, turn, field, inside)
            return replaced
        if isinstance(value, list | tuple):
            return [self.put_all(entry, turn, field, within_arguments) for entry in value]
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        if value is None or not text.strip():
            return value
        return self.put(turn, field, text, field in THOUGHTS)

    def put_content(self, message: Message, turn: int) -> str:
        """Return what stands for a content; the thoughts that open an answer are apart."""
        content = message["content"]
        block = OPENING_THOUGHTS.match(content) if message["role"] == "assistant" else None
        head, tail = "", content
        if block and block[2].strip():
            thoughts = self.put(turn, "thoughts in content", block[2], is_thought=True)
            head, tail = f"{block[1]}{thoughts}\n</think>\n\n", content[block.end() :]
        return head + (self.put(turn, "content", tail) if tail.strip() else "")


def _replace_fields(chat: RenderedChat) -> tuple[list[Message], list[_Leaf]]:
    """Return the messages with a word for each text that has to be found, and those words."""
    stand_ins, implied = _StandIns(chat.text), _find_implied(chat.messages)
    messages: list[Any] = []
    for turn, message in enumerate(chat.messages):
        replaced: dict[str, Any] = dict(message)
        for field in _list_fields(message):
            is_proven = field == "tools" and chat.abridged is not None
            if (turn, field) not in implied and not is_proven:
                replaced[field] = stand_ins.put_all(replaced[field], turn, field)
        if turn not in chat.learnt:
            replaced["content"] = stand_ins.put_content(message, turn)
        messages.append(replaced)
    return messages, stand_ins.leaves


def _find_implied(messages: Sequence[Message]) -> set[tuple[int, str]]:
    """Return the names and ids of tool turns that say no more than their order does.

    Most templates write the results of calls one after the other. Only an id that belongs to
    another call than the one at its place says something that is lost with it.
    """
    implied = set()
    calls: list[tuple[Any, Any]] = []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            calls = list(_list_calls(message))
            unanswered = list(calls)
        elif message["role"] == "tool" and calls:
            own_id, name = unanswered.pop(0) if unanswered else (None, None)
            if message.get("name") == name:
                implied.add((turn, "name"))
            link = message.get("tool_call_id")
            if link == own_id or link not in [call_id for call_id, _ in calls]:
                implied.add((turn, "tool_call_id"))
    return implied


def _list_calls(message: Mapping[str, object]) -> Iterator[tuple[object, object]]:
    """Yield the id and the function's name of each call of a turn."""
    listed = message.get("tool_calls") or [message.get("function_call")]
    for call in listed if isinstance(listed, list | tuple) else []:
        if isinstance(call, dict):
            function = call.get("function", call)
            yield call.get("id"), function.get("name") if isinstance(function, dict) else None


def _try_to_render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str | None:
    try:
        return render_turns(tokenizer, messages)[0].casefold()
    except InputError:
        return None


def _has_words(text: str, value: str) -> bool:
    """Return whether the words of a value stand in `text`, in order, or those of it as JSON."""
    for form in (value, json.dumps(value)):
        at = 0
        for word in re.findall(r"\w+", form.casefold()):
            at = text.find(word, at)
            if at < 0:
                break
            at += len(word)
        else:
            return True
    return False

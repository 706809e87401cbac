"""The calls of a turn, read back from the text that a template makes of them.

A call is proven as an answer is: what stands behind the content is read by a parser of the format
that the template writes, knowing nothing of the row, and must be the calls of the row, with all
their arguments and in order, up to the stop token. The formats are those of Hermes and Qwen, of
Qwen3-Coder, of Llama 3.1 and of Mistral, the older and the newer. Of a template of another format,
its `{% generation %}` marks say which text the turn is, and names and arguments are looked for in
it. What is read in none of these ways is refused.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lit_sft.data.control_tokens import BREAKER
from lit_sft.errors import InputError, require
from lit_sft.types import Message

ESCAPED_BREAKER = json.dumps(BREAKER)[1:-1]
OPEN, CLOSE = re.compile(r"\s*<tool_call>\s*"), re.compile(r"\s*</tool_call>")
FUNCTION = re.compile(r"<function=([^>\n]+)>\n")
PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n(.*?)\n</parameter>\n", re.DOTALL)
LISTED = re.compile(r"\s*\[TOOL_CALLS\]\s*(?=\[)")
NAMED = re.compile(r"\s*\[TOOL_CALLS\]([\w.-]+)(?:\[CALL_ID\]([\w-]+))?\[ARGS\]")
BARE = re.compile(r"\s*(?:<\|python_tag\|>)?\s*(?=\{)")
DECODER = json.JSONDecoder()
KNOWN = "Hermes and Qwen (<tool_call>), Llama 3.1 (JSON) and Mistral ([TOOL_CALLS])"


class WrittenCall(NamedTuple):
    """A call as a text has it."""

    name: str
    arguments: Any
    call_id: str | None = None
    as_text: bool = False
    """Whether each argument is text as it stands: a string, or else JSON."""


class Found(NamedTuple):
    """The calls at some place of a text."""

    calls: list[WrittenCall]
    end: int
    """Behind the last of them."""


def find_calls_end(text: str, at: int, message: Message, is_marked: bool) -> int | None:
    """Return where the calls of a message end that begin at a place of a text.

    Args:
        text: As the template writes it, up to the end of the turn at least.
        at: Behind the content of the message.
        message: Of the assistant; one without calls has none, and ends where it is.
        is_marked: Whether marks of the template say that all of `text[at:]` is the turn's.

    Returns:
        None where other calls stand there, or none that can be read.

    Raises:
        InputError: If the content spells a call beside those of the row.
    """
    calls: Any = message.get("tool_calls")
    if not calls:
        return at
    require(
        OPEN.search(message["content"]) is None,
        "the content of a turn spells a call (<tool_call>) beside its tool_calls; write it as one "
        "of them, or remove it",
    )
    for read in READERS:
        found = read(text, at)
        if found and _are_equal(found.calls, calls, text[at : found.end]):
            return found.end
    return _find_marked(text, at, calls) if is_marked else None


def explain_calls(text: str, message: Message, turn: int) -> InputError:
    """Return the error of a turn whose calls are not read back.

    Args:
        text: Of the turn, as the template writes it.
        message: It.
        turn: Its number.
    """
    what = f"message {turn} (assistant): the chat template"
    calls: Any = message.get("tool_calls")
    names = [call["function"]["name"] for call in calls]
    if not any(name in text for name in names):
        return InputError(
            f"{what} does not write its tool_calls, so that the turn would be learnt as silence; "
            "give it weight 0, or set a data.chat_template that writes it"
        )
    if message["content"].strip() and message["content"].strip() not in text:
        return InputError(
            f"{what} writes its tool_calls and leaves out the content beside them, which would be "
            "lost; remove it from the data, give the turn weight 0, or set another "
            "data.chat_template"
        )
    return InputError(
        f"{what} writes the call of {names[0]!r} in a form that cannot be read back ({text!r:.160})"
        f", so that it cannot be proven; known are {KNOWN}, and any template with generation marks "
        "around the turn; give the turn weight 0, or set such a data.chat_template"
    )


def list_call_texts(message: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the name and the arguments of each call of a message."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list | tuple) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield str(function.get("name")), function.get("arguments")


def _read_tagged(text: str, at: int) -> Found | None:
    """Read `<tool_call>` blocks of JSON, as of Hermes and Qwen, or of XML, as of Qwen3-Coder."""
    calls = []
    while opening := OPEN.match(text, at):
        read = _read_function if text.startswith("<function=", opening.end()) else _read_object
        one = read(text, opening.end(), "arguments")
        closing = one and CLOSE.match(text, one[1])
        if not (one and closing):
            return None
        calls.append(one[0])
        at = closing.end()
    return Found(calls, at) if calls else None


def _read_bare(text: str, at: int) -> Found | None:
    """Read one object with the name and the parameters, as of Llama 3.1."""
    opening = BARE.match(text, at)
    one = opening and _read_object(text, opening.end(), "parameters")
    return Found([one[0]], one[1]) if one else None


def _read_listed(text: str, at: int) -> Found | None:
    """Read a list of objects behind `[TOOL_CALLS]`, as of Mistral until its eleventh tokenizer."""
    opening = LISTED.match(text, at)
    value = opening and _read_json(text, opening.end())
    if not value or not all(isinstance(x, dict) and "name" in x for x in value[0]):
        return None
    calls = [WrittenCall(x["name"], x.get("arguments"), x.get("id")) for x in value[0]]
    return Found(calls, value[1])


def _read_named(text: str, at: int) -> Found | None:
    """Read `[TOOL_CALLS]name[ARGS]{…}`, as of Mistral from its eleventh tokenizer on."""
    calls = []
    while opening := NAMED.match(text, at):
        value = _read_json(text, opening.end())
        if value is None:
            return None
        calls.append(WrittenCall(opening[1], value[0], opening[2]))
        at = value[1]
    return Found(calls, at) if calls else None


READERS: Sequence[Callable[[str, int], Found | None]] = (
    _read_tagged, _read_bare, _read_listed, _read_named
)  # fmt: skip


def _read_object(text: str, at: int, key: str) -> tuple[WrittenCall, int] | None:
    value = _read_json(text, at)
    if value is None or not isinstance(value[0], dict) or value[0].keys() != {"name", key}:
        return None
    return WrittenCall(value[0]["name"], value[0][key]), value[1]


def _read_function(text: str, at: int, _: str) -> tuple[WrittenCall, int] | None:
    opening = FUNCTION.match(text, at)
    if opening is None:
        return None
    arguments, at = {}, opening.end()
    while found := PARAMETER.match(text, at):
        arguments[found[1]] = found[2]
        at = found.end()
    closing = "</function>"
    if not text.startswith(closing, at):
        return None
    return WrittenCall(opening[1], arguments, as_text=True), at + len(closing)


def _read_json(text: str, at: int) -> tuple[Any, int] | None:
    try:
        return DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None


def _find_marked(text: str, at: int, calls: Sequence[Any]) -> int | None:
    """Return the end of calls that stand in a text by name and arguments, in any other form."""
    for call in calls:
        name = _plain(call["function"]["name"])
        found = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text[at:])
        brace = text.find("{", at + found.end()) if found else -1
        value = _read_json(text, brace) if brace >= 0 else None
        written = [WrittenCall(name, value[0])] if value else []
        if not value or not _are_equal(written, [call], text[at : value[1]]):
            return None
        at = value[1]
    return at if "{" not in text[at:] else None


def _are_equal(written: Sequence[WrittenCall], calls: Sequence[Any], text: str) -> bool:
    """Return whether calls that were read are those of a row, and what breaks up tokens is whole.

    A template that escapes what it writes would have the tokens hold the escape.
    """
    if len(written) != len(calls) or ESCAPED_BREAKER in text.casefold():
        return False
    return all(_is_equal(one, call) for one, call in zip(written, calls, strict=True))


def _is_equal(written: WrittenCall, call: Any) -> bool:
    function = call["function"]
    if _plain(written.name) != _plain(function["name"]):
        return False
    if written.call_id is not None and written.call_id != call.get("id", written.call_id):
        return False
    if not written.as_text:
        return _spell(written.arguments) == _spell(function["arguments"])
    pairs = [(_plain(k), _plain(x)) for k, x in written.arguments.items()]
    own = [(_plain(k), x) for k, x in function["arguments"].items()]
    return len(pairs) == len(own) and all(
        name == other and _stands_for(text, value)
        for (name, text), (other, value) in zip(pairs, own, strict=True)
    )


def _stands_for(text: str, value: Any) -> bool:
    """Return whether the text of an argument is a string, or else its JSON."""
    if isinstance(value, str):
        return text == _plain(value)
    try:
        return _spell(json.loads(text)) == _spell(value)
    except ValueError:
        return False


def _spell(value: Any) -> str:
    """Return a value as one text, its keys in the order that they have without what breaks them."""
    plain = json.loads(_plain(json.dumps(value, ensure_ascii=False)))
    return json.dumps(plain, sort_keys=True)


def _plain(text: object) -> str:
    return str(text).replace(BREAKER, "")

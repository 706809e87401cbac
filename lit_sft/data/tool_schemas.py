"""The tools of a row and the calls of its turns: what they have to be, and which calls are bad."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from lit_sft.data.calls import list_call_texts
from lit_sft.data.json_schema import find_flaws, find_violations
from lit_sft.errors import InputError, require
from lit_sft.tasks.tool_turns import normalize_calls
from lit_sft.types import Message

OnBadCall = Literal["keep", "drop", "error"]


class BadCall(NamedTuple):
    """A call that its tools do not allow."""

    turn: int
    number: int
    """Among the calls of its turn."""
    tool: str
    reason: str
    """What is wrong, for whoever mends the row."""
    kind: str
    """The same in few words, to count by."""


def check_tools(tools: object) -> None:
    """Raise `InputError` unless these are tools whose parameters are JSON schemas."""
    try:
        spelt = json.dumps(tools)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"tools: expected what JSON has, got {tools!r:.60} ({error})") from error
    _check_tools(spelt)


@lru_cache(maxsize=1024)
def _check_tools(spelt: str) -> None:
    """Check tools, once for a list of them, which many rows may share."""
    tools: Any = json.loads(spelt)
    if not isinstance(tools, list | tuple):
        raise InputError(f"tools: expected a list of tools, got {tools!r:.60}")
    for number, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        where = f"tools[{number}]"
        if not isinstance(function, Mapping) or not (isinstance(name, str) and name):
            raise InputError(
                f"{where}: expected {{'type': 'function', 'function': {{'name': …}}}}, got "
                f"{tool!r:.80}"
            )
        wrong = next(find_flaws(function.get("parameters"), "parameters"), None)
        require(
            wrong is None,
            f"{where} ({name}): {wrong}; its parameters have to be a JSON schema, such as "
            "{'type': 'object', 'properties': {'city': {'type': 'string'}}}",
        )


def check_calls(role: str, calls: object, where: str) -> None:
    """Raise `InputError` unless these are calls of the assistant, with arguments that are JSON."""
    require(role == "assistant", f"{where}: only the assistant calls tools; remove its tool_calls")
    listed = normalize_calls(calls)
    for number, call in enumerate(listed if isinstance(listed, list) else [listed]):
        function = call.get("function") if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not (isinstance(name, str) and name):
            raise InputError(
                f"{where}: tool_calls[{number}]: expected {{'function': {{'name': …, 'arguments': "
                f"…}}}}, got {call!r:.80}"
            )
        arguments = function.get("arguments")
        if not isinstance(arguments, Mapping) or not _is_json(arguments):
            raise InputError(
                f"{where}: tool_calls[{number}]: the arguments of {name!r} are no JSON object "
                f"({arguments!r:.80}); mend them, or remove the row"
            )


def find_bad_calls(messages: Sequence[Message]) -> list[BadCall]:
    """Return the learnt calls of tools that the row does not declare, or that break their schemas.

    Args:
        messages: As `lit_sft.data.messages.check_messages` takes them.
    """
    bad: list[BadCall] = []
    parameters: dict[str, Any] | None = None
    for turn, message in enumerate(messages):
        if "tool_calls" not in message or message.get("weight") == 0:
            continue
        if parameters is None:
            tools: Any = messages[0].get("tools") or ()
            functions = [tool["function"] for tool in tools]
            parameters = {x["name"]: x.get("parameters") for x in functions}
        normal = {"tool_calls": normalize_calls(message["tool_calls"])}
        for number, (name, arguments) in enumerate(list_call_texts(normal)):
            at = (turn, number, name)
            if name not in parameters:
                known = ", ".join(parameters) or "none are"
                bad.append(BadCall(*at, f"is not declared ({known})", "undeclared"))
            elif wrong := next(find_violations(arguments, parameters[name]), None):
                bad.append(BadCall(*at, f"breaks its schema: {wrong}", "breaks its schema"))
    return bad


def refuse_bad_calls(bad: Sequence[BadCall], on_bad_call: OnBadCall) -> None:
    """Raise `InputError` for the first of some bad calls, where that is an error."""
    if bad and on_bad_call == "error":
        first = bad[0]
        raise InputError(
            f"message {first.turn} (assistant): the call of {first.tool!r} {first.reason}; mend "
            "the row, or set data.on_bad_call to drop or keep"
        )


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True

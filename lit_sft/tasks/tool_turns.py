"""Tools and calls as published rows write them, to the form that chat templates take. Pure.

OpenAI's form is the one that servers hand to templates: a tool is `{"type": "function", "function":
{"name", "description", "parameters"}}`, a call `{"id", "type", "function": {"name", "arguments"}}`
with the arguments as an object. Rows also hold the inner object alone, arguments as a string, and,
where a table has room for text only, all of it as JSON.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lit_sft.errors import InputError
from lit_sft.types import Message

TOOL_COLUMNS = ("tools", "functions")
"""Columns of the tools that may be called, in rows of every format."""
CALL_ROLES = ("function_call", "tool_call")
"""Roles of turns whose content is one call or several, as JSON."""


def parse_json(value: object) -> object:
    """Return what a string holds as a JSON list or object, or else the value itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def read_tools(value: object, column: str) -> list[dict[str, object]]:
    """Return the tools of a row, each as `{"type": "function", "function": {…}}`.

    Raises:
        InputError: If they are no list of tools, or one has no name; the message counts them.
    """
    listed = parse_json(value)
    if not isinstance(listed, list):
        raise InputError(
            f"column {column!r} must hold a list of tools, or one as JSON, but holds {value!r:.60}"
        )
    tools = []
    for number, entry in enumerate(listed):
        tool = parse_json(entry)
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(
                f"{column}[{number}]: expected a tool with a name, a description and parameters (a "
                f"JSON schema), got {entry!r:.80}"
            )
        if "parameters" in function:
            function = {**function, "parameters": parse_json(function["parameters"])}
        outer = tool if isinstance(tool, dict) and "function" in tool else {}
        tools.append({"type": "function", **outer, "function": function})
    return tools


def add_tools(turns: list[Message], value: object, column: str) -> list[Message]:
    """Give the tools of a column to the first of some turns, and return these.

    Raises:
        InputError: If they are no tools, or the turn has others.
    """
    tools = read_tools(value, column)
    if tools and turns[0].get("tools", tools) != tools:
        raise InputError(f"column {column!r} holds tools, and the row has others; keep one")
    if tools:
        turns[0]["tools"] = tools
    return turns


def gather_tools(turns: Sequence[Message]) -> list[Message]:
    """Return turns with all tools that stand at any of them at the first, each once.

    Raises:
        InputError: As `read_tools`.
    """
    places = [number for number, turn in enumerate(turns) if "tools" in turn]
    if places in ([], [0]) and not (places and isinstance(turns[0]["tools"], str)):
        return list(turns)
    tools: list[dict[str, Any]] = []
    for number in places:
        listed = turns[number]["tools"] or []
        tools += [tool for tool in read_tools(listed, "tools of turns") if tool not in tools]
    plain: list[Any] = [{k: x for k, x in turn.items() if k != "tools"} for turn in turns]
    if tools:
        plain[0]["tools"] = tools
    return plain


def normalize_calls(calls: object) -> object:
    """Return tool calls as templates take them; what is none is returned for others to refuse."""
    calls = parse_json(calls)
    if isinstance(calls, list):
        return [_normalize_call(parse_json(call)) for call in calls]
    return [_normalize_call(calls)] if isinstance(calls, dict) else calls


def read_calls(content: str) -> list[dict[str, object]] | None:
    """Return the calls that the content of a turn holds as JSON; None where it holds other text."""
    found = parse_json(content)
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return None
    return [_normalize_call(call) for call in calls] or None


def _normalize_call(call: object) -> Any:
    if not isinstance(call, dict):
        return call
    function = parse_json(call.get("function", None))
    if not isinstance(function, Mapping):
        if "name" not in call:
            return call
        named = {key: call[key] for key in ("name", "arguments", "parameters") if key in call}
        others = {key: entry for key, entry in call.items() if key not in named}
        return _normalize_call({**others, "function": named})
    written = dict(function)
    if "arguments" not in written and "parameters" in written:  # as Llama writes them
        written["arguments"] = written.pop("parameters")
    arguments = written.get("arguments")
    empty = arguments is None or (isinstance(arguments, str) and not arguments.strip())
    written["arguments"] = {} if empty else parse_json(arguments)
    return {**call, "function": written}

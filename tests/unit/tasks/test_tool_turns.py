"""Tools and calls of rows, in the form that templates take."""

import pytest

from lit_sft.errors import InputError
from lit_sft.tasks.tool_turns import (
    add_tools,
    gather_tools,
    normalize_calls,
    read_calls,
    read_tools,
)

INNER = {"name": "add", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": INNER}
OTHER = {"type": "function", "function": {"name": "sub"}}
ASK = {"role": "user", "content": "q"}
CALL = {"function": {"name": "add", "arguments": {"a": 1}}}


@pytest.mark.parametrize(
    "value",
    [
        [TOOL],
        [INNER],
        '[{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]',
        ['{"name": "add", "parameters": {"type": "object"}}'],
        [{"name": "add", "parameters": '{"type": "object"}'}],
    ],
)
def test_tools_in_any_form_are_those_of_openai(value):
    assert read_tools(value, "tools") == [TOOL]


def test_other_keys_of_a_tool_stay():
    assert read_tools([TOOL | {"strict": True}], "tools") == [TOOL | {"strict": True}]


@pytest.mark.parametrize("value", ["add", {"add": 1}, 3, [3], ["add"], [{"name": 3}], "[1"])
def test_what_are_no_tools_is_told(value):
    with pytest.raises(InputError, match="tools"):
        read_tools(value, "tools")


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        CALL,
        [{"name": "add", "arguments": {"a": 1}}],
        [{"name": "add", "arguments": '{"a": 1}'}],
        [{"name": "add", "parameters": {"a": 1}}],
        ['{"name": "add", "arguments": {"a": 1}}'],
        '[{"function": {"name": "add", "arguments": "{\\"a\\": 1}"}}]',
        [{"function": '{"name": "add", "arguments": {"a": 1}}'}],
    ],
)
def test_calls_in_any_form_have_their_arguments_as_an_object(calls):
    assert normalize_calls(calls) == [CALL]


@pytest.mark.parametrize("arguments", [None, "", " ", {}, "{}"])
def test_a_call_without_arguments_has_none(arguments):
    (call,) = normalize_calls([{"id": "1", "function": {"name": "f", "arguments": arguments}}])
    assert call == {"id": "1", "function": {"name": "f", "arguments": {}}}


def test_what_is_no_call_is_left_for_others_to_refuse():
    assert normalize_calls([{"x": 1}, 3]) == [{"x": 1}, 3]
    assert normalize_calls("text") == "text"
    assert read_calls("{}") is None
    assert read_calls("text") is None
    assert read_calls("[]") is None
    assert read_calls('{"name": "add", "arguments": {"a": 1}}') == [CALL]


def test_tools_of_several_turns_stand_at_the_first_each_once():
    shots = [ASK | {"tools": [TOOL]}, ASK, ASK | {"tools": [TOOL, OTHER]}]
    assert gather_tools(shots) == [ASK | {"tools": [TOOL, OTHER]}, ASK, ASK]
    assert gather_tools([ASK, ASK]) == [ASK, ASK]
    assert gather_tools([ASK, ASK | {"tools": None}]) == [ASK, ASK]
    assert shots[2]["tools"] == [TOOL, OTHER]


def test_two_sets_of_tools_are_refused():
    with pytest.raises(InputError, match="column 'tools' holds tools, and the row has others"):
        add_tools([dict(ASK, tools=[OTHER])], [TOOL], "tools")
    assert add_tools([dict(ASK)], [], "tools") == [ASK]

"""Calls that tools do not allow are counted, left out or refused; tools have to be JSON schemas."""

import pytest
from tool_families import TOOL_FAMILIES, load_core, template_file

from lit_sft.data.encoded_rows import encode_rows
from lit_sft.data.json_schema import find_flaws, find_violations
from lit_sft.data.ledger import make_ledger, make_notes
from lit_sft.data.row_policy import RowPolicy
from lit_sft.data.streaming import StreamedRows
from lit_sft.data.token_cache import hash_request, load_or_encode
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.data.tool_schemas import check_tools, find_bad_calls
from lit_sft.errors import InputError
from lit_sft.tasks.base import ChatTask

ADD = {
    "name": "add",
    "description": "Adds.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0}, "how": {"enum": ["fast", "slow"]}},
        "required": ["a"],
        "additionalProperties": False,
    },
}
TOOLS = [{"type": "function", "function": ADD}, {"type": "function", "function": {"name": "stop"}}]


def row(*calls, **more):
    called = [{"function": {"name": name, "arguments": x}} for name, x in calls]
    turn = {"role": "assistant", "content": "", "tool_calls": called, **more}
    results = [{"role": "tool", "content": "1"} for _ in calls]
    ask = {"role": "user", "content": "q", "tools": TOOLS}
    return [ask, turn, *results, {"role": "assistant", "content": "a"}]


BAD = {
    "an undeclared tool": (("sub", {}), "is not declared (add, stop)"),
    "a missing argument": (("add", {"how": "fast"}), "breaks its schema: a is missing"),
    "a text for a number": (("add", {"a": "1"}), "breaks its schema: a is '1', and no integer"),
    "a number below": (("add", {"a": -1}), "breaks its schema: a is -1, and its minimum 0"),
    "none of some": (("add", {"a": 1, "how": "x"}), "how is 'x', and none of ['fast', 'slow']"),
    "another argument": (("add", {"a": 1, "z": 2}), "breaks its schema: z may not be there"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_call_that_its_tools_do_not_allow_is_told(name):
    call, reason = BAD[name]
    (bad,) = find_bad_calls(row(("add", {"a": 1}), call))
    assert (bad.turn, bad.number, bad.tool) == (1, 1, call[0])
    assert bad.reason.endswith(reason)
    assert find_bad_calls(row(call, weight=0)) == []  # what is only shown teaches nobody to call


def test_calls_without_declared_tools_are_undeclared():
    messages = row(("add", {"a": 1}))
    del messages[0]["tools"]
    assert [bad.reason for bad in find_bad_calls(messages)] == ["is not declared (none are)"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen25")
    load_core(TOOL_FAMILIES["qwen25"]).save_pretrained(folder)
    return load_tokenizer(str(folder), template_file(TOOL_FAMILIES["qwen25"]))


ROWS = [
    ("train row 0", row(("add", {"a": 1}))),
    ("train row 1", row(("add", {"a": "1"}), ("sub", {}))),
    ("train row 2", row(("stop", {"why": "it may"}))),
    ("train row 3", row(("add", {}))),
]


def test_bad_calls_are_counted_named_left_out_or_refused_from_the_cache_too(tokenizer, tmp_path):
    names = [name for name, _ in ROWS]
    counts = {"add: breaks its schema": 2, "sub: undeclared": 1}
    policies = {fate: RowPolicy(2048, on_bad_call=fate) for fate in ("keep", "drop", "error")}
    for _ in range(2):
        kept, request = load_or_encode(tokenizer, ROWS, policies["keep"], tmp_path)
        assert len(kept) == 4
        assert make_ledger("train", kept, 1).bad_calls == counts
        said = make_notes("train", kept, names, policies["keep"]).bad_calls
        assert "'add: breaks its schema' in 2 (train row 1, train row 3)" in said
        assert said.endswith("kept (data.on_bad_call)")
        left, other = load_or_encode(tokenizer, ROWS, policies["drop"], tmp_path)
        assert left.dropped.tolist() == [1, 3]
        assert request != other
        assert make_ledger("train", left, 1).bad_calls == counts
    reason = (
        r"^train row 1: message 1 .*call of 'add' breaks its schema: a is '1'.*data\.on_bad_call"
    )
    with pytest.raises(InputError, match=reason):
        load_or_encode(tokenizer, ROWS, policies["error"], tmp_path)
    with pytest.raises(
        InputError, match=r"all 1 rows.*'add: breaks .*set data\.on_bad_call to keep"
    ):
        encode_rows(tokenizer, ROWS[3:], policies["drop"])


class Listed(ChatTask):
    def rows(self, split):
        return [{"messages": messages} for _, messages in ROWS]

    def messages(self, row):
        return row["messages"]


def test_a_stream_leaves_them_out_too(tokenizer):
    rows = [(name, {"messages": messages}) for name, messages in ROWS]
    stream = StreamedRows(Listed(), rows, tokenizer, RowPolicy(2048, on_bad_call="drop"))
    examples, left_out = stream.read(range(4))
    assert len(examples) == 2
    assert left_out[1] == "train row 3 has a bad call, add: breaks its schema (data.on_bad_call)"


def test_requests_of_before_have_the_hashes_of_before(tokenizer):
    """Options that are as they were leave no trace in what is compared with old checkpoints."""
    plain = hash_request(tokenizer, ROWS, RowPolicy(64))
    others = [RowPolicy(64, on_bad_call="drop"), RowPolicy(64, learn_thoughts=False)]
    assert plain == hash_request(tokenizer, ROWS, RowPolicy(64, on_bad_call="keep"))
    assert len({plain, *(hash_request(tokenizer, ROWS, policy) for policy in others)}) == 3
    tools = [[messages[0] | {"tools": TOOLS[:1]}, *messages[1:]] for _, messages in ROWS]
    assert hash_request(tokenizer, [("x", x) for x in tools], RowPolicy(64)) != plain


def test_what_a_policy_tells_of_itself():
    assert RowPolicy(64).describe_choices() == {}
    policy = RowPolicy(64, on_marker="drop", on_bad_call="drop", learn_thoughts=False)
    told = {"on_marker": "drop", "on_bad_call": "drop", "learn_thoughts": False}
    assert policy.describe_choices() == told


FLAWS = {
    "no object": ({"properties": []}, "properties is [], and no object"),
    "another type": ({"properties": {"a": {"type": "str"}}}, "properties.a.type is 'str'"),
    "one of the types": ({"type": ["string", "none"]}, "type is 'none'"),
    "a list of schemas": ({"items": [{}]}, "items is [{}]"),
    "what is required": ({"required": "a"}, "required is 'a', and no list of names"),
    "an enum": ({"enum": "a"}, "enum is 'a', and no list"),
    "within others": ({"anyOf": [{}, {"type": "x"}]}, "anyOf[1].type is 'x'"),
    "a text": ("object", " is 'object'"),
    "an argument called type": ({"type": {"type": "string"}}, "type is {'type': 'string'}"),
    "a list of lists": ({"type": [["string"]]}, "type is ['string']"),
    "one schema of any": ({"anyOf": {"type": "x"}}, "anyOf is {'type': 'x'}, and no list"),
    "any of a number": ({"properties": {"a": {"oneOf": 5}}}, "properties.a.oneOf is 5, and no"),
}


@pytest.mark.parametrize("name", FLAWS)
def test_what_is_no_json_schema_is_told(name):
    schema, flaw = FLAWS[name]
    assert next(find_flaws(schema, "it")).removeprefix("it").removeprefix(".").startswith(flaw)
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    with pytest.raises(
        InputError, match=r"^tools\[0\] \(f\): parameters.* have to be a JSON schema"
    ):
        check_tools([tool])


@pytest.mark.parametrize(
    "tools", ["x", [1], [{"function": {}}], [{"name": "f"}], [{"function": 1}]]
)
def test_what_are_no_tools_is_told(tools):
    with pytest.raises(InputError, match=r"^tools"):
        check_tools(tools)


SCHEMA = {
    "type": "object",
    "$defs": {"pair": {"type": "array", "items": {"$ref": "#/$defs/one"}, "maxItems": 2},
              "one": {"type": ["number", "null"]}},
    "properties": {
        "p": {"$ref": "#/$defs/pair"},
        "u": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer"}]},
        "x": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        "all": {"allOf": [{"minimum": 1}, {"exclusiveMaximum": 5}]},
        "c": {"const": True},
        "o": {"type": "object", "additionalProperties": {"type": "boolean"}},
    },
}  # fmt: skip
VALUES = [
    ({}, True), ({"p": [1, None]}, True), ({"p": [1, "2"]}, False), ({"p": [1, 2, 3]}, False),
    ({"u": "abc"}, True), ({"u": "abcd"}, False), ({"u": 1}, True), ({"u": 1.0}, True),
    ({"u": 1.5}, False), ({"x": 1}, False), ({"x": 1.5}, True), ({"all": 3}, True),
    ({"all": 5}, False), ({"c": True}, True), ({"c": 1}, False), ({"o": {"k": False}}, True),
    ({"o": {"k": 0}}, False), ({"unknown": 1}, True), ([], False), ({"u": True}, False),
]  # fmt: skip


@pytest.mark.parametrize(("value", "fits"), VALUES)
def test_values_fit_a_schema_or_do_not(value, fits):
    assert next(find_flaws(SCHEMA, "parameters"), None) is None
    assert (next(find_violations(value, SCHEMA), None) is None) == fits


REFERRING = {
    "itself": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "the whole": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "each other": {
        "allOf": [{"$ref": "#/$defs/a"}],
        "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}},
    },
    "what is no schema": {"properties": {"x": {"$ref": "#/required"}}, "required": ["x"]},
    "a broken one": {"properties": {"x": {"$ref": "#/x-of"}}, "x-of": {"anyOf": 5}},
    "nothing": {"properties": {"x": {"$ref": "#/$defs/none"}}},
    "another file": {"properties": {"x": {"$ref": "other.json#/a"}}},
}


@pytest.mark.parametrize("name", REFERRING)
def test_a_schema_that_refers_to_no_other_allows_anything(name):
    assert next(find_flaws(REFERRING[name], "parameters"), None) is None
    assert next(find_violations({"x": 1}, REFERRING[name]), None) is None


def test_a_schema_that_refers_to_itself_holds_at_every_depth():
    tree = {"type": "object", "properties": {"x": {"type": "integer"}, "in": {"$ref": "#"}}}
    value = {"x": "1"}
    for _ in range(100):
        value = {"in": value}
    assert next(find_violations(value, tree), None).endswith("in.x is '1', and no integer")
    tree = {"anyOf": [{"type": "integer"}, {"items": {"$ref": "#"}, "type": "array"}]}
    assert next(find_violations([[1, [2]], 3], tree), None) is None
    assert next(find_violations([[1, ["2"]], 3], tree), None) is not None


def test_references_are_pointers_of_json():
    either = {"anyOf": [{"type": "string"}, {"$ref": "#/anyOf/0"}]}
    assert next(find_violations(1, either), None) == "it is 1, which fits 0 of its anyOf"
    named = {"properties": {"a/b": {"type": "null"}, "c": {"$ref": "#/properties/a~1b"}}}
    assert next(find_violations({"c": 1}, named), None) == "c is 1, and no null"


def test_what_other_words_are_about_is_not_held_against_these():
    keys = {"patternProperties": {"^x": {}}, "additionalProperties": False}
    items = {"prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False}
    assert next(find_violations({"x1": 1}, keys), None) is None
    assert next(find_violations(["a", 1], items), None) is None
    assert next(find_violations(["a", 1, 2], items), None) == "[2] may not be there"

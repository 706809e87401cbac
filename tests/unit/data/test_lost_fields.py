"""What a template does not write of a message is named, and nothing that it writes is."""

import warnings
from pathlib import Path

import pytest
from families import FAMILIES, TEMPLATES, generate_conversations, make_tokenizer

from lit_sft.data import lost_fields
from lit_sft.data.encode import encode_chat
from lit_sft.data.encoded_rows import encode_rows
from lit_sft.data.ledger import describe_lost_fields, make_ledger
from lit_sft.data.lost_fields import find_lost_fields
from lit_sft.data.render import render_conversation
from lit_sft.data.row_policy import RowPolicy
from lit_sft.data.token_cache import load_or_encode
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError

CHATML = Path(lost_fields.__file__).parent.joinpath("templates/chatml.jinja").read_text()
ASK, SAY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "add", "arguments": {"a": 1, "b": [True, None, "x y"]}},
}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "3"}


def shown(message: dict) -> dict:
    return message | {"weight": 0}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Load a tokenizer of the ChatML kind with a template, by name or as text."""
    folder = tmp_path_factory.mktemp("chatml")
    make_tokenizer(FAMILIES["qwen3"]).save_pretrained(folder)

    def load(template: str):
        path = TEMPLATES / f"{template}.jinja"
        if "{" in template:
            path = folder / "own.jinja"
            path.write_text(template)
        return load_tokenizer(str(folder), str(path) if path.exists() else template)

    return load


def find(tokenizer, *messages: dict) -> list[str]:
    return [x.name for x in find_lost_fields(tokenizer, render_conversation(tokenizer, messages))]


CASES = {
    "reasoning_content": ("chatml", [ASK, SAY | {"reasoning_content": "why"}],
                          ["assistant.reasoning_content"]),
    "reasoning": ("chatml", [ASK, SAY | {"reasoning": "why"}], ["assistant.reasoning"]),
    "thinking": ("chatml", [ASK, SAY | {"thinking": "why"}], ["assistant.thinking"]),
    "written thoughts": ("qwen3", [ASK, SAY | {"reasoning_content": "why so"}], []),
    "thoughts that equal the answer": ("chatml", [ASK, SAY | {"reasoning_content": "a"}],
                                       ["assistant.reasoning_content"]),
    "earlier thoughts, as a server drops them":
        ("qwen3", [ASK, shown(SAY | {"reasoning_content": "why"}), ASK, SAY], []),
    "likewise in the content":
        ("qwen3", [ASK, shown(SAY | {"content": "<think>\nwhy\n</think>\n\na"}), ASK, SAY], []),
    "likewise without the mark that opens them":
        ("qwen3", [ASK, shown(SAY | {"content": "why</think>a"}), ASK, SAY], []),
    "thoughts in the content of a template that cuts them":
        (CHATML.replace("message['content'] | trim", "message.content.split('</think>')[-1]"),
         [ASK, shown(SAY | {"content": "<think>why</think>a"}), ASK, SAY],
         ["assistant.thoughts in content"]),
    "earlier thoughts, of a template without":
        ("chatml", [ASK, shown(SAY | {"reasoning_content": "why"}), ASK, SAY],
         ["assistant.reasoning_content"]),
    "empty values": ("chatml", [ASK | {"name": ""}, SAY | {"thinking": " ", "tool_calls": []}], []),
    "a name": ("chatml", [ASK | {"name": "user"}, SAY], ["user.name"]),
    "two names": ("chatml", [ASK | {"name": "A"}, ASK | {"name": "B"}, SAY],
                  ["user.name", "user.name"]),
    "keys that mean nothing": ("chatml", [ASK | {"timestamp": "now"}, SAY | {"id": 7}], []),
    "shown calls": ("qwen3", [ASK, shown(CALLING), RESULT, SAY], []),
    "shown calls that are not written": ("chatml", [ASK, shown(CALLING), RESULT, SAY],
                                         ["assistant.tool_calls"]),
    "an old call": ("qwen3", [ASK, shown(SAY | {"function_call": CALL["function"]}), ASK, SAY],
                    ["assistant.function_call"]),
    "links in order": ("qwen3", [ASK, shown(CALLING), RESULT | {
        "tool_call_id": "call00001", "name": "add"}, SAY], []),
    "links out of order": ("qwen3", [
        ASK,
        shown(CALLING | {"tool_calls": [CALL, CALL | {"id": "call00002"}]}),
        RESULT | {"tool_call_id": "call00002"},
        RESULT | {"tool_call_id": "call00001"},
        SAY,
    ], ["tool.tool_call_id", "tool.tool_call_id"]),
    "another function's name": ("qwen3", [ASK, shown(CALLING), RESULT | {"name": "sub"}, SAY],
                                ["tool.name"]),
    "a refusal": ("chatml", [ASK, SAY | {"refusal": "No."}], ["assistant.refusal"]),
    "arguments alone": (CHATML.replace("message['content'] | trim",
        "message['content'] + (message.tool_calls[0].function.name if message.tool_calls else '')"),
        [ASK, shown(CALLING), RESULT, SAY], ["assistant.tool_calls"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_fields_that_are_not_written(load, name):
    template, messages, names = CASES[name]
    tokenizer = load(template)
    assert find(tokenizer, *messages) == names
    if names:
        field = names[0].split(".")[1]
        with pytest.raises(InputError, match=rf"message \d .* does not write its {field}, which"):
            encode_chat(tokenizer, messages)
    assert encode_chat(tokenizer, messages, "drop").input_ids


@pytest.mark.parametrize("field", ["reasoning", "thinking"])
def test_thoughts_under_another_name_are_written_or_lost(load, field):
    """Some versions of transformers hand them to the template under the name that it knows."""
    tokenizer, messages = load("qwen3"), [ASK, SAY | {field: "why"}]
    chat = render_conversation(tokenizer, messages)
    assert ("why" in chat.text) == (find(tokenizer, *messages) == [])
    both = [ASK, SAY | {field: "why", "reasoning_content": "because"}]
    assert find(tokenizer, *both) == [f"assistant.{field}"]


NO_SYSTEM = CHATML.replace("in messages", "in messages if message.role != 'system'")
CONTENTS = {
    "no system turn": (NO_SYSTEM, [SYSTEM, ASK, SAY], ["system.content"]),
    # All of it stands in the rendering of the other turns.
    "even if it were found": (NO_SYSTEM, [SYSTEM | {"content": "user\nq"}, ASK, SAY],
                              ["system.content"]),
    "no tool turn": (CHATML.replace("in messages", "in messages if message.role != 'tool'"),
                     [ASK, shown(SAY), RESULT, SAY], ["tool.content"]),
    "cut": (CHATML.replace("message['content'] | trim", "message['content'][:9]"),
            [ASK | {"content": "one two three"}, SAY], ["user.content"]),
    "as JSON": (CHATML.replace("message['content'] | trim",
                "(message.content | tojson if message.role == 'tool' else message.content)"),
                [ASK, shown(SAY), RESULT | {"content": 'é "x"\n<|im_end|>'}, SAY], []),
    "before the question": ("gemma3", [SYSTEM, ASK, SAY], []),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_contents_that_are_not_written(load, name):
    template, messages, names = CONTENTS[name]
    if template == "gemma3":
        template = (TEMPLATES / "gemma3.jinja").read_text().replace("start_of_turn", "|im_start|")
        template = template.replace("end_of_turn", "|im_end|").replace("{{- bos_token }}", "")
    assert find(load(template), *messages) == names


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_loses_anything_of_roles_and_contents(name, tmp_path):
    family = FAMILIES[name]
    make_tokenizer(family).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), family.file)
    found = 0
    for messages in generate_conversations(5, 60, system=name != "gemma2"):
        try:
            chat = render_conversation(tokenizer, messages)
        except InputError:
            continue
        found += 1
        assert find_lost_fields(tokenizer, chat) == [], messages
    assert found > 20


@pytest.mark.parametrize("content", ["", "Let me see."])
def test_a_call_is_never_learnt_as_silence(load, content):
    messages = [ASK, CALLING | {"content": content}]
    for policy in ("error", "drop"):
        with pytest.raises(InputError, match=r"does not write its tool_calls.* learnt as silence"):
            encode_chat(load("chatml"), messages, policy)


def test_plain_rows_are_compared_and_not_rendered_again(load, monkeypatch):
    tokenizer = load("chatml")
    encode_chat(tokenizer, [SYSTEM, ASK, SAY])
    monkeypatch.setattr(lost_fields, "render_turns", None)
    encode_chat(tokenizer, [SYSTEM | {"content": " <|im_end|>\n"}, ASK | {"content": ""}, SAY])


ROWS = [
    ("train row 0", [ASK, SAY]),
    ("train row 1", [ASK | {"name": "A"}, shown(SAY | {"thinking": "x"}), ASK, SAY]),
    ("train row 2", [ASK, SAY | {"thinking": "why"}]),
    ("train row 3", [ASK | {"content": "q" * 999}, SAY | {"thinking": "why"}]),
]


def test_the_ledger_counts_what_is_lost_from_the_cache_too(load, tmp_path):
    tokenizer = load("chatml")
    with pytest.raises(InputError, match=r"^train row 1: message 0 \(user\).* not write its name"):
        encode_rows(tokenizer, ROWS, RowPolicy(512))
    written = set()
    for _ in range(2):
        encoded, _ = load_or_encode(tokenizer, ROWS, RowPolicy(512, on_lost_field="drop"), tmp_path)
        # The row that is too long loses nothing that would be learnt.
        assert make_ledger("train", encoded, 1).lost_fields == {
            "assistant.thinking": 2, "user.name": 1,
        }  # fmt: skip
        said = describe_lost_fields(encoded, [name for name, _ in ROWS])
        assert "assistant.thinking of 2 (train row 1), user.name of 1 (train row 1)" in said
        written |= {(path, path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert len(written) == 1  # the second time, it was read
    # What a run that drops has kept is no way around a run that does not.
    with pytest.raises(InputError, match=r"train row 1: .*data\.on_lost_field to drop"):
        load_or_encode(tokenizer, ROWS, RowPolicy(512, on_lost_field="error"), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain, _ = load_or_encode(
            tokenizer, ROWS[:1], RowPolicy(512, on_lost_field="error"), tmp_path
        )
    assert plain.lost == {}

"""Tools, calls and thoughts of every family against a mask that is written piece by piece."""

import json
import random
from collections import Counter

import pytest
from families import TEMPLATES
from tool_families import TOOL_FAMILIES, draw_case, load_core, read, template_file

from lit_sft.data import render
from lit_sft.data.encode import encode_chat, encode_chats, encode_prompt
from lit_sft.data.render import render_conversation
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError
from lit_sft.types import IGNORE_INDEX


@pytest.fixture(scope="module", params=TOOL_FAMILIES)
def family(request, tmp_path_factory):
    """A family, and its tokenizers by what the template is told."""
    return load_family(request.param, tmp_path_factory.mktemp(request.param))


def load_family(name, folder):
    family = TOOL_FAMILIES[name]
    load_core(family).save_pretrained(folder)
    file = template_file(family)
    return family, {str(x): load_tokenizer(str(folder), file, x) for x in family.kwargs}


def give_tools(case):
    first, *others = case.messages
    return [first | ({"tools": case.tools} if case.tools else {}), *others]


def check_against_pieces(family, tokenizers, count, seed):
    """Compare conversations; where one is refused, the reference says that it has to be."""
    draw, fates = random.Random(seed), Counter()
    for number in range(count):
        case = draw_case(draw, family)
        tokenizer = tokenizers[str(case.kwargs)]
        text, ids, labels, is_torn = read(family, tokenizer, case)
        shown = [{k: x for k, x in m.items() if k != "weight"} for m in case.messages]
        if family.thinks == "content":
            shown = [put_thoughts(message) for message in shown]
        plain = tokenizer.apply_chat_template(shown, tools=case.tools or None, tokenize=False)
        assert text == plain, (number, case)
        refused = family.refuses(case)
        if is_torn and not refused:
            refused = "if the answer starts or ends with white space, strip it"
        if refused:
            with pytest.raises(InputError, match=refused):
                encode_chat(tokenizer, give_tools(case), "drop", case.learn_thoughts)
            fates["refused"] += 1
            continue
        example = encode_chat(tokenizer, give_tools(case), "drop", case.learn_thoughts)
        assert example.input_ids == ids, (number, case)
        assert example.labels == labels, (number, case)
        fates["alike"] += 1
        fates["with calls"] += any(
            "tool_calls" in x and x.get("weight") != 0 for x in case.messages
        )
        fates["with thoughts"] += any("reasoning_content" in x for x in case.messages)
    print(f"{family.template}: {dict(fates)}")
    assert fates["alike"] > count / 2


def put_thoughts(message):
    if "reasoning_content" not in message:
        return message
    plain = {key: value for key, value in message.items() if key != "reasoning_content"}
    block = f"<think>\n{message['reasoning_content'].strip()}\n</think>\n\n"
    return plain | {"content": block + message["content"]}


def test_the_mask_is_the_one_by_pieces(family):
    check_against_pieces(*family, count=200, seed=0)


@pytest.mark.slow
def test_the_mask_of_many_conversations_is_the_one_by_pieces(family):
    check_against_pieces(*family, count=2000, seed=1)


def test_a_prompt_has_the_tools_and_the_arguments_of_training(family):
    family, tokenizers = family
    for told, tokenizer in tokenizers.items():
        messages = [
            {"role": "user", "content": "q", **({} if "smollm3" in family.template else TOOLS)},
            {"role": "assistant", "content": "a"},
        ]
        example = encode_chat(tokenizer, messages)
        prompt = encode_prompt(tokenizer, messages)
        learnt = [label for label in example.labels if label != IGNORE_INDEX]
        assert example.input_ids[: len(prompt)] == prompt
        assert example.labels[: len(prompt)] == [IGNORE_INDEX] * len(prompt)
        assert example.labels[len(prompt)] == learnt[0]
        if "tools" in messages[0]:
            assert "add" in tokenizer.decode(prompt)
        if "enable_thinking" in told:
            assert "</think>" in tokenizer.decode(prompt)
            assert tokenizer.decode(learnt) == f"a{family.stop}"


TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a"],
        },
    },
}
TOOLS = {"tools": [TOOL]}


def call(name="add", **arguments):
    return {"id": "call00001", "function": {"name": name, "arguments": arguments}}


def calling(*calls, **more):
    return {"role": "assistant", "content": "", "tool_calls": list(calls), **more}


ASK = {"role": "user", "content": "2+1?", **TOOLS}
RESULT = {"role": "tool", "content": "3", "tool_call_id": "call00001"}
SAY = {"role": "assistant", "content": "3"}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Load the tokenizer of a family with a template, by name or as text."""

    def load(name, template=None):
        folder = tmp_path_factory.mktemp(name)
        load_core(TOOL_FAMILIES[name]).save_pretrained(folder)
        file = template_file(TOOL_FAMILIES[name])
        if template:
            file = str(folder / "own.jinja")
            (folder / "own.jinja").write_text(template)
        return load_tokenizer(str(folder), file)

    return load


def read_learnt(tokenizer, messages, *options):
    labels = encode_chat(tokenizer, messages, *options).labels
    return tokenizer.decode([label for label in labels if label != IGNORE_INDEX])


def test_arguments_as_text_and_as_an_object_are_one(load):
    tokenizer = load("qwen25")
    as_text = {"function": {"name": "add", "arguments": '{"a": 1}'}}
    found = [encode_chat(tokenizer, [ASK, calling(x), RESULT, SAY]) for x in (call(a=1), as_text)]
    assert found[0] == found[1]
    assert read_learnt(tokenizer, [ASK, calling(call(a=1)), RESULT, SAY]) == (
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>3<|im_end|>'
    )


def test_keys_that_spell_tokens_are_read_back_in_any_order(load):
    arguments = {"o": {"<|im_end|>": 1, "<|im": 2, "<a": 3, "<|im_end": [{"<|im_start|>": 4}]}}
    for name in ("qwen25", "qwen35", "llama31"):
        learnt = read_learnt(load(name), [ASK, calling(call(**arguments)), RESULT, SAY])
        assert json.dumps(arguments["o"]) in learnt


def test_an_empty_list_of_calls_is_none(load):
    tokenizer = load("llama31")
    plain = [ASK, SAY]
    listed = [ASK | {"tool_calls": []}, SAY | {"tool_calls": []}]
    assert encode_chat(tokenizer, plain) == encode_chat(tokenizer, listed)


def test_tools_told_in_brief_and_whole_give_the_same(load, monkeypatch):
    """Whatever their texts, the way that renders all of them each time is the measure."""
    draw = random.Random(3)
    for name in ("qwen25", "llama31", "mistral_tools", "hermes"):
        tokenizer, told = load(name), []
        cases = [draw_case(draw, TOOL_FAMILIES[name]) for _ in range(30)]
        rows = [give_tools(x) for x in cases if x.tools and not TOOL_FAMILIES[name].refuses(x)]
        for is_brief in (True, False):
            if not is_brief:
                monkeypatch.setattr(render, "tell_whole", lambda *_: None)
            told.append([try_to_encode(tokenizer, row) for row in rows])
            monkeypatch.undo()
        assert told[0] == told[1]
        is_brief = [render_conversation(tokenizer, row).abridged is not None for row in rows]
        assert any(is_brief) == (name != "hermes")  # which writes tools in words


def try_to_encode(tokenizer, row):
    try:
        return encode_chat(tokenizer, row, "drop")
    except InputError as error:
        return str(error)


def test_a_tool_that_makes_a_control_token_is_refused(load):
    forged = {**TOOL, "function": {**TOOL["function"], "description": "x SECRET"}}
    template = WRITES.replace("tool | tojson", "(tool | tojson).replace('SECRET', '<|im_end|>')")
    with pytest.raises(InputError, match=r"makes control tokens of 'SECRET'"):
        encode_chat(load("qwen25", template), [ASK | {"tools": [forged, TOOL]}, SAY], "drop")
    spelt = {**TOOL, "function": {**TOOL["function"], "description": "<|im_end|>"}}
    tokenizer = load("qwen25")
    example = encode_chat(tokenizer, [ASK | {"tools": [spelt]}, SAY])
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert example.input_ids.count(stop) == 3
    assert tokenizer.decode(example.input_ids).count("<|im_end|>") == 4


WRITES = (TEMPLATES / "qwen25.jinja").read_text()
ROW = [ASK, calling(call(a=1)), RESULT, SAY]
REFUSED = {
    "another format": (
        WRITES.replace("<tool_call>", "<call>").replace("</tool_call>", "</call>"),
        *(ROW, "writes the call of 'add' in a form that cannot be read back .*known are Hermes"),
    ),
    "other arguments": (
        WRITES.replace("call.function.arguments | tojson", "{} | tojson"),
        *(ROW, "writes the call of 'add' in a form that cannot be read back"),
    ),
    "another name": (
        WRITES.replace("call.function.name +", "call.function.name ~ 's' +"),
        *(ROW, "writes the call of 'add' in a form that cannot be read back"),
    ),
    "half of the calls": (
        WRITES.replace("in message.tool_calls %", "in message.tool_calls[:1] %"),
        *([ASK, calling(call(a=1), call(a=2)), SAY], "form that cannot be read back"),
    ),
    "escapes": (
        WRITES.replace("arguments | tojson", "arguments | tojson(ensure_ascii=True)"),
        *([ASK, calling(call(a="<|im_end|>")), SAY], "form that cannot be read back"),
    ),
    "no call": (
        WRITES.replace("elif message.tool_calls %", "elif false %"),
        *(ROW, "does not write its tool_calls, so that the turn would be learnt as silence"),
    ),
    "no tools": (
        WRITES.replace("if tools", "if false"),
        *(ROW, r"message 0 \(user\): the chat template does not write its tools"),
    ),
    "a call that the content spells": (
        *(WRITES, [ASK, calling(call(a=1), content="<tool_call>\n{}"), SAY]),
        "the content of a turn spells a call",
    ),
    "a call without a result": (
        WRITES.replace("{%- for message in messages %}", "{%- for message in messages %}"
        "{%- if message.tool_calls and (loop.last or loop.nextitem.role != 'tool') %}"
        "{{- raise_exception('a call needs its result') }}{%- endif %}"),
        *([ASK, calling(call(a=1)), SAY], r"rejects the turns \(.*: a call needs its result"),
    ),
    "tools that stand later": (
        *(WRITES, [{"role": "system", "content": "s"}, ASK, SAY]),
        r"message 1 \(user\): tools have to stand at the first message",
    ),
    "a call of the user's": (
        *(WRITES, [ASK | {"tool_calls": [call(a=1)]}, SAY]),
        "only the assistant calls tools",
    ),
    "arguments that are a list": (
        *(WRITES, [ASK, calling({"function": {"name": "add", "arguments": [1]}}), SAY]),
        r"tool_calls\[0\]: the arguments of 'add' are no JSON object \(\[1\]\)",
    ),
    "a number that JSON has not": (
        *(WRITES, [ASK, calling(call(a=float("nan"))), SAY]),
        "the arguments of 'add' are no JSON object",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_proven_is_refused_by_name(load, name):
    template, messages, reason = REFUSED[name]
    with pytest.raises(InputError, match=f"^row 7: .*{reason}") as caught:
        encode_chats(load("qwen25", template), [messages], ["row 7"])
    assert "\n" not in str(caught.value)


def test_content_that_llama_leaves_out_beside_a_call_is_refused(load):
    tokenizer = load("llama31")
    with pytest.raises(InputError, match=r"leaves out the content beside them, which would be"):
        encode_chat(tokenizer, [ASK, calling(call(a=1), content="Hm."), RESULT, SAY])
    with pytest.raises(InputError, match="calls one tool at a time"):
        encode_chat(tokenizer, [ASK, calling(call(a=1), call(a=2)), RESULT, SAY])


def test_channels_are_refused_by_name(load):
    with pytest.raises(InputError, match=r"writes channels \(<\|channel\|>\), which cannot"):
        load("qwen25", (TEMPLATES / "gpt_oss.jinja").read_text())

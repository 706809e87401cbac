"""Thoughts of every name are one thing, and are learnt or shown."""

import pytest
from families import FAMILIES, TEMPLATES, make_tokenizer
from tool_families import TOOL_FAMILIES, load_core

from lit_sft.data.encode import encode_chat, encode_prompt
from lit_sft.data.encoded_rows import encode_rows
from lit_sft.data.row_policy import RowPolicy
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError
from lit_sft.types import IGNORE_INDEX

ASK = {"role": "user", "content": "2+2?"}
FORMS = [
    {"content": "4", "reasoning_content": "2 and 2"},
    {"content": "4", "reasoning": "2 and 2"},
    {"content": "4", "thinking": "2 and 2"},
    {"content": "<think>\n2 and 2\n</think>\n\n4"},
]
LEARNT = {
    "qwen3": "<think>\n2 and 2\n</think>\n\n4<|im_end|>",
    "smollm3": "<think>\n2 and 2\n</think>\n\n4<|im_end|>",
    "qwen35": "2 and 2\n</think>\n\n4<|im_end|>",
    "qwq": "2 and 2\n</think>\n\n4<|im_end|>",
    "deepseek_r1": f"2 and 2\n</think>\n\n4{FAMILIES['deepseek_r1'].stop}",
}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    def load(name, **kwargs):
        folder = tmp_path_factory.mktemp(name)
        known = name in TOOL_FAMILIES
        tokenizer = load_core(TOOL_FAMILIES[name]) if known else make_tokenizer(FAMILIES[name])
        tokenizer.save_pretrained(folder)
        return load_tokenizer(str(folder), str(TEMPLATES / f"{name}.jinja"), kwargs)

    return load


def read_learnt(tokenizer, messages, **options):
    labels = encode_chat(tokenizer, messages, **options).labels
    return tokenizer.decode([label for label in labels if label != IGNORE_INDEX])


@pytest.mark.parametrize("name", ["qwen3", "smollm3", "qwen35", "qwq", "deepseek_r1"])
def test_all_forms_are_learnt_alike_or_shown_alike(load, name):
    tokenizer = load(name)
    rows = [[ASK, {"role": "assistant", **form}] for form in FORMS]
    examples = [encode_chat(tokenizer, row) for row in rows]
    assert {read_learnt(tokenizer, row) for row in rows} == {LEARNT[name]}
    assert all(example == examples[0] for example in examples)
    for row in rows:
        shown = encode_chat(tokenizer, row, learn_thoughts=False)
        assert shown.input_ids == examples[0].input_ids
        answer = LEARNT[name].rpartition("\n")[2]
        assert tokenizer.decode([x for x in shown.labels if x != IGNORE_INDEX]) == answer
        assert encode_prompt(tokenizer, row) == encode_prompt(tokenizer, [ASK])


def test_a_policy_shows_thoughts_also_where_a_prompt_is_shortened(load):
    tokenizer = load("qwen3")
    row = [{"role": "user", "content": "a word " * 200}, {"role": "assistant", **FORMS[0]}]
    policy = RowPolicy(128, "truncate_prompt", learn_thoughts=False)
    example = encode_rows(tokenizer, [("row 0", row)], policy)[0]
    assert tokenizer.decode([x for x in example.labels if x != IGNORE_INDEX]) == "4<|im_end|>"


def test_thoughts_under_two_names_stay_apart(load):
    tokenizer = load("smollm3")
    row = [ASK, {"role": "assistant", "content": "4", "reasoning": "r", "thinking": "s"}]
    with pytest.raises(InputError, match=r"does not write its (reasoning|thinking)"):
        encode_chat(tokenizer, row)


def test_to_a_template_without_thoughts_their_marks_are_text_and_their_fields_lost(load):
    tokenizer = load("qwen25")
    assert read_learnt(tokenizer, [ASK, {"role": "assistant", **FORMS[3]}]).startswith("<think>")
    with pytest.raises(InputError, match="does not write its thinking, which would be lost"):
        encode_chat(tokenizer, [ASK, {"role": "assistant", **FORMS[2]}])


def test_an_empty_thought_that_the_prompt_writes_is_not_learnt(load):
    for name in ("qwen3", "smollm3"):
        tokenizer = load(name, enable_thinking=False)
        assert read_learnt(tokenizer, [ASK, {"role": "assistant", "content": "4"}]) == "4<|im_end|>"
        prompt = tokenizer.decode(encode_prompt(tokenizer, [ASK]))
        assert prompt.rstrip().endswith("<think>\n\n</think>")

"""What a template is told is written into it, and holds wherever it is rendered."""

from pathlib import Path

import pytest
from families import FAMILIES, TEMPLATES, make_tokenizer
from jinja2 import Environment
from transformers import AutoTokenizer

from lit_sft.data.encode import encode_chat, encode_prompt
from lit_sft.data.options import DataOptions
from lit_sft.data.template_kwargs import list_kwargs, set_template_kwargs
from lit_sft.data.tokenizer import hash_template, load_tokenizer
from lit_sft.errors import InputError
from lit_sft.tasks.gsm8k import GSM8K
from lit_sft.types import IGNORE_INDEX

QWEN3 = (TEMPLATES / "qwen3.jinja").read_text()
ASK, SAY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
VALUES = [True, False, None, 0, -1.5, "", 'a"b\\n\n{%- x %}', "é漢🙂", [1, "x"], {"a": [None, {}]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3")
    make_tokenizer(FAMILIES["qwen3"]).save_pretrained(folder)
    return folder


def load(folder: Path, **kwargs):
    return load_tokenizer(str(folder), str(TEMPLATES / "qwen3.jinja"), kwargs)


@pytest.mark.parametrize("value", VALUES)
def test_every_value_of_json_is_the_one_that_the_template_sees(value):
    template = (
        "\n{% macro m() %}{{ x | tojson }}{% endmacro %}{% for i in [1] %}{{ m() }}{% endfor %}"
    )
    seen = Environment(trim_blocks=True, lstrip_blocks=True)
    told = seen.from_string(set_template_kwargs(template, {"x": value})).render()
    assert told == seen.from_string(template).render(x=value)
    asked = seen.from_string(set_template_kwargs(template, {"x": value})).render(x=7)
    assert asked == "\n7"  # whoever says otherwise is heard
    assert set_template_kwargs(template, {}) == template


def test_what_is_told_holds_in_training_in_prompts_and_wherever_the_tokenizer_is_saved(
    folder, tmp_path
):
    on, off = load(folder), load(folder, enable_thinking=False)
    assert hash_template(on) != hash_template(off)
    prompt = encode_prompt(off, [ASK])
    assert off.decode(prompt).endswith("<think>\n\n</think>\n\n")
    learnt = [label for label in encode_chat(off, [ASK, SAY]).labels if label != IGNORE_INDEX]
    assert off.decode(learnt) == "a<|im_end|>"
    off.save_pretrained(tmp_path)
    server = AutoTokenizer.from_pretrained(tmp_path)
    assert server.apply_chat_template([ASK], add_generation_prompt=True)["input_ids"] == prompt
    asked = server.apply_chat_template(
        [ASK], add_generation_prompt=True, enable_thinking=True, tokenize=False
    )
    assert asked.endswith("assistant\n")
    assert hash_template(load_tokenizer(str(tmp_path))) == hash_template(off)


WRONG = {
    "unknown": ({"enable_thinkin": True}, "'enable_thinkin' is unknown .*takes enable_thinking; .*"
                                          r"Did you mean 'enable_thinking'\?"),
    "given anyway": ({"messages": []}, "'messages' is what every template is given"),
    "no name": ({"a b": 1}, "'a b' is no name of a variable"),
    "no JSON": ({"enable_thinking": {1, 2}}, "'enable_thinking' must be a value that JSON has"),
    "no number": ({"enable_thinking": float("nan")}, "'enable_thinking' must be a value that"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_told_is_refused(folder, name):
    kwargs, reason = WRONG[name]
    with pytest.raises(InputError, match=rf"^data\.template_kwargs: {reason}"):
        load(folder, **kwargs)


def test_the_names_of_published_templates():
    assert "enable_thinking" in list_kwargs(QWEN3)
    assert "enable_thinking" in list_kwargs((TEMPLATES / "smollm3.jinja").read_text())
    assert list_kwargs((TEMPLATES / "phi4.jinja").read_text()) == set()
    assert list_kwargs("{% if %}") is None


def test_it_is_an_option_of_a_run(folder):
    chat_template = str(TEMPLATES / "qwen3.jinja")
    data = DataOptions(
        GSM8K("nowhere"), tokenizer=str(folder), chat_template=chat_template,
        template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    assert hash_template(data.tokenizer) == hash_template(load(folder, enable_thinking=False))

"""Ollama's template against the chat template that it is derived from."""

import pytest

from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.export.modelfile import derive_turns, make_modelfile

SAID = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 3?\n{{ .Content }}"},
    {"role": "assistant", "content": "5"},
    {"role": "user", "content": "And 4 more?"},
]


TEMPLATES = {
    "llama3": None,
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("turns", [SAID, SAID[1:], SAID[1:2]], ids=len)
def test_a_prompt_is_the_chat_template_s_to_the_letter(tiny_tokenizer, template, turns):
    tokenizer = load_tokenizer(str(tiny_tokenizer))
    tokenizer.chat_template = TEMPLATES[template] or tokenizer.chat_template
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    derived = derive_turns(tokenizer)
    # llama.cpp itself begins with the token that a text begins with.
    assert derived.render(turns) == expected.removeprefix(tokenizer.bos_token or "")


def test_what_is_no_row_of_turns_is_not_written_as_one(tiny_tokenizer):
    tokenizer = load_tokenizer(str(tiny_tokenizer))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if loop.last %}!{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    text, is_proven = make_modelfile(tokenizer, "x.gguf", [tokenizer.eos_token_id])
    assert not is_proven
    assert 'TEMPLATE """' not in text
    assert "llama-server --jinja" in text


def test_each_stop_token_is_named(tiny_tokenizer):
    tokenizer = load_tokenizer(str(tiny_tokenizer))
    stops = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    text, is_proven = make_modelfile(tokenizer, "x.gguf", stops)
    assert is_proven
    assert text.startswith("FROM ./x.gguf\n")
    assert 'PARAMETER stop "<|eot_id|>"\nPARAMETER stop "<|end_of_text|>"\n' in text

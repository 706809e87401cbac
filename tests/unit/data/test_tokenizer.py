import hashlib
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lit_sft.data.encode import encode_chat, encode_prompt
from lit_sft.data.tokenizer import _load, hash_template, load_tokenizer, pin_date
from lit_sft.errors import InputError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASK = {"role": "user", "content": "q"}
SAY = {"role": "assistant", "content": "a"}


def save_tokenizer(folder: Path, special: list[str], eos: str, **options: str) -> str:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.add_special_tokens(special)
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, **options).save_pretrained(folder)
    return str(folder)


def test_the_real_tokenizer_is_ready_to_chat_and_to_pad(llama3_tokenizer):
    assert llama3_tokenizer.pad_token_id == 128004
    assert llama3_tokenizer.eos_token_id == 128009
    assert llama3_tokenizer.padding_side == "right"
    template = llama3_tokenizer.chat_template
    assert hash_template(llama3_tokenizer) == hashlib.sha256(template.encode()).hexdigest()


def test_what_is_saved_loads_alike(tiny_tokenizer, tmp_path):
    tokenizer = load_tokenizer(str(tiny_tokenizer))
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert hash_template(again) == hash_template(tokenizer)
    assert (again.pad_token, again.eos_token) == ("<|finetune_right_pad_id|>", "<|eot_id|>")


def test_a_template_may_be_given_by_name_or_file(tmp_path):
    special = [
        "<|im_start|>",
        "<|im_end|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    path = save_tokenizer(tmp_path, [*special, "<|endoftext|>", "<|fim_pad|>"], "<|endoftext|>")
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    file = tmp_path / "mine.jinja"
    file.write_text(
        CHATML.replace("m.role }}", "m.role }}!").replace("assistant\n", "assistant!\n")
    )
    texts = {}
    for name in (None, "llama3", "chatml", str(file)):
        tokenizer = load_tokenizer(path, name)
        messages = [{"role": "user", "content": " q "}]
        texts[name] = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        # A template that is given decides what ends a generation, too; one that was there does not.
        end = {None: "<|endoftext|>", "llama3": "<|eot_id|>"}.get(name, "<|im_end|>")
        assert tokenizer.eos_token == end
        assert tokenizer.pad_token not in (None, end)
        assert tokenizer.pad_token not in tokenizer.chat_template
    assert texts["llama3"].endswith("q<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
    assert texts["chatml"] == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert texts[str(file)] == "<|im_start|>user!\n q <|im_end|>\n<|im_start|>assistant!\n"
    assert texts[None] == texts[str(file)].replace("!", "")


def test_a_template_that_ends_turns_with_eos_keeps_it(tmp_path):
    path = save_tokenizer(tmp_path, ["<|im_start|>", "<|end|>", "<|endoftext|>"], "<|endoftext|>")
    (tmp_path / "x.jinja").write_text(CHATML.replace("<|im_end|>", "<|end|>{{ eos_token }}"))
    with pytest.raises(InputError, match="no token to pad with"):
        load_tokenizer(path, str(tmp_path / "x.jinja"))
    path = save_tokenizer(tmp_path, ["<|im_start|>", "<|end|>", "<|fim_pad|>"], "<|endoftext|>")
    assert load_tokenizer(path, str(tmp_path / "x.jinja")).eos_token == "<|endoftext|>"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "chatml",
            r"^data\.chat_template=chatml does not go with .*lacks <\|im_start\|>, <\|im_end",
        ),
        ("lama3", r"^data\.chat_template=lama3: expected llama3, chatml or .*'llama3'\?"),
        ("nowhere/x.jinja", r"^data\.chat_template=nowhere/x\.jinja: .*No such file"),
        (".", r"^data\.chat_template=\.: .*Is a directory"),
        ("binary.jinja", "can't decode byte"),
        ("{% for %}", r"x\.jinja: the chat template rejects the turns \(user, assistant\)"),
        ("{{ raise_exception('no') }}", r"x\.jinja: .*: no$"),
        (
            "{{ messages | map(attribute='content') | join }}",
            r"x\.jinja: message 1 \(assistant\).*stop token",
        ),
        ("{% set f = '%d' %}{{ strftime_now(f) }}", r"x\.jinja: .*today's date"),
    ],
)
def test_a_template_that_does_not_do_is_an_error(
    tiny_tokenizer, tmp_path, monkeypatch, template, reason
):
    monkeypatch.chdir(tmp_path)
    Path("binary.jinja").write_bytes(b"\xff\xfe")
    if "{" in template:
        Path("x.jinja").write_text(template)
        template = "x.jinja"
    with pytest.raises(InputError, match=reason):
        load_tokenizer(str(tiny_tokenizer), template)


def test_a_date_is_pinned_in_the_format_that_the_template_asks_for():
    template = "{% set a = strftime_now ( \"%Y-%m-%d\" ) %}{{ strftime_now('%d %B %Y, %H:%M') }}"
    assert pin_date(template) == "{% set a = '2024-07-26' %}{{ '26 July 2024, 00:00' }}"
    assert pin_date(CHATML) == CHATML


@pytest.fixture
def several(tmp_path):
    """A tokenizer with two named templates and no default."""
    folder = tmp_path / "several"
    special = ["<|im_start|>", "<|im_end|>", "<|fim_pad|>", "<|endoftext|>"]
    save_tokenizer(folder, special, "<|endoftext|>")
    (folder / "additional_chat_templates").mkdir()
    for name in ("tool_use", "rag"):
        template = CHATML.replace("m.role }}", f"m.role }}}} {name} {{{{ strftime_now('%Y') }}}}")
        template = template.replace(
            "assistant\n", f"assistant {name} {{{{ strftime_now('%Y') }}}}\n"
        )
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(template)
    return folder


def test_one_of_several_templates_is_chosen_by_name_and_saved_alone(several, tmp_path):
    tokenizer = load_tokenizer(str(several), "rag")
    # It was there, so what ends a generation stays; the date is pinned.
    assert tokenizer.eos_token == "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path / "adapter")
    server = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    prompt = server.apply_chat_template([ASK], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user rag 2024\nq<|im_end|>\n<|im_start|>assistant rag 2024\n"
    assert server.apply_chat_template([ASK], add_generation_prompt=True)["input_ids"] == (
        encode_prompt(tokenizer, [ASK, SAY])
    )
    again = load_tokenizer(str(tmp_path / "adapter"))
    assert hash_template(again) == hash_template(tokenizer)


def test_several_templates_without_a_default_are_named(several):
    with pytest.raises(
        InputError, match=r"no default; set data\.chat_template to one of them \(rag, tool_use\)"
    ):
        load_tokenizer(str(several))
    with pytest.raises(
        InputError, match=r"^data\.chat_template=rog: expected llama3, .* rag, tool_use .*'rag'\?"
    ):
        load_tokenizer(str(several), "rog")
    assert "tool_use" not in load_tokenizer(str(several), "chatml").chat_template
    with pytest.raises(InputError, match="the chat templates rag, tool_use and no default"):
        encode_chat(AutoTokenizer.from_pretrained(several), [ASK, SAY])


def test_a_default_among_several_templates_is_used_and_may_be_named(several):
    (several / "chat_template.jinja").write_text(CHATML)
    tokenizer = load_tokenizer(str(several))
    assert set(tokenizer.chat_template) == {"default", "rag", "tool_use"}
    named = load_tokenizer(str(several), "default")
    assert named.chat_template == CHATML
    assert encode_chat(named, [ASK, SAY]) == encode_chat(tokenizer, [ASK, SAY])
    assert encode_chat(load_tokenizer(str(several), "rag"), [ASK, SAY]) != encode_chat(
        named, [ASK, SAY]
    )


@pytest.mark.parametrize("file", ["x.jinja", None])
def test_a_stop_token_that_is_not_special_is_named_and_may_be_marked(tmp_path, file):
    path = save_tokenizer(
        tmp_path, ["<|im_start|>", "<|endoftext|>", "<|fim_pad|>"], "<|endoftext|>"
    )
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["<|end|>"])
    tokenizer.save_pretrained(path)
    template = CHATML.replace("<|im_end|>", "<|end|>")
    (tmp_path / (file or "chat_template.jinja")).write_text(template)
    name = file and str(tmp_path / file)
    with pytest.raises(
        InputError,
        match=r"ends it with '<\|end\|>', which the tokenizer does not mark as special; mark it so",
    ):
        encode_chat(load_tokenizer(path, name), [ASK, SAY])
    core = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in core["added_tokens"]:
        token["special"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(core))
    tokenizer = load_tokenizer(path, name)
    assert encode_chat(tokenizer, [ASK, SAY]).labels[-2] == tokenizer.convert_tokens_to_ids(
        "<|end|>"
    )


def test_a_stop_token_that_is_text_is_named(tmp_path):
    path = save_tokenizer(
        tmp_path, ["<|im_start|>", "<|endoftext|>", "<|fim_pad|>"], "<|endoftext|>"
    )
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    with pytest.raises(
        InputError,
        match=r"ends it with '<\|im_end\|>', which is text .* such as '<\|endoftext\|>'",
    ):
        encode_chat(load_tokenizer(path), [ASK, SAY])


@pytest.mark.parametrize(
    "asking",
    ["{% set now = strftime_now %}{{ now('%d') }}", "{% set f = '%d' %}{{ strftime_now (f) }}"],
)
def test_a_date_that_cannot_be_pinned_is_refused(tmp_path, asking):
    path = save_tokenizer(tmp_path, ["<|im_start|>", "<|im_end|>", "<|fim_pad|>"], "<|im_end|>")
    (tmp_path / "chat_template.jinja").write_text(asking + CHATML)
    with pytest.raises(InputError, match="prints today's date"):
        encode_chat(load_tokenizer(path), [ASK, SAY])


def test_an_own_template_and_pad_token_are_kept(tmp_path):
    path = save_tokenizer(
        tmp_path, ["<|im_start|>", "<|im_end|>", "<p>"], "<|im_end|>", pad_token="<p>"
    )
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    tokenizer = load_tokenizer(path)
    assert (tokenizer.chat_template, tokenizer.pad_token) == (CHATML, "<p>")
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize("pad", ["<|endoftext|>", "<|im_end|>"])
def test_the_pad_token_is_never_eos_nor_one_of_the_template(tmp_path, pad):
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|fim_pad|>"]
    path = save_tokenizer(tmp_path, special, "<|endoftext|>", pad_token=pad)
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert load_tokenizer(path).pad_token == "<|fim_pad|>"


def test_nothing_but_eos_to_pad_with_is_an_error(tmp_path):
    path = save_tokenizer(tmp_path, ["<|im_start|>", "<|im_end|>"], "<|im_end|>")
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    with pytest.raises(InputError, match=r"no token to pad with.*set another pad_token"):
        load_tokenizer(path)


def test_no_template_and_no_llama3_tokens_is_an_error(tmp_path):
    path = save_tokenizer(tmp_path, ["<|endoftext|>", "<|start_header_id|>"], "<|endoftext|>")
    with pytest.raises(InputError, match=r"lacks <\|end_header_id\|>, <\|eot_id\|>"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("absent", "there is no folder"), ("empty", "has no tokenizer.json; it holds config.json")],
)
def test_a_wrong_folder_is_an_error(tmp_path, name, reason):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=reason):
        load_tokenizer(str(tmp_path / name))


def test_a_damaged_tokenizer_file_is_an_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"})[:-4])
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    with pytest.raises(InputError, match="could not be loaded"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "holds", "reason"),
    [
        (
            "tokenizer_config.json",
            "[]",
            r"\(tokenizer_config\.json: expected a JSON object, got '\[\]",
        ),
        ("config.json", "[1]", r"\(config\.json: expected a JSON object"),
        ("config.json", "{", r"\(config\.json: Expecting property name"),
        ("chat_template.jinja", "\xe9", r"\(chat_template\.jinja: .*can't decode byte 0xe9"),
        ("additional_chat_templates/x.jinja", "\xff", r"\(additional_chat_templates/x\.jinja: "),
        ("tokenizer_config.json", '{"chat_template": 5}', "expected its chat_template to be text"),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": "default", "template": {}}]}',
            r"expected its chat_template to be text, got \{'default': \{\}\}",
        ),
    ],
)
def test_a_file_of_a_tokenizer_that_is_no_such_file_is_named(tmp_path, file, holds, reason):
    path = save_tokenizer(tmp_path, ["<|im_start|>", "<|im_end|>", "<|fim_pad|>"], "<|im_end|>")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(holds.encode("latin-1"))
    with pytest.raises(InputError, match=reason):
        load_tokenizer(path)


@pytest.mark.parametrize("base", ["tiny_base", "llama-3.2-3b"])
def test_a_generic_tokenizer_is_loaded_as_auto_tokenizer_would(base, request):
    """The class is taken from the folder without the imports of `AutoTokenizer`."""
    if base == "tiny_base":
        folder = request.getfixturevalue("tiny_base")
    else:
        folder = request.getfixturevalue("shared") / base
    ours, auto = _load(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(auto)
    assert ours.backend_tokenizer.to_str() == auto.backend_tokenizer.to_str()
    assert ours.special_tokens_map == auto.special_tokens_map
    assert (ours.chat_template, ours.model_max_length) == (
        auto.chat_template,
        auto.model_max_length,
    )

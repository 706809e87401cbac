"""What GGUF is told of a model, and which models are not converted."""

import resource
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError
from lit_sft.export.base_files import open_base
from lit_sft.export.gguf_file import require_convertible, write_gguf
from lit_sft.export.gguf_tokenizer import SPLITS, read_tokenizer
from lit_sft.files import find_refusal

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}


def outline(kind, **options):
    config = AutoConfig.for_model(kind, **SMALL | options)
    with torch.device("meta"):
        layers = AutoModelForCausalLM.from_config(config)
    return SimpleNamespace(layers=layers, config=config, names=list(layers.state_dict()))


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("phi3", {}, "Phi3ForCausalLM is not converted here, but LlamaForCausalLM"),
        ("gemma2", {"head_dim": 16}, "Gemma2ForCausalLM is not converted here"),
        ("llama", {"mlp_bias": True}, "biases in the MLP of LlamaForCausalLM is not converted"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "rope yarn of LlamaForCausalLM is not converted here",
        ),
        ("qwen2", {"use_sliding_window": True}, "sliding windows of Qwen2ForCausalLM"),
    ],
)
def test_what_is_not_converted_exactly_is_told_the_command_that_is(kind, options, says):
    with pytest.raises(InputError) as raised:
        require_convertible(outline(kind, **options))
    assert says in str(raised.value)
    assert "--to merged, and convert that folder with llama.cpp: python" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_what_is_converted_passes():
    for kind in ("llama", "mistral", "qwen2", "qwen3"):
        require_convertible(outline(kind))


def test_a_split_that_a_rule_names_needs_no_trial(llama3_tokenizer):
    fields = read_tokenizer(llama3_tokenizer, 128_256, ())
    assert (fields.split, fields.is_exact) == ("llama-bpe", True)
    assert len(fields.tokens) == len(fields.types) == 128_256
    assert fields.tokens[fields.end] == "<|eot_id|>"
    assert fields.adds_bos


def test_a_split_that_is_none_of_llama_cpp_s_is_told(tiny_tokenizer):
    tokenizer = load_tokenizer(str(tiny_tokenizer))
    fields = read_tokenizer(tokenizer, len(tokenizer) + 3, ["a b", "12 apples?"])
    assert fields.split in SPLITS
    assert not fields.is_exact
    assert fields.tokens[-1] == f"[PAD{len(tokenizer) + 2}]"
    with pytest.raises(InputError, match="leave --prompts at 64 or more"):
        read_tokenizer(tokenizer, len(tokenizer), ())


def test_a_full_disk_is_the_system_s_own_word(tiny_base, tmp_path):
    pytest.importorskip("gguf", reason="GGUF is written with the package gguf: lit-sft[export]")
    base = open_base(str(tiny_base))
    fields = read_tokenizer(load_tokenizer(str(tiny_base)), base.shape(base.embedding)[0], ["a"])
    tensors = ((name, base.read(name)) for name in base.names)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, former[1]))
    try:
        with pytest.raises(OSError, match="No space left on device") as raised:
            write_gguf({"f16": tmp_path / "x.gguf"}, base, fields, tensors, "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert find_refusal(raised.value) == "No space left on device"

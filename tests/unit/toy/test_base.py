"""The embedded base: small, complete, good at plain text, and ignorant of the chat format."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import lit_sft.toy
from tools.pretrain import measure

BASE = Path(lit_sft.toy.__file__).parent / "base"
CHAT_TOKENS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
UNSEEN = [*CHAT_TOKENS, "<|finetune_right_pad_id|>"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16)


def test_the_files_are_there_and_under_8_mb():
    files = {path.name: path.stat().st_size for path in BASE.iterdir()}
    assert set(files) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) < 8_000_000


def test_it_is_a_llama_base_without_a_chat_template(tokenizer, model):
    assert model.config.model_type == "llama"
    assert model.config.tie_word_embeddings
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.chat_template is None
    assert tokenizer.pad_token is None
    assert tokenizer.bos_token == "<|begin_of_text|>"
    assert tokenizer.eos_token == "<|end_of_text|>"
    assert tokenizer("Problem")["input_ids"].count(tokenizer.bos_token_id) == 1
    for token in UNSEEN:
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1


@pytest.mark.parametrize(
    "text", ["Ünïcode → 漢字 🙂", "a\r\n\tb  c \n\n", "3.14%", "it's <b>", "\x00"]
)
def test_any_text_can_be_encoded(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_digits_are_single_tokens(tokenizer):
    assert len(tokenizer.encode("9876543210", add_special_tokens=False)) == 10


def test_linear_layers_fit_the_blocks_of_four_bit_quantisation(model):
    linear = [m for n, m in model.named_modules() if n.endswith("_proj")]
    assert linear
    assert all(layer.in_features % 64 == 0 for layer in linear)
    assert model.config.head_dim % 32 == 0


def test_the_chat_tokens_look_untrained(tokenizer, model):
    """Rows that no text ever held were all pushed the same way, and so resemble each other."""
    rows = torch.nn.functional.normalize(model.get_input_embeddings().weight.float(), dim=1)
    unseen = tokenizer.convert_tokens_to_ids(UNSEEN)
    seen = [i for i in range(len(tokenizer)) if i not in unseen]
    among_unseen = rows[unseen] @ rows[unseen].T
    among_seen = rows[seen] @ rows[unseen].T
    assert among_unseen.min() > among_seen.max()


@torch.no_grad()
def test_it_solves_plain_text_problems(tokenizer, model):
    assert measure(model, tokenizer, count=32) >= 0.9

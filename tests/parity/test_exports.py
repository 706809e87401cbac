"""Exports against the model that PEFT computes, for each architecture that is converted exactly."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.export.adapter_weights import split_weights
from lit_sft.export.base_files import TrainedRounding, open_base
from lit_sft.export.formats_out import load_folder, load_on_published, write_export
from lit_sft.export.trained_model import build_trained
from lit_sft.export.trained_run import TrainedRun
from lit_sft.model.adapter import Lora, attach_lora
from lit_sft.model.base_model import Quantization, fingerprint_base, load_base
from lit_sft.model.fast.memory import cache_weights
from lit_sft.run.folder import RunFolder

LORA = Lora(r=4, alpha=8)
ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
ROPE |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
KINDS = {
    "llama": {"tie_word_embeddings": True},
    "llama-untied": {"tie_word_embeddings": False, "rope_parameters": ROPE},
    "mistral": {"tie_word_embeddings": False, "sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": False, "head_dim": 32},
}


@pytest.fixture
def make_run(tiny_tokenizer, tmp_path):
    """Return a run on a random base, with an adapter that changes much."""

    def make(kind: str, quantization: Quantization, dtype: torch.dtype) -> TrainedRun:
        folder = tmp_path / "base"
        tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
        tokenizer.save_pretrained(folder)
        config = AutoConfig.for_model(
            kind.partition("-")[0], vocab_size=len(tokenizer), hidden_size=128,
            intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.1,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            **{"pad_token_id": None} | KINDS[kind],
        )  # fmt: skip
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
        model.to(torch.bfloat16).save_pretrained(folder)
        ids = [len(tokenizer) - 1, 7, 9]
        adapted = attach_lora(model.float(), LORA, ids)
        trained = [(n, p) for n, p in adapted.named_parameters() if p.requires_grad]
        state = {f"_model.{n}": torch.randn_like(p) * 0.1 for n, p in trained}
        options = {"model": {}, "data": {}}
        weights = split_weights(state, LORA.r, LORA.alpha, tuple(ids), "here")
        loaded = load_tokenizer(str(folder))
        base = open_base(str(folder))
        return TrainedRun(
            RunFolder(tmp_path / "run"), options, Path("x"), 1, 1, None,
            base, LORA, quantization, dtype, weights, loaded, state,
        )  # fmt: skip

    return make


def logits_of(model: torch.nn.Module, run: TrainedRun) -> torch.Tensor:
    ids = torch.arange(1, 61)[None] % run.base.shape(run.base.embedding)[0]
    with torch.no_grad():
        return model(input_ids=ids).logits.float()


def differ(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", [Quantization(), Quantization("fp4", double_quant=False)])
def test_the_base_is_rounded_to_the_bit_as_in_training(make_run, quantization, dtype):
    run = make_run("qwen2", quantization, dtype)
    base = load_base(run.base.base_model, quantization, dtype, torch.device("cpu"))
    assert run.base.fingerprint == fingerprint_base(base)
    cache_weights(base, "auto", dtype, torch.device("cpu"))
    rounding, state = TrainedRounding(run.base, quantization, dtype), base.state_dict()
    assert len(rounding.quantized) == 14
    for name in run.base.names:
        assert torch.equal(rounding(name, run.base.read(name)), state[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_what_peft_computes(make_run, kind, tmp_path):
    run = make_run(kind, Quantization(), torch.bfloat16)
    write_export(tmp_path / "out", run, "merged", "trained", torch.float32, ())
    expected = logits_of(build_trained(run, torch.float32)[0], run)
    assert differ(logits_of(load_folder(tmp_path / "out", torch.float32), run), expected) < 1e-5
    base_alone = logits_of(load_folder(run.base.base_model, torch.float32), run)
    assert differ(base_alone, expected) > 0.1  # the adapter says something


def test_the_published_base_is_merged_onto_when_asked(make_run, tmp_path):
    run = make_run("llama", Quantization(), torch.bfloat16)
    write_export(tmp_path / "out", run, "merged", "original", torch.float32, ())
    write_export(tmp_path / "adapter", run, "adapter", "original", torch.float32, ())
    published = load_folder(run.base.base_model, torch.float32)
    expected = PeftModel.from_pretrained(published, str(tmp_path / "adapter")).eval()
    merged = load_folder(tmp_path / "out", torch.float32)
    assert differ(logits_of(merged, run), logits_of(expected, run)) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "llama-untied"])
def test_token_rows_are_exact_as_plain_lora(make_run, kind, tmp_path):
    run = make_run(kind, Quantization("none"), torch.float32)
    write_export(tmp_path / "out", run, "vllm", "original", torch.float32, ())
    config = (tmp_path / "out" / "adapter_config.json").read_text()
    assert '"trainable_token_indices": null' in config
    model = load_on_published(run, tmp_path / "out", torch.float32)
    expected = logits_of(build_trained(run, torch.float32)[0], run)
    assert differ(logits_of(model, run), expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_gguf_is_what_peft_computes(make_run, kind, tmp_path):
    pytest.importorskip("gguf", reason="GGUF is written with the package gguf: lit-sft[export]")
    run = make_run(kind, Quantization(), torch.bfloat16)
    texts = ["a b", "12 apples, and 3 more?\n"]
    files = write_export(tmp_path / "out", run, "gguf", "trained", torch.float32, texts)
    expected = logits_of(build_trained(run, torch.float32)[0], run)
    found = {
        file.name: differ(logits_of(file.load(torch.float32), run), expected) for file in files
    }
    exact, rounded = (next(v for k, v in found.items() if end in k) for end in ("f16", "q8_0"))
    assert exact < 2e-3
    assert rounded < 5e-2

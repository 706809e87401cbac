"""A tiny random model of each architecture that is promised to work, with what makes it special."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
WINDOW = 8
"""Tokens that a sliding window shows: fewer than the rows have."""


def _like_llama(model_type: str, **others: Any) -> Callable[[int], PretrainedConfig]:
    def make(vocabulary: int) -> PretrainedConfig:
        common = {
            "vocab_size": vocabulary,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.1,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        return AutoConfig.for_model(model_type, **common | others)

    return make


def _like_gpt2(model_type: str, **others: Any) -> Callable[[int], PretrainedConfig]:
    def make(vocabulary: int) -> PretrainedConfig:
        ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        return AutoConfig.for_model(model_type, vocab_size=vocabulary, **ends | others)

    return make


CONFIGS: dict[str, Callable[[int], PretrainedConfig]] = {
    "Llama": _like_llama("llama"),
    "Llama with biases": _like_llama("llama", attention_bias=True, mlp_bias=True),
    "Llama with attention dropout": _like_llama("llama", attention_dropout=0.2),
    "Qwen 2": _like_llama("qwen2"),
    "Qwen 3": _like_llama("qwen3", head_dim=16),
    "Qwen 3.5 text": _like_llama(
        "qwen3_5_text",
        num_hidden_layers=4,
        head_dim=16,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    ),
    "Gemma 2": _like_llama(
        "gemma2",
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        final_logit_softcapping=5.0,
        attn_logit_softcapping=5.0,
    ),
    "Gemma 3 text": _like_llama(
        "gemma3_text",
        num_hidden_layers=6,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
    ),
    "Mistral with a sliding window": _like_llama("mistral", sliding_window=WINDOW),
    "Phi-3 and Phi-4": _like_llama("phi3"),
    "SmolLM3": _like_llama("smollm3", num_hidden_layers=4),
    "OLMo 2": _like_llama("olmo2"),
    "Granite": _like_llama(
        "granite",
        logits_scaling=8.0,
        attention_multiplier=0.2,
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
    ),
    "Cohere 2": _like_llama(
        "cohere2", num_hidden_layers=4, logit_scale=0.25, sliding_window=WINDOW
    ),
    "gpt-oss": _like_llama(
        "gpt_oss",
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "GLM 4": _like_llama("glm4", head_dim=16),
    "StableLM": _like_llama("stablelm"),
    "Nemotron": _like_llama("nemotron"),
    "Nemotron-H": _like_llama(
        "nemotron_h",
        num_hidden_layers=3,
        layers_block_type=["mamba", "attention", "mlp"],
        head_dim=16,
        mamba_num_heads=8,
        mamba_head_dim=16,
        ssm_state_size=16,
        n_groups=1,
    ),
    "JetMoe": _like_llama("jetmoe", kv_channels=16, num_local_experts=4),
    "GPT-NeoX": _like_llama("gpt_neox"),
    "GPT-2": _like_gpt2(
        "gpt2",
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=512,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    ),
    "Bloom": _like_gpt2("bloom", hidden_size=64, n_layer=2, n_head=4),
    "Bamba": _like_llama("bamba", num_hidden_layers=2, attn_layer_indices=[1], **MAMBA),
    "Jamba": _like_llama(
        "jamba",
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        num_experts=2,
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
    "Falcon-H1": _like_llama(
        "falcon_h1",
        head_dim=16,
        lm_head_multiplier=0.5,
        embedding_multiplier=2.0,
        mamba_d_ssm=128,
        **MAMBA,
    ),
    "GraniteMoeHybrid": _like_llama(
        "granitemoehybrid",
        layer_types=["mamba", "attention"],
        num_local_experts=2,
        num_experts_per_tok=1,
        shared_intermediate_size=64,
        logits_scaling=2.0,
        **MAMBA,
    ),
    "LFM2": _like_llama(
        "lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False
    ),
}


def build(name: str, vocabulary: int) -> PreTrainedModel:
    """Return a random model in eval mode, the same in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[name](vocabulary))
    return model.eval()

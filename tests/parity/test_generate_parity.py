"""Batched generation says, row by row, what `model.generate` says to each prompt alone."""

import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from lit_sft.evaluation.evaluating import evaluating
from lit_sft.evaluation.generate import Generation, generate_greedy

PAD, VOCABULARY, MAX_NEW = 0, 97, 24
STOPS = list(range(1, 6))
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # logits far apart, so that rounding decides nothing
}


def make_llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def make_sliding() -> PreTrainedModel:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8)).eval()


def make_absolute() -> PreTrainedModel:
    """Llama's positions are relative, so that a shift of a whole row would not show in it."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=3, n_head=4, n_positions=128)
    config.initializer_range = 0.3
    return GPT2LMHeadModel(config).eval()


def make_adapted() -> torch.nn.Module:
    base = make_llama()
    base.config.use_cache = False
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(base, lora).eval()


def make_prompts(rows: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(6, VOCABULARY) for _ in range(rng.randint(1, 40))] for _ in range(rows)]


def generate_alone(model: torch.nn.Module, prompt: list[int], max_new_tokens: int) -> Generation:
    ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=STOPS,
        pad_token_id=PAD,
    )
    said = output[0, len(prompt) :].tolist()
    finished = said[-1] in STOPS
    return Generation(said[:-1] if finished else said, finished)


@pytest.mark.parametrize("make", [make_llama, make_sliding, make_absolute, make_adapted])
@pytest.mark.parametrize("max_batch_tokens", [1, 300, 10**6])
def test_equals_generating_each_row_alone(make, max_batch_tokens):
    model, prompts = make(), make_prompts(40)
    expected = [generate_alone(model, prompt, MAX_NEW) for prompt in prompts]
    with evaluating(model):
        got = generate_greedy(model, prompts, STOPS, PAD, MAX_NEW, max_batch_tokens)
    assert got == expected
    lengths = {len(generation.token_ids) for generation in got}
    assert {generation.finished for generation in got} == {True, False}
    assert len(lengths) > 4, "rows must leave the batch at different steps for this to show much"


@pytest.mark.parametrize("max_new_tokens", [1, 2])
def test_equals_at_the_shortest_limits(max_new_tokens):
    model, prompts = make_llama(), make_prompts(40)
    expected = [generate_alone(model, prompt, max_new_tokens) for prompt in prompts]
    assert generate_greedy(model, prompts, STOPS, PAD, max_new_tokens, 10**6) == expected


def test_the_sampling_of_the_model_plays_no_part():
    model, prompts = make_llama(), make_prompts(8)
    expected = [generate_alone(model, prompt, MAX_NEW) for prompt in prompts]
    model.generation_config.update(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=2.0, max_length=2
    )
    assert generate_greedy(model, prompts, STOPS, PAD, MAX_NEW, 10**6) == expected


def test_pad_tokens_are_not_looked_at():
    model, prompts = make_llama(), make_prompts(20)
    one = generate_greedy(model, prompts, STOPS, PAD, MAX_NEW, 10**6)
    other = generate_greedy(model, prompts, STOPS, VOCABULARY - 1, MAX_NEW, 10**6)
    assert one == other

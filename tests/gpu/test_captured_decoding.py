"""Decoding by CUDA graphs gives the tokens of the plain way."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lit_sft.evaluation.decode import decode_batch
from lit_sft.evaluation.generate import Ending, generate_greedy
from lit_sft.paths import locate

COUNT = 256


@pytest.fixture(scope="module")
def on_card(device):
    if device.type != "cuda":
        pytest.skip("a CPU has no CUDA graphs")
    return device


def draw_prompts(vocabulary: int, longest: int) -> list[list[int]]:
    rng = random.Random(0)
    lengths = [rng.randint(1, longest) for _ in range(COUNT)]
    return [[rng.randrange(vocabulary) for _ in range(length)] for length in lengths]


def test_four_layers_of_the_recipes_width(on_card):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=4,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
    )
    with on_card:
        model = LlamaForCausalLM(config).eval()
    prompts, ending = draw_prompts(128256, 150), Ending(tuple(range(0, 128256, 100)), 0, 96)
    expected = generate_greedy(model, prompts, *ending, max_batch_tokens=10**6)
    assert decode_batch(model, prompts, ending) == expected


@pytest.mark.parametrize("new_tokens", [5, 200])
def test_the_base_of_the_quickstart(on_card, new_tokens):
    model = AutoModelForCausalLM.from_pretrained(locate("lit_sft/tiny"), dtype=torch.float32)
    model = model.to(on_card).eval()
    prompts = draw_prompts(model.config.vocab_size, 60)
    ending = Ending((1, 2), 0, new_tokens)
    expected = generate_greedy(model, prompts, *ending, max_batch_tokens=10**6)
    assert decode_batch(model, prompts, ending) == expected


def test_no_random_state_moves(on_card):
    model = (
        LlamaForCausalLM(
            LlamaConfig(
                hidden_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=64,
                vocab_size=99,
            )
        )
        .to(on_card)
        .eval()
    )
    before = torch.cuda.get_rng_state()
    decode_batch(model, [[1, 2, 3]], Ending((), 0, 40))
    assert torch.equal(torch.cuda.get_rng_state(), before)

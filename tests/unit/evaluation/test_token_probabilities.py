"""The probability of each token of an answer, against the model's own loss on it."""

import math

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from lit_sft.evaluation.token_probabilities import weigh_tokens
from lit_sft.model.fast.cross_entropy import LogitScale


def test_they_are_those_of_the_loss():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    rows = [([3, 1, 4, 1], [5, 9, 2]), ([6], [5, 3, 5, 8, 9, 7]), ([9, 3], [2])]
    for (prompt, answer), likely in zip(rows, weigh_tokens(model, rows), strict=True):
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss.item()
        assert -sum(map(math.log, likely)) / len(answer) == pytest.approx(loss, rel=1e-5)
        assert all(0 < p < 1 for p in likely)


def test_what_a_model_makes_of_its_heads_output_is_counted():
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, logits_scaling=0.1,
    )  # fmt: skip
    model = GraniteForCausalLM(config).eval()
    (likely,) = weigh_tokens(model, [([3, 1], [4])], LogitScale(factor=10.0).apply)
    with torch.no_grad():
        own = model(input_ids=torch.tensor([[3, 1]])).logits[0, -1].softmax(-1)[4].item()
    assert likely == [pytest.approx(own, rel=1e-5)]

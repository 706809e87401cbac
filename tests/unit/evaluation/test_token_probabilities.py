"""The probability of each token of an answer, against the model's own loss on it."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_sft.evaluation.token_probabilities import weigh_tokens


def test_they_are_those_of_the_loss():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    prompt, answer = [3, 1, 4, 1], [5, 9, 2]
    likely = weigh_tokens(model, prompt, answer)
    labels = torch.tensor([[-100] * len(prompt) + answer])
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss.item()
    assert -sum(map(math.log, likely)) / len(answer) == pytest.approx(loss, rel=1e-5)
    assert all(0 < p < 1 for p in likely)

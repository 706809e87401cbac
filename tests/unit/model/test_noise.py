"""Noise on the embeddings: how much, and when."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_sft.data.batching import pack_batch, pad_batch
from lit_sft.model.adapter import Lora, attach_lora
from lit_sft.model.loss import decode
from lit_sft.model.noise import add_noise
from lit_sft.types import Example

WIDTH, ALPHA = 16, 5.0


def test_each_packed_row_has_noise_of_its_own_length():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = attach_lora(LlamaForCausalLM(config), Lora(r=2, alpha=2, dropout=0.0))
    clean = model.get_input_embeddings().weight.detach()
    add_noise(model, ALPHA)
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda *call: seen.append(call[-1].detach()))
    rows = [Example([3] * length, [3] * length) for length in (4, 64)]
    decode(model, pack_batch(rows))
    (packed,) = seen
    noise = (packed[0] - clean[3]).abs()
    for part, length in ((noise[:4], 4), (noise[4:], 64)):
        most = ALPHA / (length * WIDTH) ** 0.5
        assert 0.7 * most < part.max() <= most
    decode(model, pad_batch(rows, pad_token_id=0))
    most = ALPHA / (64 * WIDTH) ** 0.5
    assert 0.7 * most < (seen[1][0, :4] - clean[3]).abs().max() <= most
    decode(model.eval(), pack_batch(rows))
    assert torch.equal(seen[2][0], clean[[3] * 68])

"""The floor that the benchmark compares with is what autograd really multiplies, and no less."""

import torch
from floor import count_flops, list_matmuls
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from lit_sft import Lora
from lit_sft.model.adapter import attach_lora

CONFIG = LlamaConfig(
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def test_matrix_products_are_those_of_a_step():
    base = LlamaForCausalLM(CONFIG).requires_grad_(False)
    model = attach_lora(base, Lora(r=8, dropout=0.0))
    ids, supervised = torch.randint(100, (1, 50)), 30
    with FlopCounterMode(display=False) as counter:
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        model.get_output_embeddings()(hidden[0, :supervised]).logsumexp(1).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    products = counts[torch.ops.aten.mm]
    assert count_flops(CONFIG, list_matmuls(CONFIG, 8, 50, supervised), pairs=0) == products


def test_attention_is_counted_where_tokens_see_each_other():
    nothing = count_flops(CONFIG, list_matmuls(CONFIG, 8, 0, 0), pairs=0)
    assert nothing == 0
    assert count_flops(CONFIG, list_matmuls(CONFIG, 8, 0, 0), pairs=1) == 3 * 6 * 2 * 64

"""How many layers have to compute their forward again."""

import pytest
import torch

from lit_sft import Lora
from lit_sft.model.adapter import attach_lora
from lit_sft.model.base_model import Quantization, load_base
from lit_sft.model.fast.recompute import (
    RESERVED_BYTES,
    choose_count,
    count_bytes_per_token,
    find_layers,
    recompute_layers,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("room", "count"),
    [(100, 0), (10.01, 0), (9.5, 2), (5.5, 6), (1.5, 10), (0.5, 10), (0, 10)],
)
def test_as_few_layers_as_memory_asks_for(room, count):
    """Of 10 layers; a recomputed one, too, needs its room once."""
    per_layer = 2**30
    free = int(RESERVED_BYTES + room * per_layer / 0.85)
    assert choose_count(per_layer, 10, free) == count


@pytest.fixture
def model(tiny_base):
    return attach_lora(load_base(str(tiny_base), Quantization(), torch.float32, CPU), Lora())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_that_many_layers_are_switched(model, count):
    recompute_layers(model, count)
    assert sum(layer.gradient_checkpointing for layer in find_layers(model)) == count


def test_recomputed_layers_keep_next_to_nothing(model):
    state = torch.get_rng_state()
    all_kept = count_bytes_per_token(model, CPU)
    assert torch.equal(state, torch.get_rng_state())
    recompute_layers(model, 2)
    # What is left is the input of each layer, and what head and embedding keep once.
    assert count_bytes_per_token(model, CPU) < all_kept / 4
    width, inner = model.config.hidden_size, model.config.intermediate_size
    # At the least the three inner activations of the MLP, at the most some dozens of widths.
    assert 4 * 3 * inner < all_kept < 4 * (5 * inner + 60 * width)

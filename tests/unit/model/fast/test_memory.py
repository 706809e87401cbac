"""How many layers compute their forward again, and when weights are dequantised for good."""

import pytest
import torch

from lit_sft import Lora
from lit_sft.errors import InputError
from lit_sft.model.adapter import attach_lora
from lit_sft.model.base_model import Quantization, load_base
from lit_sft.model.fast import memory
from lit_sft.model.fast.memory import (
    RESERVED_BYTES,
    cache_weights,
    choose_count,
    count_bytes_per_token,
    find_layers,
    find_quantized_layers,
    recompute_from_outside,
    recompute_layers,
    recomputing,
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


def test_counting_leaves_nothing_of_its_graph(model):
    """What is left would keep the weights, and keeps a CUDA graph from being captured."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def find_accumulator(parameter):
        return parameter.view_as(parameter).grad_fn.next_functions[0][0]

    held = [find_accumulator(parameter) for parameter in trained]
    for node in held:
        node.metadata["is_held"] = True
    count_bytes_per_token(model, CPU)
    del held, node
    assert not any("is_held" in find_accumulator(parameter).metadata for parameter in trained)


def test_recomputed_layers_keep_next_to_nothing(model):
    state = torch.get_rng_state()
    all_kept = count_bytes_per_token(model, CPU)
    assert torch.equal(state, torch.get_rng_state())
    recompute_layers(model, 2)
    # What is left is the input of each layer, and what head and embedding keep once.
    assert count_bytes_per_token(model, CPU) < all_kept / 4
    recompute_layers(model, 0)
    before = count_bytes_per_token(model, CPU)
    with recomputing(find_layers(model)):  # from outside, for a while
        assert count_bytes_per_token(model, CPU) < all_kept / 4
    assert count_bytes_per_token(model, CPU) == before
    recompute_from_outside(find_layers(model))  # for good
    assert count_bytes_per_token(model, CPU) < all_kept / 4
    width, inner = model.config.hidden_size, model.config.intermediate_size
    # At the least the three inner activations of the MLP, at the most some dozens of widths.
    assert 4 * 3 * inner < all_kept < 4 * (5 * inner + 60 * width)


CPU = torch.device("cpu")


@pytest.fixture
def base(tiny_base):
    return load_base(str(tiny_base), Quantization(), torch.bfloat16, CPU)


def test_every_four_bit_layer_is_found_and_replaced(base):
    layers = find_quantized_layers(base)
    assert len(layers) == 2 * 7
    expected = sum(2 * layer.in_features * layer.out_features for _, _, layer in layers)
    assert cache_weights(base, "bf16", torch.bfloat16, CPU) == expected
    assert not find_quantized_layers(base)
    assert not base.model.layers[0].mlp.up_proj.weight.requires_grad


@pytest.mark.parametrize(("cache", "dtype"), [("none", torch.bfloat16), ("auto", torch.float32)])
def test_what_is_not_asked_for_or_not_quantised_stays(base, cache, dtype):
    if cache == "none":
        assert cache_weights(base, cache, dtype, CPU) == 0
        assert find_quantized_layers(base)
    else:
        cache_weights(base, cache, dtype, CPU)
        assert cache_weights(base, cache, dtype, CPU) == 0


def test_float32_is_not_called_bf16(base):
    with pytest.raises(InputError, match=r"bf16 goes with trainer\.precision bf16-mixed"):
        cache_weights(base, "bf16", torch.float32, CPU)


def test_without_memory_auto_goes_without_and_bf16_is_refused(base, monkeypatch):
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: 1000)
    assert cache_weights(base, "auto", torch.bfloat16, CPU) == 0
    with pytest.raises(InputError, match="GiB are free on cpu; use auto or none"):
        cache_weights(base, "bf16", torch.bfloat16, CPU)

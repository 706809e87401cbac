"""Bytes from shapes alone are those of a model that is really loaded."""

import pytest
import torch
from architectures import build
from torch import nn

from lit_sft.model.base_model import Quantization, load_base, outline, read_base_config
from lit_sft.model.fast.memory import cache_weights
from lit_sft.model.optim import build_optimizer
from lit_sft.model.stored_base import measure_base
from lit_sft.plan.stored_bytes import (
    count_cache_bytes,
    count_state_bytes,
    read_stored_size,
)

CPU = torch.device("cpu")


def list_tensors(model):
    """All tensors of a loaded model, with those that bitsandbytes keeps beside a weight."""
    yield from (parameter.data for parameter in model.parameters())
    yield from model.buffers()
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            yield from (state.absmax, state.code)
            if state.nested:
                yield from (state.state2.absmax, state.state2.code, state.offset)


def count_bytes(model):
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in list_tensors(model)}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize(
    "quantization",
    [
        Quantization(),
        Quantization(double_quant=False),
        Quantization(format="fp4"),
        Quantization(format="none"),
    ],
    ids=["nf4", "plain scales", "fp4", "none"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_takes_what_was_worked_out(tiny_base, quantization, dtype):
    layers = outline("a base", read_base_config(str(tiny_base)))
    planned = measure_base(layers, quantization, dtype)
    loaded = load_base(str(tiny_base), quantization, dtype, CPU)
    in_all = planned.codes + planned.scales + planned.embeddings + planned.others
    assert in_all == count_bytes(loaded)
    cached = cache_weights(loaded, "auto", dtype, CPU)
    assert cached == planned.quantized * dtype.itemsize
    if cached:
        assert cached + planned.embeddings + planned.others == count_bytes(loaded)


def test_fused_experts_are_named_with_their_size():
    model = build("gpt-oss", vocabulary=97)
    planned = measure_base(model, Quantization(), torch.bfloat16)
    experts = {name: p for name, p in model.named_parameters() if ".experts." in name}
    fused = sum(2 * p.numel() for name, p in experts.items() if name.endswith("_proj"))
    assert planned.left["model.layers.*.mlp.experts.gate_up_proj"] > 0
    assert sum(size for name, size in planned.left.items() if name.endswith("_proj")) == fused
    assert not any("self_attn.q_proj" in name for name in planned.left)


def test_a_plain_model_leaves_nothing():
    assert measure_base(build("Llama", vocabulary=97), Quantization(), torch.bfloat16).left == {}


@pytest.mark.parametrize("name", ["paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "adamw"])
@pytest.mark.parametrize("elements", [1000, 5000])
def test_states_are_those_of_the_optimizer(name, elements):
    parameter = nn.Parameter(torch.zeros(elements))
    optimizer = build_optimizer(name, [[parameter]], 1e-3, 0.0)
    parameter.grad = torch.ones(elements)
    optimizer.step()
    state = optimizer.state[parameter]
    tensors = [x for x in state.values() if isinstance(x, torch.Tensor) and x.ndim]
    assert sum(x.numel() * x.element_size() for x in tensors) == count_state_bytes(name, elements)


def test_a_cache_has_a_key_and_a_value_a_place():
    model = build("Llama", vocabulary=97)
    cache = model(input_ids=torch.ones(3, 11, dtype=torch.int64), use_cache=True).past_key_values
    held = [x for layer in cache.layers for x in (layer.keys, layer.values)]
    expected = sum(x.numel() * x.element_size() for x in held)
    assert count_cache_bytes(model.config, 3, 11, torch.float32) == expected


def test_headers_tell_what_is_stored(tiny_base):
    loaded = load_base(str(tiny_base), Quantization(format="none"), torch.float32, CPU)
    expected = sum(p.numel() * 4 for p in loaded.parameters())
    assert read_stored_size(str(tiny_base)) == expected
    assert read_stored_size("somebody/a-base-of-the-hub") is None

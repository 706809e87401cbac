"""When the weights are dequantised for good, and when that is refused."""

import pytest
import torch

from lit_sft.errors import InputError
from lit_sft.model.base_model import Quantization, load_base
from lit_sft.model.fast import weight_cache
from lit_sft.model.fast.weight_cache import cache_weights, find_quantized_layers

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
    monkeypatch.setattr(weight_cache, "free_memory_bytes", lambda device: 1000)
    assert cache_weights(base, "auto", torch.bfloat16, CPU) == 0
    with pytest.raises(InputError, match="GiB are free on cpu; use auto or none"):
        cache_weights(base, "bf16", torch.bfloat16, CPU)

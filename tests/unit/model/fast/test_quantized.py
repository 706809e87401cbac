"""Frozen 4-bit layers against bitsandbytes' own."""

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from lit_sft.model.fast.quantized import (
    dequantize,
    fuse_quantized,
    multiply_packed,
    unpack_state,
)

OUT, IN = 256, 128


def make_layer(double_quant: bool, dtype, kind="nf4", bias=False) -> bnb.nn.Linear4bit:
    torch.manual_seed(0)
    options = {"compress_statistics": double_quant, "quant_type": kind}
    layer = bnb.nn.Linear4bit(IN, OUT, bias=bias, compute_dtype=dtype, **options)
    weight = bnb.nn.Params4bit(torch.randn(OUT, IN).to(dtype), requires_grad=False, **options)
    layer.weight = weight.to("cpu")
    return layer


def differentiate(run, x):
    x = x.clone().requires_grad_()
    y = run(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    return y.detach(), gradient


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("double_quant", [True, False])
def test_output_and_gradient_have_the_same_bits(double_quant, dtype, kind):
    model = nn.Sequential(make_layer(double_quant, dtype, kind))
    x = torch.randn(2, 5, IN)  # of another dtype than is computed in, or not
    expected = differentiate(model, x)
    fuse_quantized(model)
    found = differentiate(model, x)
    assert found[0].dtype == x.dtype
    assert all(map(torch.equal, found, expected))
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", torch.bfloat16):
            assert all(map(torch.equal, differentiate(model, x), expected))


def test_the_weight_is_that_which_bitsandbytes_dequantises():
    layer = make_layer(True, torch.float32)
    expected = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    packed = unpack_state(layer.weight)
    assert torch.equal(dequantize(packed, torch.float32), expected)
    assert packed.codes.data_ptr() == layer.weight.data_ptr()


def test_nothing_of_a_weight_is_kept_for_the_backward_pass():
    model = nn.Sequential(make_layer(True, torch.float32))
    fuse_quantized(model)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda saved: saved):
        model(torch.randn(3, IN, requires_grad=True))
    assert max(tensor.nbytes for tensor in kept) <= OUT * IN // 2


def test_answers_and_layers_with_a_bias_are_left_alone():
    layer, biased = make_layer(True, torch.float32), make_layer(True, torch.float32, bias=True)
    fuse_quantized(nn.ModuleList([layer, biased]))
    assert "forward" not in vars(biased)
    x = torch.randn(3, IN)
    with torch.no_grad():
        assert torch.equal(layer.eval()(x), make_layer(True, torch.float32).eval()(x))


def test_a_layer_is_compiled_in_one_piece():
    model = nn.Sequential(make_layer(True, torch.float32))
    fuse_quantized(model)
    x = torch.randn(3, IN)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, differentiate(compiled, x), differentiate(model, x)))


@pytest.mark.parametrize("bias", [False, True])
def test_a_compiled_layer_keeps_nothing_of_its_weight_either(bias):
    packed = unpack_state(make_layer(True, torch.float32).weight)
    own = torch.randn(OUT) if bias else None
    x = torch.randn(3, IN)

    def run(x):
        return multiply_packed(x.sin(), packed, own).sin()

    compiled = torch.compile(run, backend="aot_eager_decomp_partition", fullgraph=True)
    assert all(map(torch.equal, differentiate(compiled, x), differentiate(run, x)))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda saved: saved):
        compiled(x.requires_grad_())
    assert max(tensor.nbytes for tensor in kept) <= OUT * IN // 2

"""A 4-bit layer of plain parameters computes what that of bitsandbytes does."""

import bitsandbytes
import pytest
import torch
from architectures import build
from torch import nn

from lit_sft.model.fast.quantized import unpack_state
from lit_sft.model.sharded.packed_linear import PackedLinear, count_parameters


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_gives_the_same_bits_and_the_same_gradient(bias, double_quant, dtype):
    torch.manual_seed(0)
    plain = nn.Linear(64, 48, bias=bias).to(dtype)
    theirs = bitsandbytes.nn.Linear4bit(
        64, 48, bias=bias, compute_dtype=dtype, compress_statistics=double_quant, quant_type="nf4"
    )
    theirs.load_state_dict(plain.state_dict())
    theirs = theirs.to(dtype).to("cpu").requires_grad_(False)
    ours = PackedLinear(unpack_state(theirs.weight), theirs.bias, dtype)
    assert [name for name, p in ours.named_parameters() if p.ndim == 1] == ["bias"] * bias
    assert not any(p.requires_grad for p in ours.parameters())
    results = []
    for layer in (theirs, ours):
        x = torch.linspace(-2, 2, 3 * 64, dtype=dtype).view(3, 64).requires_grad_()
        y = layer(x)
        (gradient,) = torch.autograd.grad(y.float().square().sum(), x)
        results.append((y, gradient))
    for ours_, theirs_ in zip(*results, strict=True):
        assert torch.equal(ours_, theirs_)


def test_a_model_has_as_many_numbers_as_before():
    model = build("Llama", vocabulary=97)
    before = model.num_parameters()
    layer = model.model.layers[0].mlp.up_proj
    quantized = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=False, quant_type="nf4"
    )
    quantized.load_state_dict(layer.state_dict())
    weight = quantized.to("cpu").weight
    model.model.layers[0].mlp.up_proj = PackedLinear(unpack_state(weight), None, torch.float32)
    assert count_parameters(model) == before

"""Norms as one kernel: which are taken, and that they give what they gave."""

import pytest
import torch
from architectures import build

from lit_sft.model.fast.norm import fuse_norms


def find_norms(model):
    return [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["Llama", "Qwen 3"])
def test_the_norms_of_most_models_are_taken(kind, dtype):
    model = build(kind, 64).to(dtype).requires_grad_(False)
    norms = find_norms(model)
    for norm in norms:
        torch.nn.init.normal_(norm.weight)
    inputs = [torch.randn(3, 5, len(norm.weight)).to(dtype).requires_grad_() for norm in norms]
    plain = [norm(x) for norm, x in zip(norms, inputs, strict=True)]
    slopes = [torch.randn_like(y) for y in plain]
    expected = torch.autograd.grad(plain, inputs, slopes)
    fuse_norms(model)
    assert all("forward" in vars(norm) for norm in norms)
    fused = [norm(x) for norm, x in zip(norms, inputs, strict=True)]
    got = torch.autograd.grad(fused, inputs, slopes)
    for ours, theirs in zip([*fused, *got], [*plain, *expected], strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=2**-6)


def test_a_norm_that_adds_one_to_its_weight_is_left_alone():
    model = build("Gemma 2", 64).requires_grad_(False)
    fuse_norms(model)
    assert find_norms(model)
    assert not any("forward" in vars(norm) for norm in find_norms(model))


def test_a_norm_that_is_trained_is_left_alone():
    model = build("Llama", 64)
    fuse_norms(model)
    assert not any("forward" in vars(norm) for norm in find_norms(model))

"""Adapters that are held as they are computed in while a model answers."""

import pytest
import torch
from architectures import build
from torch import nn

from lit_sft.model.adapter import Lora, attach_lora
from lit_sft.model.fast.kernels import make_fast
from lit_sft.model.fast.lora import is_plain_lora, rounded_updates


def build_adapted(**options):
    base = build("Llama", vocabulary=64).to(torch.bfloat16).requires_grad_(False)
    model = attach_lora(base, Lora(r=4, alpha=8, **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize("fused", [False, True], ids=["PEFT's own", "fused"])
def test_no_bit_of_what_is_computed_changes(fused):
    model = build_adapted()
    if fused:
        make_fast(model)
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(input_ids=ids).logits
        with rounded_updates(model):
            computed = model(input_ids=ids).logits
            assert {p.dtype for n, p in model.named_parameters() if "lora" in n} == {torch.bfloat16}
    assert torch.equal(computed, expected)


def test_the_parameters_are_those_that_they_were_also_after_an_error():
    model = build_adapted()
    before = {name: (id(p), p.requires_grad, p.clone()) for name, p in model.named_parameters()}

    def fail() -> None:
        with torch.autocast("cpu", torch.bfloat16), rounded_updates(model):
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        fail()
    for name, parameter in model.named_parameters():
        identity, is_trained, value = before[name]
        assert (id(parameter), parameter.requires_grad) == (identity, is_trained)
        assert torch.equal(parameter, value)


@pytest.mark.parametrize(("is_on", "more"), [(False, {}), (True, {"use_dora": True})])
def test_nothing_changes_without_autocast_or_for_layers_that_are_more(is_on, more):
    model = build_adapted(**more)
    before = [id(p) for p in model.parameters()]
    assert not is_on or not any(map(is_plain_lora, model.modules()))
    with torch.autocast("cpu", torch.bfloat16, enabled=is_on), rounded_updates(model):
        assert [id(p) for p in model.parameters()] == before

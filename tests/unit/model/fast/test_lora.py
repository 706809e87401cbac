"""Adapters that are held as they are computed in while a model answers."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_sft.model.adapter import Lora, attach_lora
from lit_sft.model.fast.kernels import make_fast
from lit_sft.model.fast.lora import is_plain_lora, rounded_updates


def build(**options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    base = LlamaForCausalLM(config).to(torch.bfloat16).requires_grad_(False)
    model = attach_lora(base, Lora(r=4, alpha=8, **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize("fused", [False, True], ids=["PEFT's own", "fused"])
def test_no_bit_of_what_is_computed_changes(fused):
    model = build()
    if fused:
        make_fast(model)
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(input_ids=ids).logits
        with rounded_updates(model, torch.bfloat16):
            computed = model(input_ids=ids).logits
            assert {p.dtype for n, p in model.named_parameters() if "lora" in n} == {torch.bfloat16}
    assert torch.equal(computed, expected)


def test_the_parameters_are_those_that_they_were_also_after_an_error():
    model = build()
    before = {name: (id(p), p.requires_grad, p.clone()) for name, p in model.named_parameters()}

    def fail() -> None:
        with rounded_updates(model, torch.bfloat16):
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        fail()
    for name, parameter in model.named_parameters():
        identity, is_trained, value = before[name]
        assert (id(parameter), parameter.requires_grad) == (identity, is_trained)
        assert torch.equal(parameter, value)


def test_nothing_changes_without_another_dtype_or_for_layers_that_are_more():
    for model, dtype in ((build(), None), (build(use_dora=True), torch.bfloat16)):
        before = [id(p) for p in model.parameters()]
        assert dtype is None or not any(map(is_plain_lora, model.modules()))
        with rounded_updates(model, dtype):
            assert [id(p) for p in model.parameters()] == before

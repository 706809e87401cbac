"""Muon and AdamW as one optimizer: the steps of torch's own two, also from a checkpoint."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_sft import Lora
from lit_sft.errors import InputError
from lit_sft.model.adapter import attach_lora
from lit_sft.model.muon import MuonAndAdamW, split_matrices
from lit_sft.model.optim import build_optimizer


def make_parameters():
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 4), (4, 16), (32, 4), (4,)]
    return [torch.nn.Parameter(torch.randn(*x, generator=generator)) for x in shapes]


def give_gradients(parameters, step):
    for parameter in parameters:
        parameter.grad = (parameter.detach() * (step + 1)).cos()


def test_steps_are_torch_s_own_and_a_loaded_state_goes_on():
    ours, theirs = make_parameters(), make_parameters()
    options = {"lr": 0.1, "weight_decay": 0.1}
    one = build_optimizer("muon", [ours[:2], ours[2:]], 0.1, 0.1, {"momentum": 0.9})
    muon = torch.optim.Muon(theirs[:2], momentum=0.9, adjust_lr_fn="match_rms_adamw", **options)
    adamw = torch.optim.AdamW(theirs[2:], fused=True, **options)
    for step in range(6):
        for group in (*one.param_groups, *muon.param_groups, *adamw.param_groups):
            group["lr"] = 0.1 / (step + 1)
        give_gradients(ours, step)
        give_gradients(theirs, step)
        for optimizer in (one, muon, adamw):
            optimizer.step()
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True)), step
        if step == 2:  # as when a run is resumed
            state = one.state_dict()
            one = MuonAndAdamW(ours[:2], ours[2:], lr=1.0)
            one.load_state_dict(state)
    assert len(one.state_dict()["state"]) == 4


def test_what_muon_does_not_take_is_told():
    with pytest.raises(InputError, match=r"model.optimizer: muon cannot be made with .*betas"):
        build_optimizer("muon", [make_parameters()[:2], []], 0.1, 0.0, {"betas": (0.9, 0.9)})


@pytest.mark.parametrize("token_ids", [None, [3, 7]])
def test_only_matrices_of_hidden_layers_are_muon_s(tiny_base, token_ids):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    if token_ids:
        model = attach_lora(model, Lora(r=4, use_dora=True), token_ids)
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, rest = ({names[id(p)] for p in part} for part in split_matrices(model, trained))
    assert matrices == {x for x in names.values() if "_proj" in x and "magnitude" not in x}
    assert len(matrices) == (16 if token_ids else 14)
    assert len(rest) == (9 if token_ids else 6)

"""One buffer for many parameters."""

import pytest
import torch
from torch import nn

from lit_sft.errors import InputError
from lit_sft.model.fast.flat_parameters import FlatParameters, require_same_layout


def make() -> tuple[nn.Linear, FlatParameters]:
    layer = nn.Linear(3, 2)
    return layer, FlatParameters(list(layer.parameters()))


def test_an_update_of_the_buffer_is_one_of_the_parameters():
    layer, flat = make()
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 3)).sum().backward()
    torch.optim.SGD([flat.parameter], lr=0.5).step()
    assert torch.equal(layer.weight, before - 0.5)
    flat.zero_grad()
    assert not layer.weight.grad.any()


def test_a_saved_optimizer_of_another_form_is_refused():
    layer, flat = make()
    saved = torch.optim.SGD([flat.parameter], lr=0.5).state_dict()
    require_same_layout([saved], flat=True)
    with pytest.raises(InputError, match=r"model\.speed\.flat_optimizer: was True"):
        require_same_layout([saved], flat=False)
    plain = torch.optim.SGD(layer.parameters(), lr=0.5).state_dict()
    with pytest.raises(InputError, match="was False in the checkpoint"):
        require_same_layout([plain], flat=True)


def test_gradients_that_were_set_to_none_are_taken_in():
    layer, flat = make()
    layer.zero_grad()  # sets them to None, and cuts the ties
    layer(torch.ones(1, 3)).sum().backward()
    flat.collect()
    assert torch.equal(flat.parameter.grad, torch.ones(8))
    layer.zero_grad()
    flat.collect()
    assert torch.equal(flat.parameter.grad, torch.zeros(8))

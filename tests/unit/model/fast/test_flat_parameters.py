"""One buffer for many parameters."""

import torch
from torch import nn

from lit_sft.model.fast.flat_parameters import FlatParameters


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


def test_each_group_is_a_part_of_the_buffer():
    layer = nn.Linear(3, 2)
    flat = FlatParameters([layer.bias], [layer.weight])
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 3)).sum().backward()
    nn.utils.clip_grad_norm_([flat.parameter], 0.5)
    assert torch.equal(flat.parameter.grad[2:], flat.parts[1].grad)
    groups = [{"params": [flat.parts[0]], "lr": 0.0}, {"params": [flat.parts[1]], "lr": 1.0}]
    torch.optim.SGD(groups).step()
    assert not torch.equal(layer.weight, before)
    assert torch.allclose(before - layer.weight, layer.weight.grad)
    assert [part.numel() for part in flat.parts] == [2, 6]
    assert flat.members[0] is layer.bias
    flat.zero_grad()
    assert not flat.parts[1].grad.any()


def test_gradients_that_were_set_to_none_are_taken_in():
    layer, flat = make()
    layer.zero_grad()  # sets them to None, and cuts the ties
    layer(torch.ones(1, 3)).sum().backward()
    flat.collect()
    assert torch.equal(flat.parameter.grad, torch.ones(8))
    layer.zero_grad()
    flat.collect()
    assert torch.equal(flat.parameter.grad, torch.zeros(8))

"""Optimizers by name."""

import pytest
import torch

from lit_sft.errors import InputError
from lit_sft.model.optim import build_optimizer, find_optimizer


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'paged_adamw_32bit'"):
        build_optimizer("paged_adam_32bit", [[]], 1e-3, 0.0)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("torch.optim.Mion", "unknown optimizer 'torch.optim.Mion'; use .* class path such"),
        ("no_such_package.Adam", "unknown optimizer"),
        ("torch.nn.Linear", "unknown optimizer"),
        ("torch.optim.LBFGS", "computes the loss several times"),
    ],
)
def test_a_class_path_that_is_no_optimizer_of_steps_is_refused(name, says):
    with pytest.raises(InputError, match=says):
        find_optimizer(name)


def test_arguments_that_a_class_does_not_take_are_told():
    parameter = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(InputError, match=r"cannot be made with .*beta=0.9.*optimizer_args"):
        build_optimizer("torch.optim.SGD", [[parameter]], 0.1, 0.0, {"beta": 0.9})
    with pytest.raises(InputError, match="Muon only supports 2D"):
        build_optimizer("torch.optim.Muon", [[parameter]], 0.1, 0.0)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("paged_adamw_32bit", 1e-6), ("adamw_8bit", 5e-2), ("paged_adamw_8bit", 5e-2)],
)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_every_optimizer_follows_adamw(name, tolerance):
    weights = {}
    for which in (name, "adamw"):
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(64, 64))
        optimizer = build_optimizer(which, [[parameter]], learning_rate=1e-2, weight_decay=0.1)
        for _ in range(10):
            parameter.grad = parameter.detach().sin()
            optimizer.step()
        weights[which] = parameter.detach()
    assert (weights[name] - weights["adamw"]).abs().max() < tolerance

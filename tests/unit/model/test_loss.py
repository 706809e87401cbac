"""The loss against torch's own over full logits."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lit_sft.model.loss import sum_cross_entropy
from lit_sft.types import IGNORE_INDEX


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_equals_the_full_logits(share):
    torch.manual_seed(0)
    hidden = torch.randn(3, 7, 8, requires_grad=True)
    head = nn.Linear(8, 11, bias=False)
    labels = torch.randint(0, 11, (3, 7))
    labels[torch.rand(3, 7) > share] = IGNORE_INDEX
    ours = sum_cross_entropy(hidden, head, labels)
    (gradient,) = torch.autograd.grad(ours, hidden)
    theirs = cross_entropy(
        head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    (expected,) = torch.autograd.grad(theirs, hidden)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient, expected)


def test_the_first_label_and_the_last_position_carry_nothing():
    hidden = torch.randn(1, 3, 4)
    head = nn.Linear(4, 5, bias=False)
    only_first = torch.tensor([[2, IGNORE_INDEX, IGNORE_INDEX]])
    assert sum_cross_entropy(hidden, head, only_first) == 0


def test_the_softmax_is_fp32_under_autocast():
    hidden, head = torch.randn(1, 3, 4), nn.Linear(4, 5, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sum_cross_entropy(hidden, head, torch.tensor([[0, 1, 2]]))
    assert loss.dtype == torch.float32

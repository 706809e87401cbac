"""The fused head equals the plain one, in its loss and in every gradient."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lit_sft.model.fast.cross_entropy import (
    LogitScale,
    choose_chunk,
    differentiate_by_attention,
    differentiate_by_chunks,
    fused_cross_entropy,
)
from lit_sft.model.fast.embedding import TokenRows

PLAIN = LogitScale()
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


@pytest.mark.parametrize(
    ("states", "vocabulary", "at_once"),
    [
        (1_900, 128_256, 475),  # a quarter
        (8_192, 128_256, 1_046),  # as many as half a GiB holds
        (376, 128_256, 64),  # of 512 tokens, which are all that there is room for
        (5, 128_256, 64),
        (8_192, 2**28, 1),
    ],
)
def test_logits_take_what_the_layers_of_a_pass_can_spare(states, vocabulary, at_once):
    assert choose_chunk(states, vocabulary) == at_once


def make_head(vocabulary, width, token_ids, dtype):
    weight = torch.randn(vocabulary, width).to(dtype)
    rows = torch.randn(len(token_ids), width)
    return TokenRows(weight, tuple(token_ids), rows.requires_grad_())


def plain_cross_entropy(hidden, targets, head, logit_scale=PLAIN):
    weight = head.weight.float()
    if head.token_ids:
        weight = weight.index_copy(
            0, torch.tensor(head.token_ids), head.rows.to(head.weight.dtype).float()
        )
    logits = logit_scale.apply(hidden.float() @ weight.T)
    return functional.cross_entropy(logits, targets, reduction="sum")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_equals_the_plain_head(data):
    vocabulary, width = data.draw(st.integers(2, 300)), data.draw(st.integers(1, 70))
    n = data.draw(st.integers(0, 90))
    token_ids = sorted(data.draw(st.sets(st.integers(0, vocabulary - 1), max_size=4)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    head = make_head(vocabulary, width, token_ids, dtype)
    hidden = (torch.randn(n, width) / width**0.5).to(dtype)
    targets = torch.randint(vocabulary, (n,))
    targets[: len(token_ids)] = torch.tensor(token_ids)[:n]  # few are drawn by chance
    factor = data.draw(st.sampled_from([1.0, 0.25, 3.7]))
    logit_scale = LogitScale(factor, data.draw(st.sampled_from([None, None, 0.7, 5.0])))
    ours = gradients(fused_cross_entropy, hidden, targets, head, logit_scale)
    theirs = gradients(plain_cross_entropy, hidden, targets, head, logit_scale)
    for got, expected in zip(ours, theirs, strict=True):
        assert_close(got, expected, dtype)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_chunks_equal_attention(dtype, data):
    n, width = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 80))
    vocabulary = data.draw(st.integers(2, 400))
    token_ids = sorted(data.draw(st.sets(st.integers(0, vocabulary - 1), max_size=4)))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    head = make_head(vocabulary, width, token_ids, dtype)
    head = head._replace(rows=head.rows.detach().to(dtype))
    states = (torch.randn(n, width) / width**0.5).to(dtype)
    targets = torch.randint(vocabulary, (n,))
    targets[: len(token_ids)] = torch.tensor(token_ids)[:n]
    by_attention = differentiate_by_attention(states, targets, head)
    by_chunks = differentiate_by_chunks(states, targets, head, size=7)
    for got, expected in zip(by_chunks, by_attention, strict=True):
        assert_close(got, expected, dtype)


def test_chunks_keep_the_small_gradient_of_a_certain_target():
    torch.manual_seed(0)
    weight = torch.randn(50, 16)
    states = 2.0 * weight[:20]  # the right token by far
    truth = differentiate_by_chunks(
        states.double(), torch.arange(20), TokenRows(weight.double(), (), weight[:0].double()), 7
    )
    head = TokenRows(weight.bfloat16(), (), weight[:0].bfloat16())
    rounded = differentiate_by_chunks(states.bfloat16(), torch.arange(20), head, 7)
    error = (rounded.of_hidden.double() - truth.of_hidden).norm(dim=1)
    assert (error < 0.2 * truth.of_hidden.norm(dim=1)).float().mean() > 0.9


def test_large_logits_do_not_overflow():
    head = TokenRows(torch.tensor([[300.0], [-300.0], [0.0]]), (), torch.empty(0, 1))
    hidden, targets = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0])
    assert fused_cross_entropy(hidden, targets, head).item() == 600.0


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_poison_shows_in_the_loss(poison):
    head = TokenRows(torch.randn(9, 4), (), torch.empty(0, 4))
    hidden = torch.randn(3, 4)
    hidden[1, 2] = poison
    assert not fused_cross_entropy(hidden, torch.tensor([0, 1, 2]), head).isfinite()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the memory from /proc")
def test_no_logits_stand_in_memory():
    """A head of 32 MiB and 2,048 states: their logits would take 512 MiB in bfloat16."""
    script = """
import re, torch
from pathlib import Path
from lit_sft.model.fast.cross_entropy import fused_cross_entropy
from lit_sft.model.fast.embedding import TokenRows

def step(states, vocabulary):
    weight = torch.empty(vocabulary, 128, dtype=torch.bfloat16).normal_()
    hidden = torch.randn(states, 128, requires_grad=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
    fused_cross_entropy(hidden, torch.arange(states), TokenRows(weight, (), weight[:0])).backward()
    after = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
    return (after - before) / 1024

step(64, 1024)  # what is allocated once
print(step(2048, 131072))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert 0 < float(done.stdout) < 60


def gradients(function, hidden, targets, head, logit_scale):
    hidden = hidden.clone().requires_grad_()
    head.rows.grad = None
    loss = 0.5 * function(hidden, targets, head, logit_scale)
    loss.backward()
    return (
        loss,
        hidden.grad,
        torch.zeros_like(head.rows) if head.rows.grad is None else head.rows.grad,
    )


def assert_close(got, expected, dtype):
    if expected.numel():
        error = (got.float() - expected.float()).abs().max()
        assert error <= TOLERANCE[dtype] * expected.float().abs().max().clamp(min=1)

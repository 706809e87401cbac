"""What a graph is given: a batch made up to a larger size, whose loss and gradient stay its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from lit_sft.data.batching import pack_batch
from lit_sft.model.fast.graphs import Size, fit, make_empty, write
from lit_sft.model.loss import decode, sum_cross_entropy
from lit_sft.types import IGNORE_INDEX, Example

LONGEST, TOKENS = 16, 64


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        return LlamaForCausalLM(config).double()


@st.composite
def rows(draw) -> list[Example]:
    lengths = draw(st.lists(st.integers(2, LONGEST), min_size=1, max_size=4))
    made = []
    for length in lengths:
        ids = draw(st.lists(st.integers(1, 49), min_size=length, max_size=length))
        learnt = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        labels = [i if yes else IGNORE_INDEX for i, yes in zip(ids, learnt, strict=True)]
        made.append(Example(ids, labels[:-1] + ids[-1:]))  # at least one carries loss
    return made


def loss_and_gradients(model, batch, size: Size | None):
    model.zero_grad()
    tokens = batch["input_ids"].shape[1]
    whole = batch if size is None else fit(batch, size, LONGEST)
    hidden = decode(model, whole)[:, :tokens]
    loss = sum_cross_entropy(hidden, model.lm_head, batch["labels"])
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


@settings(max_examples=50, deadline=None)
@given(rows())
def test_a_batch_made_up_to_a_size_has_its_own_loss_and_gradient(model, examples):
    batch = pack_batch(examples)
    loss, gradients = loss_and_gradients(model, batch, None)
    again, others = loss_and_gradients(model, batch, Size(TOKENS, 8))
    torch.testing.assert_close(again, loss, rtol=1e-6, atol=0)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(rows(), rows())
def test_nothing_is_left_of_the_batch_before(earlier, later):
    size = Size(TOKENS, 8)
    into = make_empty(size, LONGEST, torch.device("cpu"))
    write(pack_batch(earlier), into)
    write(pack_batch(later), into)
    fresh = fit(pack_batch(later), size, LONGEST)
    for name in ("input_ids", "position_ids", "cu_seq_lens"):
        assert torch.equal(into[name], fresh[name])


def test_a_batch_that_fills_its_size_has_empty_rows_behind_it():
    batch = pack_batch([Example([1] * LONGEST, [1] * LONGEST)] * 4)
    fitted = fit(batch, Size(TOKENS, 8), LONGEST)
    assert fitted["cu_seq_lens"].tolist() == [0, 16, 32, 48, 64, 64, 64, 64, 64]
    assert torch.equal(fitted["input_ids"], batch["input_ids"])


def test_rows_of_padding_are_no_longer_than_rows_may_be():
    empty = make_empty(Size(TOKENS, 8), LONGEST, torch.device("cpu"))
    assert empty["cu_seq_lens"].diff().max() == LONGEST
    assert empty["position_ids"].max() == LONGEST - 1

"""Rows laid end to end see themselves alone, and nothing can make them see each other silently."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lit_sft.data.batching import pack_batch, pad_batch
from lit_sft.model.fast.attention import attend_packed
from lit_sft.model.loss import sum_supervised_loss
from lit_sft.types import Example


def make_states(lengths, heads=4, kv_heads=2, dim=8):
    torch.manual_seed(0)
    total = sum(lengths)
    query = torch.randn(1, heads, total, dim)
    key, value = torch.randn(2, 1, kv_heads, total, dim)
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return query, key, value, ends


def test_each_row_attends_as_if_alone():
    lengths = [5, 1, 9]
    query, key, value, ends = make_states(lengths)
    mixed, weights = attend_packed(
        None, query, key, value, None, 0.3, cu_seq_lens_q=ends, max_length_q=9
    )
    assert weights is None
    start = 0
    for length in lengths:
        row = slice(start, start + length)
        alone = scaled_dot_product_attention(
            query[:, :, row], key[:, :, row].repeat_interleave(2, 1),
            value[:, :, row].repeat_interleave(2, 1), is_causal=True, scale=0.3,
        )  # fmt: skip
        torch.testing.assert_close(mixed[:, row], alone.transpose(1, 2))
        start += length


@pytest.mark.parametrize(
    "wrong",
    [
        {"cu_seq_lens_q": None},
        {"max_length_q": None},
        {"attention_mask": torch.ones(1, 1, 9, 9)},
        {"softcap": 30.0},
        {"s_aux": torch.zeros(4)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_would_be_ignored_is_refused(wrong):
    query, key, value, ends = make_states([4, 5])
    arguments = {"cu_seq_lens_q": ends, "max_length_q": 5, "attention_mask": None} | wrong
    with pytest.raises(RuntimeError, match="packed attention"):
        attend_packed(None, query, key, value, scaling=1.0, **arguments)


@pytest.mark.parametrize("window", [1, 3, 5, 9, 20])
def test_a_sliding_window_shows_itself_and_what_is_before_it(window):
    lengths = [5, 1, 9]
    query, key, value, ends = make_states(lengths)
    mixed, _ = attend_packed(
        None, query, key, value, None, 0.3, cu_seq_lens_q=ends, max_length_q=9,
        sliding_window=window,
    )  # fmt: skip
    row_of = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    back = torch.arange(15)[:, None] - torch.arange(15)
    seen = (row_of[:, None] == row_of) & (back >= 0) & (back < window)
    scores = query @ key.repeat_interleave(2, 1).mT * 0.3
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    expected = weights @ value.repeat_interleave(2, 1)
    torch.testing.assert_close(mixed, expected.transpose(1, 2))


def test_attention_dropout_leaves_the_mean_and_changes_each_draw():
    query, key, value, ends = make_states([6])
    arguments = {"attention_mask": None, "scaling": 0.3, "cu_seq_lens_q": ends, "max_length_q": 6}
    whole, _ = attend_packed(None, query, key, value, **arguments)
    drawn = [
        attend_packed(None, query, key, value, dropout=0.3, **arguments)[0] for _ in range(2000)
    ]
    assert not torch.equal(drawn[0], drawn[1])
    assert (torch.stack(drawn).mean(0) - whole).abs().max() < 0.1


def load_plain(base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()


def make_examples(count=5):
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 17, 1, 9, 30][:count]
    rows = [torch.randint(0, 200, (n,), generator=generator).tolist() for n in lengths]
    return [Example(row, row) for row in rows]


def test_packed_and_padded_rows_give_the_same_loss_and_gradients(tiny_base):
    """Every token supervised, so that a target across a boundary would show."""
    examples = make_examples()
    model = load_plain(tiny_base)
    outcomes = []
    for batch in (pad_batch(examples, 0), pack_batch(examples)):
        model.zero_grad()
        loss = sum_supervised_loss(model, batch)
        (loss / batch["num_supervised"]).backward()
        outcomes.append((loss, [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0], rtol=1e-6, atol=0)
    for ours, theirs in zip(outcomes[0][1], outcomes[1][1], strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm() + 1e-9


def test_a_row_is_blind_to_its_neighbours(tiny_base):
    """Changing one row changes no loss of another."""
    examples = make_examples()
    model = load_plain(tiny_base)
    alone = sum(sum_supervised_loss(model, pack_batch([example])) for example in examples)
    together = sum_supervised_loss(model, pack_batch(examples))
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)


def test_a_packed_model_cannot_be_run_without_boundaries(tiny_base):
    model = load_plain(tiny_base)
    sum_supervised_loss(model, pack_batch(make_examples()))
    with pytest.raises(RuntimeError, match="let rows see each other"):
        model(torch.zeros(1, 4, dtype=torch.int64))

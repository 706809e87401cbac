"""A row token by token: what is trained where, and what each token says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from lit_sft.data.control_tokens import plain_backend
from lit_sft.data.encode import encode_chat
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.inspect.row_report import count_lengths, decode_each, read_tokens
from lit_sft.model.loss import sum_cross_entropy
from lit_sft.types import IGNORE_INDEX, Example

TURNS = [
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "🙂?"},
    {"role": "assistant", "content": "é"},
]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return load_tokenizer(str(tiny_tokenizer))


@given(st.lists(st.booleans(), min_size=2, max_size=20))
def test_the_shift_is_that_of_the_loss(tokenizer, mask):
    """The gradient of the loss says which position learns, and towards which token."""
    ids = list(range(3, 3 + len(mask)))
    labels = [token if learnt else IGNORE_INDEX for token, learnt in zip(ids, mask, strict=True)]
    row = read_tokens(tokenizer, "train", "train row 0", Example(ids, labels))
    logits = torch.zeros(1, len(ids), 40, requires_grad=True)
    sum_cross_entropy(logits, torch.nn.Identity(), torch.tensor([labels])).backward()
    gradient = torch.zeros(len(ids), 40) if logits.grad is None else logits.grad[0]
    targets = [int(g.argmin()) if g.any() else IGNORE_INDEX for g in gradient]
    assert row.targets == targets
    learning = [i for i, target in enumerate(targets) if target != IGNORE_INDEX]
    assert [i for first, last in row.spans() for i in range(first, last + 1)] == learning
    assert [i - 1 for i, learnt in enumerate(row.supervised()) if learnt] == learning
    assert all(b[0] > a[1] + 1 for a, b in zip(row.spans(), row.spans()[1:], strict=False))


def test_what_the_assistant_says_is_what_is_marked(tokenizer):
    row = read_tokens(tokenizer, "train", "train row 0", encode_chat(tokenizer, TURNS))
    marked = [text for text, learnt in zip(row.texts, row.supervised(), strict=True) if learnt]
    assert "".join(marked) == "2<|eot_id|>é<|eot_id|>"
    assert len(row.spans()) == 2
    assert "".join(row.texts) == tokenizer.decode(row.input_ids)
    assert "🙂" in row.texts  # four tokens, and the text of all at the first


def test_a_forged_control_token_is_not_one(tokenizer):
    chat = [{"role": "user", "content": "<|eot_id|>"}, {"role": "assistant", "content": "no"}]
    row = read_tokens(tokenizer, "train", "train row 0", encode_chat(tokenizer, chat))
    written = [text for text, control in zip(row.texts, row.control, strict=True) if control]
    assert written.count("<|eot_id|>") == 2
    assert "".join(row.texts).count("<|eot_id|>") == 3


@given(st.text(min_size=1, max_size=30))
def test_the_texts_of_all_tokens_are_the_text(tokenizer, text):
    backend = plain_backend(tokenizer)
    ids = backend.encode(text, add_special_tokens=False).ids
    texts = decode_each(backend, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


def test_a_token_keeps_the_space_that_its_decoder_strips_at_the_start():
    backend = Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1}, unk_token="▁one"))
    backend.decoder = decoders.Metaspace()
    assert decode_each(backend, [0, 1, 1]) == ["one", " two", " two"]


@given(st.lists(st.integers(1, 100_000), min_size=1))
def test_every_row_is_in_one_bin(lengths):
    bins = count_lengths(lengths)
    assert len(bins) <= 12
    assert sum(x.rows for x in bins) == len(lengths)
    for found in bins:
        assert found.rows == sum(found.first <= length <= found.last for length in lengths)

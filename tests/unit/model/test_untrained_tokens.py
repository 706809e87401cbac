"""Which rows look untrained: the criterion on rows whose history is known."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError
from lit_sft.model.untrained_tokens import choose_tokens, find_untrained_rows

SPECIAL = [100, 101, 102, 103]


def make_embedding(seed: int) -> torch.Tensor:
    """Trained rows share a direction, as real ones do, but none is a copy of another."""
    torch.manual_seed(seed)
    return torch.randn(104, 64) + 1.5 * torch.randn(64)


@pytest.mark.parametrize("seed", range(5))
def test_trained_rows_pass(seed):
    assert find_untrained_rows(make_embedding(seed), SPECIAL, SPECIAL) == {}


@pytest.mark.parametrize("seed", range(5))
def test_faint_rows_and_copies_are_found_and_explained(seed):
    weight = make_embedding(seed)
    weight[100] = 1e-4 * torch.randn(64)
    weight[101] = weight[102] + 0.01 * torch.randn(64)
    found = find_untrained_rows(weight, [100, 101, 103], SPECIAL)
    assert set(found) == {100, 101}
    assert "norm" in found[100]
    assert "cosine" in found[101]


def test_rows_that_a_softmax_only_ever_pushed_away_are_found():
    """A tied model trained on text without its last four tokens, from random weights."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(0.02 * torch.randn(104, 32))
    mixer = torch.nn.Linear(32, 32)
    optimizer = torch.optim.AdamW([weight, *mixer.parameters()], lr=1e-2)
    words = torch.randperm(100)
    for _ in range(300):
        logits = mixer(weight[words]) @ weight.T
        optimizer.zero_grad()
        cross_entropy(logits, words.roll(1)).backward()
        optimizer.step()
    assert set(find_untrained_rows(weight.detach(), [0, 1, *SPECIAL], SPECIAL)) == set(SPECIAL)


def test_the_vocabulary_of_the_real_size_takes_a_moment():
    weight = torch.randn(128_256, 16)
    assert find_untrained_rows(weight, [128_000], [128_000, 128_001]) == {}


def test_named_tokens_are_taken_and_unknown_ones_named(tiny_base):
    tokenizer = load_tokenizer(str(tiny_base))
    weight = torch.randn(len(tokenizer), 8)
    eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert choose_tokens(["<|eot_id|>"], weight, tokenizer) == {eot: "asked for"}
    assert choose_tokens("none", weight, tokenizer) == {}
    with pytest.raises(InputError, match="not in the vocabulary: <oops>"):
        choose_tokens(["<oops>"], weight, tokenizer)

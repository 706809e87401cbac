"""Decoding with a cache of fixed size gives the tokens of a cache that grows."""

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from lit_sft.evaluation.decode import BLOCK, LENGTH_STEP, decode_batch
from lit_sft.evaluation.generate import Ending, generate_greedy
from lit_sft.evaluation.static_cache import UnfitModelError

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 96,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def make(kind, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config).eval()


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return make(LlamaForCausalLM, LlamaConfig(**SHAPE))


def decode(model, prompts, stop_ids, pad_id, max_new_tokens):
    ending = Ending(tuple(stop_ids), pad_id, max_new_tokens)
    return decode_batch(model, prompts, ending, use_graphs=False)


def draw_prompts(count: int, longest: int = 40) -> list[list[int]]:
    rng = random.Random(count)
    return [[rng.randrange(300) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("count", [1, 3, 40, 100])
@pytest.mark.parametrize("stops", [[], [7], list(range(40))], ids=["none", "one", "many"])
def test_the_tokens_are_those_of_a_cache_that_grows(llama, count, stops):
    prompts = draw_prompts(count)
    expected = generate_greedy(llama, prompts, stops, 0, 30, max_batch_tokens=10**6)
    answers = decode(llama, prompts, stops, 0, 30)
    assert answers == expected


@pytest.mark.parametrize("at_once", [1, 64, 200])
def test_prompts_that_are_read_some_at_a_time(llama, monkeypatch, at_once):
    monkeypatch.setattr("lit_sft.evaluation.decode.PREFILL_TOKENS", at_once)
    prompts = draw_prompts(40)
    expected = generate_greedy(llama, prompts, [7], 0, 30, max_batch_tokens=10**6)
    assert decode(llama, prompts, [7], 0, 30) == expected


def test_short_prompts_are_not_read_at_the_length_of_long_ones(llama, monkeypatch):
    monkeypatch.setattr("lit_sft.evaluation.decode.PREFILL_TOKENS", 100)
    prompts, read = [[5] * 100, *[[5] * 10] * 10], []
    hook = llama.get_input_embeddings().register_forward_hook(
        lambda module, ids, output: read.append(ids[0].numel())
    )
    decode(llama, prompts, [], 0, 1)
    hook.remove()
    assert read == [100, 100]


def test_answers_that_outgrow_the_first_graphs(llama):
    prompts, new = draw_prompts(2), LENGTH_STEP + 2 * BLOCK
    expected = generate_greedy(llama, prompts, [], 0, new, max_batch_tokens=10**6)
    answers = decode(llama, prompts, [], 0, new)
    assert [tokens for tokens, _ in answers] == [answer.token_ids for answer in expected]


@pytest.mark.parametrize("new", [1, 2, BLOCK, BLOCK + 1])
def test_no_answer_is_longer_than_it_may_be(llama, new):
    answers = decode(llama, draw_prompts(3), [], 0, new)
    assert [(len(tokens), stopped) for tokens, stopped in answers] == [(new, False)] * 3


def test_a_stop_on_the_last_allowed_token_counts(llama):
    (expected,) = generate_greedy(llama, [[5, 6]], [], 0, 4, max_batch_tokens=100)
    last = expected.token_ids[-1]
    first = expected.token_ids.index(last)
    answers = decode(llama, [[5, 6]], [last], 0, first + 1)
    assert answers == [(expected.token_ids[:first], True)]


def test_the_model_attends_as_before_afterwards(llama):
    own = llama.config._attn_implementation
    ids = torch.arange(6)[None]
    before = llama(ids).logits
    decode(llama, [[1, 2, 3]], [], 0, 4)
    assert llama.config._attn_implementation == own
    assert torch.equal(llama(ids).logits, before)


def test_a_model_that_sees_a_window_alone_is_refused():
    config = MistralConfig(**SHAPE, sliding_window=8)
    with pytest.raises(UnfitModelError):
        decode(make(MistralForCausalLM, config), [[1] * 20], [], 0, 4)


def test_logits_that_are_nan_are_told(llama):
    broken = make(LlamaForCausalLM, LlamaConfig(**SHAPE))
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="diverged"):
        decode(broken, [[1, 2]], [], 0, 4)
